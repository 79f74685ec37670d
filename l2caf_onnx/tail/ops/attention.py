"""Attention as ai.onnx defines it, and what goes with it: rotary positions and writing into a cache.

Masked scores take no part: they are put aside before the softmax instead of being -inf inside it, so that a row in
which nothing is allowed is zero, as in onnxruntime, and has a gradient of zero instead of NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .registry import Node, Outputs, op, torch_type


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """(N, L, heads * size) as (N, heads, L, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def heads_joined(x: Tensor) -> Tensor:
    """(N, heads, L, size) as (N, L, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """Each key or value head repeated for the query heads that share it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def masked_softmax(scores: Tensor, allowed: Tensor | None, sink: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of what is allowed; zeros where nothing is.

    `sink` is a score of its own, broadcastable to (..., 1), that takes its share and gives nothing.
    """
    if allowed is not None:
        scores = torch.where(allowed, scores, torch.finfo(scores.dtype).min)
    if sink is not None:
        whole = torch.cat([scores, sink.to(scores).expand(*scores.shape[:-1], 1)], dim=-1)
        weights = torch.softmax(whole, dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return weights if allowed is None else torch.where(allowed, weights, torch.zeros_like(weights))


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """What two masks both allow; None allows everything."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def window(queries: int, keys: int, offset: Tensor, *, causal: bool, left: int = -1, right: int = -1) -> Tensor | None:
    """Keys that each query may see: (..., queries, keys), `offset` (..., 1, 1) the first query's position."""
    if not causal and left < 0 and right < 0:
        return None
    position = offset + torch.arange(queries, device=offset.device)[:, None]
    key = torch.arange(keys, device=offset.device)
    allowed: Tensor | None = None
    if causal:
        allowed = key <= position
    if left >= 0:
        allowed = both(allowed, key >= position - left)
    if right >= 0:
        allowed = both(allowed, key <= position + right)
    return allowed


@op("Attention", replace=True)
def attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid: Tensor | None = None,
) -> Outputs:
    flat = query.ndim == 3
    if flat:
        query = heads_apart(query, node.get("q_num_heads"))
        key, value = (heads_apart(x, node.get("kv_num_heads")) for x in (key, value))
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    present_key, present_value = key, value
    heads, queries, size = query.shape[1:]
    keys = key.shape[2]
    key, value = shared_heads(key, heads), shared_heads(value, heads)
    scale = math.sqrt(node.get("scale") or 1 / math.sqrt(size))
    raw = (query * scale) @ (key * scale).transpose(-1, -2)
    cap = node.get("softcap", 0.0)
    capped = cap * torch.tanh(raw / cap) if cap else raw

    offset = torch.full((1, 1, 1, 1), past, device=query.device)
    allowed = None
    if valid is not None:
        lengths = valid.reshape(-1, 1, 1, 1)
        allowed = torch.arange(keys, device=query.device) < lengths
        offset = lengths - queries
    sides = {"left": node.get("left_window_size", -1), "right": node.get("right_window_size", -1)}
    allowed = both(allowed, window(queries, keys, offset, causal=node.get("is_causal", 0) == 1, **sides))
    scores = capped
    if mask is not None:
        mask = _lengthened(mask, keys)
        permitted, added = _mask(mask)
        allowed = both(allowed, permitted)
        scores = scores if added is None else scores + added
    precision = torch_type(node.get("softmax_precision") or 1)
    wide = scores.dtype if precision == torch.float32 and scores.dtype == torch.float64 else precision
    weights = masked_softmax(scores.to(wide), allowed).to(query.dtype)
    y = weights @ value
    biased = scores if allowed is None else scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if mask is not None and mask.is_floating_point():  # onnxruntime shows a mask's own -inf, and what it closes as min
        biased = biased.masked_fill(torch.isneginf(mask), -math.inf)
    shown = (raw, capped, biased, weights)[node.get("qk_matmul_output_mode", 0)]
    return heads_joined(y) if flat else y, present_key, present_value, shown


def _lengthened(mask: Tensor, keys: int) -> Tensor:
    """A mask for all keys; those that it leaves out at the end are closed."""
    short = keys - mask.shape[-1]
    if short <= 0 or mask.shape[-1] == 1:
        return mask
    return torch.nn.functional.pad(mask, (0, short), value=False if mask.dtype == torch.bool else -math.inf)


def _mask(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """A mask as (what it allows, what it adds)."""
    if mask.dtype == torch.bool:
        return mask, None
    closed = torch.isneginf(mask)
    return ~closed, mask.masked_fill(closed, 0.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Pairs of the last axis turned by their angles; what is beyond the angles stays. cos, sin: (..., pairs)."""
    size = 2 * cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    if interleaved:
        pairs = turned.reshape(*turned.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


@op("RotaryEmbedding", replace=True)
def rotary(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Outputs:
    flat = x.ndim == 3
    if flat:
        x = heads_apart(x, node.get("num_heads"))
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    y = rotate(x, cos.unsqueeze(1), sin.unsqueeze(1), interleaved=node.get("interleaved", 0) == 1)
    return heads_joined(y) if flat else y


@op("TensorScatter")
def tensor_scatter(node: Node, cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Outputs:
    axis = node.get("axis", -2) % cache.ndim
    size, written = cache.shape[axis], update.shape[axis]
    places = torch.arange(size, device=cache.device)
    from_start = places[None] - (0 if starts is None else starts.reshape(-1, 1))  # (N, size)
    if node.get("mode", "linear") == "circular":
        from_start = from_start % size
    from_start = from_start.expand(cache.shape[0], size)
    form = [cache.shape[0], *(size if k == axis else 1 for k in range(1, cache.ndim))]
    here = ((from_start >= 0) & (from_start < written)).reshape(form)
    taken = from_start.clamp(0, written - 1).reshape(form).expand(*cache.shape)
    return torch.where(here, torch.gather(update, axis, taken), cache)


@op("LinearAttention")
@op("LinearAttention", domain="com.microsoft")
def linear_attention(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> Outputs:
    if node.get("state_window", 0):
        # onnxruntime's kernel for CPUs (1.31) refuses it too, so that no conversion could be held against it
        raise NotImplementedError("LinearAttention with state_window is not supported.")
    q_heads, kv_heads = node.get("q_num_heads"), node.get("kv_num_heads")
    rule = node.get("update_rule", "gated_delta")
    query, key, value = heads_apart(query, q_heads), heads_apart(key, kv_heads), heads_apart(value, kv_heads)
    size, steps = query.shape[-1], query.shape[2]
    scale = node.get("scale", 0.0) or 1 / math.sqrt(size)
    if key.shape[-1] != size:
        raise NotImplementedError("LinearAttention whose heads differ in size is not supported.")
    if q_heads % kv_heads:
        raise NotImplementedError("LinearAttention with more key heads than query heads is not supported.")
    kept = heads_apart(decay, kv_heads).exp() if decay is not None and "gated" in rule else None  # (N, H, T, size or 1)
    rate = None
    if beta is not None and "delta" in rule:
        rate = beta.transpose(1, 2)[..., None]  # (N, H or 1, T, 1)
    state = query.new_zeros(query.shape[0], kv_heads, size, value.shape[-1]) if state is None else state
    outputs = []
    for t in range(steps):
        k, v = key[:, :, t], value[:, :, t]
        if kept is not None:
            state = state * kept[:, :, t][..., None]
        if "delta" in rule:
            v = v - (k[..., None, :] @ state)[..., 0, :]
        if rate is not None:
            v = v * rate[:, :, t]
        state = state + k[..., None] * v[..., None, :]
        outputs.append((query[:, :, t, None, :] @ shared_heads(state, q_heads))[..., 0, :] * scale)
    return heads_joined(torch.stack(outputs, dim=2)), state


@op("CausalConvWithState")
@op("CausalConvWithState", domain="com.microsoft")
def causal_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, state: Tensor | None = None
) -> Outputs:
    if node.get("state_window", 0) or node.get("channels_last", 0) or x.ndim != 3:
        raise NotImplementedError("CausalConvWithState is supported over (batch, channels, length) without a window.")
    dilation = node.get("dilation", 1)
    back = (weight.shape[-1] - 1) * dilation
    state = x.new_zeros(*x.shape[:2], back) if state is None else state
    whole = torch.cat([state, x], dim=-1)
    y = torch.nn.functional.conv1d(whole, weight, bias, dilation=dilation, groups=x.shape[1])
    activation = node.get("activation", "none")
    y = torch.nn.functional.silu(y) if activation in ("silu", "swish") else y
    return y, whole[..., whole.shape[-1] - back :]
