"""How far to go along a curve: steps that satisfy Wolfe's conditions, with few evaluations.

Every trial gives the loss and its slope, so steps are found by interpolating both.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .surfaces import Surface

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Value:
    """What the tail gave at a point: the loss, and its tangent gradient by the point's coordinates (cells,)."""

    loss: float
    gradient: Vector

    @property
    def finite(self) -> bool:
        """Whether a step can be judged by it."""
        return math.isfinite(self.loss) and bool(np.isfinite(self.gradient).all())


@dataclass(frozen=True, slots=True)
class Trial:
    """A point tried at a `step` along a curve, and the loss's derivative by the step there."""

    step: float
    point: Vector
    value: Value
    slope: float


LineSearch = Generator[Vector, Value, Trial | None]
"""Yields points to evaluate, is sent their values, returns the point to go to, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wolfe:
    """A search for the weak conditions, which can be met across the kinks of a tail.

    Attributes:
        decrease: Part of the slope's promise that a step must keep (Armijo's condition, c1).
        curvature: Part of the slope that a step may leave (Wolfe's condition, c2).
        max_trials: Steps tried along one direction.
        rounding: Differences of the loss below this part of it are taken for rounding errors.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 10
    rounding: float = 1e-6

    def search(self, on: Surface, start: Vector, value: Value, along: Vector, step: float) -> LineSearch:
        """Search the curve that leaves `start` along `along` for a step that satisfies Wolfe's conditions.

        `step` is tried first. The conditions are the weak ones (Nocedal & Wright, equation 3.6) or, where losses differ
        by rounding errors only, those that Hager & Zhang put on the slopes instead (SIAM J. Optim. 16(1), 2005,
        equation 4.1).
        """
        rounding = self.rounding * abs(value.loss)
        low = Trial(0.0, start, value, float(value.gradient @ along))
        descent = low.slope
        high: Trial | None = None
        for _ in range(self.max_trials):
            point, velocity = on.move(start, along, step)
            found = yield point
            trial = Trial(step, point, found, float(found.gradient @ velocity))
            lower = found.loss <= value.loss + self.decrease * step * descent
            level = found.loss <= value.loss + rounding and trial.slope <= (2 * self.decrease - 1) * descent
            if not (found.finite and (lower or level)):
                high = trial
            elif trial.slope >= self.curvature * descent or step >= on.largest:
                return trial
            else:
                low = trial
            step = min(_beyond(low, descent), on.largest) if high is None else _between(low, high, rounding)
        return low if low.step > 0 else None


def _beyond(low: Trial, descent: float) -> float:
    """A step beyond `low`, where the loss still falls: where the slopes, taken for a line, reach 0, within bounds."""
    bend = low.slope - descent
    zero = low.step * (1 - low.slope / bend) if bend > 0 else math.inf
    return min(max(zero, 1.5 * low.step), 4 * low.step)


def _between(low: Trial, high: Trial, rounding: float) -> float:
    """A step between: the minimum of the cubic through both losses and slopes (Nocedal & Wright, equation 3.59).

    Where the losses cannot be told apart it is that of the parabola through the slopes. It keeps a tenth of the bracket
    away from both ends, and near `low` where the loss at `high` is not finite.
    """
    width = high.step - low.step
    if not high.value.finite:
        return low.step + width / 4
    change = high.value.loss - low.value.loss
    part = 0.5
    if abs(change) <= 10 * rounding and high.slope > 0:
        part = low.slope / (low.slope - high.slope)
    else:
        d1 = low.slope + high.slope - 3 * change / width
        square = d1 * d1 - low.slope * high.slope
        if square >= 0:
            d2 = math.sqrt(square)
            below = high.slope - low.slope + 2 * d2
            part = 1 - (high.slope + d2 - d1) / below if below else part
    return low.step + width * min(max(part, 0.1), 0.9)
