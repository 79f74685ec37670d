"""What a picture shows of a filter."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program gives it
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import InputError

from .sets import column

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

_FLAT = 1e-6
"""A map whose range is within this part of its largest value is constant: a few float32 roundings, no structure."""


def heatmap(filter: Tensor, size: tuple[int, ...], *, absolute: bool) -> tuple[Tensor, list[bool]]:
    """What a picture shows of a filter (N, *spatial) over an input of `size`: (N, *size) in [0, 1].

    |f| (`absolute`, the paper's), else max(f, 0), because a cell with f < 0 is one that the filter inverts; resized
    first (bilinear, half-pixel centres), then min-max scaled, each sample by itself. One to three spatial axes.

    Returns:
        The maps, and for each sample whether it was constant, which leaves nothing to show: that map is zero.

    Raises:
        InputError: `size` has not one entry per spatial axis, or there are more than three.
    """
    if filter.ndim - 1 != len(size) or len(size) not in INTERPOLATION:
        raise InputError(
            f"A filter of shape {tuple(filter.shape)} cannot be drawn over an input of size {tuple(size)}.",
            how="Give a filter (N, *spatial) with one to three spatial axes, and a size with one entry for each.",
        )
    shown = filter.detach().abs() if absolute else filter.detach().clamp_min(0)
    flat = _is_flat(shown)  # judged before resizing, whose roundings would be stretched into a pattern
    if tuple(shown.shape[1:]) != tuple(size):
        mode = INTERPOLATION[len(size)]
        shown = F.interpolate(shown[:, None], size=size, mode=mode, align_corners=False, antialias=False)[:, 0]
    low, high = shown.flatten(1).amin(1), shown.flatten(1).amax(1)  # torch.aminmax takes thirty times as long
    flat = flat | (high - low <= _FLAT * high)
    span = torch.where(flat, torch.inf, high - low)
    return (shown - column(low, shown.ndim)).div_(column(span, shown.ndim)), flat.tolist()


def traced(filters: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """The maps (K, *size) of filters (K, *spatial) that a solver tried, each for itself."""
    maps, _ = heatmap(torch.from_numpy(filters), size, absolute=False)
    shown: NDArray[np.float32] = maps.numpy().astype(np.float32)
    return shown


def _is_flat(maps: Tensor) -> Tensor:
    """(N,) bool: which of the maps (N, *spatial), none of them negative, are constant up to rounding."""
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    return high - low <= _FLAT * high
