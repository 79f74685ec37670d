"""The error of each tensor of a candidate: its own, and what it inherits.

The own (local) error is that of what the candidate's nodes make of the *reference's* tensors: every tensor that has a
counterpart is fed, and made anew from what is fed. A fault shows where it is, and not behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.records import Aligned, Change

from .feeding import MOST, as_candidate, as_reference, remade
from .probe import Arrays, Probe, Real
from .thresholds import bundled

_LARGEST_BATCH = 16
_LEAST = 1e-3  # of the samples' size, which a sample is held against at least

Errors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Relative errors ||c - r|| / ||r||, a row for each pair, a column for each sample.

    Attributes:
        local: What the candidate makes of the reference's tensors.
        inherited: What it makes in its own run.
    """

    local: Errors
    inherited: Errors


def measured(
    reference: Probe,
    candidate: Probe,
    pairs: Sequence[Aligned],
    pieces: Iterable[tuple[list[int], Arrays, Arrays]],
    *,
    told: Callable[[int], None] | None = None,
) -> Measured:
    """The errors of all pairs on all samples, batch by batch.

    Args:
        reference: The one model.
        candidate: The other.
        pairs: What is compared.
        pieces: (numbers, feeds of the reference, feeds of the candidate) as `Both.pieces` gives them.
        told: Called with the number of samples done.
    """
    local: list[Errors] = []
    inherited: list[Errors] = []
    for numbers, feeds, candidate_feeds in pieces:
        count = len(numbers)
        ours = reference.values(feeds, [p.reference for p in pairs])
        theirs = candidate.values(candidate_feeds, [p.candidate for p in pairs])
        shapes = {p.candidate: theirs[p.candidate].shape for p in pairs}
        inherited.append(errors_of(reference, pairs, ours, theirs, count))
        del theirs
        fed = {p.candidate: as_candidate(p, ours[p.reference], shapes[p.candidate]) for p in pairs}
        local.append(errors_of(reference, pairs, ours, remade(candidate, fed, candidate_feeds), count))
        if told is not None:
            told(count)
    return Measured(np.concatenate(local, axis=1), np.concatenate(inherited, axis=1))


def at_once(values: Mapping[str, Real], samples: int) -> int:
    """Samples whose tensors, thrice, take no more than a few times `MOST`."""
    each = sum(v.nbytes for v in values.values()) / max(samples, 1)
    return int(min(max(2 * MOST // max(each, 1), 1), _LARGEST_BATCH))


def errors_of(
    reference: Probe, pairs: Sequence[Aligned], ours: Mapping[str, Real], theirs: Mapping[str, Real], count: int
) -> Errors:
    """Relative errors of what the candidate made, a row for each pair, a column for each sample."""
    rows = []
    for pair in pairs:
        own = ours[pair.reference]
        both = (own, as_reference(pair, theirs[pair.candidate], own.shape))
        one, other = (reference.by_sample(pair.reference, v, count) for v in both)
        rows.append(relative(one, other, count))
    return np.stack(rows) if rows else np.zeros((0, count))


def relative(reference: Real, other: Real, count: int) -> Errors:
    """||other - reference|| / ||reference|| of each of `count` samples, (count,).

    A tensor whose first axis is not of that length has one error for all. A sample whose reference is all but 0
    beside the others is held against a thousandth of their size. Where the reference is 0 throughout, the error is 0 or
    infinite; where the other has NaN or infinity and the reference has not, it is infinite.
    """
    rows = count if reference.ndim and reference.shape[0] == count else 1
    a, b = reference.reshape(rows, -1), other.reshape(rows, -1)
    with np.errstate(all="ignore"):
        off, size = (_lengths(v) for v in (np.subtract(b, a, dtype=np.float64), a.astype(np.float64)))
        if not (np.isfinite(off).all() and np.isfinite(size).all()):
            return _with_infinities(a.astype(np.float64), b.astype(np.float64), count)
        size = np.maximum(size, _LEAST * np.sqrt(np.mean(size**2)))
        found = np.where(off == 0, 0.0, off / size)
    return np.broadcast_to(np.where(np.isfinite(found), found, np.inf), (count,)).copy()


def _lengths(rows: Errors) -> Errors:
    squares: Errors = np.einsum("ij,ij->i", rows, rows)
    return np.sqrt(squares)


def _with_infinities(a: Errors, b: Errors, count: int) -> Errors:
    """`relative` of rows that hold some: where only the other's is not finite, the error is infinite."""
    usual = np.isfinite(a)
    with np.errstate(all="ignore"):
        apart = np.where(usual, b - a, 0.0)
        broken = ~np.isfinite(apart).all(axis=1)
        size = _lengths(np.where(usual, a, 0.0))
        size = np.maximum(size, _LEAST * np.sqrt(np.mean(size**2)))
        off = _lengths(np.where(np.isfinite(apart), apart, 0.0))
        found = np.where(off == 0, 0.0, off / size)
    found = np.where(broken | ~np.isfinite(found), np.inf, found)
    return np.broadcast_to(found, (count,)).copy()


def typical(errors: Errors, change: Change) -> float:
    """Of the samples' errors the one that is judged: the worst, or the worst but for the share that the class allows.

    A good int8 model clips what lies beyond the range that it was calibrated for, so that single inputs tell nothing of
    it; a scale that is wrong tells on most.
    """
    if not errors.size:
        return 0.0
    line = bundled(change).get("tensor.local")
    beyond = int(errors.size * line.share) if line is not None else 0
    return float(np.sort(errors)[::-1][beyond])
