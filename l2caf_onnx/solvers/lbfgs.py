"""L-BFGS on the constraint set: the solver for tails that are not affine, where every evaluation counts.

Limited-memory BFGS (Nocedal & Wright, "Numerical Optimization", 2nd edition, section 7.2) with gradients, steps and
history in the tangent space of the point where it stands (Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix
Manifolds", 2008, chapters 4 and 8; Huang, Gallivan & Absil, SIAM J. Optim. 25(3), 2015). What that means on each
constraint set is in surfaces.py.

Every sample is a search of its own, a generator that yields the point it wants evaluated; one evaluation of the tail
serves the next point of each sample that is still searching, and of no other. So steps, history and end of one sample
never touch another's, and a batch costs what its samples cost.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx.filters import ConstraintSet

from .history import History
from .linesearch import Value, Wolfe
from .solution import LossFunction, Solution, evaluate, refuse_unusable_start
from .surfaces import Surface, surface

Vector = NDArray[np.float64]


Search = Generator[Vector, Value, str]
"""Yields points to evaluate, is sent their values, returns the sentence why it stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lbfgs:
    """L-BFGS from the uniform filter, that keeps the best filter evaluated.

    Attributes:
        memory: Pairs (step, change of gradient) that are kept.
        max_evaluations: Of a search, with gradient.
        restarts: So many further searches, from seeded random points one after the other; the best is kept.
        first_angle: Radians that the first step turns the filter by (on the simplex a logit changes by 1).
        largest_angle: Radians that no step passes (on the simplex 4).
        gradient_tolerance: See `converged`.
        loss_tolerance: See `converged`.
        patience: See `converged`.
        line_search: What a step must fulfil.
    """

    memory: int = 15
    max_evaluations: int = 200
    restarts: int = 0
    first_angle: float = 0.3
    largest_angle: float = 1.2
    gradient_tolerance: float = 1e-4
    loss_tolerance: float = 1e-3
    patience: int = 3
    line_search: Wolfe = field(default_factory=Wolfe)

    name = "lbfgs"

    def minimise(
        self,
        fn: LossFunction,
        constraint: ConstraintSet,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator,
        start: torch.Tensor | None = None,
        restarts: int | None = None,
    ) -> Solution:
        """See `Solver.minimise`. `evaluations` counts every point tried, those of line searches and restarts too.

        It starts from the filters `start` (N, *spatial), if that is given, else from the uniform filter. The generator
        is drawn from always, but used only where the start is stationary, and by `restarts` (None: as the record has
        it): the same draws for every sample, so that an answer does not hang on the batch.
        """
        samples, cells = shape[0], math.prod(shape[1:])
        given = torch.ones(shape) if start is None else start.detach()
        again = self.restarts if restarts is None else restarts
        draws = [constraint.normal((1, *shape[1:]), generator).double().cpu().numpy() for _ in range(1 + again)]
        drawn = [draw.reshape(cells) for draw in draws]
        searches = [
            _Sample(
                self, surface(constraint, cells, radius, first=self.first_angle, largest=self.largest_angle), f, drawn
            )
            for radius, f in zip(
                constraint.radii(samples).tolist(), given.double().cpu().numpy().reshape(samples, cells), strict=True
            )
        ]
        first = True
        while running := [i for i, search in enumerate(searches) if search.running]:
            numbers = torch.tensor(running)
            points = [searches[i].point for i in running]
            losses, gradients = evaluate(fn, _filters(constraint.take(numbers), shape, points), numbers)
            if first:
                refuse_unusable_start(losses)
            first = False
            by_filter = gradients.double().cpu().numpy().reshape(len(running), cells)
            for i, loss, gradient in zip(running, losses.tolist(), by_filter, strict=True):
                searches[i].tell(loss, gradient)
        best = [search.best for search in searches]
        return Solution(
            filter=_filters(constraint, shape, [one.best_point for one in best]),
            loss=torch.tensor([one.best_loss for one in best], dtype=losses.dtype, device=losses.device),
            evaluations=torch.tensor([search.evaluations for search in searches]),
            stop_reason=tuple(search.reason for search in searches),
        )


def converged(settings: Lbfgs, losses: Sequence[float], gradient: Vector) -> str | None:
    """Why a search that went through `losses`, to a point with that gradient, has arrived; None: it has not.

    `gradient` is the part that can be followed within the set. It has arrived where

    1. the gradient by u, that is r times the one by the filter, is at most `gradient_tolerance` of the scale, which is
       the larger of the loss's size and of what the search has gained, so that neither a minimum of 0 nor a loss that
       starts at 0 is chased for ever: no turn by a small angle can change the loss by more than that angle times this;
    2. the last `patience` steps together lowered the loss by at most `loss_tolerance` of all that the search has
       gained: what is still to come is then commonly less than five times that, but for plateaus, which no test of
       this kind sees through; or by no more than roundings of the loss.
    """
    gained = losses[0] - losses[-1]
    scale = max(abs(losses[-1]), gained)
    steepness = float(np.linalg.norm(gradient))
    if steepness <= settings.gradient_tolerance * scale:
        return (
            f"It converged: the gradient along the constraint set, {steepness:.1e}, is at most "
            f"{settings.gradient_tolerance:g} of the loss's scale {scale:.3g}."
        )
    if len(losses) > settings.patience:
        lately = losses[-1 - settings.patience] - losses[-1]
        if lately <= settings.loss_tolerance * gained or lately <= settings.line_search.rounding * scale:
            return (
                f"It settled: the last {settings.patience} steps gained {lately:.1e}, at most "
                f"{settings.loss_tolerance:g} of the {gained:.3g} gained in all."
                if lately <= settings.loss_tolerance * gained
                else f"It settled: the last {settings.patience} steps gained {lately:.1e}, no more than roundings of "
                f"the loss's scale {scale:.3g}."
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


class _Sample:
    """The searches of one sample, one after the other, and the best of them."""

    def __init__(self, settings: Lbfgs, on: Surface, filter: Vector, drawn: Sequence[Vector]) -> None:
        self.settings, self.on = settings, on
        starts = [on.point_of(filter), *(on.drawn(normal) for normal in drawn[1:])]
        self.waiting = [BestSoFar(_descend(settings, on, u, on.elsewhere(u, drawn[0]))) for u in starts]
        self.finished: list[BestSoFar] = []

    @property
    def running(self) -> bool:
        """Whether `point` is to be evaluated."""
        return bool(self.waiting)

    @property
    def point(self) -> Vector:
        """What the search in progress wants evaluated."""
        return self.waiting[0].point

    def tell(self, loss: float, by_filter: Vector) -> None:
        """The value at `point`."""
        search, limit = self.waiting[0], self.settings.max_evaluations
        search.tell(Value(loss, self.on.gradient(search.point, by_filter)))
        if search.running and search.evaluations >= limit:
            search.end(f"The limit of {limit} evaluations was reached before it settled.")
        if not search.running:
            self.finished.append(self.waiting.pop(0))

    @property
    def best(self) -> BestSoFar:
        """The first of those with the least loss."""
        return min(self.finished, key=lambda search: search.best_loss)

    @property
    def evaluations(self) -> int:
        """Of all."""
        return sum(search.evaluations for search in self.finished)

    @property
    def reason(self) -> str:
        """Why the best stopped, and which it was."""
        count = len(self.finished)
        if count == 1:
            return self.best.reason
        return f"{self.best.reason} It is the best of {count} starts, number {self.finished.index(self.best) + 1}."


def _descend(settings: Lbfgs, on: Surface, start: Vector, elsewhere: Sequence[Vector]) -> Search:
    """Search from `start`; where that is stationary (a saddle, dead), from the first point `elsewhere` that is not."""

    def arrived(losses: Sequence[float], point: Vector, value: Value) -> str | None:
        return converged(settings, losses, on.reducible(point, value.gradient))

    point = start
    value = yield point
    if not value.finite or arrived([value.loss], point, value):
        for point in elsewhere:
            value = yield point
            if value.finite and not arrived([value.loss], point, value):
                break
        else:
            return (
                f"The gradient at the start and at {len(elsewhere)} other filters is negligible (here "
                f"{float(np.linalg.norm(value.gradient)):.1e}): the loss hardly responds to the filter there."
            )
    losses = [value.loss]
    history = History(settings.memory, len(point))
    step = on.first
    while not (reason := on.ended(point) or arrived(losses, point, value)):
        direction = on.direction(history, point, value.gradient)
        size = on.length(direction)
        if len(history):
            step = min(on.step_of(size), on.largest)
        trial = yield from settings.line_search.search(on, point, value, direction / size, step)
        if trial is not None:
            change = trial.value.gradient - on.transport(trial.point, value.gradient)
            history.s, history.y = on.transport(trial.point, history.s), on.transport(trial.point, history.y)
            history.remember(on.difference(point, trial.point), change)
            point, value, step = trial.point, trial.value, trial.step
            losses.append(value.loss)
        elif len(history):
            history.clear()  # the curvature that it remembers may be that of the other side of a kink
        else:
            tried = settings.line_search.max_trials
            return f"No step downhill, of {tried}, lowered the loss by more than its rounding error."
    return reason


def _filters(constraint: ConstraintSet, shape: tuple[int, ...], points: Sequence[Vector]) -> torch.Tensor:
    """The filters (k, *spatial) at k points."""
    w = torch.tensor(np.stack(points), dtype=constraint.dtype, device=constraint.device)
    return constraint.retract(w.reshape(len(points), *shape[1:]))
