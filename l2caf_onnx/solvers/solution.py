"""What a solver is given and what it gives back, whichever it is.

A solver minimises a loss over a constraint set for N samples at once. It knows one function of filters and of the
numbers of the samples that they are for, loss i depending on filter i alone; one call evaluates the tail for all
samples that are still searching, and those that have finished are no longer in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from l2caf_onnx.errors import SolverError
from l2caf_onnx.filters import ConstraintSet

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Filters (k, *spatial), and (k,) int64 on the CPU, the samples of the batch of N that they are for -> losses (k,).

Differentiable and separable: loss i depends on filter i and sample i alone. A sample may be asked for more than once.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """Where a solver ended, for each of N samples.

    Attributes:
        filter: (N, *spatial), on the constraint set.
        loss: (N,) at `filter`.
        evaluations: (N,) int64, how often the tail was evaluated with its gradient until the sample stopped.
        stop_reason: N sentences: why it stopped there.
    """

    filter: Tensor
    loss: Tensor
    evaluations: Tensor
    stop_reason: tuple[str, ...]


class Solver(Protocol):
    """A frozen record of hyper-parameters that can minimise; all state lives within one call."""

    @property
    def name(self) -> str:
        """As `attend(solver=...)` takes it."""
        ...

    def minimise(
        self, fn: LossFunction, constraint: ConstraintSet, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Solution:
        """Minimise `fn` over filters of `shape` (N, *spatial) on `constraint`; randomness comes from `generator` alone.

        Every sample goes its own way and stops for itself: its answer is the one that it gets alone.

        Raises:
            SolverError: a sample's loss is not finite where the solver starts.
        """
        ...


def evaluate(fn: LossFunction, f: Tensor, samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The losses (k,) of `f` (k, *spatial) and each one's gradient by its own filter; neither is part of a graph.

    `samples` (k,) int64 says which sample each is for; None: the first k, in their order. The caller's grad mode does
    not matter, and no other tensor collects a gradient. A loss that does not depend on `f` has gradient zero.
    """
    numbers = torch.arange(len(f)) if samples is None else samples
    with torch.inference_mode(False), torch.enable_grad():
        leaf = f.detach().clone().requires_grad_(True)
        losses = fn(leaf, numbers)
        if losses.shape != (len(f),):
            raise ValueError(f"the loss function gave shape {tuple(losses.shape)} for {len(f)} filters")
        if not losses.requires_grad:
            return losses, torch.zeros_like(leaf).detach()
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True, materialize_grads=True)
    return losses.detach(), gradient


def refuse_unusable_start(losses: Tensor) -> None:
    """Raise SolverError where any of the `losses` (N,) at the start is not finite."""
    broken = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
    if broken:
        raise SolverError(
            "The loss is not finite where the solver starts.",
            where=f"Samples {', '.join(map(str, broken))} of {len(losses)}.",
            how="Look for infinities or NaN in the outputs of the unfiltered model, or choose another radius.",
        )
