"""The constraint sets as quasi-Newton sees them: coordinates, what of a gradient counts, and how to move.

A point is a vector of float64 for one sample (a few hundred numbers, for which numpy is quicker than torch), of which
`ConstraintSet.retract` makes the filter: on the two spheres a unit vector u = f / r, on the simplex the logits. The
words are those of Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix Manifolds" (Princeton, 2008), chapters
3, 4 and 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.filters import ConstraintSet

from .history import History

Vector = NDArray[np.float64]

_CONCENTRATED = 0.999
"""A cell that holds more than this part of a softmax's total is said to hold it all."""


class Surface(Protocol):
    """Where one sample searches.

    Attributes:
        first: The length of the first step; radians, or change of a logit.
        largest: What no step passes.
    """

    @property
    def first(self) -> float: ...
    @property
    def largest(self) -> float: ...

    def point_of(self, filter: Vector) -> Vector:
        """The point of a filter (cells,) of any length."""
        ...

    def drawn(self, normal: Vector) -> Vector:
        """The point of a draw from N(0, 1)."""
        ...

    def elsewhere(self, point: Vector, drawn: Vector) -> tuple[Vector, ...]:
        """Other points, near and far, by a draw from N(0, 1)."""
        ...

    def gradient(self, point: Vector, by_filter: Vector) -> Vector:
        """The tangent gradient by the coordinates, of that by the filter."""
        ...

    def reducible(self, point: Vector, gradient: Vector) -> Vector:
        """The part of the gradient against which the set lets one move; 0 at a stationary (KKT) point."""
        ...

    def direction(self, history: History, point: Vector, gradient: Vector) -> Vector:
        """Where quasi-Newton goes; downhill."""
        ...

    def length(self, direction: Vector) -> float:
        """That direction's length, in the units of `step_of`."""
        ...

    def step_of(self, length: float) -> float:
        """How far the whole of a direction of that length leads."""
        ...

    def move(self, point: Vector, along: Vector, step: float) -> tuple[Vector, Vector]:
        """The point `step` along a curve that starts `along` (of length 1), and the curve's velocity there."""
        ...

    def difference(self, old: Vector, new: Vector) -> Vector:
        """The step from `old`, as a tangent vector at `new`."""
        ...

    def transport(self, new: Vector, vectors: Vector) -> Vector:
        """Tangent `vectors` (..., cells) of another point as ones at `new`."""
        ...

    def ended(self, point: Vector) -> str:
        """Why there is no going on from here, a sentence, or nothing."""
        ...


def surface(constraint: ConstraintSet, cells: int, radius: float, *, first: float, largest: float) -> Surface:
    """The surface of a constraint set, for one sample; `first` and `largest` are angles in radians."""
    kinds = {"l2": GreatSphere, "l2-nonneg": Orthant}
    if constraint.name in kinds:
        return kinds[constraint.name](radius, first, largest)
    if constraint.name == "free":
        return Coordinates(first, largest)
    return Logits(radius * math.sqrt(cells))


@dataclass(frozen=True, slots=True)
class GreatSphere:
    """The unit sphere, along great circles; vectors are transported by projection (section 8.1.3)."""

    radius: float
    first: float
    largest: float

    def point_of(self, filter: Vector) -> Vector:
        """f / ||f||."""
        point: Vector = filter / np.linalg.norm(filter)
        return point

    def drawn(self, normal: Vector) -> Vector:
        """Spread evenly over the sphere."""
        return self.point_of(normal)

    def elsewhere(self, point: Vector, drawn: Vector) -> tuple[Vector, ...]:
        """`first` away towards the draw, and the draw; of a filter of one cell, whose sphere is u and -u: -u."""
        towards = _tangent(point, drawn)
        size = float(np.linalg.norm(towards))
        if size < 1e-12:
            return (-point,)
        near = point * math.cos(self.first) + towards * (math.sin(self.first) / size)
        return near, self.drawn(drawn)

    def gradient(self, point: Vector, by_filter: Vector) -> Vector:
        """By u = f / r, projected."""
        return _tangent(point, self.radius * by_filter)

    def reducible(self, point: Vector, gradient: Vector) -> Vector:
        """All of it."""
        return gradient

    def direction(self, history: History, point: Vector, gradient: Vector) -> Vector:
        """-H g."""
        return history.direction(gradient)

    def length(self, direction: Vector) -> float:
        """Euclidean."""
        return float(np.linalg.norm(direction))

    def step_of(self, length: float) -> float:
        """The angle whose tangent it is: the point (u + d) / ||u + d||."""
        return math.atan(length)

    def move(self, point: Vector, along: Vector, step: float) -> tuple[Vector, Vector]:
        """U cos(a) + e sin(a)."""
        there = point * math.cos(step) + along * math.sin(step)
        there /= np.linalg.norm(there)
        return there, along * math.cos(step) - point * math.sin(step)

    def difference(self, old: Vector, new: Vector) -> Vector:
        """tan(a) e, projected: u' is along u + tan(a) e, whose projection is 0."""
        return -_tangent(new, old)

    def transport(self, new: Vector, vectors: Vector) -> Vector:
        """By projection."""
        moved: Vector = vectors - np.multiply.outer(vectors @ new, new)
        return moved

    def ended(self, point: Vector) -> str:
        """Never."""
        return ""


@dataclass(frozen=True, slots=True)
class Orthant(GreatSphere):
    """Its part u >= 0: two-metric projection (Bertsekas, SIAM J. Control Optim. 20(2), 1982).

    Cells at 0 that the gradient would push below are held; L-BFGS goes over the others, cells at 0 that would rise
    among them; where the path (u + t e) leaves the orthant it is projected back, so that many cells may reach 0 in one
    step. A cell just above 0 that falls is moved by its own gradient alone: coupled to the others it would spoil the
    descent that they promise.
    """

    def point_of(self, filter: Vector) -> Vector:
        """max(f, 0) / ||max(f, 0)||; the uniform point where no cell is positive."""
        positive = np.maximum(filter, 0)
        return GreatSphere.point_of(self, positive if positive.any() else np.ones_like(filter))

    def drawn(self, normal: Vector) -> Vector:
        """Spread evenly over this part of the sphere."""
        return GreatSphere.point_of(self, np.abs(normal))

    def elsewhere(self, point: Vector, drawn: Vector) -> tuple[Vector, ...]:
        """`first` away towards the draw, and the draw, both folded into the orthant."""
        return tuple(self.drawn(other) for other in GreatSphere.elsewhere(self, point, drawn))

    def reducible(self, point: Vector, gradient: Vector) -> Vector:
        """Without the cells at 0 that would fall."""
        return np.where((point > 0) | (gradient < 0), gradient, 0.0)

    def direction(self, history: History, point: Vector, gradient: Vector) -> Vector:
        """-H g over the free cells, the falling ones near 0 by themselves; tangent."""
        falling = gradient > 0
        near = falling & (point < _NEAR / math.sqrt(len(point)))
        steepest = self.reducible(point, gradient)
        d = history.direction(gradient, ~near)
        d[near] = -np.minimum(history.scale * gradient[near], _REACH * point[near])
        d[(point == 0) & (d < 0)] = 0
        d = _tangent(point, d)
        if float(d @ gradient) < -1e-6 * float(np.linalg.norm(d) * np.linalg.norm(steepest)):
            return d
        history.clear()
        return -_tangent(point, steepest)

    def move(self, point: Vector, along: Vector, step: float) -> tuple[Vector, Vector]:
        """The projected path v = max(u + tan(a) e, 0), u' = v / ||v||, which has <u, u + t e> = 1 and so no zero."""
        v = point + math.tan(step) * along
        inside = v > 0
        v[~inside] = 0
        size = float(np.linalg.norm(v))
        there: Vector = v / size
        velocity = np.where(inside, along, 0.0) / (math.cos(step) ** 2 * size)
        return there, _tangent(there, velocity) if step else velocity


_NEAR = 0.02
"""A cell is near 0 below this part of the uniform filter's value."""

_REACH = 20.0
"""A whole step moves a cell near 0 by at most so many times its value: what is cut off is promised and not kept."""


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits w of f = s p, p = softmax(w): Euclidean, steps measured by the logit that moves most.

    The gradient by a logit carries its cell's p and vanishes with it, so that a cell that has lost would not come back:
    L-BFGS starts from 1 / (p + 1 / cells), a damped inverse of the Fisher information of p (Amari, "Natural gradient
    works efficiently in learning", Neural Computation 10(2), 1998).
    """

    total: float
    first: float = 1.0
    largest: float = 4.0

    def point_of(self, filter: Vector) -> Vector:
        """log f, about its mean; cells that are not positive are taken for very small."""
        w = np.log(np.maximum(filter, 1e-9 * max(float(filter.max()), 1e-300)))
        point: Vector = w - w.mean()
        return point

    def drawn(self, normal: Vector) -> Vector:
        """The draw itself."""
        return normal.copy()

    def elsewhere(self, point: Vector, drawn: Vector) -> tuple[Vector, ...]:
        """The draw added, and three times the draw."""
        return point + drawn, 3 * drawn

    def gradient(self, point: Vector, by_filter: Vector) -> Vector:
        """By the chain rule, s p (g - <p, g>)."""
        p = _softmax(point)
        found: Vector = self.total * p * (by_filter - float(p @ by_filter))
        return found

    def reducible(self, point: Vector, gradient: Vector) -> Vector:
        """All of it."""
        return gradient

    def direction(self, history: History, point: Vector, gradient: Vector) -> Vector:
        """-H g, H from the damped Fisher information."""
        p = _softmax(point)
        metric = 1 / (p + 1 / len(p))
        return history.direction(gradient, metric=metric / metric.mean())

    def length(self, direction: Vector) -> float:
        """The largest change of a logit."""
        return float(np.abs(direction).max())

    def step_of(self, length: float) -> float:
        """The same."""
        return length

    def move(self, point: Vector, along: Vector, step: float) -> tuple[Vector, Vector]:
        """Straight on."""
        return point + step * along, along

    def difference(self, old: Vector, new: Vector) -> Vector:
        """New - old."""
        return new - old

    def transport(self, new: Vector, vectors: Vector) -> Vector:
        """Nothing to do."""
        return vectors

    def ended(self, point: Vector) -> str:
        """Where the map has concentrated: the infimum may be at one cell alone, which no logits attain."""
        most = float(_softmax(point).max())
        if most <= _CONCENTRATED or len(point) == 1:
            return ""
        return (
            f"The map has concentrated: its largest cell holds {most:.5f} of the total. Where the infimum is at that "
            "cell alone it is not attained."
        )


@dataclass(frozen=True, slots=True)
class Coordinates(Logits):
    """Free coordinates: Euclidean, without a metric of their own; no step moves one by more than `largest`."""

    total: float = field(init=False, default=0.0)
    first: float
    largest: float

    def point_of(self, filter: Vector) -> Vector:
        """The coordinates themselves."""
        return filter.copy()

    def drawn(self, normal: Vector) -> Vector:
        """Half the draw."""
        return normal / 2

    def elsewhere(self, point: Vector, drawn: Vector) -> tuple[Vector, ...]:
        """A tenth and half of the draw away."""
        return point + drawn / 10, point + drawn / 2

    def gradient(self, point: Vector, by_filter: Vector) -> Vector:
        """As it is."""
        return by_filter

    def direction(self, history: History, point: Vector, gradient: Vector) -> Vector:
        """-H g."""
        return history.direction(gradient)

    def ended(self, point: Vector) -> str:
        """Never."""
        return ""


def _softmax(w: Vector) -> Vector:
    e = np.exp(w - w.max())
    p: Vector = e / e.sum()
    return p


def _tangent(u: Vector, v: Vector) -> Vector:
    """The part of `v` tangent to the unit sphere at `u`, both (cells,)."""
    projected: Vector = v - u * (float(u @ v) / float(u @ u))
    return projected
