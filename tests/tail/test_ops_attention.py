"""Attention, rotary positions and caches, ONNX's own and onnxruntime's, against onnxruntime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from l2caf_onnx.tail.ops import attention, contrib_attention
from l2caf_onnx.tail.ops.registry import Node
from tests.tail.single_op import check, normal

MS = "com.microsoft"
N, Q, K, SIZE = 2, 3, 4, 4


def flags(*shape: int, dtype: Any = bool) -> NDArray[Any]:
    """Ones and zeros at random, the first of each row a one."""
    drawn = np.random.default_rng(0).random(shape) < 0.5
    drawn[..., 0] = True
    return drawn.astype(dtype)


def own(heads: int = 2, shared: int = 2, flat: bool = False) -> dict[str, Any]:
    """Q, K and V of ai.onnx's Attention."""
    sizes: dict[str, tuple[int, ...]]
    if flat:
        sizes = {"q": (N, Q, heads * SIZE), "k": (N, K, shared * SIZE), "v": (N, K, shared * SIZE)}
    else:
        sizes = {"q": (N, heads, Q, SIZE), "k": (N, shared, K, SIZE), "v": (N, shared, K, SIZE)}
    return {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(sizes.items())}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("heads", "shared"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("causal", [0, 1])
def test_heads(opset: int, flat: bool, heads: int, shared: int, causal: int) -> None:
    counts: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    check("Attention", own(heads, shared, flat), opset=opset, is_causal=causal, **counts)


@pytest.mark.parametrize("mask", [flags(Q, K), flags(N, 1, Q, K), normal(Q, K), normal(N, 2, Q, K), normal(1, 1, Q, K)])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks(mask: NDArray[Any], causal: int) -> None:
    check("Attention", {**own(), "mask": mask}, opset=23, is_causal=causal)


@pytest.mark.parametrize("how", [{}, {"softcap": 1.5}, {"scale": 0.3}, {"softcap": 0.7, "scale": 1.0, "is_causal": 1}])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_are_shown(how: dict[str, Any], mode: int) -> None:
    given = {**own(), "mask": normal(Q, K)}
    check("Attention", given, opset=24, outputs=("y", "", "", "qk"), qk_matmul_output_mode=mode, **how)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_past(causal: int, masked: bool, flat: bool) -> None:
    given = {
        **own(4, 2, flat),
        "mask": flags(Q, 5 + K) if masked else None,
        "past_key": normal(N, 2, 5, SIZE),
        "past_value": normal(N, 2, 5, SIZE, seed=1),
    }
    counts: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    check("Attention", given, opset=23, outputs=("y", "pk", "pv"), is_causal=causal, **counts)


@pytest.mark.parametrize("causal", [0, 1])
def test_valid_keys(causal: int) -> None:
    given = {**own(), "mask": None, "pk": None, "pv": None, "valid": np.array([4, 3])}
    check("Attention", given, opset=24, is_causal=causal)
    check("Attention", {**given, "mask": normal(Q, K)}, opset=24, is_causal=causal)


def test_a_row_without_keys_is_zero_and_has_no_slope() -> None:
    mask = np.array([[True] * K, [False] * K, [True, False, True, False]])
    tail = check("Attention", {**own(), "mask": mask}, stored=("mask",), opset=23)
    given = {k: torch.from_numpy(v).requires_grad_(True) for k, v in own().items()}
    y = tail(given)["y"]
    y.sum().backward()
    assert not y[:, :, 1].any()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in given.values())


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("part", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_rotary(interleaved: int, part: int, flat: bool, positions: bool) -> None:
    pairs = (part or 8) // 2
    table = (6, pairs) if positions else (N, Q, pairs)
    given = {
        "x": normal(N, Q, 16) if flat else normal(N, 2, Q, 8),
        "cos": normal(*table),
        "sin": normal(*table, seed=1),
    }
    if positions:
        given["at"] = np.array([[0, 1, 2], [3, 5, 4]])
    more = {"num_heads": 2} if flat else {}
    check(
        "RotaryEmbedding", given, stored=("cos", "sin"), opset=23, interleaved=interleaved,
        rotary_embedding_dim=part, **more,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1])
@pytest.mark.parametrize("starts", [None, (1, 2)])
def test_tensor_scatter(mode: str, axis: int, starts: tuple[int, ...] | None) -> None:
    shapes = [(2, 3, 5, 4), (2, 3, 2, 4)] if axis == -2 else [(2, 5, 3), (2, 2, 3)]
    given = {"cache": normal(*shapes[0]), "update": normal(*shapes[1])}
    given |= {"starts": np.array(starts) + (2 if mode == "circular" else 0)} if starts else {}
    check("TensorScatter", given, opset=24, mode=mode, axis=axis)


@pytest.mark.parametrize("opset", [25, 27])
def test_onnx_own_examples_that_onnxruntime_cannot_run_yet(opset: int) -> None:
    """LinearAttention and CausalConvWithState by the recurrences of their documentation."""
    q, k, v = (torch.from_numpy(normal(1, 3, 4, seed=s)) for s in range(3))
    decay, beta = torch.from_numpy(-np.abs(normal(1, 3, 2))), torch.sigmoid(torch.from_numpy(normal(1, 3, 2, seed=1)))
    node = Node("LinearAttention", opset, {"q_num_heads": 2, "kv_num_heads": 2}, (True, True))
    result = attention.linear_attention(node, q, k, v, None, decay, beta)
    assert isinstance(result, tuple)
    state = np.zeros((2, 2, 2))
    for t in range(3):
        for h in range(2):
            a, b, c = (x[0, t, 2 * h : 2 * h + 2].numpy() for x in (q, k, v))
            state[h] *= math.exp(float(decay[0, t, h]))
            state[h] += float(beta[0, t, h]) * np.outer(b, c - state[h].T @ b)
            np.testing.assert_allclose(result[0][0, t, 2 * h : 2 * h + 2], a @ state[h] / math.sqrt(2), rtol=1e-5)  # type: ignore[index]
    np.testing.assert_allclose(result[1][0], state, rtol=1e-5)  # type: ignore[index]  # a tensor
    x, w = torch.from_numpy(normal(1, 2, 5)), torch.from_numpy(normal(2, 1, 3))
    y, carried = attention.causal_conv(Node("CausalConvWithState", opset, {}, (True, True)), x, w)
    before, after = attention.causal_conv(Node("CausalConvWithState", opset, {}, (True, True)), x[..., :2], w)
    rest, last = attention.causal_conv(Node("CausalConvWithState", opset, {}, (True, True)), x[..., 2:], w, None, after)
    assert isinstance(before, torch.Tensor)
    assert isinstance(rest, torch.Tensor)
    torch.testing.assert_close(torch.cat([before, rest], -1), y)
    torch.testing.assert_close(last, carried)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("past", [False, True])
def test_linear_attention(rule: str, wide: bool, past: bool) -> None:
    given: dict[str, Any] = {"q": normal(N, Q, 8), "k": normal(N, Q, 4, seed=1), "v": normal(N, Q, 6)}
    given["past"] = normal(N, 2, 2, 3) if past else None
    given["decay"] = -np.abs(normal(N, Q, 4 if wide else 2)) if "gated" in rule else None
    given["beta"] = 0.5 * np.abs(normal(N, Q, 2)) if "delta" in rule else None
    check("LinearAttention", given, domain=MS, outputs=("y", "state"), q_num_heads=4, kv_num_heads=2, update_rule=rule)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("past", [False, True])
def test_causal_conv(activation: str, past: bool) -> None:
    given = {"x": normal(2, 3, 5), "w": normal(3, 1, 3), "b": normal(3), "past": normal(2, 3, 2) if past else None}
    check("CausalConvWithState", given, stored=("w", "b"), domain=MS, outputs=("y", "state"), activation=activation)


def projected(v_size: int = 8) -> dict[str, Any]:
    width = 16 + v_size
    return {"x": normal(N, Q, 6), "w": normal(6, width, scale=0.5), "b": normal(width)}


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    "mask",
    [
        None, np.array([3, 2], np.int32), np.array([3, 3, 0, 1], np.int32), flags(N, Q, dtype=np.int32),
        flags(N, Q, Q, dtype=np.int32),
    ],
)  # fmt: skip
@pytest.mark.parametrize("added", [False, True])
def test_microsoft_attention(causal: int, mask: NDArray[Any] | None, added: bool) -> None:
    given = {**projected(), "mask": mask, "past": None, "added": normal(1, 2, Q, Q) if added else None}
    check("Attention", given, stored=("w", "b"), domain=MS, num_heads=2, unidirectional=causal)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_microsoft_attention_with_past(causal: int, masked: bool) -> None:
    given = {
        **projected(),
        "mask": flags(N, 2 + Q, dtype=np.int32) if masked else None,
        "past": normal(2, N, 2, 2, 4),
    }
    check(
        "Attention", given, stored=("w", "b"), domain=MS, outputs=("y", "present"), num_heads=2, unidirectional=causal
    )


def test_microsoft_attention_of_other_value_size() -> None:
    check("Attention", projected(4), stored=("w", "b"), domain=MS, num_heads=2, qkv_hidden_sizes=[8, 8, 4], scale=0.4)


@pytest.mark.parametrize("form", ["apart", "cross"])  # the CPU provider has no packed ones
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head(form: str, bias: bool, masked: bool) -> None:
    given: dict[str, Any] = {
        "apart": {"q": normal(N, Q, 8), "k": normal(N, K, 8), "v": normal(N, K, 8, seed=1)},
        "cross": {"q": normal(N, Q, 8), "k": normal(N, 2, K, 4), "v": normal(N, 2, K, 4, seed=1)},
    }[form]
    given |= {"b": normal(24) if bias else None, "mask": flags(N, K, dtype=np.int32) if masked else None}
    check("MultiHeadAttention", given, stored=("b",), domain=MS, num_heads=2)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("added", [False, True])
def test_multi_head_with_past(causal: int, added: bool) -> None:
    given = {
        "q": normal(N, Q, 8), "k": normal(N, Q, 8), "v": normal(N, Q, 8, seed=1), "b": None, "mask": None,
        "added": normal(N, 2, Q, 2 + Q) if added else None, "pk": normal(N, 2, 2, 4), "pv": normal(N, 2, 2, 4, seed=1),
    }  # fmt: skip
    check(
        "MultiHeadAttention", given, domain=MS, outputs=("y", "k2", "v2"), num_heads=2, unidirectional=causal, scale=0.4
    )


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1}, {"softcap": 1.2}, {"local_window_size": 2},
        {"scale": 0.3}, {"smooth_softmax": 1},
    ],
)  # fmt: skip
def test_group_query(past: int, packed: bool, how: dict[str, Any]) -> None:
    length = 1 if past else Q
    total = past + length
    given: dict[str, Any] = (
        {"q": normal(N, length, 8 * 16), "k": None, "v": None}
        if packed
        else {"q": normal(N, length, 4 * 16), "k": normal(N, length, 2 * 16), "v": normal(N, length, 2 * 16, seed=1)}
    )
    given |= {"pk": normal(N, 2, past, 16) if past else None, "pv": normal(N, 2, past, 16, seed=1) if past else None}
    given |= {"last": np.full(N, total - 1, np.int32), "total": np.array(total, np.int32)}
    if how.get("do_rotary"):
        given |= {"cos": normal(8, 8), "sin": normal(8, 8, seed=1)}
    check(
        "GroupQueryAttention", given, stored=("last", "total", "cos", "sin"), domain=MS, outputs=("y", "k2", "v2"),
        num_heads=4, kv_num_heads=2, **how,
    )  # fmt: skip


def test_group_query_with_a_buffer_longer_than_what_it_holds() -> None:
    given: dict[str, Any] = {"q": normal(N, 1, 32), "k": normal(N, 1, 16), "v": normal(N, 1, 16, seed=1)}
    given |= {"pk": normal(N, 2, 6, 8), "pv": normal(N, 2, 6, 8, seed=1)}
    given |= {"last": np.array([3, 2], np.int32), "total": np.array(4, np.int32)}
    check(
        "GroupQueryAttention", given, stored=("last", "total"), domain=MS, outputs=("y", "k2", "v2"), num_heads=4,
        kv_num_heads=2,
    )  # fmt: skip


def test_packed_inputs_are_the_plain_ones() -> None:
    q, k, v = (torch.from_numpy(normal(N, Q, 2, 4, seed=s)) for s in range(3))
    node = Node("MultiHeadAttention", 1, {"num_heads": 2}, (True,))
    flat = [t.flatten(2) for t in (q, k, v)]
    plain = contrib_attention.multi_head(node, *flat)
    for given in ([torch.stack([q, k, v], 3)], [flat[0], torch.stack([k, v], 3)]):
        packed = contrib_attention.multi_head(node, *given)
        torch.testing.assert_close(packed[0], plain[0])


def test_a_mask_shorter_than_the_keys_closes_the_rest() -> None:
    q, k, v = (torch.from_numpy(a) for a in own().values())
    node = Node("Attention", 24, {}, (True,))
    for mask in (torch.from_numpy(flags(Q, K - 1)), torch.from_numpy(normal(Q, K - 1))):
        short = attention.attention(node, q, k, v, mask)
        torch.testing.assert_close(short[0], attention.attention(node, q, k[:, :, :-1], v[:, :, :-1], mask)[0])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("at", [[2], [[0, 1, 2], [3, 5, 4]]])
def test_microsoft_rotary(flat: bool, interleaved: int, at: list[Any]) -> None:
    given = {
        "x": normal(N, Q, 16) if flat else normal(N, 2, Q, 8),
        "at": np.array(at),
        "cos": normal(6, 4),
        "sin": normal(6, 4, seed=1),
    }
    check("RotaryEmbedding", given, stored=("cos", "sin"), domain=MS, interleaved=interleaved)


@pytest.mark.parametrize("flat", [False, True])
def test_attention_under_vmap_equals_a_loop(flat: bool) -> None:
    counts: dict[str, Any] = {"q_num_heads": 2, "kv_num_heads": 2} if flat else {}
    given = own(flat=flat)
    tail = check("Attention", given, opset=23, is_causal=1, **counts)
    rest = {k: torch.from_numpy(given[k]) for k in "kv"}
    qs = torch.from_numpy(normal(3, *given["q"].shape))
    together = torch.func.vmap(lambda q: tail({"q": q, **rest})["y"])(qs)
    torch.testing.assert_close(together, torch.stack([tail({"q": q, **rest})["y"] for q in qs]))
