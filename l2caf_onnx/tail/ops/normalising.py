"""Normalisations: by stored statistics, or by those of the tensor itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import Node, Outputs, op, positive


def _along_channels(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape([1, -1, *[1] * (x.ndim - 2)]) if x.ndim > 1 else v


@op("BatchNormalization", replace=True)  # the library's refuses ranks that torch has no layer for, and training
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Outputs:
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if node.version < 14 and (sum(node.wanted) > 1 or (node.version < 7 and not node.get("is_test", 0))):
        raise NotImplementedError("batch normalisation in training: export the model for inference")
    rest: tuple[Tensor, ...] = ()
    if node.get("training_mode", 0):
        axes = [0, *range(2, x.ndim)]
        seen, spread = x.mean(axes), x.var(axes, correction=0)
        rest = (mean * momentum + seen * (1 - momentum), var * momentum + spread * (1 - momentum))
        mean, var = seen, spread
    elif x.ndim > 1 and (node.version >= 9 or node.get("spatial", 1)):
        return torch.nn.functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    factor = scale / torch.sqrt(var + epsilon)
    if node.version < 9 and not node.get("spatial", 1):
        return x * factor[None] + (bias - mean * factor)[None]
    result = (x - _along_channels(mean, x)) * _along_channels(factor, x) + _along_channels(bias, x)
    return (result, *rest)


@op("InstanceNormalization", replace=True)  # the library's refuses some ranks
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Outputs:
    axes = list(range(2, x.ndim))
    result = _standardised(x, axes, node.get("epsilon", 1e-5))
    return result * _along_channels(scale, x) + _along_channels(bias, x)


@op("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Outputs:
    groups = node.get("num_groups")
    parts = x.reshape(x.shape[0], groups, -1)
    result = _standardised(parts, [2], node.get("epsilon", 1e-5))
    if node.version < 21:  # scale and bias were one a group
        return (result * scale[:, None] + bias[:, None]).reshape(x.shape)
    return result.reshape(x.shape) * _along_channels(scale, x) + _along_channels(bias, x)


@op("LayerNormalization", replace=True)  # the library's gives one output, and needs stored weights
def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Outputs:
    axes = list(range(positive(node.get("axis", -1), x.ndim), x.ndim))
    shape, plain = [x.shape[a] for a in axes], sum(node.wanted) == 1
    if plain and list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return torch.nn.functional.layer_norm(x, shape, scale, bias, node.get("epsilon", 1e-5))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + node.get("epsilon", 1e-5))
    result = centred * inverse * scale
    return (result if bias is None else result + bias), mean, inverse


@op("RMSNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Outputs:
    axes = list(range(positive(node.get("axis", -1), x.ndim), x.ndim))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + node.get("epsilon", 1e-5)) * scale


@op("LRN", replace=True)  # the library's counts the window of an even size from the other side
def lrn(node: Node, x: Tensor) -> Outputs:
    size = node.get("size")
    before = (size - 1) // 2
    squares = torch.nn.functional.pad((x * x).movedim(1, -1), (before, size - 1 - before))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total
    result: Tensor = x / scale.pow(node.get("beta", 0.75))
    return result


@op("MeanVarianceNormalization")
def mean_variance_norm(node: Node, x: Tensor) -> Outputs:
    axes = [positive(a, x.ndim) for a in node.get("axes", [0, 2, 3])]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


@op("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    safe = torch.where(size == 0, torch.ones_like(size), size)
    return torch.div(x, safe)


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
