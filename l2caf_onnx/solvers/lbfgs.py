"""Riemannian L-BFGS on the sphere: the solver for tails that are not affine, where every evaluation counts.

Limited-memory BFGS (Nocedal & Wright, "Numerical Optimization", 2nd edition, algorithm 7.4) with its gradients, steps and
history in the tangent space of the point where it stands (Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix
Manifolds", 2008, chapters 4 and 8; Huang, Gallivan & Absil, SIAM J. Optim. 25(3), 2015).

Every sample is a search of its own, a generator that yields the point it wants evaluated; one evaluation of the tail
serves the next point of each sample that is still searching. So steps, history and end of one sample never touch another's,
and a batch costs as many evaluations as its slowest sample. Points are unit vectors u = f / r in float64 (vectors of a
few hundred numbers, for which numpy is quicker than torch), gradients those by u; only the tail sees r u in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..filters import Sphere
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
    loss_tolerance: float = 1e-5
    patience: int = 3
    decrease: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 10
    rounding: float = 1e-6

    name = "lbfgs"

    def minimise(
        self, fn: LossFunction, sphere: Sphere, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Solution:
        """See `Solver.minimise`. `evaluations` counts every point tried, those of line searches too.

        The generator is drawn from always, but used only where the uniform filter is stationary: the same draw for
        every sample, so that an answer does not hang on the batch.
        """
        samples, cells = shape[0], math.prod(shape[1:])
        start = np.full(cells, 1 / math.sqrt(cells))
        drawn = sphere.random_point((1, *shape[1:]), generator).double().cpu().numpy().reshape(cells)
        elsewhere = _elsewhere(start, drawn[:1] * 0 + drawn / np.linalg.norm(drawn), self.first_angle)
        searches = [BestSoFar(_descend(self, start, elsewhere)) for _ in range(samples)]
        radii = sphere.radii(samples).double().cpu().numpy()
        while any(search.running for search in searches):
            filters = _filters(sphere, shape, [search.point for search in searches])
            losses, gradients = evaluate(fn, filters)
            if not searches[0].evaluations:
                refuse_unusable_start(losses)
            by_filter = gradients.double().cpu().numpy().reshape(samples, cells)
            for search, loss, radius, gradient in zip(searches, losses.tolist(), radii, by_filter, strict=True):
                if search.running:
                    search.tell(Value(loss, _tangent(search.point, radius * gradient)))
                    if search.running and search.evaluations >= self.max_evaluations:
                        search.end(f"The limit of {self.max_evaluations} evaluations was reached while it was improving.")
        return Solution(
            filter=_filters(sphere, shape, [search.best_point for search in searches]),
            loss=torch.tensor([search.best_loss for search in searches], dtype=losses.dtype, device=losses.device),
            evaluations=torch.tensor([search.evaluations for search in searches]),
            stop_reason=tuple(search.reason for search in searches),
        )


def converged(settings: Lbfgs, losses: Sequence[float], gradient: Vector) -> str | None:
    """Why a search that went through these `losses`, to a point with this tangent `gradient`, has arrived; None: it has not.

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
    if len(losses) > settings.patience and losses[-1 - settings.patience] - losses[-1] <= settings.loss_tolerance * scale:
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
        if value.finite and value.loss < self.best_loss:
            self.best_point, self.best_loss = self.point, value.loss
        try:
            self.point = self.search.send(value)
        except StopIteration as stop:
            self.end(stop.value)

    def end(self, reason: str) -> None:
        """Stop, and rest at the best point."""
        self.search.close()
        self.point, self.reason = self.best_point, reason
