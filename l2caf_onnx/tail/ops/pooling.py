"""Pools: the largest, the mean, the norm of what a window covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .convolving import padded, window_pads
from .registry import Node, Outputs, op

_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


class _Windows:
    """Where the windows of a pool lie: `pads` make every window whole; `real` is what of them is the user's padding."""

    def __init__(self, node: Node, x: Tensor) -> None:
        self.kernel: list[int] = node.get("kernel_shape")
        rank = len(self.kernel)
        self.strides: list[int] = node.get("strides") or [1] * rank
        self.dilations: list[int] = node.get("dilations") or [1] * rank
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        sizes = list(x.shape[2:])
        self.real = window_pads(node, sizes, spans, self.strides)
        self.pads = []
        for size, span, stride, (before, after) in zip(sizes, spans, self.strides, self.real, strict=True):
            room = size + before + after - span
            count = room // stride + 1
            if node.get("ceil_mode", 0):
                count = -(-room // stride) + 1
                if (count - 1) * stride >= size + before:  # a window that would begin in the padding behind is left out
                    count -= 1
            self.pads.append((before, (count - 1) * stride + span - size - before))

    def summed(self, x: Tensor, value: float) -> Tensor:
        """(N, C, *windows): the sum of what each covers."""
        rank = len(self.kernel)
        if rank not in _MEAN or any(d != 1 for d in self.dilations):
            return self.gathered(x, value).sum(-1)
        covered = float(np.prod(self.kernel))
        return _MEAN[rank](padded(x, self.pads, value), self.kernel, self.strides) * covered

    def gathered(self, x: Tensor, value: float) -> Tensor:
        """(N, C, *windows, window's elements), outside filled with `value`."""
        x = padded(x, self.pads, value)
        rank = len(self.kernel)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.strides, self.dilations, strict=True)):
            x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
        return x.flatten(2 + rank)


@op("MaxPool", replace=True)  # the library's lacks uneven padding, ceil_mode's rule, auto_pad and integers
def max_pool(node: Node, x: Tensor) -> Outputs:
    windows = _Windows(node, x)
    rank = len(windows.kernel)
    if len(node.wanted) > 1 and node.wanted[1]:
        return _max_with_places(node, x, windows)
    if not x.is_floating_point():
        low: Any = torch.iinfo(x.dtype).min
        return windows.gathered(x, low).amax(-1)
    if rank not in _MAX:
        return windows.gathered(x, -float("inf")).amax(-1)
    x = padded(x, windows.pads, -float("inf"))
    return _MAX[rank](x, windows.kernel, windows.strides, 0, windows.dilations)


def _max_with_places(node: Node, x: Tensor, windows: _Windows) -> Outputs:
    sizes = list(x.shape[2:])
    order = node.get("storage_order", 0)
    spatial = np.arange(int(np.prod(sizes))).reshape(sizes, order="F" if order else "C")
    values = windows.gathered(x.to(torch.float64) if not x.is_floating_point() else x, -float("inf"))
    places = windows.gathered(torch.from_numpy(spatial).double()[None, None], -1.0)
    best, chosen = values.max(-1)
    found = places.expand(values.shape).gather(-1, chosen[..., None])[..., 0].long()
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(sizes))
    return best.to(x.dtype), (found + planes * spatial.size).to(x.device)


@op("AveragePool", replace=True)  # the library's lacks uneven padding, dilations, ceil_mode's rule and auto_pad
def average_pool(node: Node, x: Tensor) -> Outputs:
    windows = _Windows(node, x)
    total = windows.summed(x, 0.0)
    sizes = tuple(x.shape[2:])
    counts: Tensor = node.once(("counts", sizes), lambda: _counts(node, windows, sizes))
    return total / counts.to(total)


def _counts(node: Node, windows: _Windows, sizes: tuple[int, ...]) -> Tensor:
    """(1, 1, *windows): how many elements each mean is over."""
    counted = torch.ones(1, 1, *sizes)
    if node.get("count_include_pad", 0):  # the user's padding counts, what ceil_mode adds does not
        counted = padded(counted, windows.real, 1.0)
        rest = [(0, p[1] - r[1]) for p, r in zip(windows.pads, windows.real, strict=True)]
        counted = padded(counted, rest)
        windows.pads = [(0, 0)] * len(rest)
    return windows.summed(counted, 0.0)


@op("LpPool", replace=True)  # the library has none at most versions
def lp_pool(node: Node, x: Tensor) -> Outputs:
    p = node.get("p", 2.0 if node.version == 1 else 2)
    return _norm(_Windows(node, x).gathered(x, 0.0), p, [-1])


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", replace=True)  # one form for every rank and version
def global_pool(node: Node, x: Tensor) -> Outputs:
    axes = list(range(2, x.ndim))
    if node.op == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if node.op == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return _norm(x, node.get("p", 2), axes, keepdim=True)


def _norm(x: Tensor, p: float, axes: list[int], *, keepdim: bool = False) -> Tensor:
    return x.abs().pow(p).sum(axes, keepdim=keepdim).pow(1 / p)


@op("MaxUnpool", static=(2,))
def max_unpool(node: Node, x: Tensor, places: Tensor, shape: Any = None) -> Outputs:
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    strides, pads = node.get("strides") or [1] * rank, node.get("pads") or [0] * 2 * rank
    own = [(n - 1) * s + k - pads[a] - pads[a + rank] for a, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel))]  # noqa: B905
    inferred = [*x.shape[:2], *own]
    flat = x.new_zeros(int(np.prod(inferred))).scatter(0, places.reshape(-1), x.reshape(-1)).reshape(inferred)
    if shape is None:
        return flat
    wanted = [int(s) for s in shape]
    flat = x.new_zeros(int(np.prod(wanted))).scatter(0, places.reshape(-1), x.reshape(-1))
    return flat.reshape(wanted)


@op("MaxRoiPool", static=(1,))
def max_roi_pool(node: Node, x: Tensor, rois: Any) -> Outputs:
    height, width = node.get("pooled_shape")
    scale = node.get("spatial_scale", 1.0)
    results = []
    for roi in rois:
        left, top, right, bottom = (int(np.floor(v * scale + 0.5)) for v in roi[1:])
        rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
        plane = x[int(roi[0])]
        cells = []
        for i in range(height):
            for j in range(width):
                y0, y1 = top + i * rows // height, top + -(-(i + 1) * rows // height)
                x0, x1 = left + j * columns // width, left + -(-(j + 1) * columns // width)
                y0, y1 = (min(max(v, 0), x.shape[2]) for v in (y0, y1))
                x0, x1 = (min(max(v, 0), x.shape[3]) for v in (x0, x1))
                part = plane[:, y0:y1, x0:x1]
                cells.append(part.amax((1, 2)) if part.numel() else plane.new_zeros(plane.shape[0]))
        results.append(torch.stack(cells, -1).reshape(-1, height, width))
    return torch.stack(results)
