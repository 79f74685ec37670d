"""Which tensor of the candidate does the work of which tensor of the reference.

Names are evidence, not proof: a name may be reused for something else, and a re-export, a fusion or a quantiser gives
new ones. So each tensor has a fingerprint, its values at a few seeded places on the same inputs, in each order of axes
in which a layout may have been turned; pairs are taken best first by the correlation of fingerprints (up to scale),
with something on top for the same name, the same operator and the same depth, which decide where tensors are copies of
one another or a fault has spoilt the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError, TensorNotFoundError
from l2caf_onnx.records import Aligned

from .probe import Arrays, Probe, Real

PLACES = 2048  # of a fingerprint
_NAME, _OPERATOR, _DEPTH = 0.3, 0.05, 0.2  # what the same name and operator add, and a whole depth of distance takes
_CLOSE, _TIE = 0.98, 0.1  # where some tensor correlates so well, names and operators add only this part of that
_CLEAR, _AHEAD = 0.6, 0.08  # and nothing for one that is so far behind a tensor that correlates clearly
_LEAST = 0.5  # correlation of a pair that names do not vouch for
_VOUCHED = -0.2  # of one of the same name and operator: a fault may turn it about, what is unrelated is near 0
_STRANGER = 0.9  # where the reused name's tensor has a like so close elsewhere, that is its pair
ORDERS = (None, (0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1))
"""Of the candidate's axes, to be the reference's: as they are, NHWC as NCHW, NCHW as NHWC, tokens or time turned."""

Order = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class _Print:
    name: str
    order: Order
    values: NDArray[np.float64]  # as they are
    unit: NDArray[np.float64]  # centred, of length 1


def align(
    reference: Probe, candidate: Probe, feeds: Arrays, candidate_feeds: Arrays, given: Mapping[str, str] | None = None
) -> tuple[Aligned, ...]:
    """The pairs, in the reference's topological order; graph inputs are not among them.

    Args:
        reference: The one model.
        candidate: The other.
        feeds: A few samples for the reference, as many as both take at once.
        candidate_feeds: The same samples for the candidate.
        given: Pairs {reference: candidate} that the user knows; they win.

    Raises:
        TensorNotFoundError: a name in `given` that its model has not.
        InputError: two given pairs share a tensor, or the tensors of one differ in size.
    """
    pairs = dict(given or {})
    _check(reference, candidate, pairs)
    ours = reference.values(feeds, reference.names)
    theirs = candidate.values(candidate_feeds, candidate.names)
    found: dict[str, Aligned] = {}
    for name, other in pairs.items():
        if ours[name].size != theirs[other].size:
            raise InputError(
                f"{name!r} has the shape {ours[name].shape}, {other!r} {theirs[other].shape}.",
                where="The alignment that was given.",
                how="Name two tensors of the same content.",
            )
        found[name] = _best_order(name, other, ours[name], theirs[other])
    taken = set(pairs.values())
    for name, sheet, correlation in _ranked(reference, candidate, ours, theirs):
        if name in found or sheet.name in taken:
            continue
        how = "name" if name == sheet.name else "activations" if correlation >= _LEAST else "position"
        found[name] = Aligned(
            reference=name, candidate=sheet.name, how=how, order=sheet.order,
            scale=_scale(_print(name, None, ours[name]), sheet), confidence=max(correlation, 0.0),
        )  # fmt: skip
        taken.add(sheet.name)
    return tuple(found[name] for name in reference.names if name in found)


def reordered(values: Real, order: Order, shape: tuple[int, ...] | None = None) -> Real:
    """The candidate's values with their axes in the reference's order, and in its shape where that is given."""
    turned = values if order is None else values.transpose(order)
    return turned if shape is None or turned.shape == shape else turned.reshape(shape)


def turned_back(values: Real, order: Order, shape: tuple[int, ...]) -> Real:
    """The reference's values as the candidate has them, in its `shape`."""
    if order is None:
        return values.reshape(shape)
    turned = tuple(shape[k] for k in order)
    return values.reshape(turned).transpose(np.argsort(order).tolist())


def _check(reference: Probe, candidate: Probe, pairs: Mapping[str, str]) -> None:
    for probe, names in ((reference, pairs.keys()), (candidate, pairs.values())):
        for name in names:
            if name not in probe.names:
                raise TensorNotFoundError(
                    name, probe.names, where=f"Model {probe.model.name!r}, the alignment that was given."
                )
    if len(set(pairs.values())) < len(pairs):
        raise InputError("Two tensors were aligned with the same one.", how="Give each its own.")


def _forms(values: Real) -> Iterator[Order]:
    """The orders of axes that a tensor of that rank may be seen in."""
    yield from (o for o in ORDERS if o is None or (len(o) == values.ndim and prod(values.shape[1:]) > 1))


def _print(name: str, order: Order, values: Real) -> _Print:
    flat = reordered(values, order).reshape(-1)
    places = np.random.default_rng(flat.size).integers(0, max(flat.size, 1), min(PLACES, flat.size))
    taken = np.nan_to_num(flat[places].astype(np.float64), posinf=0.0, neginf=0.0)
    centred = taken - taken.mean() if taken.size else taken
    length = float(np.linalg.norm(centred))
    return _Print(name, order, taken, centred / length if length > 0 else centred)


def _ranked(
    reference: Probe, candidate: Probe, ours: Mapping[str, Real], theirs: Mapping[str, Real]
) -> list[tuple[str, _Print, float]]:
    """(reference's tensor, candidate's print, correlation) of all pairs that may be one, best first."""
    sizes: dict[int, list[str]] = {}
    for name, values in ours.items():
        sizes.setdefault(values.size, []).append(name)
    sheets: dict[int, list[_Print]] = {}
    for name, values in theirs.items():
        if values.size in sizes:
            sheets.setdefault(values.size, []).extend(_print(name, o, values) for o in _forms(values))
    found: list[tuple[float, int, str, _Print, float]] = []
    for size, names in sizes.items():
        if size not in sheets:
            continue
        forms = sheets[size]
        units = np.stack([_print(n, None, ours[n]).unit for n in names])
        table = units @ np.stack([f.unit for f in forms]).T
        for row, name in zip(table, names, strict=True):
            best = float(row.max())
            for correlation, form in zip(row.tolist(), forms, strict=True):
                same_name = name == form.name
                same_op = reference.model.op_of(name) == candidate.model.op_of(form.name)
                own_name_elsewhere = form.name in ours and not same_name
                if correlation < (_VOUCHED if same_name and same_op and form.order is None else _LEAST):
                    continue
                if own_name_elsewhere and correlation < _STRANGER:
                    continue
                apart = abs(reference.depth[name] - candidate.depth[form.name])
                behind = best >= _CLEAR and correlation < best - _AHEAD
                part = 0.0 if behind else _TIE if best >= _CLOSE else 1.0
                score = correlation + part * (_NAME * same_name + _OPERATOR * same_op) - _DEPTH * apart
                score -= 0.01 * (form.order is not None)  # of a tensor with one row or column both orders are the same
                found.append((-score, len(found), name, form, correlation))
    return [(name, form, correlation) for _, _, name, form, correlation in sorted(found, key=lambda f: f[:2])]


def _best_order(name: str, other: str, ours: Real, theirs: Real) -> Aligned:
    own = _print(name, None, ours)
    forms = [_print(other, o, theirs) for o in _forms(theirs)]
    best = max(forms, key=lambda f: float(own.unit @ f.unit))
    return Aligned(
        reference=name, candidate=other, how="given", order=best.order, scale=_scale(own, best),
        confidence=max(float(own.unit @ best.unit), 0.0),
    )  # fmt: skip


def _scale(own: _Print, other: _Print) -> float:
    """What the other's values are multiplied by; 1 where that is within a tenth, which rounding and faults explain."""
    square = float(other.values @ other.values)
    found = float(own.values @ other.values) / square if square > 0 else 1.0
    return 1.0 if abs(found - 1) < 0.1 or found <= 0 else found
