"""The radius "auto"."""

from __future__ import annotations

import torch

from .solving import Solved, Solving


def calibrated(solving: Solving) -> Solved:
    """The filter at the radius that suits each sample."""
    return solving.solved(torch.full((solving.scene.onnx.samples,), 0.5))
