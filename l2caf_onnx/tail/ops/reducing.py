"""Sums, means, norms and extremes along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .registry import Node, Outputs, ints, op, positive

_Axes = list[int]


def _prod(x: Tensor, axes: _Axes) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


def _extreme(x: Tensor, axes: _Axes, *, largest: bool) -> Tensor:
    """amax and amin share the gradient among equals; an empty axis has its type's own end."""
    if all(x.shape[a] for a in axes):
        if x.dtype == torch.bool:
            return x.any(axes, keepdim=True) if largest else x.all(axes, keepdim=True)
        return x.amax(axes, keepdim=True) if largest else x.amin(axes, keepdim=True)
    if x.dtype == torch.bool:
        end: Any = not largest
    elif x.is_floating_point():
        end = -float("inf") if largest else float("inf")
    else:
        end = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    return x.new_full([1 if k in axes else s for k, s in enumerate(x.shape)], end)


def _mean(x: Tensor, axes: _Axes) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(x.sum(axes, keepdim=True), count, rounding_mode="trunc").to(x.dtype)


def _logsumexp(x: Tensor, axes: _Axes) -> Tensor:
    if not x.is_floating_point():
        return torch.logsumexp(x.double(), axes, keepdim=True).to(x.dtype)
    return torch.logsumexp(x, axes, keepdim=True)


def _sum(x: Tensor, axes: _Axes) -> Tensor:
    return x.sum(axes, keepdim=True, dtype=x.dtype)


_FORMS: dict[str, Callable[[Tensor, _Axes], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": lambda x, axes: _extreme(x, axes, largest=True),
    "ReduceMin": lambda x, axes: _extreme(x, axes, largest=False),
    "ReduceL1": lambda x, axes: _sum(x.abs(), axes),
    "ReduceL2": lambda x, axes: _root(_sum(x * x, axes)),
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
    "ReduceLogSum": lambda x, axes: torch.log(_sum(x, axes)),
    "ReduceLogSumExp": _logsumexp,
}


def _root(x: Tensor) -> Tensor:
    return torch.sqrt(x) if x.is_floating_point() else torch.sqrt(x.double()).to(x.dtype)


@op(*_FORMS, static=(1,), replace=True)  # the library's lacks opset 18 on, and axes that are omitted
def reduce(node: Node, x: Tensor, axes: Any = None) -> Outputs:
    chosen = node.get("axes") if axes is None else ints(axes)
    if not chosen:
        if node.get("noop_with_empty_axes", 0):
            return _FORMS[node.op](x[None], [0])[0]  # so that L1 is still |x|, and LogSumExp still x
        chosen = list(range(x.ndim))
    along = sorted({positive(a, x.ndim) for a in chosen})
    if not along:  # a scalar
        return _FORMS[node.op](x[None], [0])[0]
    result = _FORMS[node.op](x, along)
    if node.get("keepdims", 1):
        return result
    return result.reshape([s for k, s in enumerate(x.shape) if k not in along])


@op("ArgMax", "ArgMin", replace=True)  # the library's has no choice of the last among equals
def arg_extreme(node: Node, x: Tensor) -> Outputs:
    axis = positive(node.get("axis", 0), x.ndim)
    form = torch.argmax if node.op == "ArgMax" else torch.argmin
    if node.get("select_last_index", 0):
        found = x.shape[axis] - 1 - form(x.flip(axis), dim=axis, keepdim=True)
    else:
        found = form(x, dim=axis, keepdim=True)
    return found if node.get("keepdims", 1) else found.squeeze(axis)


@op("CumSum", "CumProd", static=(1,), replace=True)  # the library's needs an axis that is stored
def cumulative(node: Node, x: Tensor, axis: Any) -> Outputs:
    along = positive(ints(axis)[0], x.ndim)
    if node.get("reverse", 0):
        x = x.flip(along)
    form, empty = (torch.cumsum, 0) if node.op == "CumSum" else (torch.cumprod, 1)
    result = form(x, along).to(x.dtype)
    if node.get("exclusive", 0):
        first = torch.full_like(x.narrow(along, 0, 1), empty)
        result = torch.cat([first, result.narrow(along, 0, x.shape[along] - 1)], along)
    return result.flip(along) if node.get("reverse", 0) else result


@op("TopK", static=(1,), replace=True)  # the library's has no gradient at opset 24, and orders equals its own way
def top_k(node: Node, x: Tensor, k: Any = None) -> Outputs:
    axis = positive(node.get("axis", -1), x.ndim)
    count = node.get("k") if k is None else ints(k)[0]
    places = torch.sort(x, dim=axis, descending=bool(node.get("largest", 1)), stable=True)[1].narrow(axis, 0, count)
    if node.version >= 11 and not node.get("sorted", 1):
        places = places.sort(axis)[0]
    return x.gather(axis, places), places
