"""What a picture shows of a filter."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from l2caf_onnx.errors import InputError

MOST_AXES = 3

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
    if filter.ndim - 1 != len(size) or not 1 <= len(size) <= MOST_AXES:
        raise InputError(
            f"A filter of shape {tuple(filter.shape)} cannot be drawn over an input of size {tuple(size)}.",
            how="Give a filter (N, *spatial) with one to three spatial axes, and a size with one entry for each.",
        )
    own = filter.detach().cpu().float().numpy()
    shown = np.abs(own) if absolute else np.maximum(own, 0)
    flat = _is_flat(shown)  # judged before resizing, whose roundings would be stretched into a pattern
    if shown.shape[1:] != tuple(size):
        shown = _resized(shown, size)
    rows = shown.reshape(len(shown), -1)
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    flat |= high[:, 0] - low[:, 0] <= _FLAT * high[:, 0]
    rows -= low
    rows /= np.where(flat[:, None], np.float32(np.inf), high - low)
    return torch.from_numpy(shown), flat.tolist()


def _resized(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear interpolation, half-pixel centres, along each axis: a small matrix for each, which is kept."""
    shown = torch.from_numpy(maps)
    for axis, (old, new) in enumerate(zip(maps.shape[1:], size, strict=True), 1):
        if axis < maps.ndim - 1:
            shown = torch.matmul(_weights(old, new), shown.transpose(axis, -2)).transpose(axis, -2)
        else:
            shown = torch.matmul(shown, _weights(old, new).T)
    found: NDArray[np.float32] = shown.contiguous().numpy()
    return found


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> Tensor:
    """(new, old): what each new place takes of each old one."""
    eye = torch.eye(old)[:, None]
    return functional.interpolate(eye, size=new, mode="linear", align_corners=False, antialias=False)[
        :, 0
    ].T.contiguous()


def traced(filters: NDArray[np.float32], size: tuple[int, ...], *, absolute: bool) -> NDArray[np.float32]:
    """The maps (K, *size) of filters (K, *spatial) that a solver tried, each for itself, as `heatmap` draws them."""
    maps, _ = heatmap(torch.from_numpy(filters), size, absolute=absolute)
    shown: NDArray[np.float32] = maps.numpy().astype(np.float32)
    return shown


def _is_flat(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,): which of the maps (N, *spatial), none of them negative, are constant up to rounding."""
    rows = maps.reshape(len(maps), -1)
    low, high = rows.min(1), rows.max(1)
    found: NDArray[np.bool_] = high - low <= _FLAT * high
    return found
