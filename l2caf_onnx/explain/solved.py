"""What was found for a question, on the host, whichever solver found it and wherever it ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.records import Certificate
from l2caf_onnx.solvers import Solution

from .filtered import Outputs
from .opened import Arrays

Rho = NDArray[np.float64]
"""(N,) the sizes of filters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """Filters, and what found them.

    Attributes:
        filter: (N, *spatial) float32.
        loss: (N,) float64.
        evaluations: (N,) runs of the tail.
        stop_reason: Why the solver stopped, a sentence for each sample.
        solver: The name of the solver that ran.
        rho: (N,) the sizes of the filters.
        outputs: Tells what the solver's form of the tail gives for the filters, batch first; None for the solver
            blackbox, which has none.
        certificate: Of the exact solver.
        basis: What the filters were made of, whatever was asked for; None: they are free in every cell.
    """

    filter: NDArray[np.float32]
    loss: NDArray[np.float64]
    evaluations: NDArray[np.int64]
    stop_reason: tuple[str, ...]
    solver: str
    rho: Rho
    outputs: Callable[[], Arrays] | None = None
    certificate: Certificate | None = None
    basis: str | None = None


def solved(solution: Solution, solver: str, rho: Rho, outputs: Outputs | None = None) -> Solved:
    """What torch found."""
    return Solved(
        filter=solution.filter.detach().float().cpu().numpy(),
        loss=solution.loss.detach().double().cpu().numpy(),
        evaluations=solution.evaluations.cpu().numpy(),
        stop_reason=solution.stop_reason,
        solver=solver,
        rho=rho,
        outputs=None if outputs is None else lambda: {k: v.detach().cpu().numpy() for k, v in outputs.items()},
    )


def sizes(rho: Rho) -> Tensor:
    """As torch wants them: (N,) float32."""
    return torch.from_numpy(rho).float()
