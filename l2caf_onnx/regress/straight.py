"""The question of an affine tail, asked of one that is affine but for roundings: the slope at f = 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2caf_onnx.filters import Space
from l2caf_onnx.solvers import Slope
from l2caf_onnx.solvers.solution import LossFunction, Solution, evaluate, refuse_unusable_start

_UNSMOOTHED = 1e-3  # of each side: less than a cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Straight(Slope):
    """The minimum of dL/df(1) f on the constraint set: what the closed form of an affine tail gives.

    A quantised or half-precision candidate has no closed form. Solved by another method its map would differ from the
    reference's by the method, not by the change.
    """

    sigma: float = _UNSMOOTHED

    def minimise(self, fn: LossFunction, within: Space, tell: Callable[[Tensor], None] | None = None) -> Solution:
        """As `Slope.minimise`, by one evaluation."""
        samples = len(within.rho)
        every = torch.arange(samples)
        losses, gradients = evaluate(fn, torch.ones(samples, *within.spatial, device=within.rho.device), every)
        refuse_unusable_start(losses)
        f = self._steepest(gradients.double(), within)
        if tell is not None:
            tell(f)
        with torch.no_grad():
            reached = fn(f, every)
        return Solution(
            filter=f,
            loss=reached.detach(),
            evaluations=torch.ones(samples, dtype=torch.int64),
            stop_reason=("The minimum of the loss's slope where nothing is filtered, in closed form.",) * samples,
        )
