"""Values read between the cells: grids, regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .registry import Node, Outputs, ints, op

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


@op("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Outputs:
    mode = _MODES[node.get("mode", "bilinear" if node.version < 20 else "linear")]
    return functional.grid_sample(
        x,
        grid.to(x.dtype),
        mode=mode,
        padding_mode=node.get("padding_mode", "zeros"),
        align_corners=bool(node.get("align_corners", 0)),
    )


@op("AffineGrid", static=(1,))
def affine_grid(node: Node, theta: Tensor, size: Any) -> Outputs:
    """(N, *spatial, rank): x first, each axis from -1 to 1."""
    spatial = ints(size)[2:]
    corners = bool(node.get("align_corners", 0))
    axes = []
    for n in spatial:
        steps = np.linspace(-1, 1, n) if corners and n > 1 else (2 * np.arange(n) + 1) / n - 1
        axes.append(torch.from_numpy(np.asarray(steps)).to(theta))
    mesh = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([*reversed(mesh), torch.ones_like(mesh[0])], -1).reshape(1, -1, len(spatial) + 1)
    return torch.matmul(points, theta.mT).reshape(theta.shape[0], *spatial, len(spatial))


@op("RoiAlign", static=(1, 2), replace=True)  # the library's lacks the maximum, and half_pixel's opset
def roi_align(node: Node, x: Tensor, rois: Any, batch: Any) -> Outputs:
    height, width = node.get("output_height", 1), node.get("output_width", 1)
    scale, ratio = node.get("spatial_scale", 1.0), node.get("sampling_ratio", 0)
    half = node.version >= 16 and node.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    results = []
    for roi, index in zip(np.asarray(rois, np.float32), ints(batch), strict=True):
        left, top, right, bottom = roi * np.float32(scale) - np.float32(0.5 if half else 0.0)
        across, down = right - left, bottom - top
        if not half:
            across, down = max(across, np.float32(1)), max(down, np.float32(1))
        rows = ratio or int(np.ceil(down / height))
        columns = ratio or int(np.ceil(across / width))
        ys = top + (np.arange(height * rows, dtype=np.float32) + np.float32(0.5)) * (down / height / rows)
        xs = left + (np.arange(width * columns, dtype=np.float32) + np.float32(0.5)) * (across / width / columns)
        largest = node.get("mode", "avg") == "max"
        samples = _corners(x[index], ys, xs)
        if largest:  # onnxruntime takes the largest of the four weighted corners, not of their sum
            part = torch.stack(samples).amax(0)
            form = part.reshape(-1, height, rows, width, columns)
            results.append(form.amax((2, 4)))
        else:
            part = samples[0] + samples[1] + samples[2] + samples[3]
            results.append(part.reshape(-1, height, rows, width, columns).mean((2, 4)))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], height, width)


def _corners(plane: Tensor, ys: Any, xs: Any) -> list[Tensor]:
    """The four weighted neighbours of every sample; (C, H, W) -> four of (C, len(ys), len(xs))."""
    rows, columns = _neighbours(ys, plane.shape[1]), _neighbours(xs, plane.shape[2])
    parts = []
    for row, down in rows:
        for column, across in columns:
            weight = torch.from_numpy(np.outer(down, across).astype(np.float32)).to(plane)
            lines = plane.index_select(1, torch.from_numpy(row).to(plane.device))
            parts.append(lines.index_select(2, torch.from_numpy(column).to(plane.device)) * weight)
    return parts


def _neighbours(at: Any, size: int) -> list[tuple[Any, Any]]:
    """(places, weights) of the lower and the upper neighbour; weight 0 for samples outside."""
    inside = (at >= -1) & (at <= size)
    at = np.maximum(at, 0)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = np.where(low >= size - 1, 0, at - low)
    return [(low, (1 - part) * inside), (high, part * inside)]
