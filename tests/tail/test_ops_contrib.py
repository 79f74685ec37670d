"""onnxruntime's own operators against onnxruntime: fused arithmetic, normalisation, shapes, images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from l2caf_onnx.tail.ops import contrib, contrib_shapes
from l2caf_onnx.tail.ops.registry import Node
from tests.tail.single_op import check, normal

MS = "com.microsoft"


def whole(*numbers: int, dtype: Any = np.int64) -> Any:
    return np.array(numbers, dtype)


@pytest.mark.parametrize(
    ("activation", "params"),
    [
        (None, None), ("Relu", None), ("Tanh", None), ("Sigmoid", None), ("LeakyRelu", [0.2]),
        ("Clip", [-0.5, 0.7]), ("HardSigmoid", [0.3, 0.4]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("residual", [False, True])
def test_fused_conv(activation: str | None, params: list[float] | None, residual: bool) -> None:
    given = {
        "x": normal(2, 4, 5, 5),
        "w": normal(6, 2, 3, 3, scale=0.3),
        "b": normal(6),
        "z": normal(2, 6, 3, 3) if residual else None,
    }
    more = {k: v for k, v in (("activation", activation), ("activation_params", params)) if v is not None}
    check(
        "FusedConv", given, stored=("w", "b"), domain=MS, group=2, strides=[2, 2], pads=[1, 1, 1, 1],
        kernel_shape=[3, 3], **more,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_fused_conv_pads_itself(mode: str) -> None:
    given = {"x": normal(1, 2, 6, 5), "w": normal(3, 2, 3, 2), "b": normal(3)}
    check("FusedConv", given, stored=("w", "b"), domain=MS, auto_pad=mode, strides=[2, 1], activation="Relu")


@pytest.mark.parametrize("dilations", [[1], [2]])
def test_fused_conv_of_one_axis(dilations: list[int]) -> None:
    given = {"x": normal(1, 2, 9), "w": normal(3, 2, 3)}
    check("FusedConv", given, stored=("w",), domain=MS, dilations=dilations, activation="Relu")


@pytest.mark.parametrize(
    ("activation", "more"),
    [
        ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("Softplus", {}), ("Softsign", {}),
        ("LeakyRelu", {"activation_alpha": 0.3}), ("Elu", {"activation_alpha": 0.6}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
        ("ThresholdedRelu", {"activation_alpha": 0.4}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [0, 1])
def test_fused_gemm(activation: str, more: dict[str, float], turned: int) -> None:
    given = {
        "a": normal(4, 3) if turned else normal(3, 4),
        "b": normal(5, 4) if turned else normal(4, 5),
        "c": normal(5),
    }
    check(
        "FusedGemm", given, stored=("b", "c"), domain=MS, transA=turned, transB=turned, alpha=0.5, beta=0.7,
        activation=activation, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "how"),
    [
        ((2, 3, 4), (2, 4, 5), {}),
        ((2, 4, 3), (2, 5, 4), {"transA": 1, "transB": 1, "alpha": 0.5}),
        ((3, 2, 4), (2, 4, 5), {"transBatchA": 1}),
        ((2, 3, 4), (4, 2, 5), {"transBatchB": 1}),
        ((4, 2, 3), (5, 2, 4), {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1}),
        ((3, 2, 6, 4), (2, 6, 4, 5), {"transBatchA": 1}),
        ((3, 4), (4,), {"alpha": 2.0}),
    ],
)
def test_fused_matmul(a: tuple[int, ...], b: tuple[int, ...], how: dict[str, Any]) -> None:
    check("FusedMatMul", {"a": normal(*a), "b": normal(*b)}, domain=MS, **how)


def test_transpose_matmul() -> None:
    check("TransposeMatMul", {"a": normal(2, 4, 3), "b": normal(2, 4, 5)}, domain=MS, transA=1, alpha=0.5)


@pytest.mark.parametrize(
    ("kind", "bias", "how"),
    [
        ("Gelu", False, {}), ("FastGelu", False, {}), ("FastGelu", True, {}), ("BiasGelu", True, {}),
        ("QuickGelu", False, {}), ("QuickGelu", False, {"alpha": 1.3}),
    ],
)  # fmt: skip
def test_gelus(kind: str, bias: bool, how: dict[str, Any]) -> None:
    check(kind, {"x": normal(2, 3, 4), **({"b": normal(4)} if bias else {})}, stored=("b",), domain=MS, **how)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_skip_norms(kind: str, bias: bool, rank: int) -> None:
    shape = (2, 3, 8)[3 - rank :]
    given = {"x": normal(*shape), "skip": normal(*shape, seed=1), "gamma": normal(8)}
    given |= {"beta": normal(8, seed=2)} if kind == "SkipLayerNormalization" else {}
    given |= {"bias": normal(8, seed=3)} if bias else {}
    outputs = ("y", "", "", "total")
    check(kind, given, stored=("gamma", "beta", "bias"), domain=MS, outputs=outputs, epsilon=1e-3)
    check(kind, given, stored=("gamma", "beta", "bias"), domain=MS)


@pytest.mark.parametrize("skip", [(3, 8), (1, 3, 8)])
def test_skip_is_broadcast(skip: tuple[int, ...]) -> None:
    given = {"x": normal(2, 3, 8), "skip": normal(*skip), "gamma": normal(8), "beta": normal(8, seed=2)}
    check("SkipLayerNormalization", given, stored=("gamma", "beta"), domain=MS)


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("opset", [11, 16, 17, 22])
@pytest.mark.parametrize("kind", ["SimplifiedLayerNormalization", "LayerNormalization"])
def test_norms_in_onnx_own_domain(kind: str, opset: int, axis: int) -> None:
    scale = (3, 8) if axis == 1 else (8,)
    given = {"x": normal(2, 3, 8), "scale": normal(*scale)}
    given |= {"bias": normal(*scale, seed=1)} if kind == "LayerNormalization" else {}
    check(kind, given, stored=("scale", "bias"), opset=opset, axis=axis, epsilon=1e-3)


@pytest.mark.parametrize("extra", [(), ("segments",), ("segments", "mask"), ("segments", "mask", "positions")])
def test_embed_layer_norm(extra: tuple[str, ...]) -> None:
    given: dict[str, Any] = {
        "words": np.array([[1, 4, 2], [0, 3, 3]], np.int32),
        "segments": np.array([[0, 0, 1], [0, 1, 1]], np.int32) if "segments" in extra else None,
        "word_table": normal(6, 8),
        "position_table": normal(5, 8),
        "segment_table": normal(2, 8) if "segments" in extra else None,
        "gamma": normal(8),
        "beta": normal(8, seed=1),
        "mask": np.array([[1, 1, 0], [1, 1, 1]], np.int32) if "mask" in extra else None,
        "positions": np.array([[2, 0, 1], [3, 1, 4]], np.int32) if "positions" in extra else None,
    }
    check("EmbedLayerNormalization", given, stored=("position_table",), domain=MS, outputs=("y", "index", "total"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_nbits(bits: int, zeros: str, bias: bool) -> None:
    rows, columns, block = 5, 40, 16
    rng = np.random.default_rng(0)
    packed_zeros = rng.integers(0, 255, (rows, -(-3 * bits // 8)), dtype=np.uint8)
    given: dict[str, Any] = {
        "a": normal(2, columns),
        "b": rng.integers(0, 255, (rows, 3, block * bits // 8), dtype=np.uint8),
        "scales": normal(rows, 3, scale=0.1),
        "zeros": {"none": None, "packed": packed_zeros, "float": normal(rows, 3)}[zeros],
        "order": None,
        "bias": normal(rows) if bias else None,
    }
    if zeros == "float" and bits == 8:
        pytest.skip("onnxruntime refuses it")
    check(
        "MatMulNBits", given, stored=("b", "scales", "zeros", "bias"), domain=MS, K=columns, N=rows, bits=bits,
        block_size=block,
    )  # fmt: skip


def test_inverse() -> None:
    check("Inverse", {"x": normal(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)}, domain=MS)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", [(0, 1, 2, 0), (1, 0, 1, 1)])
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    given = {"x": normal(4, 5), "pads": whole(*pads), "value": np.array([0.5], np.float32)}
    check("Pad", given, stored=("pads", "value"), domain=MS, mode=mode)


@pytest.mark.parametrize(("upper", "k"), [(1, 1), (0, -1)])
def test_trilu(upper: int, k: int) -> None:
    check("Trilu", {"x": normal(2, 4, 4), "k": np.array(k, np.int64)}, stored=("k",), domain=MS, upper=upper)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_expand_dims(axis: int) -> None:
    check("ExpandDims", {"x": normal(2, 3), "axis": np.array(axis, np.int32)}, stored=("axis",), domain=MS)


def test_gather_nd() -> None:
    check("GatherND", {"x": normal(3, 4, 2), "at": np.array([[0, 1], [2, 3]])}, domain=MS)


def test_unique() -> None:
    given = {"x": np.array([2.0, 0.5, 2.0, 3.0, 0.5, 1.0], np.float32)}
    check("Unique", given, domain=MS, outputs=("y", "index", "counts"))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    given = {"x": normal(1, 2, 5, 4), "grid": normal(1, 3, 3, 2, scale=0.7)}
    check("GridSample", given, stored=("grid",), domain=MS, mode=mode, padding_mode=padding, align_corners=corners)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(3, 4), (1, 2)])
def test_crop_and_resize(mode: str, size: tuple[int, int]) -> None:
    given = {
        "x": normal(2, 3, 6, 5),
        "boxes": np.array([[0.1, 0.2, 0.8, 0.9], [0.5, -0.2, 1.3, 0.6], [0.9, 0.7, 0.1, 0.2]], np.float32),
        "batch": whole(0, 1, 1, dtype=np.int32),
        "size": whole(*size, dtype=np.int32),
    }
    check("CropAndResize", given, stored=("boxes", "batch", "size"), domain=MS, mode=mode, extrapolation_value=0.3)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1)])
def test_conv_transpose_with_dynamic_pads(pads: tuple[int, ...]) -> None:
    given = {"x": normal(1, 4, 4, 3), "w": normal(4, 2, 3, 3), "pads": whole(*pads), "b": normal(4)}
    check(
        "ConvTransposeWithDynamicPads", given, stored=("w", "pads", "b"), domain=MS, group=2, strides=[2, 2],
        output_padding=[1, 0],
    )  # fmt: skip


def applied(function: Any, kind: str, *given: Any, outputs: int = 1, **attributes: Any) -> Any:
    """An operator that onnxruntime's CPU provider lacks, called as its module would call it."""
    return function(Node(kind, 1, attributes, (True,) * outputs), *given)


def test_those_that_only_a_gpu_runs() -> None:
    x = torch.from_numpy(normal(2, 4, 5, 6))
    torch.testing.assert_close(applied(contrib_shapes.irfft, "Irfft", applied(contrib_shapes.rfft, "Rfft", x)), x)
    gamma, beta = torch.from_numpy(normal(6)), torch.from_numpy(normal(6, seed=1))
    y, _ = applied(contrib.group_norm, "GroupNorm", x, gamma, beta, groups=3, activation=1)
    grouped = x.movedim(-1, 1).reshape(2, 3, -1)
    unit = (grouped - grouped.mean(-1, keepdim=True)) / torch.sqrt(grouped.var(-1, keepdim=True, correction=0) + 1e-5)
    expected = unit.reshape(2, 6, 4, 5).movedim(1, -1) * gamma + beta
    torch.testing.assert_close(y, expected * torch.sigmoid(expected))
    assert torch.equal(applied(contrib.bias_add, "BiasAdd", x, gamma, x), x + gamma + x)
    assert torch.equal(applied(contrib.bias_dropout, "BiasDropout", x, gamma, x), x + gamma + x)
    left, right = (x + beta).chunk(2, -1)
    assert torch.equal(
        applied(contrib.bias_split_gelu, "BiasSplitGelu", x, beta), left * torch.nn.functional.gelu(right)
    )


def test_what_is_not_supported_says_so() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match="'Mystery' is not supported"):
        contrib.activated(x, "Mystery", [])
    with pytest.raises(NotImplementedError, match="training mode"):
        applied(contrib.bitmask_dropout, "BitmaskDropout", x, None, np.array(True))
