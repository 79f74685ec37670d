"""Baselines that any method should beat: one sees nothing, the other no class."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, finished


def centre(case: Case) -> Tensor:
    """A Gaussian at the centre, its standard deviation a quarter of each side: photographers centre their subjects."""
    exponent = torch.zeros((), device=case.activation.device)
    for size in case.spatial:
        from_centre = torch.arange(size, device=exponent.device) - (size - 1) / 2
        exponent = exponent[..., None] - (from_centre / (size / 4)).square() / 2
    return finished(exponent.exp().expand(case.samples, *case.spatial))


def energy(case: Case) -> Tensor:
    """sqrt(sum over the channels of A^2), what S1 holds whatever the tail makes of it."""
    return finished(torch.linalg.vector_norm(case.activation.float(), dim=1))
