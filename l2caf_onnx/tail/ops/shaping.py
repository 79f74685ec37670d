"""Moving elements about: reshape, transpose, join, cut, pad, repeat. Nothing is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .registry import Node, Outputs, ints, op, positive


@op("Identity")
def identity(node: Node, x: Tensor) -> Outputs:
    return x


@op("Dropout", static=(1, 2), replace=True)  # the library's refuses a seed, that inference does not use
def dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Outputs:
    if training is not None and bool(np.ravel(training)[0]) and (ratio is None or np.ravel(ratio)[0] > 0):
        raise NotImplementedError("dropout in training is random: export the model for inference")
    return x, torch.ones(x.shape, dtype=x.dtype if node.version < 10 else torch.bool, device=x.device)


@op("Reshape", static=(1,), replace=True)  # the library's fails on allowzero and on shapes stored as attributes
def reshape(node: Node, x: Tensor, shape: Any = None) -> Outputs:
    sizes = ints(node.get("shape") if shape is None else shape)
    if not node.get("allowzero", 0):
        sizes = [x.shape[k] if s == 0 else s for k, s in enumerate(sizes)]
    return x.reshape(sizes)


@op("Flatten", replace=True)  # the library's refuses axes at either end
def flatten(node: Node, x: Tensor) -> Outputs:
    axis = positive(node.get("axis", 1), x.ndim)
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


@op("Transpose", replace=True)  # the library's lacks opset 21 on; one form serves all
def transpose(node: Node, x: Tensor) -> Outputs:
    return x.permute(node.get("perm") or list(range(x.ndim))[::-1])


@op("Squeeze", static=(1,))
def squeeze(node: Node, x: Tensor, axes: Any = None) -> Outputs:
    chosen = node.get("axes") if axes is None else ints(axes)
    if chosen is None:
        return x.reshape([s for s in x.shape if s != 1])
    gone = {positive(a, x.ndim) for a in chosen}
    return x.reshape([s for k, s in enumerate(x.shape) if k not in gone])


@op("Unsqueeze", static=(1,), replace=True)  # the library's wants axes in a list
def unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Outputs:
    chosen = ints(node.get("axes") if axes is None else axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(positive(a, rank) for a in chosen):
        x = x.unsqueeze(axis)
    return x


@op("Concat", replace=True)  # the library's lacks opset 1's default axis
def concat(node: Node, *parts: Tensor) -> Outputs:
    return torch.cat(parts, dim=node.get("axis", 1))


@op("Split", static=(1,), replace=True)  # the library's gives a tuple where there is one output
def split(node: Node, x: Tensor, sizes: Any = None) -> Outputs:
    axis = positive(node.get("axis", 0), x.ndim)
    parts = ints(node.get("split") if sizes is None else sizes)
    if not parts:
        count = node.get("num_outputs", len(node.wanted))
        each = -(-x.shape[axis] // count)
        parts = [min(each, x.shape[axis] - k * each) for k in range(count)]
    return torch.split(x, parts, dim=axis)


@op("Slice", static=(1, 2, 3, 4), replace=True)  # the library's takes negative steps and huge ends wrongly
def slice_(node: Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Outputs:
    if starts is None:
        starts, ends, axes = node.get("starts"), node.get("ends"), node.get("axes")
    first, last = ints(starts), ints(ends)
    along = ints(axes) or list(range(len(first)))
    by = ints(steps) or [1] * len(first)
    for a, start, end, step in zip(along, first, last, by, strict=True):
        axis = positive(a, x.ndim)
        chosen = range(*slice(start, None if step < 0 and end < -x.shape[axis] else end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * axis + (slice(chosen.start, max(chosen.stop, chosen.start), step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


@op("Expand", static=(1,))
def expand(node: Node, x: Tensor, shape: Any) -> Outputs:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(ints(shape))))


@op("Tile", static=(1, 2), replace=True)  # the library's lacks opset 1
def tile(node: Node, x: Tensor, repeats: Any, axis: Any = None) -> Outputs:
    if axis is not None:  # opset 1: so many tiles along one axis
        counts = [1] * x.ndim
        counts[ints(axis)[0]] = ints(repeats)[0]
        return x.repeat(counts)
    return x.repeat(ints(repeats)) if x.ndim else x


@op("Pad", static=(1, 3), replace=True)  # the library's refuses what torch lacks: edge and reflect of any rank, wrap
def pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Outputs:
    amounts = ints(node.get("pads", node.get("paddings")) if pads is None else pads)
    along = [positive(a, x.ndim) for a in ints(axes)] if axes is not None else list(range(x.ndim))
    half = len(along)
    mode = node.get("mode", "constant")
    fill: Any = node.get("value", 0.0) if value is None else value
    for axis, before, after in zip(along, amounts[:half], amounts[half:], strict=True):
        if before < 0 or after < 0:  # cut first; what is added is added below
            size = x.shape[axis]
            x = x.narrow(axis, max(-before, 0), size - max(-before, 0) - max(-after, 0))
            before, after = max(before, 0), max(after, 0)
        if not before and not after:
            continue
        x = _constant(x, axis, before, after, fill) if mode == "constant" else _taken(x, axis, before, after, mode)
    return x


def _constant(x: Tensor, axis: int, before: int, after: int, fill: Any) -> Tensor:
    def block(size: int) -> Tensor:
        shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
        if isinstance(fill, Tensor):
            return fill.to(x.dtype).reshape(()).expand(shape)
        return torch.full(shape, fill, dtype=x.dtype, device=x.device)

    return torch.cat([block(before), x, block(after)], dim=axis)


def _taken(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    size = x.shape[axis]
    places = np.arange(-before, size + after)
    if mode == "edge":
        places = places.clip(0, size - 1)
    elif mode == "wrap":
        places %= size
    else:
        period = max(2 * (size - 1), 1)
        places = np.abs((places + (size - 1)) % period - (size - 1))
    return x.index_select(axis, torch.from_numpy(places).to(x.device))


@op("CenterCropPad", static=(1,))
def center_crop_pad(node: Node, x: Tensor, shape: Any) -> Outputs:
    axes = [positive(a, x.ndim) for a in node.get("axes", range(x.ndim))]
    for axis, size in zip(axes, ints(shape), strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        elif have < size:
            x = _constant(x, axis, (size - have) // 2, size - have - (size - have) // 2, 0)
    return x


@op("DepthToSpace", replace=True)  # the library's lacks the mode CRD
def depth_to_space(node: Node, x: Tensor) -> Outputs:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Outputs:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op("Trilu", static=(1,))
def trilu(node: Node, x: Tensor, k: Any = None) -> Outputs:
    diagonal = ints(k)[0] if k is not None else 0
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


@op("Shape")
def shape(node: Node, x: Tensor) -> Outputs:
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64, device=x.device)


@op("Size")
def size(node: Node, x: Tensor) -> Outputs:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@op("ReverseSequence", static=(1,))
def reverse_sequence(node: Node, x: Tensor, lengths: Any) -> Outputs:
    batch, time = node.get("batch_axis", 1), node.get("time_axis", 0)
    moved = x.movedim((batch, time), (0, 1))
    steps = np.tile(np.arange(moved.shape[1]), (moved.shape[0], 1))
    for row, length in zip(steps, ints(lengths), strict=True):
        row[:length] = row[:length][::-1]
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, torch.from_numpy(steps).to(x.device)].movedim((0, 1), (batch, time))


@op("Col2Im", static=(1, 2))
def col2im(node: Node, x: Tensor, image: Any, block: Any) -> Outputs:
    sizes, kernel = ints(image), ints(block)
    rank = len(sizes)
    dilations, strides = node.get("dilations", [1] * rank), node.get("strides", [1] * rank)
    pads = node.get("pads", [0] * 2 * rank)
    padded = [s + pads[k] + pads[k + rank] for k, s in enumerate(sizes)]
    counts = [(p - d * (b - 1) - 1) // s + 1 for p, d, b, s in zip(padded, dilations, kernel, strides, strict=True)]
    grids = [
        np.arange(b)[:, None] * d + np.arange(c)[None] * s
        for b, d, c, s in zip(kernel, dilations, counts, strides, strict=True)
    ]
    flat = np.zeros([*kernel, *counts], np.int64)
    for k, grid in enumerate(grids):
        form = [1] * (2 * rank)
        form[k], form[k + rank] = grid.shape
        flat = flat * padded[k] + grid.reshape(form)
    n, channels = x.shape[0], x.shape[1] // int(np.prod(kernel))
    out = x.new_zeros(n, channels, int(np.prod(padded)))
    out = out.index_add(2, torch.from_numpy(flat.ravel()).to(x.device), x.reshape(n, channels, -1))
    out = out.reshape(n, channels, *padded)
    for k, s in enumerate(sizes):
        out = out.narrow(2 + k, pads[k], s)
    return out


@op("Upsample", static=(1,))
def upsample(node: Node, x: Tensor, scales: Any = None) -> Outputs:
    factors = [float(s) for s in (node.get("scales") if scales is None else np.ravel(scales))]
    if not factors or len(factors) != x.ndim:  # opset 1
        factors = [1.0, 1.0, node.get("height_scale", 1.0), node.get("width_scale", 1.0)]
    for axis, factor in enumerate(factors):
        size = int(np.floor(x.shape[axis] * factor))
        if factor == 1:
            continue
        if node.get("mode", "nearest") == "nearest":
            places = np.minimum(np.floor(np.arange(size) / np.float32(factor)), x.shape[axis] - 1)
            x = x.index_select(axis, torch.from_numpy(places.astype(np.int64)).to(x.device))
        else:
            at = np.clip(np.arange(size) / factor, 0, x.shape[axis] - 1)
            low = np.floor(at).astype(np.int64)
            high = np.minimum(low + 1, x.shape[axis] - 1)
            part = torch.from_numpy((at - low).astype(np.float32)).to(x)
            part = part.reshape([-1 if k == axis else 1 for k in range(x.ndim)])
            ends = [x.index_select(axis, torch.from_numpy(p).to(x.device)) for p in (low, high)]
            x = ends[0] * (1 - part) + ends[1] * part
    return x


@op("ConstantOfShape", static=(0,), replace=True)
def constant_of_shape(node: Node, shape: Any) -> Outputs:
    value = node.get("value")
    array = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return torch.from_numpy(np.array(array)).reshape(()).expand(ints(shape))
