"""To integers and back. A quantised tensor is carried as whole numbers in floating point, so that gradients flow.

Rounding is passed straight through, and so is what the type can hold; what it cannot has slope 0 (straight-through
within the clipping range: Bengio et al., 2013, and Jacob et al., CVPR 2018). TorchTail gives outputs their own type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .registry import Node, Outputs, op, positive

MICROSOFT = "com.microsoft"

_RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767), "uint4": (0, 15),
    "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1),
}  # fmt: skip
_CODES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4", 25: "uint2", 26: "int2"}

Constant = NDArray[Any] | Tensor | None  # stored: numpy; computed: a tensor


class _Round(torch.autograd.Function):
    """To the nearest whole number, halves to the even one; the slope is that of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0]


def rounded(x: Tensor) -> Tensor:
    """`x` at the nearest whole numbers, straight through."""
    result: Tensor = _Round.apply(x)
    return result


def whole(x: Tensor) -> Tensor:
    """Integers as floating point that holds each of them; what is carried so already stays."""
    if x.is_floating_point():
        return x
    return x.to(torch.float64 if x.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64) else torch.float32)


def tensor(value: Constant, like: Tensor) -> Tensor:
    """A scale or zero point as floating point beside `like`; none is a zero."""
    if value is None:
        return torch.zeros((), device=like.device)
    if isinstance(value, Tensor):
        return whole(value)
    return whole(torch.from_numpy(np.array(value))).to(like.device)


def spread(value: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point so that it broadcasts over `x`: one for all, one along `axis`, or one for every block."""
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    axis = positive(axis, x.ndim)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if k == axis else 1 for k in range(x.ndim)])


def limits(zero: Constant, node: Node | None = None) -> tuple[int, int]:
    """The smallest and largest number of the type that the zero point has (or that the node names)."""
    if isinstance(zero, np.ndarray) or (isinstance(zero, Tensor) and not zero.is_floating_point()):
        kind = str(zero.dtype).removeprefix("torch.")
    else:  # a computed zero point comes from DynamicQuantizeLinear
        code = node.get("output_dtype", 0) if node is not None else 0
        kind = _CODES.get(code, f"type {code}") if code else "uint8"
    if kind not in _RANGES:
        raise NotImplementedError(f"quantisation to {kind} has no torch form")
    return _RANGES[kind]


def quantised(v: Tensor, zero: Tensor, range: tuple[int, int]) -> Tensor:
    """round(v) + zero within the range, v in steps; as onnxruntime: float32, halves to the even number."""
    y = rounded(v) + zero
    kept = (y >= range[0]) & (y <= range[1])  # the ends included, where clamp has no slope
    return torch.where(kept, y, y.detach().clamp(*range))


@op("QuantizeLinear", baked=(1, 2), replace=True)
@op("QuantizeLinear", domain=MICROSOFT, baked=(1, 2))
def quantize_linear(node: Node, x: Tensor, scale: Constant, zero: Constant = None) -> Outputs:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    range = limits(zero, node)
    steps = spread(tensor(scale, x), x, axis, block)
    offset = spread(tensor(zero, x), x, axis, block)
    return quantised(whole(x).to(steps.dtype) / steps, offset, range)


@op("DequantizeLinear", baked=(1, 2), replace=True)
@op("DequantizeLinear", domain=MICROSOFT, baked=(1, 2))
def dequantize_linear(node: Node, x: Tensor, scale: Constant, zero: Constant = None) -> Outputs:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if x.dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        raise NotImplementedError("float8 has no torch form here")
    steps = spread(tensor(scale, x), x, axis, block)
    offset = spread(tensor(zero, x), x, axis, block)
    return (whole(x) - offset).to(steps.dtype) * steps


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node, x: Tensor) -> Outputs:
    """Scale and zero point follow the largest and smallest value; straight through, they have no slope of their own."""
    scale, zero = dynamic_scale(x)
    return quantised(x / scale, zero, (0, 255)), scale, zero


def dynamic_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point with which uint8 holds all of `x`, and 0."""
    x = x.detach()
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high == low, torch.ones_like(high), (high - low) / 255)
    return scale, (0 - low / scale).clamp(0, 255).round()
