"""Convolutions, with every way of padding that ONNX has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .registry import Node, Outputs, op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def same_pads(sizes: list[int], spans: list[int], strides: list[int], *, upper: bool) -> list[tuple[int, int]]:
    """SAME_UPPER or SAME_LOWER: (before, after) for each axis, so that ceil(size / stride) windows fit.

    Args:
        sizes: Of the input.
        spans: What a window covers, dilation counted.
        strides: Between windows.
        upper: Whether the odd one of an uneven padding goes behind.
    """
    pads = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        half = (total // 2, total - total // 2)
        pads.append(half if upper else half[::-1])
    return pads


def window_pads(node: Node, sizes: list[int], spans: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """(before, after) for each axis, by `auto_pad` or `pads`."""
    auto = node.get("auto_pad", "NOTSET")
    rank = len(sizes)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(sizes, spans, strides, upper=auto == "SAME_UPPER")
    pads = node.get("pads") or [0] * 2 * rank
    return [(0, 0)] * rank if auto == "VALID" else list(zip(pads[:rank], pads[rank:], strict=True))


def padded(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """The spatial axes of `x` (N, C, *spatial) with a border; a negative one cuts."""
    if not any(p for pair in pads for p in pair):
        return x
    return functional.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


def convolved(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Conv by the attributes of `node`; `x` (N, C, *spatial), `weight` (M, C / group, *kernel)."""
    rank = weight.ndim - 2
    if rank not in _CONV:
        raise NotImplementedError(f"a convolution over {rank} axes has no torch form")
    strides = node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    pads = window_pads(node, list(x.shape[2:]), spans, strides)
    even = all(a == b >= 0 for a, b in pads)
    if not even:
        x = padded(x, pads)
    return _CONV[rank](x, weight, bias, strides, [a for a, _ in pads] if even else 0, dilations, node.get("group", 1))


@op("Conv", replace=True)  # the library's lacks auto_pad and uneven padding of some ranks
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Outputs:
    return convolved(node, x, weight, bias)


@op("ConvTranspose", replace=True)  # the library's lacks auto_pad, output_shape and uneven padding
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Outputs:
    rank = weight.ndim - 2
    if rank not in _TRANSPOSED:
        raise NotImplementedError(f"a transposed convolution over {rank} axes has no torch form")
    strides = node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    extra = node.get("output_padding") or [0] * rank
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    full = [(n - 1) * s + span for n, s, span in zip(x.shape[2:], strides, spans, strict=True)]
    pads = _transposed_pads(node, list(x.shape[2:]), full, strides, extra)
    whole = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    whole = padded(whole, [(-before, e - after) for (before, after), e in zip(pads, extra, strict=True)])
    return whole if bias is None else whole + bias.reshape([-1, *[1] * rank])


def _transposed_pads(
    node: Node, sizes: list[int], full: list[int], strides: list[int], extra: list[int]
) -> list[tuple[int, int]]:
    rank = len(sizes)
    auto = node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = node.get("pads") or [0] * 2 * rank
        return [(0, 0)] * rank if auto == "VALID" else list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, e, w in zip(full, extra, list(wanted)[-rank:], strict=True):
        total = size + e - w
        small = total // 2
        if total < 0:
            found.append((0, total))  # the end is lengthened
        else:
            found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return found


@op("DeformConv")
def deform_conv(
    node: Node, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Outputs:
    from torchvision.ops import deform_conv2d

    if x.ndim != 4:
        raise NotImplementedError("a deformable convolution has a torch form over two axes only")
    pads = window_pads(node, list(x.shape[2:]), [1, 1], [1, 1])
    group = node.get("group", 1)
    if group * weight.shape[1] != x.shape[1]:
        raise NotImplementedError("the channels do not fit the groups")
    even = [a for a, b in pads if a == b]
    if len(even) != 2:
        raise NotImplementedError("a deformable convolution with uneven padding has no torch form")
    result: Any = deform_conv2d(
        x, offset, weight, bias, node.get("strides", [1, 1]), even, node.get("dilations", [1, 1]), mask
    )
    return result if isinstance(result, Tensor) else torch.as_tensor(result)
