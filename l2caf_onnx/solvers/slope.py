"""Slope: the filter that lowers the loss fastest, on average over random occlusions. For tails that are not affine.

Deep inside a network a loss has, at any one filter, a gradient that is mostly noise ("shattered": Balduzzi et al., ICML
2017), and its optimum is full of it. What survives is the mean over many filters that differ at random: RISE (Petsiuk
et al., BMVC 2018) and SmoothGrad (Smilkov et al., arXiv 1706.03825) live by that. RISE learns one number from each run
of the tail; a gradient tells of all cells at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2caf_onnx.errors import SolverError
from l2caf_onnx.filters import Smooth, Space, occlusions, sized

from .linear import cone_of, linear_in_cone
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

    Where there are no more cells than occlusions, the mean of the gradients is known well enough to be taken as it is,
    as an affine tail's: then, with f >= 0 and if `bumps` are given, f is the best of their sums (`linear_in_cone`).

    Where a tail hardly feels the size of a cell, but only whether it is there (a layer norm makes tokens of any size
    alike), a gradient tells nothing of what hiding a cell does. That shows in the losses under the occlusions: where s
    does not explain how they vary, and their own regression on the occlusions, fitted to one half of them, explains the
    other half better, s is that regression (each cell's by itself, as RISE has it), of `hidden` occlusions which hide a
    cell wholly or not at all. Where that is known beforehand, no gradient is taken (`untold`).

    Each frame of a clip has its own minimum. The size of f plays no part in its shape, and nothing is drawn at random.

    Attributes:
        occlusions: K, even: evaluations of the tail with its gradient.
        sigma: Of the neighbourhood, as a part of each axis.
        at_once: So many occlusions of all samples together are evaluated at once, and at least one.
        hidden: Occlusions that are run without a gradient where the gradient does not tell, even.
        better: By so much must the regression's correlation with the losses be above the gradient's.
        untold: Whether the gradient is known to tell nothing.
        bumps: What filters are summed of where f >= 0, the gradient tells, and cells are few; not of frames.
    """

    occlusions: int = 64
    hidden: int = 256
    better: float = 0.2
    untold: bool = False
    sigma: float = 0.1
    bumps: Smooth | None = None
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
        every = torch.arange(samples)
        count = 0 if self.untold else self.occlusions
        silent = torch.ones(samples, dtype=torch.bool)
        slope = torch.zeros(samples, *within.spatial, dtype=torch.float64, device=within.rho.device)
        if not self.untold:
            silent = self._slope(fn, within, slope, tell).cpu()
        if bool(silent.any()):
            slope[silent] = self._regressed(fn, within, torch.nonzero(silent)[:, 0]).to(slope)
            if tell is not None:
                tell(self._steepest(slope, within, ~silent))
        f = self._steepest(slope, within, ~silent)
        with torch.no_grad():
            reached = fn(f, every)
        near = f"a neighbourhood of {self.sigma:g} of each side, in closed form."
        bumps = self.summed(within)
        over = near if bumps is None else f"over sums of bumps of {bumps.sigma:g} of each side, in closed form."
        reasons = (
            f"The minimum of the loss's slope, a mean over {count} occlusions{' and' if bumps is None else ','} {over}",
            f"The minimum of the loss's regression on {self.hidden} occlusions, whose effect the gradient does not "
            f"tell, and {near}",
        )
        return Solution(
            filter=f,
            loss=reached.detach(),
            evaluations=count + self.hidden * silent.long(),
            stop_reason=tuple(reasons[int(s)] for s in silent),
        )

    def _slope(self, fn: LossFunction, within: Space, slope: Tensor, tell: Callable[[Tensor], None] | None) -> Tensor:
        """Adds the gradients under the occlusions up in `slope`; (N,): where they do not tell."""
        samples = len(slope)
        masks = occlusions(within.spatial, self.occlusions, frames=within.frames).to(slope.device)
        every = torch.arange(samples)
        seen: list[Tensor] = []
        for part in self._parts(masks, samples):
            rows, numbers = part.repeat_interleave(samples, 0), every.repeat(len(part))
            losses, gradients = evaluate(fn, rows, numbers)
            if not seen:
                refuse_unusable_start(losses.reshape(-1, samples).sum(0))
            seen.append(losses.detach().double().reshape(-1, samples))
            slope += gradients.double().reshape(len(part), *slope.shape).sum(0)
            if tell is not None:
                tell(self._steepest(slope, within))
        if not bool(torch.isfinite(slope).all()):
            raise SolverError(
                "The loss's gradient is not finite under some occlusion.",
                where=f"Of {len(masks)}.",
                how="Look for infinities in the tail, or choose another solver.",
            )
        return self._silent(masks, torch.cat(seen), self._smooth(slope, within))

    def _parts(self, masks: Tensor, samples: int) -> Iterator[Tensor]:
        step = max(self.at_once // samples, 1)
        for start in range(0, len(masks), step):
            yield masks[start : start + step]

    def _silent(self, masks: Tensor, losses: Tensor, slope: Tensor) -> Tensor:
        """(N,): where the smooth slope (N, *spatial) explains the losses (K, N) less than their own regression does."""
        flat = masks.double().flatten(1)
        told = correlation(flat @ slope.flatten(1).T, losses)
        half = len(masks) // 2  # an occlusion and its complement stay together
        sides = [torch.arange(k, half, 2) for k in range(2)]
        a, b = (torch.cat([own, own + half]).to(masks.device) for own in sides)
        crossed = [
            correlation(flat[there] @ regression(flat[here], losses[here]).T, losses[there])
            for here, there in ((a, b), (b, a))
        ]
        return (crossed[0] + crossed[1]) / 2 > told + self.better

    def _regressed(self, fn: LossFunction, within: Space, numbers: Tensor) -> Tensor:
        """Of those samples the regression of the loss on occlusions: (k, *spatial)."""
        masks = occlusions(within.spatial, self.hidden, frames=within.frames).round().to(within.rho.device)
        losses: list[Tensor] = []
        with torch.no_grad():
            for part in self._parts(masks, len(numbers)):
                rows = part.repeat_interleave(len(numbers), 0)
                losses.append(fn(rows, numbers.repeat(len(part))).double().reshape(-1, len(numbers)))
        refuse_unusable_start(torch.cat(losses).sum(0))
        found = regression(masks.double().flatten(1), torch.cat(losses))
        return found.reshape(len(numbers), *within.spatial)

    def _smooth(self, slope: Tensor, within: Space) -> Tensor:
        return Smooth(spatial=within.spatial, sigma=self.sigma, frames=within.frames).values(slope)

    def summed(self, within: Space) -> Smooth | None:
        """The `bumps` if filters over `within` are sums of them."""
        few = math.prod(within.spatial) <= self.occlusions and not within.frames
        return self.bumps if few and within.constraint == "l2-nonneg" else None

    def _steepest(self, slope: Tensor, within: Space, told: Tensor | None = None) -> Tensor:
        """The filters; `told` (N,): whose slope is of gradients, None: all."""
        smooth = self._smooth(slope, within)
        down = -smooth.flatten(1 + within.frames)  # a row of cells for each that has a size of its own
        if within.constraint == "l2-nonneg":
            lowest = torch.zeros_like(down).scatter_(-1, down.argmax(-1, keepdim=True), 1.0)
            down = torch.where((down > 0).any(-1, keepdim=True), down.clamp_min(0), lowest)
        flat = (smooth.flatten(1 + within.frames) == 0).all(-1, keepdim=True)  # no preference
        found = torch.where(flat, torch.ones_like(down), down).reshape(slope.shape)
        bumps = self.summed(within)
        if bumps is not None:
            for k, own in enumerate(slope):
                if (told is None or told[k]) and bool(own.any()):
                    best = linear_in_cone(own.cpu().numpy().reshape(-1), cone_of(bumps), 1.0)
                    found[k] = torch.from_numpy(best.filter).reshape(own.shape).to(found)
        return sized(found, within.rho, frames=within.frames, total=False).float()


def regression(masks: Tensor, losses: Tensor) -> Tensor:
    """(N, cells): how losses (K, N) grow with each cell of the masks (K, cells), each by itself."""
    m, own = masks - masks.mean(0), losses - losses.mean(0)
    return (own.T @ m) / (m * m).sum(0).clamp_min(torch.finfo(m.dtype).tiny)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """(N,), of the columns of a and b (K, N); 0 where one does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    sizes = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(sizes > 0, (a * b).sum(0) / sizes, torch.zeros_like(sizes))
