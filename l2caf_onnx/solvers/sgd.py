"""The PyTorch program of Taha et al. (ECCV 2020, arXiv 2007.09748), step for step: plain gradient descent.

It is kept so that the paper's maps can be made again and other solvers be measured against it, not because it is good:
1000 steps of a fixed length are many, and its test for the end looks at the loss alone. Its loop is `follow_schedule`,
which `adam` uses too, for their TensorFlow program differs in the step and in the start only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2caf_onnx.filters import ConstraintSet

from .solution import LossFunction, Solution, evaluate, refuse_unusable_start

Step = Callable[[int, Tensor, Tensor], Tensor]
"""The number of the step (from 0), w and the gradient there, both (N, *spatial) -> the next w."""

_FIRST_COMPARISON = 32767.0
"""What the authors compare the first loss with, the largest int16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Gradient descent without momentum on w, unconstrained, from w = 1.

    The tail sees the point of the constraint set that belongs to w: r w / ||w|| on the sphere, which is the authors'.
    The filter returned is that of the last w, as in the authors' program, even if an earlier one was better.
    Its loss takes one more evaluation, without gradient, that `evaluations` does not count.

    Attributes:
        learning_rate: Of the first step.
        final_learning_rate: Reached linearly after `steps` steps.
        steps: At most so many.
        check_every: The loss is compared with that of so many steps before.
        tolerance: It stops if the loss moved by less than that, absolutely.
    """

    learning_rate: float = 0.5
    final_learning_rate: float = 1e-5
    steps: int = 1000
    check_every: int = 50
    tolerance: float = 1e-6

    name = "sgd"

    def minimise(
        self, fn: LossFunction, constraint: ConstraintSet, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Solution:
        """See `Solver.minimise`; nothing is random here."""
        return follow_schedule(
            fn,
            constraint,
            torch.ones(shape, dtype=constraint.dtype, device=constraint.device),
            self._step,
            steps=self.steps,
            check_every=self.check_every,
            tolerance=self.tolerance,
        )

    def _step(self, k: int, w: Tensor, gradient: Tensor) -> Tensor:
        span = self.learning_rate - self.final_learning_rate
        return w - (self.final_learning_rate + span * (1 - k / self.steps)) * gradient


def follow_schedule(
    fn: LossFunction,
    constraint: ConstraintSet,
    w: Tensor,
    step: Step,
    *,
    steps: int,
    check_every: int,
    tolerance: float,
) -> Solution:
    """Take `steps` steps from `w`; at steps 0, `check_every`, ... stop what moved by less than `tolerance` in loss.

    As in both of the authors' programs the step of the iteration that stops is still taken, and the loss compared is
    the one before it. A sample that has stopped keeps its w and is no longer evaluated. The authors' loops run on
    through NaN; here a sample whose loss is no longer finite goes back to its last w with a finite loss, and stops.
    """
    samples = len(w)
    running = torch.ones(samples, dtype=torch.bool, device=w.device)
    responded = torch.zeros_like(running)
    evaluations = torch.zeros(samples, dtype=torch.int64)
    reasons = [f"All {steps} steps were taken."] * samples
    kept = w
    compared: Tensor | None = None
    for k in range(steps):
        losses, gradient = _evaluate_running(fn, constraint, w, running)
        if compared is None:
            refuse_unusable_start(losses)
            compared = torch.full_like(losses, _FIRST_COMPARISON)
        evaluations += running.cpu()
        broken = running & ~torch.isfinite(losses)
        for i in _indices(broken):
            reasons[i] = f"At step {k} the loss was no longer finite; the last filter with a finite loss is kept."
        w = _where(broken, kept, w)
        running &= ~broken
        kept = _where(running, w, kept)
        responded |= running & (gradient != 0).flatten(1).any(1)
        w = _where(running, step(k, w, gradient), w)
        if k % check_every == 0:
            moved = (losses - compared).abs()
            settled = running & (moved < tolerance)
            for i in _indices(settled):
                reasons[i] = (
                    f"At step {k} the loss had moved by {float(moved[i]):.1e}, less than {tolerance:g}, "
                    f"in {check_every} steps."
                )
            running &= ~settled
            compared = losses
        if not bool(running.any()):
            break
    return _conclude(fn, constraint, w, kept, evaluations=evaluations, reasons=reasons, responded=responded)


def _evaluate_running(fn: LossFunction, constraint: ConstraintSet, w: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (N,) and gradients by w (N, *spatial); of samples that are not `running` (N,) both are 0."""
    samples = running.nonzero()[:, 0]
    if len(samples) == len(w):
        return evaluate(lambda w, numbers: fn(constraint.retract(w), numbers), w)
    part = constraint.take(samples)
    found, slopes = evaluate(lambda w, numbers: fn(part.retract(w), numbers), w[samples], samples.cpu())
    losses = torch.zeros(len(w), dtype=found.dtype, device=found.device).index_copy_(0, samples, found)
    return losses, torch.zeros_like(w).index_copy_(0, samples, slopes)


def _conclude(
    fn: LossFunction,
    constraint: ConstraintSet,
    w: Tensor,
    kept: Tensor,
    *,
    evaluations: Tensor,
    reasons: list[str],
    responded: Tensor,
) -> Solution:
    """The solution at `w` (N, *spatial), or at `kept` for the samples whose loss the last step broke."""
    with torch.no_grad():
        everyone = torch.arange(len(w))
        filters = constraint.retract(w)
        losses = fn(filters, everyone)
        broken = ~torch.isfinite(losses)
        if bool(broken.any()):
            for i in _indices(broken):
                reasons[i] = "The last step made the loss not finite; the filter before it is kept."
            filters = constraint.retract(_where(broken, kept, w))
            losses = fn(filters, everyone)
    for i in _indices(~responded):
        reasons[i] += " The gradient was exactly zero at every step: the loss did not respond to the filter."
    return Solution(filter=filters.detach(), loss=losses.detach(), evaluations=evaluations, stop_reason=tuple(reasons))


def _where(samples: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the `samples` (N,) that are true, else `no`; both (N, *spatial)."""
    return torch.where(samples.reshape(-1, *[1] * (no.ndim - 1)), yes, no)


def _indices(samples: Tensor) -> list[int]:
    """Which of `samples` (N,) bool are true."""
    found: list[int] = samples.nonzero()[:, 0].tolist()
    return found
