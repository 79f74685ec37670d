"""Recipro-CAM: what the tail says when it sees one cell alone, for each cell in turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .case import Case, finished, questions, scores


def reciprocam(case: Case, *, gaussian: bool = False) -> Tensor:
    """The score of the activation with all cells but one set to zero, at that cell (Byun & Lee 2022).

    It takes as many forward passes of the tail as there are cells. The authors score by the probability; here it is the
    score of the case. There is no ReLU: only the order of the cells means something.

    Args:
        case: What is asked.
        gaussian: The authors' variant for tails that one cell hardly moves; their program too has it off by default.
            The cell's channels stand in its neighbours too, times 1/4, 1/2, 1/4 along each axis.
    """
    activation, spatial = case.activation, case.spatial
    count = math.prod(spatial)
    cells = activation.flatten(2)
    kernels = [_around(size, gaussian).to(activation) for size in spatial]
    found = []
    for samples, numbers in questions(case, count):
        here, cell = samples.to(activation.device), numbers.to(activation.device)
        place = torch.ones(len(here), device=activation.device, dtype=activation.dtype)
        for index, kernel in zip(torch.unravel_index(cell, spatial), kernels, strict=True):
            place = torch.einsum("k...,kb->k...b", place, kernel[index])
        alone = torch.einsum("kc,k...->kc...", cells[here, :, cell], place)
        found.append(scores(case, alone, samples))
    return finished(torch.cat(found).reshape(case.samples, *spatial).to(activation.device))


def _around(size: int, gaussian: bool) -> Tensor:
    """(size, size): row i is what a cell at i leaves along an axis of that size."""
    if not gaussian:
        return torch.eye(size)
    beside = torch.ones(size - 1) / 4
    return torch.eye(size) / 2 + beside.diag(1) + beside.diag(-1)
