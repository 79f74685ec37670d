"""onnxruntime's own operators that pick, crop, pool and transform: older forms of what ONNX took over, and images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import convolving, indexing, pooling, sampling, shaping
from .contrib import MICROSOFT
from .registry import Node, Outputs, ints, op

op("Pad", domain=MICROSOFT, static=(1,))(shaping.pad)
op("Trilu", domain=MICROSOFT, static=(1,))(shaping.trilu)
op("GatherND", domain=MICROSOFT)(indexing.gather_nd)
op("GridSample", domain=MICROSOFT)(sampling.grid_sample)


@op("ExpandDims", domain=MICROSOFT, static=(1,))
def expand_dims(node: Node, x: Tensor, axis: Any) -> Outputs:
    return x.unsqueeze(ints(axis)[0])


@op("Range", domain=MICROSOFT, static=(0, 1, 2))
def range_(node: Node, start: Any, limit: Any, delta: Any = None) -> Outputs:
    first, end = np.ravel(start)[0], np.ravel(limit)[0]
    step = first.dtype.type(1) if delta is None else np.ravel(delta)[0]
    count = max(int(np.ceil((float(end) - float(first)) / float(step))), 0)
    return torch.from_numpy((first + np.arange(count).astype(first.dtype) * step).astype(first.dtype))


@op("Unique", domain=MICROSOFT)
def unique(node: Node, x: Tensor) -> Outputs:
    _, first, inverse, counts = np.unique(
        x.detach().cpu().numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    place = np.argsort(order)
    taken, where, often = (torch.from_numpy(a).to(x.device) for a in (first[order], place[inverse], counts[order]))
    return x[taken], where, often


@op("Inverse", domain=MICROSOFT)
def inverse(node: Node, x: Tensor) -> Outputs:
    result: Tensor = torch.linalg.inv(x)
    return result


@op("Rfft", domain=MICROSOFT)
def rfft(node: Node, x: Tensor) -> Outputs:
    _plain_fft(node)
    return torch.view_as_real(torch.fft.rfft(x))


@op("Irfft", domain=MICROSOFT)
def irfft(node: Node, x: Tensor) -> Outputs:
    _plain_fft(node)
    result: Tensor = torch.fft.irfft(torch.complex(x[..., 0], x[..., 1]))
    return result


def _plain_fft(node: Node) -> None:
    if node.get("signal_ndim", 1) != 1 or node.get("normalized", 0) or not node.get("onesided", 1):
        raise NotImplementedError(f"{node.op} is supported one-sided, unnormalised and over one axis.")


@op("CropAndResize", domain=MICROSOFT, static=(3,))
def crop_and_resize(node: Node, x: Tensor, boxes: Tensor, batch: Tensor, crop: Any) -> Outputs:
    y_at, y_in = _sampled(boxes[:, 0], boxes[:, 2], x.shape[2], ints(crop)[0])
    x_at, x_in = _sampled(boxes[:, 1], boxes[:, 3], x.shape[3], ints(crop)[1])
    images = x[batch.long()]  # (boxes, C, H, W)
    if node.get("mode", "bilinear") == "nearest":
        rows = _rows(images, 2, torch.floor(y_at.detach() + 0.5))
        y = _rows(rows, 3, torch.floor(x_at.detach() + 0.5))
    else:
        y = _between(_between(images, 2, y_at), 3, x_at)
    inside = (y_in[:, :, None] & x_in[:, None, :])[:, None]
    return torch.where(inside, y, torch.full_like(y, node.get("extrapolation_value", 0.0)))


def _sampled(low: Tensor, high: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """(boxes, count): the coordinates that a crop reads along an axis, and which of them lie in the image."""
    if count > 1:
        step = (high - low) * (size - 1) / (count - 1)
        at = (low * (size - 1))[:, None] + torch.arange(count, device=low.device) * step[:, None]
    else:
        at = (0.5 * (low + high) * (size - 1))[:, None]
    return at, (at >= 0) & (at <= size - 1)


def _rows(x: Tensor, axis: int, at: Tensor) -> Tensor:
    """Along `axis` the elements at whole coordinates (boxes, count)."""
    places = at.long().clamp(0, x.shape[axis] - 1)
    form = [at.shape[0], 1, 1, 1]
    form[axis] = at.shape[1]
    shape = list(x.shape)
    shape[axis] = at.shape[1]
    return torch.gather(x, axis, places.reshape(form).expand(shape))


def _between(x: Tensor, axis: int, at: Tensor) -> Tensor:
    low = torch.floor(at.detach())
    form = [at.shape[0], 1, 1, 1]
    form[axis] = at.shape[1]
    part = (at - low).reshape(form)
    return _rows(x, axis, low) * (1 - part) + _rows(x, axis, low + 1) * part


@op("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(node: Node, x: Tensor) -> Outputs:
    result = pooling.max_pool(node, x.movedim(-1, 1))
    return (result[0] if isinstance(result, tuple) else result).movedim(1, -1)  # type: ignore[union-attr]  # a tensor


@op("ConvTransposeWithDynamicPads", domain=MICROSOFT, static=(2,))
def conv_transpose(node: Node, x: Tensor, weight: Tensor, pads: Any = None, bias: Tensor | None = None) -> Outputs:
    attributes = {**node.attributes, "pads": ints(pads)} if pads is not None else node.attributes
    return convolving.conv_transpose(replace(node, attributes=attributes), x, weight, bias)
