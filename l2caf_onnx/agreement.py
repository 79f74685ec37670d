"""Agreement in value: of torch with onnxruntime, of a cut with the whole, of one level of optimisation with another.

|d| <= rtol * max|y| over y's finite elements; NaN must meet NaN, an infinity the same one; integers, shapes and types
are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Parity

RTOL = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}

_name: Callable[[np.dtype[Any]], str] = cache(str)  # numpy takes its time to spell a type

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Difference:
    tensor: str
    max_abs: float
    max_rel: float
    worst_index: tuple[int, ...] | None
    rtol: float
    ok: bool
    finding: str = ""

    @property
    def severity(self) -> tuple[bool, bool, float]:
        return not self.ok, bool(self.finding), self.max_rel / self.rtol if self.rtol else self.max_rel


def compare(reference: Arrays, computed: Arrays, *, half: bool = False, provider: str, level: str) -> Parity:
    """Values only: `computed` (torch) against `reference` (onnxruntime), tensor by tensor; the worst is reported.

    Args:
        reference: What onnxruntime returned.
        computed: What torch returned, under the same names.
        half: Whether float16 arithmetic is inside, so that its tolerance holds for float32 outputs too.
        provider: Of the reference.
        level: Of the reference.
    """
    found = [_difference(name, value, computed[name], half=half) for name, value in reference.items()]
    worst = max(found, key=lambda d: d.severity)
    return Parity(
        tensor=worst.tensor,
        max_abs=worst.max_abs,
        max_rel=worst.max_rel,
        worst_index=worst.worst_index,
        rtol=worst.rtol,
        atol=0.0,
        ok=all(d.ok for d in found),
        provider=provider,
        level=level,
        findings=tuple(d.finding for d in found if d.finding),
    )


def _difference(name: str, y: NDArray[Any], z: NDArray[Any], *, half: bool) -> _Difference:
    kind = _name(y.dtype)
    rtol = max(RTOL.get(kind, 0.0), RTOL["float16"] if half and kind in RTOL else 0.0)
    if y.shape != z.shape or y.dtype != z.dtype:
        finding = f"{name!r} has type {z.dtype} and shape {z.shape} in torch, {y.dtype} and {y.shape} in onnxruntime."
        return _Difference(name, np.inf, np.inf, None, rtol, False, finding)
    if y.size == 0:
        return _Difference(name, 0.0, 0.0, None, rtol, True)
    if kind not in RTOL:
        unequal = np.asarray(y != z)
        at = _position(int(np.argmax(unequal)), y.shape)
        largest = (
            float(np.max(np.abs(y.astype(np.float64) - z.astype(np.float64))))
            if y.dtype.kind in "biu"
            else float(unequal.any())
        )
        return _Difference(name, largest, float(unequal.mean()), at, 0.0, not unequal.any())
    a, b = y.astype(np.float64), z.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    place = int(apart.argmax())
    if math.isfinite(largest := float(apart.flat[place])):  # argmax finds NaN first: there is none, nor an inf
        return _judged(name, _position(place, y.shape), largest, float(np.abs(a).max()), rtol)
    finite = np.isfinite(a)
    special = ~finite & ~((np.isnan(a) & np.isnan(b)) | (a == b)) | (finite & ~np.isfinite(b))
    if special.any():
        at = _position(int(np.argmax(special)), y.shape)
        finding = f"{name!r} at {at}: {b[at]} in torch, {a[at]} in onnxruntime."
        return _Difference(name, np.inf, np.inf, at, rtol, False, finding)
    d = np.where(finite, apart, 0.0)
    at = _position(int(np.argmax(d)), y.shape)
    scale = float(np.abs(a[finite]).max()) if finite.any() else 0.0
    return _judged(name, at, float(d[at]), scale, rtol)


def _judged(name: str, at: tuple[int, ...], largest: float, scale: float, rtol: float) -> _Difference:
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else np.inf)
    return _Difference(name, largest, relative, at, rtol, relative <= rtol)


def _position(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))
