"""Arithmetic on quantised tensors: exact integers, requantised in float32 as onnxruntime does.

Products are summed in float32 where no sum can pass 2**24, and so none is rounded; in double precision else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .convolving import convolved
from .quantising import MICROSOFT, Constant, limits, quantised, tensor, whole
from .registry import Node, Outputs, op

_EXACT = 2**24  # whole numbers up to here are exact in float32
_LARGEST = 255  # of an 8-bit number, its zero point taken off


def weight(node: Node, w: Constant, zero: Constant, x: Tensor, axis: int) -> tuple[Tensor, bool]:
    """Quantised weights less their zero point, and whether sums of products with them need double precision.

    Args:
        node: Its memo keeps what is stored.
        w: (M, C, *kernel) where `axis` is 0; (..., K, N) where it is -1: the axis of the outputs.
        zero: One, or one for each index along `axis`.
        x: The other factor: it tells the device.
        axis: Along which the zero point runs.
    """

    def make() -> tuple[Tensor, bool]:
        values = tensor(w, x) - along(tensor(zero, x), w, axis)
        over = [0, *range(1, values.ndim)][1:] if axis == 0 else [values.ndim - 2]
        largest = float(values.detach().abs().sum(over).max()) * _LARGEST if values.numel() else 0.0
        return values, largest >= _EXACT

    return node.once(("weight", x.device), make) if isinstance(w, np.ndarray) else make()


def along(value: Tensor, of: Constant, axis: int) -> Tensor:
    """A scale or zero point as it broadcasts over the weights `of`; (..., 1, N) stays."""
    assert of is not None
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1, *[1] * (of.ndim - 1)]) if axis == 0 else value


def summed(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, wide: bool) -> Tensor:
    """`product` of two factors of whole numbers, exact."""
    return product(x.double(), w.double()) if wide else product(x.float(), w.float())


def requantised(sums: Tensor, multiplier: Tensor, scale: Constant, zero: Constant) -> Tensor:
    """Sums times their step, in the output's steps: one float32 factor, as in onnxruntime."""
    factor = multiplier.float() / tensor(scale, sums).float()
    return quantised(sums.float() * factor, tensor(zero, sums), limits(zero))


def _conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None, wide: bool) -> Tensor:
    sums = summed(lambda a, k: convolved(node, a, k, None), x, w, wide)
    return sums if b is None else sums.double() + b.reshape([-1, *[1] * (sums.ndim - 2)])


@op("QLinearConv", baked=(1, 2, 3, 4, 5, 6, 7))
@op("QLinearConv", domain=MICROSOFT, baked=(1, 2, 3, 4, 5, 6, 7))
def qlinear_conv(
    node: Node, x: Tensor, xs: Constant, xz: Constant, w: Constant, ws: Constant, wz: Constant,
    ys: Constant, yz: Constant, b: Tensor | None = None,
) -> Outputs:  # fmt: skip
    last = node.get("channels_last", 0)
    x = whole(x) - tensor(xz, x)
    x = x.movedim(-1, 1) if last else x
    kernel, wide = weight(node, w, wz, x, 0)
    step = tensor(xs, x) * tensor(ws, x)
    sums = _conv(node, x, kernel, None if b is None else whole(b), wide)
    y = requantised(sums, step.reshape([-1, *[1] * (x.ndim - 2)]) if step.numel() > 1 else step.reshape(()), ys, yz)
    return y.movedim(1, -1) if last else y


@op("ConvInteger", baked=(1, 2, 3))
def conv_integer(node: Node, x: Tensor, w: Constant, xz: Constant = None, wz: Constant = None) -> Outputs:
    x = whole(x) - tensor(xz, x).reshape(())
    kernel, wide = weight(node, w, wz, x, 0)
    return _conv(node, x, kernel, None, wide)


@op("MatMulInteger", baked=(1, 2, 3))
def matmul_integer(node: Node, a: Tensor, b: Constant, az: Constant = None, bz: Constant = None) -> Outputs:
    factor, wide = weight(node, b, bz, a, -1)
    return summed(torch.matmul, whole(a) - _rows(tensor(az, a)), factor, wide)


def _rows(value: Tensor) -> Tensor:
    """A scale or zero point of the left factor: one, or one a row."""
    return value.reshape(()) if value.numel() == 1 else value[..., None] if value.ndim == 1 else value


@op("QLinearMatMul", baked=(1, 2, 3, 4, 5, 6, 7))
def qlinear_matmul(
    node: Node, a: Tensor, as_: Constant, az: Constant, b: Constant, bs: Constant, bz: Constant,
    ys: Constant, yz: Constant,
) -> Outputs:  # fmt: skip
    factor, wide = weight(node, b, bz, a, -1)
    step = _rows(tensor(as_, a)) * along(tensor(bs, a), b, -1)
    sums = summed(torch.matmul, whole(a) - _rows(tensor(az, a)), factor, wide)
    return requantised(sums, step, ys, yz)


@op("QGemm", domain=MICROSOFT, baked=(1, 2, 3, 4, 5, 7, 8))
def qgemm(
    node: Node, a: Tensor, as_: Constant, az: Constant, b: Constant, bs: Constant, bz: Constant,
    c: Tensor | None = None, ys: Constant = None, yz: Constant = None,
) -> Outputs:  # fmt: skip
    transposed: Constant = b if not node.get("transB", 0) or b is None else b.T
    factor, wide = weight(node, transposed, bz, a, -1)
    left = whole(a) - tensor(az, a).reshape(())
    sums = summed(torch.matmul, left.mT if node.get("transA", 0) else left, factor, wide)
    sums = sums if c is None else sums.double() + whole(c)
    step = tensor(as_, a).reshape(()) * along(tensor(bs, a), b, -1) * node.get("alpha", 1.0)
    return sums.float() * step.float() if ys is None else requantised(sums, step, ys, yz)


@op("MatMulIntegerToFloat", domain=MICROSOFT, baked=(1, 3, 4, 5))
def matmul_integer_to_float(
    node: Node, a: Tensor, b: Constant, as_: Tensor, bs: Constant, az: Constant = None, bz: Constant = None,
    bias: Tensor | None = None,
) -> Outputs:  # fmt: skip
    factor, wide = weight(node, b, bz, a, -1)
    sums = summed(torch.matmul, whole(a) - tensor(az, a).reshape(()), factor, wide)
    y = sums.float() * (as_.reshape(()) * along(tensor(bs, a), b, -1)).float()
    return y if bias is None else y + bias


@op("DynamicQuantizeMatMul", domain=MICROSOFT, baked=(1, 2, 3))
def dynamic_quantize_matmul(
    node: Node, a: Tensor, b: Constant, bs: Constant, bz: Constant = None, bias: Tensor | None = None
) -> Outputs:
    from .quantising import dynamic_scale

    scale, zero = dynamic_scale(a)
    levels = quantised(a / scale, zero, (0, 255))
    return matmul_integer_to_float(node, levels, b, scale, bs, zero, bz, bias)


@op("MatMulNBits", domain=MICROSOFT, baked=(1, 2, 3))
def matmul_nbits(
    node: Node, a: Tensor, b: NDArray[Any], scales: Constant, zeros: Constant = None,
    groups: Tensor | None = None, bias: Tensor | None = None,
) -> Outputs:  # fmt: skip
    """Weights of 4 or 8 bits in blocks along the axis that is summed over: (N, blocks, block_size * bits / 8)."""
    bits, size, k, n = (node.get(v, d) for v, d in (("bits", 4), ("block_size", 0), ("K", 0), ("N", 0)))
    if groups is not None or bits not in (4, 8) or not isinstance(b, np.ndarray):
        raise NotImplementedError("weights of so many bits, reordered or computed, have no torch form")

    def unpacked(packed: NDArray[Any], count: int) -> NDArray[np.float32]:
        parts = [packed] if bits == 8 else [packed & 15, packed >> 4]
        return np.stack(parts, -1).reshape(n, -1)[:, :count].astype(np.float32)

    def make() -> Tensor:
        levels = unpacked(b, k)
        blocks = -(-k // size)
        offset: Any = np.float32(1 << (bits - 1))
        if isinstance(zeros, np.ndarray):
            given = zeros.astype(np.float32) if zeros.dtype.kind == "f" else unpacked(zeros.reshape(n, -1), blocks)
            offset = given.reshape(n, blocks).repeat(size, 1)[:, :k]
        steps = tensor(scales, a).reshape(n, blocks).repeat_interleave(size, 1)[:, :k]
        return (torch.from_numpy(np.asarray(levels - offset)).to(a.device) * steps).T

    y = torch.matmul(a, node.once(("weight", a.device), make).to(a.dtype))
    return y if bias is None else y + bias


@op("QLinearAdd", "QLinearMul", domain=MICROSOFT, baked=(1, 2, 4, 5, 6, 7))
def qlinear_binary(
    node: Node, a: Tensor, as_: Constant, az: Constant, b: Tensor, bs: Constant, bz: Constant,
    ys: Constant, yz: Constant = None,
) -> Outputs:  # fmt: skip
    left, right, step = whole(a) - tensor(az, a), whole(b) - tensor(bz, a), tensor(ys, a)
    if node.op == "QLinearMul":
        v = left * right * (tensor(as_, a) * tensor(bs, a) / step)
    else:
        v = left * (tensor(as_, a) / step) + right * (tensor(bs, a) / step)
    return quantised(v, tensor(yz, a), limits(yz))


def real(x: Tensor, scale: Constant, zero: Constant) -> Tensor:
    """What a tensor quantised as a whole stands for."""
    return (whole(x) - tensor(zero, x).reshape(())).float() * tensor(scale, x).reshape(())


def stored(y: Tensor, scale: Constant, zero: Constant) -> Tensor:
    """Real numbers quantised as a whole."""
    return quantised(y / tensor(scale, y).reshape(()), tensor(zero, y).reshape(()), limits(zero))


def _average(node: Node, x: Tensor) -> Tensor:
    from .pooling import average_pool

    return average_pool(node, x)  # type: ignore[return-value]  # it has one output


_UNARY: dict[str, Callable[[Node, Tensor], Tensor]] = {
    "QLinearSigmoid": lambda node, x: torch.sigmoid(x),
    "QLinearLeakyRelu": lambda node, x: torch.where(x >= 0, x, x * node.get("alpha", 0.01)),
    "QLinearSoftmax": lambda node, x: _softmax(node, x),
    "QLinearAveragePool": _average,
    "QLinearGlobalAveragePool": lambda node, x: x.mean(list(range(2, x.ndim)), keepdim=True),
}


def _softmax(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1)
    if node.get("opset", 13) >= 13:
        return torch.softmax(x, axis)
    axis = axis + x.ndim if axis < 0 else axis
    return torch.softmax(x.reshape([*x.shape[:axis], -1]), axis).reshape(x.shape)


@op(*_UNARY, domain=MICROSOFT, baked=(1, 2, 3, 4))
def qlinear_unary(node: Node, x: Tensor, xs: Constant, xz: Constant, ys: Constant, yz: Constant = None) -> Outputs:
    last = node.get("channels_last", 0)
    v = real(x, xs, xz)
    y = _UNARY[node.op](node, v.movedim(-1, 1) if last else v)
    return stored(y.movedim(1, -1) if last else y, ys, yz)


@op("QLinearReduceMean", domain=MICROSOFT, baked=(1, 2, 3, 4))
def qlinear_mean(node: Node, x: Tensor, xs: Constant, xz: Constant, ys: Constant, yz: Constant = None) -> Outputs:
    axes = node.get("axes") or list(range(x.ndim))
    return stored(real(x, xs, xz).mean(axes, keepdim=bool(node.get("keepdims", 1))), ys, yz)


@op("QLinearConcat", domain=MICROSOFT, baked=(0, 1, *range(3, 3000, 3), *range(4, 3000, 3)))
def qlinear_concat(node: Node, ys: Constant, yz: Constant, *parts: Any) -> Outputs:
    triples = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    return stored(torch.cat([real(x, s, z) for x, s, z in triples], node.get("axis", 0)), ys, yz)


@op("QLinearWhere", domain=MICROSOFT, baked=(2, 3, 5, 6, 7, 8))
def qlinear_where(
    node: Node, condition: Tensor, x: Tensor, xs: Constant, xz: Constant, y: Tensor, ys: Constant, yz: Constant,
    zs: Constant, zz: Constant,
) -> Outputs:  # fmt: skip
    return stored(torch.where(condition, real(x, xs, xz), real(y, ys, yz)), zs, zz)
