"""onnxruntime's own attention operators, as its transformer fusions write them.

They add a large negative number to what is masked, where ONNX's Attention leaves it out; a row in which everything is
masked therefore differs, and both are kept as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attention import both, heads_apart, heads_joined, masked_softmax, rotate, shared_heads, window
from .contrib import MICROSOFT
from .registry import Node, Outputs, ints, op


@op("RotaryEmbedding", domain=MICROSOFT)
def rotary(node: Node, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Outputs:
    if node.get("is_packed_batching", 0):
        raise NotImplementedError("RotaryEmbedding over packed batches is not supported.")
    flat = x.ndim == 3
    if flat:
        size = node.get("num_heads", 0) and x.shape[-1] // node.get("num_heads")
        x = heads_apart(x, x.shape[-1] // (size or 2 * cos.shape[-1]))
    if positions.ndim == 1:  # where the first token is
        positions = (positions + torch.arange(x.shape[2], device=x.device))[None]
    scale = node.get("scale") or 1.0
    angles = [(table[positions] * scale).unsqueeze(1) for table in (cos, sin)]
    y = rotate(x, angles[0], angles[1], interleaved=node.get("interleaved", 0) == 1)
    return heads_joined(y) if flat else y


@op("Attention", domain=MICROSOFT)
def attention(
    node: Node,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    *more: Any,
) -> Outputs:
    if any(m is not None for m in more) or node.get("do_rotary", 0) or node.get("past_present_share_buffer", 0):
        raise NotImplementedError("com.microsoft's Attention with rotary positions or a shared buffer is unsupported.")
    projected = x @ weights
    projected = projected if bias is None else projected + bias
    sizes = node.get("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    heads = node.get("num_heads")
    query, key, value = (heads_apart(part, heads) for part in torch.split(projected, sizes, dim=-1))
    if past is not None:
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    present = torch.stack([key, value]) if any(node.wanted[1:]) else None
    return heads_joined(_attended(node, query, key, value, mask, added)[0]), present


@op("MultiHeadAttention", domain=MICROSOFT)
def multi_head(
    node: Node,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *more: Any,
) -> Outputs:
    if any(m is not None for m in more):
        raise NotImplementedError("MultiHeadAttention with a shared buffer or beams is not supported.")
    heads = node.get("num_heads")
    if query.ndim == 5:  # packed: (N, L, heads, 3, size)
        q, k, v = (query[:, :, :, j].transpose(1, 2) for j in range(3))
    elif key is None:
        raise NotImplementedError("MultiHeadAttention without a key is not supported.")
    else:
        q = heads_apart(query, heads)
        if key.ndim == 5:
            k, v = (key[:, :, :, j].transpose(1, 2) for j in range(2))
        elif value is None:
            raise NotImplementedError("MultiHeadAttention without a value is not supported.")
        else:
            k, v = (t if t.ndim == 4 else heads_apart(t, heads) for t in (key, value))
    if bias is not None:
        width = q.shape[1] * q.shape[-1]
        parts = torch.split(bias, [width, width, bias.shape[0] - 2 * width])
        cross = key is not None and key.ndim == 4
        q = q + parts[0].reshape(1, heads, 1, -1)
        if not cross:  # keys of a cross attention that come in heads have theirs already
            k, v = k + parts[1].reshape(1, heads, 1, -1), v + parts[2].reshape(1, heads, 1, -1)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    y, shown = _attended(node, q, k, v, mask, added)
    return heads_joined(y), k, v, shown


def _attended(
    node: Node, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, added: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The attended values and the scores before the softmax's masks."""
    queries, size = query.shape[2:]
    keys = key.shape[2]
    scale = node.get("scale") or 1 / math.sqrt(size)
    raw = scale * (query @ key.transpose(-1, -2))
    scores = raw if added is None else raw + added
    if mask is not None:
        filler = node.get("mask_filter_value", -10000.0)
        scores = scores + _open(mask, query.shape[0], keys).logical_not() * scores.new_tensor(filler)
    offset = torch.full((1, 1), keys - queries, device=query.device)
    allowed = window(queries, keys, offset, causal=node.get("unidirectional", 0) == 1)
    return masked_softmax(scores, allowed) @ value, raw


def _open(mask: Tensor, batch: int, keys: int) -> Tensor:
    """mask_index as booleans that broadcast to (N, heads, queries, keys)."""
    places = torch.arange(keys, device=mask.device)
    if mask.ndim == 1 and mask.shape[0] in (batch, 2 * batch):
        opened = places < mask[:batch, None]
        if mask.shape[0] == 2 * batch:  # left padding: the starts follow the ends
            opened = opened & (places >= mask[batch:, None])
        return opened[:, None, None]
    if mask.ndim == 2:
        return (mask > 0)[:, None, None]
    if mask.ndim == 3:
        return (mask > 0)[:, None]
    raise NotImplementedError(f"A mask index of shape {tuple(mask.shape)} is not supported.")


@op("GroupQueryAttention", domain=MICROSOFT, static=(5, 6))
def group_query(
    node: Node, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, *rest: Any
) -> Outputs:
    given = (*rest, *[None] * (13 - len(rest)))
    past_key, past_value, last, total, cos, sin, positions, added, sink = given[:9]
    if any(m is not None for m in given[9:11]) or node.get("sliding_window_cache", 0) or node.get("qk_output", 0):
        raise NotImplementedError("GroupQueryAttention with a quantised or window-sized cache is not supported.")
    heads, shared = node.get("num_heads"), node.get("kv_num_heads")
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * shared)
        query, key, value = torch.split(query, [heads * size, shared * size, shared * size], dim=-1)
    query, key, value = heads_apart(query, heads), heads_apart(key, shared), heads_apart(value, shared)
    if given[11] is not None:
        epsilon = node.get("qk_norm_epsilon", 1e-6)
        query, key = (
            t * (t.square().mean(-1, keepdim=True) + epsilon).rsqrt() * w
            for t, w in zip((query, key), given[11:13], strict=True)
        )
    length = query.shape[2]
    lengths = np.array(ints(last)) + 1  # valid keys of each sample, the new ones included
    before = np.zeros_like(lengths) if length == ints(total)[0] else lengths - length
    if (before < 0).any() or (length == ints(total)[0] and (lengths != length).any()):
        raise NotImplementedError("GroupQueryAttention over prompts of unequal length is not supported.")
    offset = torch.from_numpy(before).to(query.device).reshape(-1, 1, 1, 1)
    if node.get("do_rotary", 0):
        at = (offset.reshape(-1, 1) + torch.arange(length, device=query.device)) if positions is None else positions
        angles = [table[at].unsqueeze(1) for table in (cos, sin)]
        interleaved = node.get("rotary_interleaved", 0) == 1
        query, key = (rotate(t, angles[0], angles[1], interleaved=interleaved) for t in (query, key))
    present_key, present_value = (
        _appended(past, new, before, ints(total)[0]) for past, new in ((past_key, key), (past_value, value))
    )
    keys = present_key.shape[2] if past_key is None else ints(total)[0]
    k, v = (shared_heads(t[:, :, :keys], heads) for t in (present_key, present_value))
    scores = (node.get("scale") or 1 / math.sqrt(query.shape[-1])) * (query @ k.transpose(-1, -2))
    cap = node.get("softcap") or 0.0
    scores = cap * torch.tanh(scores / cap) if cap else scores
    scores = scores if added is None else scores + added[..., :keys]
    local = node.get("local_window_size", -1)
    allowed = window(length, keys, offset, causal=node.get("causal", 1) == 1, left=local - 1 if local > 0 else -1)
    valid = torch.from_numpy(np.arange(keys) < lengths[:, None]).to(query.device)[:, None, None]
    if sink is not None:
        sink = sink.reshape(1, -1, 1, 1)
    elif node.get("smooth_softmax", -1) == 1:
        sink = scores.new_zeros(1, 1, 1, 1)
    y = masked_softmax(scores, both(allowed, valid), sink) @ v
    return heads_joined(y), present_key, present_value


def _appended(past: Tensor | None, new: Tensor, before: Any, total: int) -> Tensor:
    """The cache with `new` after the first `before` entries of each sample; as long as the longer of both."""
    if past is None:
        return new
    size = max(past.shape[2], total)
    places = np.arange(size)[None]
    fresh = (places >= before[:, None]) & (places < before[:, None] + new.shape[2])
    taken = np.where(fresh, past.shape[2] + places - before[:, None], places)
    inside = fresh | (places < before[:, None])  # what follows is zero, whatever the buffer held
    whole = torch.cat([past, new], dim=2)
    index = torch.from_numpy(np.where(inside, taken, 0)).to(new.device)[:, None, :, None]
    kept = torch.gather(whole, 2, index.expand(new.shape[0], new.shape[1], size, new.shape[3]))
    return torch.where(torch.from_numpy(inside).to(new.device)[:, None, :, None], kept, torch.zeros_like(kept))
