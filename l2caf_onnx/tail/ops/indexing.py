"""Elements taken from, and put to, places that other tensors name. There is no gradient through an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .registry import Node, Outputs, ints, op, positive, torch_type


def _wrapped(index: Tensor, size: int) -> Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


@op("Gather", replace=True)  # the library's fails on negative and on scalar indices
def gather(node: Node, x: Tensor, index: Tensor) -> Outputs:
    axis = positive(node.get("axis", 0), x.ndim)
    places = _wrapped(index, x.shape[axis])
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@op("GatherElements", replace=True)  # the library's fails on negative indices
def gather_elements(node: Node, x: Tensor, index: Tensor) -> Outputs:
    axis = positive(node.get("axis", 0), x.ndim)
    return x.gather(axis, _wrapped(index, x.shape[axis]))


def _flat(index: Tensor, sizes: list[int]) -> Tensor:
    """Positions in the flattened leading axes of `sizes`, from indices (..., axes)."""
    flat = torch.zeros_like(index[..., 0], dtype=torch.int64)
    for k, size in enumerate(sizes):
        flat = flat * size + _wrapped(index[..., k], size)
    return flat


@op("GatherND")
def gather_nd(node: Node, x: Tensor, index: Tensor) -> Outputs:
    batch, depth = node.get("batch_dims", 0), index.shape[-1]
    lead, rest = list(x.shape[:batch]), list(x.shape[batch + depth :])
    groups = int(np.prod(lead, dtype=np.int64))
    flat = _flat(index, list(x.shape[batch : batch + depth])).reshape(groups, -1)
    source = x.reshape([groups, -1, *rest])
    taken = source.gather(1, flat.reshape([*flat.shape, *[1] * len(rest)]).expand([*flat.shape, *rest]))
    return taken.reshape([*index.shape[:-1], *rest])


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scattered(x: Tensor, axis: int, index: Tensor, updates: Tensor, how: str) -> Tensor:
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[how], include_self=True)


@op("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Outputs:
    axis = positive(node.get("axis", 0), x.ndim)
    return _scattered(x, axis, _wrapped(index, x.shape[axis]), updates, node.get("reduction", "none"))


@op("ScatterND", replace=True)  # the library's lacks the reductions
def scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Outputs:
    depth = index.shape[-1]
    rest = list(x.shape[depth:])
    flat = _flat(index, list(x.shape[:depth])).reshape(-1)
    wide = flat.reshape([-1, *[1] * len(rest)]).expand([len(flat), *rest])
    source = x.reshape([-1, *rest])
    return _scattered(source, 0, wide, updates.reshape(wide.shape), node.get("reduction", "none")).reshape(x.shape)


@op("OneHot", static=(1,))
def one_hot(node: Node, index: Tensor, depth: Any, values: Tensor) -> Outputs:
    count = ints(depth)[0]
    axis = positive(node.get("axis", -1), index.ndim + 1)
    places = torch.arange(count, device=index.device)
    places = places.reshape([-1 if k == axis else 1 for k in range(index.ndim + 1)])
    chosen = torch.where(index < 0, index + count, index).unsqueeze(axis) == places
    return torch.where(chosen, values[1], values[0])


@op("Compress", static=(1,))
def compress(node: Node, x: Tensor, condition: Any) -> Outputs:
    places = torch.from_numpy(np.flatnonzero(condition)).to(x.device)
    if "axis" not in node.attributes:
        return x.reshape(-1).index_select(0, places)
    return x.index_select(positive(node.get("axis"), x.ndim), places)


@op("NonZero")
def non_zero(node: Node, x: Tensor) -> Outputs:
    return torch.nonzero(x).T.contiguous()


@op("Unique")
def unique(node: Node, x: Tensor) -> Outputs:
    axis = node.get("axis")
    array = x.detach().cpu().numpy()
    _, first, inverse, counts = np.unique(array, True, True, True, axis=axis)
    if not node.get("sorted", 1):
        order = np.argsort(first, kind="stable")
        back = np.argsort(order)
        first, inverse, counts = first[order], back[inverse], counts[order]
    places = torch.from_numpy(first.astype(np.int64)).to(x.device)
    taken = x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)
    others = (torch.from_numpy(np.ravel(v).astype(np.int64)).to(x.device) for v in (inverse, counts))
    return (taken, places, *others)


@op("Range", replace=True)  # the library's has no types but int64 and float32
def range_(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Outputs:
    count = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    return start + torch.arange(count, dtype=start.dtype, device=start.device) * delta


@op("EyeLike", replace=True)  # one form for all versions
def eye_like(node: Node, x: Tensor) -> Outputs:
    kind = torch_type(node.get("dtype")) if "dtype" in node.attributes else x.dtype
    rows, columns = x.shape
    down, across = torch.arange(rows, device=x.device)[:, None], torch.arange(columns, device=x.device)[None]
    found: Tensor = across - down == node.get("k", 0)
    return found.to(kind)


@op("NonMaxSuppression", static=(0, 1, 2, 3, 4), replace=True)  # the library's takes no centre boxes
def non_max_suppression(
    node: Node, boxes: Any, scores: Any, most: Any = None, overlap: Any = None, least: Any = None
) -> Outputs:
    """Greedy, in order of the scores, an earlier index first among equals; (chosen, 3): batch, class, box."""
    limit = ints(most)[0] if most is not None else 0
    threshold = float(np.ravel(overlap)[0]) if overlap is not None else 0.0
    floor = float(np.ravel(least)[0]) if least is not None else None
    chosen: list[tuple[int, int, int]] = []
    for b in range(scores.shape[0]):
        corners = _corners(np.asarray(boxes[b], np.float32), bool(node.get("center_point_box", 0)))
        for c in range(scores.shape[1]):
            order = np.argsort(-scores[b, c], kind="stable")
            kept: list[int] = []
            for k in order:
                if len(kept) >= limit:
                    break
                if floor is not None and not scores[b, c, k] > floor:
                    continue
                if all(_overlap(corners[k], corners[j]) <= threshold for j in kept):
                    kept.append(int(k))
            chosen += [(b, c, k) for k in kept]
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Any, centred: bool) -> Any:
    if centred:
        x, y, w, h = boxes.T
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], 1)
    a, b = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)


def _overlap(a: Any, b: Any) -> float:
    inner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(inner)) if (inner > 0).all() else 0.0
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union if shared > 0 else 0.0
