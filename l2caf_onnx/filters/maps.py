"""What a picture shows of a filter."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from l2caf_onnx.errors import InputError

MOST_AXES = 3
_SMALL = 2**18
"""Multiplications of a product that numpy's library makes in the calling thread."""

_FLAT = 1e-6
"""A map whose range is within this part of its largest value is constant: a few float32 roundings, no structure."""


def heatmap(
    filter: NDArray[np.float32], size: tuple[int, ...], *, absolute: bool
) -> tuple[NDArray[np.float32], list[bool]]:
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
    own = filter.astype(np.float32, copy=False)
    shown = np.abs(own) if absolute else np.maximum(own, 0)
    flat = _is_flat(shown)  # judged before resizing, whose roundings would be stretched into a pattern
    if shown.shape[1:] != tuple(size):
        shown = _resized(shown, size)
    rows = shown.reshape(len(shown), -1)
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    flat |= high[:, 0] - low[:, 0] <= _FLAT * high[:, 0]
    rows -= low
    rows /= np.where(flat[:, None], np.float32(np.inf), high - low)
    return shown, flat.tolist()


def _resized(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear interpolation, half-pixel centres, along each axis: a small matrix for each, which is kept."""
    shown = maps
    for axis, (old, new) in enumerate(zip(maps.shape[1:], size, strict=True), 1):
        if axis < maps.ndim - 1:
            shown = _product(_weights(old, new), shown.swapaxes(axis, -2)).swapaxes(axis, -2)
        else:
            shown = _product(shown, _weights(old, new).T)
    return np.ascontiguousarray(shown)


def _product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a @ b, some rows at a time: numpy's threads, waiting for more to do, would hold cores that onnxruntime needs."""
    rows, columns = a.shape[-2], b.shape[-1]
    step = max(_SMALL // (a.shape[-1] * columns), 1)
    found = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns), np.float32)
    for start in range(0, rows, step):
        np.matmul(a[..., start : start + step, :], b, out=found[..., start : start + step, :])
    return found


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old): what each new place takes of each old one."""
    eye = torch.eye(old)[:, None]
    found = functional.interpolate(eye, size=new, mode="linear", align_corners=False, antialias=False)[:, 0].T
    weights: NDArray[np.float32] = found.contiguous().numpy()
    return weights


def traced(filters: NDArray[np.float32], size: tuple[int, ...], *, absolute: bool) -> NDArray[np.float32]:
    """The maps (K, *size) of filters (K, *spatial) that a solver tried, each for itself, as `heatmap` draws them."""
    return heatmap(filters, size, absolute=absolute)[0]


def _is_flat(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,): which of the maps (N, *spatial), none of them negative, are constant up to rounding."""
    rows = maps.reshape(len(maps), -1)
    low, high = rows.min(1), rows.max(1)
    found: NDArray[np.bool_] = high - low <= _FLAT * high
    return found
