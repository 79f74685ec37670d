"""Slope: the filter that lowers the loss fastest, on average over random occlusions. For tails that are not affine.

Deep inside a network a loss has, at any one filter, a gradient that is mostly noise ("shattered": Balduzzi et al., ICML
2017), and its optimum is full of it. What survives is the mean over many filters that differ at random: RISE (Petsiuk
et al., BMVC 2018) and SmoothGrad (Smilkov et al., arXiv 1706.03825) live by that. RISE learns one number from each run
of the tail; a gradient tells of all cells at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2caf_onnx.errors import SolverError
from l2caf_onnx.filters import Smooth, Space, occlusions, sized

from .solution import LossFunction, Solution, evaluate, refuse_unusable_start

CONSTRAINTS = ("l2", "l2-nonneg")
"""Where a linear loss has one filter as its minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """The minimum of the loss's mean slope under occlusion, in closed form.

    With occlusions m_1 ... m_K of S1 (see `occlusions`) and s = S (1/K) sum_k dL/df(m_k), S the mean over a
    Gaussian neighbourhood of each cell (zeros lie around the map, else a maximum beside a border would move to it),
    it minimises s'f on the constraint set: f = -r s / ||s|| on the sphere, and with f >= 0 f = r p / ||p||, p =
    max(-s, 0) (where p = 0, all of it in the cell of the least s). As L(m + e f) = L(m) + e g'f to first order, g =
    dL/df(m), f is what lowers L fastest, on average over what else is hidden and over small shifts.

    Each frame of a clip has its own minimum. The size of f plays no part in its shape, and nothing is drawn at random.

    Attributes:
        occlusions: K, even: evaluations of the tail with its gradient.
        sigma: Of the neighbourhood, as a part of each axis.
        at_once: So many occlusions of all samples together are evaluated at once, and at least one.
    """

    occlusions: int = 64
    sigma: float = 0.1
    at_once: int = 16

    name = "slope"

    def minimise(self, fn: LossFunction, within: Space, tell: Callable[[Tensor], None] | None = None) -> Solution:
        """The minimum over `within`, a space of "l2" or "l2-nonneg".

        Args:
            fn: The loss of any filters (k, *spatial), of whatever size: see `LossFunction`.
            within: Where the answer lives; what its filters are made of is not heeded.
            tell: Called with the filters (N, *spatial) that follow from the occlusions so far.

        Raises:
            SolverError: a sample's loss is not finite under the first occlusions, or its gradient under any.
        """
        samples = len(within.rho)
        masks = occlusions(within.spatial, self.occlusions, frames=within.frames).to(within.rho.device)
        every = torch.arange(samples)
        slope = torch.zeros(samples, *within.spatial, dtype=torch.float64, device=masks.device)
        step = max(self.at_once // samples, 1)
        for start in range(0, len(masks), step):
            part = masks[start : start + step]
            rows, numbers = part.repeat_interleave(samples, 0), every.repeat(len(part))
            losses, gradients = evaluate(fn, rows, numbers)
            if not start:
                refuse_unusable_start(losses.reshape(-1, samples).sum(0))
            slope += gradients.double().reshape(len(part), *slope.shape).sum(0)
            if tell is not None:
                tell(self._steepest(slope, within))
        if not bool(torch.isfinite(slope).all()):
            raise SolverError(
                "The loss's gradient is not finite under some occlusion.",
                where=f"Of {len(masks)}.",
                how="Look for infinities in the tail, or choose another solver.",
            )
        f = self._steepest(slope, within)
        with torch.no_grad():
            reached = fn(f, every)
        reason = (
            f"The minimum of the loss's slope, a mean over {len(masks)} occlusions and a neighbourhood of "
            f"{self.sigma:g} of each side, in closed form."
        )
        return Solution(
            filter=f,
            loss=reached.detach(),
            evaluations=torch.full((samples,), len(masks)),
            stop_reason=(reason,) * samples,
        )

    def _steepest(self, slope: Tensor, within: Space) -> Tensor:
        blur = Smooth(spatial=within.spatial, sigma=self.sigma, frames=within.frames, fading=True)
        smooth = blur.values(slope)
        down = -smooth.flatten(1 + within.frames)  # a row of cells for each that has a size of its own
        if within.constraint == "l2-nonneg":
            lowest = torch.zeros_like(down).scatter_(-1, down.argmax(-1, keepdim=True), 1.0)
            down = torch.where((down > 0).any(-1, keepdim=True), down.clamp_min(0), lowest)
        flat = (smooth.flatten(1 + within.frames) == 0).all(-1, keepdim=True)  # no preference
        found = torch.where(flat, torch.ones_like(down), down).reshape(slope.shape)
        return sized(found, within.rho, frames=within.frames, total=False).float()
