"""Every measure by which two tensors are compared, in one table: formula, source, and which direction is worse.

r is the reference's tensor of one input, c the candidate's, d = c - r; sums are over the elements of that input. A
measure gives NaN where it says nothing of an input (no class scores, a constant map). Where one of them holds NaN or an
infinity and the other a number, every measure is as bad as can be: no number describes that, so none hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.records import Subject

Values = NDArray[np.float64]
Function = Callable[[Values, Values], Values]

TOP = 5  # classes of the top-k agreement
CELLS = 0.2  # of a map: the share of its cells whose overlap IoU looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measure.

    Attributes:
        name: As thresholds and reports call it.
        subjects: What it is used on.
        formula: In plain signs.
        source: Where it is defined.
        above: Whether larger is worse.
        perfect: Its value where c = r.
        function: ((N, M), (N, M)) -> (N,); of maps M counts the cells.
        maps: Whether `function` wants the maps as they are, (N, *spatial).
    """

    name: str
    subjects: tuple[Subject, ...]
    formula: str
    source: str
    above: bool
    perfect: float
    function: Function
    maps: bool = False

    def __call__(self, reference: NDArray[np.generic], candidate: NDArray[np.generic]) -> Values:
        """(N,): the measure for each input of two arrays (N, ...) of one shape."""
        r, c = (np.asarray(a, np.float64) for a in (reference, candidate))
        flat_r, flat_c = _flat(r), _flat(c)
        broken = (np.isfinite(flat_c) != np.isfinite(flat_r)).any(1)
        with np.errstate(all="ignore"):
            if not np.isfinite(flat_r).all() or not np.isfinite(flat_c).all():
                same = ~np.isfinite(flat_r) & ~np.isfinite(flat_c)  # what both overflow in is no difference
                flat_r, flat_c = np.where(same, 0.0, flat_r), np.where(same, 0.0, flat_c)
            given = (flat_r.reshape(r.shape), flat_c.reshape(c.shape)) if self.maps else (flat_r, flat_c)
            found = self.function(*given)
        return np.asarray(np.where(broken, np.inf if self.above else -np.inf, found))


def _flat(values: Values) -> Values:
    return values.reshape(len(values), -1)


# Outputs and tensors


def max_abs(r: Values, c: Values) -> Values:
    """max |d|."""
    return np.asarray(np.abs(c - r).max(1, initial=0.0))


def max_rel(r: Values, c: Values) -> Values:
    """max |d| / max |r|; 0 where both are 0."""
    return _over(max_abs(r, c), np.abs(r).max(1, initial=0.0))


def error(r: Values, c: Values) -> Values:
    """||d|| / ||r||; 0 where both are 0."""
    return _over(np.linalg.norm(c - r, axis=1), np.linalg.norm(r, axis=1))


def cosine(r: Values, c: Values) -> Values:
    """sum r c / (||r|| ||c||); 1 where both are 0, 0 where one of them is."""
    sizes = np.linalg.norm(r, axis=1), np.linalg.norm(c, axis=1)
    product = (r * c).sum(1) / (sizes[0] * sizes[1])
    both, one = (sizes[0] == 0) & (sizes[1] == 0), (sizes[0] == 0) | (sizes[1] == 0)
    return np.asarray(np.where(both, 1.0, np.where(one, 0.0, np.clip(product, -1.0, 1.0))))


def snr(r: Values, c: Values) -> Values:
    """10 log10(sum r^2 / sum d^2), in dB; infinite where d = 0."""
    return np.asarray(10 * np.log10(_ratio((r**2).sum(1), ((c - r) ** 2).sum(1))))


def psnr(r: Values, c: Values) -> Values:
    """10 log10((max r - min r)^2 / mean d^2), in dB; infinite where d = 0."""
    return np.asarray(10 * np.log10(_ratio(np.ptp(r, axis=1) ** 2, ((c - r) ** 2).mean(1))))


def top1(r: Values, c: Values) -> Values:
    """1 where the largest element is at the same place, else 0; NaN of fewer than two elements."""
    if r.shape[1] < 2:
        return np.full(len(r), np.nan)
    return np.asarray(r.argmax(1) == c.argmax(1), np.float64)


def top5(r: Values, c: Values) -> Values:
    """The share of the places of the five largest of r that are among those of c; NaN of fewer than six elements."""
    if r.shape[1] <= TOP:
        return np.full(len(r), np.nan)
    ours, theirs = (np.argpartition(-v, TOP, axis=1)[:, :TOP] for v in (r, c))
    return np.asarray((ours[:, :, None] == theirs[:, None, :]).any(2).mean(1))


def kl(r: Values, c: Values) -> Values:
    """sum p log(p / q), in nats; p is r where it is a distribution, else softmax(r), and q likewise of c."""
    if r.shape[1] < 2:
        return np.full(len(r), np.nan)
    distributions = _is_distribution(r)
    p, q = (_log_of(r), _log_of(c)) if distributions else (_log_softmax(r), _log_softmax(c))
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(1), 0.0))


def differs(r: Values, c: Values) -> Values:
    """The share of elements that differ at all."""
    return (r != c).mean(1) if r.shape[1] else np.zeros(len(r))


# Maps


def pearson(r: Values, c: Values) -> Values:
    """The correlation of the cells; NaN where a map is constant."""
    r, c = (v - v.mean(1, keepdims=True) for v in (r, c))
    sizes = np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1)
    return np.where(sizes > 0, np.clip((r * c).sum(1) / np.where(sizes > 0, sizes, 1), -1, 1), np.nan)


def spearman(r: Values, c: Values) -> Values:
    """The correlation of the cells' ranks, equal cells sharing the mean of theirs; NaN where a map is constant."""
    return pearson(_ranks(r), _ranks(c))


def iou(r: Values, c: Values) -> Values:
    """|A and B| / |A or B| of the 20% of cells that are largest in r and in c."""
    count = max(1, round(CELLS * r.shape[1]))
    ours, theirs = (_largest(v, count) for v in (r, c))
    return np.asarray((ours & theirs).sum(1) / (ours | theirs).sum(1))


def jensen_shannon(r: Values, c: Values) -> Values:
    """(KL(p, m) + KL(q, m)) / 2 in bits, m = (p + q) / 2, of the maps' positive parts as distributions; in [0, 1].

    NaN where a map has no positive part.
    """
    p, q = (np.maximum(v, 0) for v in (r, c))
    sums = p.sum(1), q.sum(1)
    p, q = (v / np.where(s > 0, s, 1)[:, None] for v, s in zip((p, q), sums, strict=True))
    m = (p + q) / 2
    parts = [np.where(v > 0, v * np.log2(np.where(v > 0, v, 1) / np.where(m > 0, m, 1)), 0).sum(1) for v in (p, q)]
    found = np.clip((parts[0] + parts[1]) / 2, 0, 1)
    return np.where((sums[0] > 0) & (sums[1] > 0), found, np.nan)


def peak_shift(r: Values, c: Values) -> Values:
    """The distance between the largest cells of both, in cells (Euclidean)."""
    places = [np.stack(np.unravel_index(_flat(v).argmax(1), v.shape[1:])) for v in (r, c)]
    return np.asarray(np.sqrt(((places[0] - places[1]) ** 2.0).sum(0)))


def _over(above: Values, below: Values) -> Values:
    return np.where(above == 0, 0.0, above / below)


def _ratio(signal: Values, noise: Values) -> Values:
    return np.where(noise == 0, np.inf, signal / np.where(noise == 0, 1.0, noise))


def _is_distribution(values: Values) -> bool:
    finite = values[np.isfinite(values).all(1)]
    return bool(len(finite)) and bool((finite >= 0).all()) and bool(np.abs(finite.sum(1) - 1).max() < 1e-3)


def _log_of(values: Values) -> Values:
    found: Values = np.log(np.maximum(values, 1e-12))
    return found


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(1, keepdims=True)
    found: Values = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def _largest(values: Values, count: int) -> NDArray[np.bool_]:
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, np.argsort(-values, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen


def _ranks(values: Values) -> Values:
    """Of each row the ranks, ties at their mean."""
    found = np.empty(values.shape)
    for row, own in zip(values, found, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        own[:] = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
    return found


_NUMERIC: tuple[Subject, ...] = ("output", "tensor")
_ALL: tuple[Subject, ...] = ("output", "attention", "tensor")
_BOOK = "definition"

TABLE: tuple[Metric, ...] = (
    Metric(name="max_abs", subjects=_NUMERIC, formula="max |d|", source=_BOOK, above=True, perfect=0.0,
           function=max_abs),
    Metric(name="max_rel", subjects=_NUMERIC, formula="max |d| / max |r|", source=_BOOK, above=True, perfect=0.0,
           function=max_rel),
    Metric(name="error", subjects=_NUMERIC, formula="||d|| / ||r||", source=_BOOK, above=True, perfect=0.0,
           function=error),
    Metric(name="cosine", subjects=_ALL, formula="sum r c / (||r|| ||c||)", source=_BOOK, above=False, perfect=1.0,
           function=cosine),
    Metric(name="snr", subjects=_NUMERIC, formula="10 log10(sum r^2 / sum d^2) dB",
           source="IEC 60027-3 (levels in decibels)", above=False, perfect=np.inf, function=snr),
    Metric(name="psnr", subjects=("output",), formula="10 log10((max r - min r)^2 / mean d^2) dB",
           source="ITU-T J.247", above=False, perfect=np.inf, function=psnr),
    Metric(name="top1", subjects=("output",), formula="1 if argmax r = argmax c", source=_BOOK, above=False,
           perfect=1.0, function=top1),
    Metric(name="top5", subjects=("output",), formula="|top5(r) and top5(c)| / 5", source=_BOOK, above=False,
           perfect=1.0, function=top5),
    Metric(name="kl", subjects=("output",), formula="sum p log(p / q), p = softmax(r)",
           source="Kullback and Leibler, Ann. Math. Stat. 22 (1951)", above=True, perfect=0.0, function=kl),
    Metric(name="local", subjects=("tensor",), formula="||d|| / ||r||, c made of the reference's tensors",
           source="ONNX Runtime's debugging of quantised models (qdq_loss_debug), for every node", above=True,
           perfect=0.0, function=error),
    Metric(name="inherited", subjects=("tensor",), formula="||d|| / ||r||, c of the candidate's own run", source=_BOOK,
           above=True, perfect=0.0, function=error),
    Metric(name="differs", subjects=("output",), formula="share of elements with d != 0", source=_BOOK, above=True,
           perfect=0.0, function=differs),
    Metric(name="pearson", subjects=("attention",), formula="correlation of cells",
           source="Pearson, Proc. R. Soc. 58 (1895)", above=False, perfect=1.0, function=pearson),
    Metric(name="spearman", subjects=("attention",), formula="correlation of the ranks of cells",
           source="Spearman, Am. J. Psychol. 15 (1904); ties at their mean", above=False, perfect=1.0,
           function=spearman),
    Metric(name="iou", subjects=("attention",), formula="|A and B| / |A or B| of the 20% largest cells",
           source="Jaccard, Bull. Soc. Vaud. Sci. Nat. 37 (1901)", above=False, perfect=1.0, function=iou),
    Metric(name="jensen_shannon", subjects=("attention",),
           formula="(KL(p, m) + KL(q, m)) / 2 bits, m = (p + q) / 2, p = max(r, 0) / sum",
           source="Lin, IEEE Trans. Inf. Theory 37 (1991)", above=True, perfect=0.0, function=jensen_shannon),
    Metric(name="peak_shift", subjects=("attention",), formula="distance of the largest cells, in cells",
           source=_BOOK, above=True, perfect=0.0, function=peak_shift, maps=True),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {m.name: m for m in TABLE}
"""Every metric by its name."""


def metrics_of(subject: Subject) -> tuple[Metric, ...]:
    """Those that are used on a subject, in the order of the table."""
    return tuple(m for m in TABLE if subject in m.subjects)
