"""Riemannian L-BFGS on the sphere: the solver for tails that are not affine, where every evaluation counts.

Limited-memory BFGS (Nocedal & Wright, "Numerical Optimization", 2nd edition, algorithm 7.4) with gradients, steps and
history in the tangent space of the point where it stands (Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix
Manifolds", 2008, chapters 4 and 8; Huang, Gallivan & Absil, SIAM J. Optim. 25(3), 2015).

Every sample is a search of its own, a generator that yields the point it wants evaluated; one evaluation of the tail
serves the next point of each sample that is still searching, and of no other. So steps, history and end of one sample
never touch another's, and a batch costs what its samples cost. Points are unit vectors u = f / r in float64
(a few hundred numbers, for which numpy is quicker than torch), gradients are those by u; only the tail sees r u, in its
own type.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx.filters import Sphere

from .solution import LossFunction, Solution, evaluate, refuse_unusable_start

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Value:
    """What the tail gave at a point u: the loss, and its gradient by u projected to u's tangent space (cells,)."""

    loss: float
    gradient: Vector

    @property
    def finite(self) -> bool:
        """Whether a step can be judged by it."""
        return math.isfinite(self.loss) and bool(np.isfinite(self.gradient).all())


@dataclass(frozen=True, slots=True)
class Trial:
    """A point tried at `angle` radians along a great circle, and the loss's derivative by the angle there."""

    angle: float
    point: Vector
    value: Value
    slope: float


Search = Generator[Vector, Value, str]
"""Yields points to evaluate, is sent their values, returns the sentence why it stopped."""

LineSearch = Generator[Vector, Value, Trial | None]
"""The same, but returns the point to go to, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lbfgs:
    """Riemannian L-BFGS from the uniform filter, that keeps the best filter evaluated.

    Attributes:
        memory: Pairs (step, change of gradient) that are kept.
        max_evaluations: Of a sample, with gradient.
        first_angle: Radians that the first step turns the filter by.
        largest_angle: Radians that no step passes.
        gradient_tolerance: See `converged`.
        loss_tolerance: See `converged`.
        patience: See `converged`.
        decrease: Part of the slope's promise that a step must keep (Armijo's condition, c1).
        curvature: Part of the slope that a step may leave (Wolfe's condition, c2).
        max_trials: Steps tried along one direction.
        rounding: Differences of the loss below this part of it are taken for rounding errors.
    """

    memory: int = 15
    max_evaluations: int = 200
    first_angle: float = 0.3
    largest_angle: float = 1.2
    gradient_tolerance: float = 1e-4
    loss_tolerance: float = 3e-5
    patience: int = 3
    decrease: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 10
    rounding: float = 1e-6

    name = "lbfgs"

    def minimise(
        self,
        fn: LossFunction,
        sphere: Sphere,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator,
        start: torch.Tensor | None = None,
    ) -> Solution:
        """See `Solver.minimise`. `evaluations` counts every point tried, those of line searches too.

        It starts from `start` (N, *spatial), if that is given, else from the uniform filter. The generator is
        drawn from always, but used only where the start is stationary: the same draw for every sample, so that
        an answer does not hang on the batch.
        """
        samples, cells = shape[0], math.prod(shape[1:])
        given = torch.ones(shape) if start is None else start.detach()
        starts = given.double().cpu().numpy().reshape(samples, cells)
        starts = starts / np.linalg.norm(starts, axis=1, keepdims=True)
        drawn = sphere.normal((1, *shape[1:]), generator).double().cpu().numpy().reshape(cells)
        drawn /= np.linalg.norm(drawn)
        searches = [BestSoFar(_descend(self, u, _elsewhere(u, drawn, self.first_angle))) for u in starts]
        radii = sphere.radii(samples).double().cpu().numpy()
        while running := [i for i, search in enumerate(searches) if search.running]:
            numbers = torch.tensor(running)
            part = sphere.take(numbers)
            losses, gradients = evaluate(fn, _filters(part, shape, [searches[i].point for i in running]), numbers)
            if not searches[0].evaluations:
                refuse_unusable_start(losses)
            by_filter = gradients.double().cpu().numpy().reshape(len(running), cells)
            for i, loss, gradient in zip(running, losses.tolist(), by_filter, strict=True):
                search = searches[i]
                search.tell(Value(loss, _tangent(search.point, radii[i] * gradient)))
                if search.running and search.evaluations >= self.max_evaluations:
                    search.end(f"The limit of {self.max_evaluations} evaluations was reached before it settled.")
        return Solution(
            filter=_filters(sphere, shape, [search.best_point for search in searches]),
            loss=torch.tensor([search.best_loss for search in searches], dtype=losses.dtype, device=losses.device),
            evaluations=torch.tensor([search.evaluations for search in searches]),
            stop_reason=tuple(search.reason for search in searches),
        )


def converged(settings: Lbfgs, losses: Sequence[float], gradient: Vector) -> str | None:
    """Why a search that went through `losses`, to a point with the tangent `gradient`, has arrived; None: it has not.

    The scale of a loss is the larger of its size and of what the search has gained, so that neither a minimum of 0 nor
    a loss that starts at 0 is chased for ever. It has arrived where

    1. the gradient by u, that is r times the one by the filter, is at most `gradient_tolerance` of the scale: no turn
       by a small angle can change the loss by more than that angle times this; or
    2. the last `patience` steps together lowered the loss by at most `loss_tolerance` of the scale.
    """
    scale = max(abs(losses[-1]), losses[0] - losses[-1])
    steepness = float(np.linalg.norm(gradient))
    if steepness <= settings.gradient_tolerance * scale:
        return (
            f"It converged: the gradient along the sphere, {steepness:.1e}, is at most "
            f"{settings.gradient_tolerance:g} of the loss's scale {scale:.3g}."
        )
    if (
        len(losses) > settings.patience
        and losses[-1 - settings.patience] - losses[-1] <= settings.loss_tolerance * scale
    ):
        return (
            f"It settled: the last {settings.patience} steps lowered the loss by less than "
            f"{settings.loss_tolerance:g} of its scale {scale:.3g}."
        )
    return None


@dataclass(slots=True)
class BestSoFar:
    """A search in progress, and the best point that it has evaluated; a wrapper, so that no search has to keep it."""

    search: Search
    point: Vector = field(init=False)
    best_point: Vector = field(init=False)
    best_loss: float = math.inf
    evaluations: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        """Start the search: `point` is the first that it wants evaluated."""
        self.point = self.best_point = next(self.search)

    @property
    def running(self) -> bool:
        """Whether `point` is to be evaluated."""
        return not self.reason

    def tell(self, value: Value) -> None:
        """Send the search the value at `point`; sets the next `point`, or the `reason` why it stopped."""
        self.evaluations += 1
        if math.isfinite(value.loss) and value.loss < self.best_loss:
            self.best_point, self.best_loss = self.point, value.loss
        try:
            self.point = self.search.send(value)
        except StopIteration as stop:
            self.end(stop.value)

    def end(self, reason: str) -> None:
        """Stop, and rest at the best point."""
        self.search.close()
        self.point, self.reason = self.best_point, reason


def _descend(settings: Lbfgs, start: Vector, elsewhere: Sequence[Vector]) -> Search:
    """Search from `start`; where that is stationary (a saddle, dead), from the first point `elsewhere` that is not."""
    point = start
    value = yield point
    if not value.finite or converged(settings, [value.loss], value.gradient):
        for point in elsewhere:
            value = yield point
            if value.finite and not converged(settings, [value.loss], value.gradient):
                break
        else:
            return (
                f"The gradient at the uniform filter and at {len(elsewhere)} others is negligible (here "
                f"{float(np.linalg.norm(value.gradient)):.1e}): the loss hardly responds to the filter there."
            )
    losses = [value.loss]
    history = _History(settings.memory)
    angle = settings.first_angle
    while not (reason := converged(settings, losses, value.gradient)):
        direction = history.direction(value.gradient)
        size = float(np.linalg.norm(direction))
        along = direction / size
        if history.pairs:
            angle = min(math.atan(size), settings.largest_angle)
        trial = yield from _line_search(settings, point, value, along, angle)
        if trial is not None:
            history.move(trial, along, value.gradient)
            point, value, angle = trial.point, trial.value, trial.angle
            losses.append(value.loss)
        elif history.pairs:
            history.pairs.clear()  # the curvature that it remembers may be that of the other side of a kink
        else:
            return f"No step downhill, of {settings.max_trials}, lowered the loss by more than its rounding error."
    return reason


def _line_search(settings: Lbfgs, u: Vector, value: Value, along: Vector, angle: float) -> LineSearch:
    """Search the great circle u cos(a) + e sin(a), e = `along`, for a step that satisfies Wolfe's conditions.

    With t = tan(a) this is the retraction (u + t e) / ||u + t e||; `angle` is tried first. The conditions are the weak
    ones (Nocedal & Wright, equation 3.6), which can be met across the kinks of a tail, or, where losses differ by
    rounding errors only, those that Hager & Zhang put on the slopes instead (SIAM J. Optim. 16(1), 2005, equation 4.1).
    """
    rounding = settings.rounding * abs(value.loss)
    low = Trial(0.0, u, value, float(value.gradient @ along))
    descent = low.slope
    high: Trial | None = None
    for _ in range(settings.max_trials):
        point = u * math.cos(angle) + along * math.sin(angle)
        point /= np.linalg.norm(point)
        found = yield point
        slope = float(found.gradient @ (along * math.cos(angle) - u * math.sin(angle)))
        trial = Trial(angle, point, found, slope)
        lower = found.loss <= value.loss + settings.decrease * angle * descent
        level = found.loss <= value.loss + rounding and slope <= (2 * settings.decrease - 1) * descent
        if not (found.finite and (lower or level)):
            high = trial
        elif slope >= settings.curvature * descent or angle >= settings.largest_angle:
            return trial
        else:
            low = trial
        angle = min(_beyond(low, descent), settings.largest_angle) if high is None else _between(low, high, rounding)
    return low if low.angle > 0 else None


def _beyond(low: Trial, descent: float) -> float:
    """An angle beyond `low`, where the loss still falls: where the slopes, taken for a line, reach 0, within bounds."""
    bend = low.slope - descent
    zero = low.angle * (1 - low.slope / bend) if bend > 0 else math.inf
    return min(max(zero, 1.5 * low.angle), 4 * low.angle)


def _between(low: Trial, high: Trial, rounding: float) -> float:
    """An angle between: the minimum of the cubic through both losses and slopes (Nocedal & Wright, equation 3.59).

    Where the losses cannot be told apart it is that of the parabola through the slopes. It keeps a tenth of the bracket
    away from both ends, and near `low` where the loss at `high` is not finite.
    """
    width = high.angle - low.angle
    if not high.value.finite:
        return low.angle + width / 4
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
    return low.angle + width * min(max(part, 0.1), 0.9)


@dataclass(slots=True)
class _History:
    """The last `memory` pairs (s, y), oldest first: steps and the changes of the gradient that they made.

    All are tangent at the point where the search stands, to which projection transports them (Absil, Mahony &
    Sepulchre, section 8.1.3).
    """

    memory: int
    pairs: list[tuple[Vector, Vector]] = field(default_factory=list)

    def direction(self, gradient: Vector) -> Vector:
        """-H g by the two-loop recursion (Nocedal & Wright, algorithm 7.4); where that does not fall, -g."""
        q = gradient.copy()
        weights = []
        for s, y in reversed(self.pairs):
            weights.append(float(s @ q) / float(s @ y))
            q -= weights[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q *= float(s @ y) / float(y @ y)
        for (s, y), weight in zip(self.pairs, reversed(weights), strict=True):
            q += (weight - float(y @ q) / float(s @ y)) * s
        if float(q @ gradient) > 1e-6 * float(np.linalg.norm(q) * np.linalg.norm(gradient)):
            return -q
        self.pairs.clear()
        return -gradient

    def move(self, trial: Trial, along: Vector, gradient: Vector) -> None:
        """Remember the step `along` to `trial` from a point with that `gradient`; transport the others to it."""
        u = trial.point
        step = _tangent(u, math.tan(trial.angle) * along), trial.value.gradient - _tangent(u, gradient)
        pairs = [(_tangent(u, s), _tangent(u, y)) for s, y in self.pairs] + [step]
        # A pair without positive curvature would make H indefinite; transport can take it from an old pair.
        curved = [(s, y) for s, y in pairs if s @ y > 1e-8 * np.linalg.norm(s) * np.linalg.norm(y)]
        self.pairs = curved[-self.memory :]


def _tangent(u: Vector, v: Vector) -> Vector:
    """The part of `v` tangent to the unit sphere at `u`, both (cells,)."""
    projected: Vector = v - u * (float(u @ v) / float(u @ u))
    return projected


def _elsewhere(u: Vector, drawn: Vector, angle: float) -> tuple[Vector, ...]:
    """Two other points of the unit sphere: `angle` away from `u` towards `drawn`, and `drawn`."""
    towards = _tangent(u, drawn)
    size = float(np.linalg.norm(towards))
    if size < 1e-12:  # a filter of one cell: its sphere is the two points u and -u
        return (-u,)
    return u * math.cos(angle) + towards * (math.sin(angle) / size), drawn


def _filters(sphere: Sphere, shape: tuple[int, ...], points: Sequence[Vector]) -> torch.Tensor:
    """The filters (k, *spatial) at k unit vectors."""
    w = torch.tensor(np.stack(points), dtype=sphere.dtype, device=sphere.device)
    return sphere.retract(w.reshape(len(points), *shape[1:]))
