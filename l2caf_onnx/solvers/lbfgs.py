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
from collections.abc import Generator
from dataclasses import dataclass, field

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


Search = Generator[Vector, Value, str]
"""Yields points to evaluate, is sent their values, returns the sentence why it stopped."""


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
        decrease: Part of the slope's promise that a step must keep (Armijo, c1).
        curvature: Part of the slope's steepness that may be left after a step (Wolfe, c2).
        max_trials: Steps tried along one direction.
    """

    memory: int = 15
    max_evaluations: int = 200
    first_angle: float = 0.3
    largest_angle: float = 1.2
    gradient_tolerance: float = 1e-4
    loss_tolerance: float = 1e-6
    patience: int = 3
    decrease: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 10

    name = "lbfgs"

    def minimise(
        self, fn: LossFunction, sphere: Sphere, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Solution:
        """See `Solver.minimise`. `evaluations` counts each point tried, those of line searches too."""
        raise NotImplementedError
