"""The minimum of a linear loss g'f over filters of norm r, in closed form: sphere, f >= 0, softmax, sums of bumps.

What a filter is made of (a Gaussian about each cell, the nodes of a coarse grid) are the columns of S (cells, k), which
are nowhere negative; filters are f = S w with w >= 0, so that f >= 0 too: the part of the sphere that lies in a convex
cone. There a linear loss is least at r p / ||p||, p the projection of -g onto the cone, whose weights
`nonneg` finds. Nothing of that is trusted: the gap is bounded from p alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike

from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.filters import Grid, Smooth

from . import nonneg
from .certificate import CERTIFIED, Answer
from .secular import Matrix, Vector, length


def linear_on_sphere(g: ArrayLike, r: float, offset: float = 0.0) -> Answer:
    """Minimise offset + g'f over ||f|| = r: f = -r g / ||g||.

    Raises:
        SolverError: g (cells,) is zero, or not finite.
    """
    slope, size = _slope(g, r)
    f = -r * (slope / size)
    return _linear(slope, f, offset, size / r, -r * size, "The minimum of a linear loss on the sphere, in closed form.")


def linear_nonneg(g: ArrayLike, r: float, offset: float = 0.0) -> Answer:
    """Minimise offset + g'f over ||f|| = r, f >= 0: f = r p / ||p|| with p = max(-g, 0), or the cell of the least g.

    Where no cell lowers the loss, g'f >= min(g) ||f||_1 >= min(g) r.

    Raises:
        SolverError: g (cells,) is zero, or not finite.
    """
    slope, size = _slope(g, r)
    p = np.maximum(-slope, 0.0)
    if p.any():
        norm = length(p / size) * size
        reason = "The minimum of a linear loss with f >= 0, in closed form."
        return _linear(slope, r * (p / norm), offset, norm / r, -r * norm, reason, nonneg=True)
    best = int(np.argmin(slope))
    f = np.zeros(slope.size)
    f[best] = r
    reason = f"No cell lowers the loss: all of the filter is in cell {best}, which raises it least{_ties(slope)}."
    return _linear(slope, f, offset, -float(slope[best]) / r, r * float(slope[best]), reason, nonneg=True)


def linear_softmax(g: ArrayLike, total: float, offset: float = 0.0) -> Answer:
    """The infimum of offset + g'f over f = total softmax(w): all of it in the cell of the least g.

    Raises:
        SolverError: g (cells,) is zero, or not finite.
    """
    slope, _ = _slope(g, total)
    best = int(np.argmin(slope))
    f = np.zeros(slope.size)
    f[best] = total
    return Answer(
        filter=f,
        loss=offset + total * float(slope[best]),
        kind="global",
        multiplier=math.nan,
        residual=0.0,
        gap=0.0,
        reason=f"The infimum under softmax is one cell, {best}; no finite softmax weights attain it{_ties(slope)}.",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Cone:
    """What is known of S before any question.

    Attributes:
        bumps: S (cells, k), each column >= 0 and not 0.
        gram: S'S.
        least_sum: Of the sums of the columns.
    """

    bumps: Matrix
    gram: Matrix
    least_sum: float

    @classmethod
    def of(cls, bumps: ArrayLike) -> Cone:
        """From S.

        Raises:
            InputError: S is no such matrix.
        """
        s = np.asarray(bumps, np.float64)
        if s.ndim != 2 or not s.size or not np.isfinite(s).all() or s.min() < 0 or s.sum(0).min() <= 0:
            raise InputError(
                "A filter cannot be made of these bumps.", how="Give (cells, k), >= 0, no column of zeros."
            )
        return cls(s, s.T @ s, float(s.sum(0).min()))


@lru_cache(maxsize=4)
def cone_of(lift: Grid | Smooth) -> Cone:
    """The bumps whose sums are its filters, where no weight is negative."""
    count = math.prod(lift.shape)
    bumps = lift.values(torch.eye(count, dtype=torch.float64).reshape(count, *lift.shape))
    return Cone.of(bumps.reshape(count, -1).numpy().T)


def linear_in_cone(g: ArrayLike, cone: Cone, r: float, offset: float = 0.0) -> Answer:
    """Minimise offset + g'f over ||f|| = r, f = S w, w >= 0.

    Where no bump lowers the loss, it is one bump: g'Sw / ||Sw|| >= sum_j w_j g's_j / sum_j w_j ||s_j||, which is at
    least the least of g's_j / ||s_j||.

    Raises:
        SolverError: g (cells,) is zero, or not finite.
        InputError: g does not fit the cone, or r is not a positive number.
    """
    slope, size = _slope(g, r)
    if slope.size != len(cone.bumps):
        raise InputError(f"A slope of {slope.size} cells and bumps over {len(cone.bumps)}.", how="Give as many cells.")
    unit = slope / size
    pull = -(unit @ cone.bumps)
    if pull.max() <= 0:
        lengths = np.sqrt(cone.gram.diagonal())
        best = int(np.argmin(-pull / lengths))
        f = cone.bumps[:, best] * (r / lengths[best])
        reason = f"No bump lowers the loss: the filter is bump {best}, which raises it least."
        loss = float(slope @ f)
        mu = -loss / (r * r)
        return Answer(filter=f, loss=offset + loss, kind="global", multiplier=mu, residual=0, gap=0, reason=reason)
    p = cone.bumps @ nonneg.weights(cone.gram, pull)
    norm = length(p)
    f = p * (r / norm)
    # with e = -g/||g|| - p, -g'f/||g|| = p'f + e'f <= r ||p|| + sum_j w_j e's_j for every f = S w, and
    # sum_j w_j <= ||f||_1 / least_sum <= sqrt(cells) r / least_sum
    beyond = max(0.0, float((-(unit + p) @ cone.bumps).max()))
    least = -r * norm - math.sqrt(slope.size) * r / cone.least_sum * beyond
    value = float(unit @ f)
    gap = max(0.0, value - least)
    closed = gap <= CERTIFIED * r
    return Answer(
        filter=f,
        loss=offset + size * value,
        kind="global" if closed else "gap",
        multiplier=size * norm / r,
        residual=max(beyond, abs(float(p @ (unit + p)))),
        gap=size * gap,
        reason="The minimum of a linear loss over sums of bumps, in closed form."
        if closed
        else "The least of a linear loss over sums of bumps, as near as roundings allow.",
    )


def _slope(g: ArrayLike, r: float) -> tuple[Vector, float]:
    """g as float64 (cells,) and its norm."""
    check_radius(r)
    slope = np.asarray(g, np.float64)
    if slope.ndim != 1 or not slope.size:
        raise InputError(f"The slope has the shape {slope.shape}.", how="Give (cells,), one sample's slope.")
    square = float(slope @ slope)
    if 1e-250 < square < 1e250:  # nothing is missing, nothing is lost
        return slope, math.sqrt(square)
    if not np.isfinite(slope).all():
        raise SolverError(
            "The slope of the loss has NaN or infinite elements.",
            where=f"At {int((~np.isfinite(slope)).sum())} of {slope.size} cells.",
            how="Look for NaN or inf in the activations of this input.",
        )
    largest = float(np.abs(slope).max())
    if largest == 0:
        raise SolverError(
            "Every filter has the same loss: S2 does not depend on S1 here.",
            where="The slope is zero at every cell of this sample.",
            how="Choose another breakpoint, another output or another input.",
        )
    return slope, largest * length(slope / largest)


def check_radius(r: float) -> None:
    """Raises InputError: r is not a positive number."""
    if not (math.isfinite(r) and r > 0):
        raise InputError(f"A filter cannot have the norm {r}.", how="Give a positive radius.")


def _ties(slope: Vector) -> str:
    least = slope.min()
    count = int((slope <= least + 1e-12 * np.abs(slope).max()).sum())
    return f" (so do {count - 1} others: the first is taken)" if count > 1 else ""


def _linear(
    slope: Vector, f: Vector, offset: float, mu: float, least: float, reason: str, *, nonneg: bool = False
) -> Answer:
    scale = float(np.abs(slope).max())
    g = slope / scale
    s = g + mu / scale * f
    r = length(f)
    worst = length(s)
    if nonneg:
        worst = max(length(np.minimum(s, 0)), length(s[f > 0]), abs(float(f @ s)) / r)
    value = float(slope @ f)
    return Answer(
        filter=f,
        loss=offset + value,
        kind="global",
        multiplier=mu,
        residual=worst / length(g),
        gap=max(0.0, value - least),
        reason=reason,
    )
