"""Resize, exactly: along each axis a sparse matrix of weights, made from ONNX's rules of coordinates.

An axis at a time costs little and is right for every rank, mode and coordinate transformation; gradients come by
themselves. Coordinates are computed in float32, as onnxruntime does: in float64 some nearest cells would be others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .registry import Node, Outputs, ints, op, positive

_F = np.float32


@op("Resize", static=(1, 2, 3), replace=True)  # the library's maps coordinates silently its own way
def resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Outputs:
    if node.version < 11:
        roi, scales = None, roi
    axes = [positive(a, x.ndim) for a in node.get("axes", range(x.ndim))]
    factors, lengths = _targets(node, [x.shape[a] for a in axes], scales, sizes)
    regions = np.ravel(roi) if roi is not None and np.size(roi) else np.array([0.0] * len(axes) + [1.0] * len(axes))
    outside = node.get("extrapolation_value", 0.0)
    crop = _transformation(node) == "tf_crop_and_resize"
    beyond = None
    for k, (axis, factor, length) in enumerate(zip(axes, factors, lengths, strict=True)):
        size = x.shape[axis]
        if factor == 1 and length == size:
            continue
        region = (float(regions[k]), float(regions[k + len(axes)]))
        key = (size, factor, length, region)
        places, weights, off = node.once(key, partial(_axis_weights, node, size, factor, length, region))
        x = _applied(x, axis, places, weights)
        if crop and off.any():
            form = [-1 if a == axis else 1 for a in range(x.ndim)]
            missing = torch.from_numpy(off).to(x.device).reshape(form)
            beyond = missing if beyond is None else beyond | missing
    return x if beyond is None else torch.where(beyond, torch.full_like(x, outside), x)


def _applied(x: Tensor, axis: int, places: NDArray[np.int64], weights: NDArray[np.float64]) -> Tensor:
    """Sum over k of weights[:, k] * x at places[:, k] along `axis`."""
    total: Tensor | None = None
    for k in range(places.shape[1]):
        taken = x.index_select(axis, torch.from_numpy(places[:, k].copy()).to(x.device))
        if places.shape[1] == 1:
            return taken
        factor = torch.from_numpy(weights[:, k].copy()).to(device=x.device, dtype=x.dtype)
        part = taken * factor.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        total = part if total is None else total + part
    assert total is not None
    return total


def _targets(node: Node, have: list[int], scales: Any, sizes: Any) -> tuple[list[float], list[int]]:
    if sizes is not None and np.size(sizes):
        wanted = ints(sizes)
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            return [float(_F(w) / _F(h)) for w, h in zip(wanted, have, strict=True)], wanted
        ratios = [_F(w) / _F(h) for w, h in zip(wanted, have, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        return [float(ratio)] * len(have), [int(np.floor(ratio * _F(h) + _F(0.5))) for h in have]
    factors = [float(_F(s)) for s in np.ravel(scales)]
    return factors, [int(np.floor(_F(h) * _F(f))) for h, f in zip(have, factors, strict=True)]


def _transformation(node: Node) -> str:
    default = "asymmetric" if node.version < 11 else "half_pixel"
    return str(node.get("coordinate_transformation_mode", default))


def _coordinates(node: Node, size: int, factor: float, length: int, region: tuple[float, float]) -> NDArray[np.float32]:
    """Where each of `length` outputs lies in an input of `size`."""
    i, f = np.arange(length, dtype=_F), _F(factor)
    mode = _transformation(node)
    if mode == "asymmetric":
        return i / f
    if mode == "align_corners":
        return np.zeros(length, _F) if length == 1 else i * _F(size - 1) / _F(length - 1)
    if mode == "pytorch_half_pixel":
        return (i + _F(0.5)) / f - _F(0.5) if length > 1 else np.zeros(length, _F)
    if mode == "tf_half_pixel_for_nn":
        return (i + _F(0.5)) / f
    if mode == "half_pixel_symmetric":
        adjustment = _F(length) / (f * _F(size))
        offset = _F(size / 2) * (1 - adjustment)
        return (offset + (i + _F(0.5)) / f - _F(0.5)).astype(_F)
    if mode == "tf_crop_and_resize":
        start, end = _F(region[0]), _F(region[1])
        if length == 1:
            return np.array([_F(0.5) * (start + end) * _F(size - 1)], _F)
        return start * _F(size - 1) + i * (end - start) * _F(size - 1) / _F(length - 1)
    if mode == "half_pixel":
        return (i + _F(0.5)) / f - _F(0.5)
    raise NotImplementedError(f"the coordinate transformation {mode!r} is not known")


def _axis_weights(
    node: Node, size: int, factor: float, length: int, region: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Places and weights (length, taps), and which outputs lie outside the input."""
    at = _coordinates(node, size, factor, length, region)
    off = (at < 0) | (at > size - 1)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        rounded = _rounded(node, at, factor)
        return np.clip(rounded, 0, size - 1).astype(np.int64)[:, None], np.ones((length, 1)), off
    shrink = min(factor, 1.0) if node.get("antialias", 0) else 1.0
    if mode == "linear" and shrink == 1:
        at = np.clip(at, 0, size - 1)
    reach = (1.0 if mode == "linear" else 2.0) / shrink
    taps = int(np.ceil(reach)) * 2 if shrink == 1 else int(np.ceil(reach)) * 2 + 1
    first = np.floor(at).astype(np.int64) - (int(np.ceil(reach)) - (1 if shrink == 1 else 0))
    places = first[:, None] + np.arange(taps)
    distance = np.abs(places - at[:, None].astype(np.float64)) * shrink
    weights = _triangle(distance) if mode == "linear" else _cubic(distance, node.get("cubic_coeff_a", -0.75))
    inside = (places >= 0) & (places <= size - 1)
    if node.get("exclude_outside", 0):
        weights = weights * inside
    if node.get("exclude_outside", 0) or shrink != 1:
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(places, 0, size - 1), weights, off


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distance, 0)


def _cubic(d: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' kernel ("Cubic convolution interpolation", 1981) with its parameter a."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _rounded(node: Node, at: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    how = node.get("nearest_mode", "round_prefer_floor")
    if node.version < 11:
        return np.floor(at) if factor >= 1 else np.ceil(at)
    if how == "floor":
        return np.floor(at)
    if how == "ceil":
        return np.ceil(at)
    if how == "round_prefer_ceil":
        return np.asarray(np.floor(at + _F(0.5)))
    return np.asarray(np.ceil(at - _F(0.5)))
