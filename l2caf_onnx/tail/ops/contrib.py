"""Operators that onnxruntime's optimiser and its transformer tools write: arithmetic, activations, normalisation.

A model saved after optimisation holds them instead of ONNX's own; they have no specification but the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everybody gives it
from torch import Tensor

from .convolving import convolved
from .normalising import layer_norm
from .registry import Node, Outputs, op

MICROSOFT = "com.microsoft"

_ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    # defaults of alpha, beta, gamma, and the function of x and these
    "Relu": ((), torch.relu),
    "Tanh": ((), torch.tanh),
    "Sigmoid": ((), torch.sigmoid),
    "Softplus": ((), lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": ((), F.softsign),
    "HardSwish": ((), F.hardswish),
    "Gelu": ((), F.gelu),
    "LeakyRelu": ((0.01,), lambda x, a: torch.where(x >= 0, x, a * x)),
    "ThresholdedRelu": ((1.0,), lambda x, a: torch.where(x > a, x, torch.zeros_like(x))),
    "Elu": ((1.0,), lambda x, a: torch.where(x >= 0, x, a * torch.expm1(x.clamp(max=0)))),
    "HardSigmoid": ((0.2, 0.5), lambda x, a, b: (a * x + b).clamp(0, 1)),
    "Clip": ((-math.inf, math.inf), lambda x, low, high: x.clamp(low, high)),
}


def activated(x: Tensor, name: str | None, given: list[float]) -> Tensor:
    """`x` through a fused activation with its parameters in order; None and "" leave it."""
    if not name:
        return x
    if name not in _ACTIVATIONS:
        raise NotImplementedError(f"The fused activation {name!r} is not supported.")
    defaults, function = _ACTIVATIONS[name]
    return function(x, *given[: len(defaults)], *defaults[len(given) :])


@op("FusedConv", domain=MICROSOFT)
def fused_conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Outputs:
    y = convolved(node, x, w, b)
    return activated(y if z is None else y + z, node.get("activation"), node.get("activation_params", []))


@op("NhwcFusedConv", "NhwcConv", domain=MICROSOFT)
def nhwc_conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Outputs:
    y = convolved(node, x.movedim(-1, 1), w, b).movedim(1, -1)
    return activated(y if z is None else y + z, node.get("activation"), node.get("activation_params", []))


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Outputs:
    a, b = (a.T if node.get("transA", 0) else a), (b.T if node.get("transB", 0) else b)
    y = node.get("alpha", 1.0) * (a @ b)
    y = y if c is None else y + node.get("beta", 1.0) * c
    name = node.get("activation")
    defaults = _ACTIVATIONS.get(name or "", ((), None))[0]
    keys = ("activation_alpha", "activation_beta", "activation_gamma")
    return activated(y, name, [node.get(k, d) for k, d in zip(keys, defaults, strict=False)])


@op("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Outputs:
    def turned(x: Tensor, side: str) -> Tensor:
        if node.get(f"transBatch{side}", 0) and x.ndim > 2:
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if node.get(f"trans{side}", 0) and x.ndim > 1 else x

    alpha: float = node.get("alpha", 1.0)
    return alpha * (turned(a, "A") @ turned(b, "B"))


@op("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Outputs:
    y = x @ w
    return F.gelu(y if bias is None else y + bias, approximate="tanh")


@op("Gelu", "BiasGelu", "FastGelu", domain=MICROSOFT)
def gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Outputs:
    return F.gelu(x if bias is None else x + bias, approximate="tanh" if node.op == "FastGelu" else "none")


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: Node, x: Tensor) -> Outputs:
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


@op("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(node: Node, x: Tensor, bias: Tensor) -> Outputs:
    left, right = (x + bias).chunk(2, dim=-1)
    return left * F.gelu(right)


@op("BiasAdd", domain=MICROSOFT)
def bias_add(node: Node, x: Tensor, bias: Tensor, skip: Tensor) -> Outputs:
    return x + bias + skip


@op("BiasDropout", "BitmaskBiasDropout", static=(4,), domain=MICROSOFT)
def bias_dropout(
    node: Node, x: Tensor, bias: Tensor, residual: Tensor | None = None, ratio: Any = None, training: Any = None
) -> Outputs:
    y = x + bias
    return _dropped(node, y if residual is None else y + residual, training)


@op("BitmaskDropout", static=(2,), domain=MICROSOFT)
def bitmask_dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Outputs:
    return _dropped(node, x, training)


def _dropped(node: Node, y: Tensor, training: Any) -> Outputs:
    if training is not None and np.any(training):
        raise NotImplementedError(f"{node.op} in training mode is random, so it is not supported.")
    if node.op.startswith("Bitmask") and any(node.wanted[1:]):
        raise NotImplementedError(f"The packed mask that {node.op} returns is not supported.")
    return (y, torch.ones(y.shape, dtype=torch.bool, device=y.device)) if any(node.wanted[1:]) else y


op("LayerNormalization", domain=MICROSOFT)(layer_norm)  # onnxruntime had it before opset 17 did (see convert.py)


@op("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_norm(node: Node, x: Tensor, scale: Tensor) -> Outputs:
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    inverse = (x.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5)).rsqrt()
    return x * inverse * scale, inverse


@op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> Outputs:
    total = _skipped(node, x, skip, bias)
    y = F.layer_norm(total, gamma.shape, None, None, node.get("epsilon", 1e-12)) * gamma
    return y if beta is None else y + beta, None, None, total


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_norm(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> Outputs:
    total = _skipped(node, x, skip, bias)
    inverse = (total.square().mean(-1, keepdim=True) + node.get("epsilon", 1e-12)).rsqrt()
    return total * inverse * gamma, None, None, total


def _skipped(node: Node, x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    if any(node.wanted[1:3]):
        raise NotImplementedError(f"The mean and deviation that {node.op} returns for training are not supported.")
    return x + skip if bias is None else x + skip + bias


@op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(
    node: Node,
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Outputs:
    if positions is None:
        total = word_table[words] + position_table[: words.shape[1]]
    else:
        total = word_table[words] + position_table[positions]
    if segments is not None and segment_table is not None:
        total = total + segment_table[segments]
    y = F.layer_norm(total, gamma.shape, gamma, beta, node.get("epsilon", 1e-12))
    counted = torch.zeros_like(words[:, 0]) if mask is None else (mask == 1).sum(-1)
    return y, counted.to(torch.int32), total


@op("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def group_norm(
    node: Node, x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor | None = None, bias: Tensor | None = None
) -> Outputs:
    last = node.get("channels_last", 1) == 1
    if skip is not None:
        if not last:
            raise NotImplementedError("SkipGroupNorm is supported with channels last.")
        x = x + (skip[:, None, None] if skip.ndim == 2 else skip)
        x = x if bias is None else x + bias
    form = x.movedim(-1, 1) if last else x
    y = F.group_norm(form, node.get("groups"), gamma, beta, node.get("epsilon", 1e-5))
    y = F.silu(y) if node.get("activation", 0) == 1 else y
    return y.movedim(1, -1) if last else y, x


@op("MatMulNBits", static=(1, 4), domain=MICROSOFT)
def matmul_nbits(
    node: Node, a: Tensor, packed: Any, scales: Tensor, zeros: Any = None, order: Any = None, bias: Tensor | None = None
) -> Outputs:
    if order is not None or node.get("weight_prepacked", 0):
        raise NotImplementedError("MatMulNBits with g_idx or prepacked weights is not supported.")
    bits, rows, columns = node.get("bits", 4), node.get("N"), node.get("K")
    blocks = scales.numel() // rows
    steps = torch.from_numpy(_unpacked(packed, bits).astype(np.float32)).to(scales).reshape(rows, blocks, -1)
    if zeros is None:
        centre = scales.new_full((), 2.0 ** (bits - 1))
    elif zeros.dtype == torch.uint8:
        flat = _unpacked(zeros.cpu().numpy().reshape(rows, -1), bits)[:, :blocks]
        centre = torch.from_numpy(flat.astype(np.float32)).to(scales)[..., None]
    else:
        centre = zeros.reshape(rows, blocks, 1)
    weights = ((steps - centre) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :columns]
    y = a @ weights.T
    return y if bias is None else y + bias


def _unpacked(packed: Any, bits: int) -> Any:
    """Bytes as the numbers in them, the lowest bits first: (..., bytes) to (..., bytes * 8 / bits)."""
    shifts = np.arange(0, 8, bits)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).reshape(*packed.shape[:-1], -1)
