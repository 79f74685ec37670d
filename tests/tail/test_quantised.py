"""Quantised operators and models: exact integers forward, straight-through backward, saturating kernels named."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx import solvers
from l2caf_onnx.tail import convert
from l2caf_onnx.tail.ops.quantising import rounded
from l2caf_onnx.tail.saturation import difference
from tests.conftest import real, text
from tests.tail.single_op import one_node

Arrays = dict[str, NDArray[Any]]
Inputs = dict[str, NDArray[Any] | None]
KINDS = ("uint8", "int8")


def levels(kind: str, *shape: int, seed: int = 0, bound: int = 128) -> NDArray[Any]:
    """Whole numbers over the range of a type; signed weights within `bound`, as `reduce_range` makes them."""
    low, high = (0, 256) if kind == "uint8" else (-bound, bound)
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(kind)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def scalar(value: float, kind: str = "float32") -> NDArray[Any]:
    return np.array(value, kind)


def check(kind: str, inputs: Inputs, *, fed: int = 1, exact: bool = False, **how: Any) -> None:
    """The node with its first `fed` inputs fed and the others stored; within a step of onnxruntime, twice."""
    model = one_node(kind, inputs, stored=list(inputs)[fed:], **how)
    feeds = {k: v for k, v in list(inputs.items())[:fed] if v is not None}
    tail = caf.to_torch(model, feeds)
    assert tail.converter == "onnx2torch"
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        other = {k: rng.permuted(v.ravel()).reshape(v.shape) for k, v in feeds.items()}
        expected = caf.run(model, other)
        with torch.no_grad():
            found = {k: v.numpy() for k, v in tail({k: torch.from_numpy(v) for k, v in other.items()}).items()}
        for name, y in expected.items():
            assert found[name].dtype == y.dtype
            assert not difference(y, found[name])
            if exact:
                np.testing.assert_array_equal(found[name], y)


@pytest.mark.parametrize(("kind", "opset", "along"), list(product(KINDS, (10, 13, 19, 21), (None, 0, 1, -1))))
def test_quantize_and_dequantize_linear(kind: str, opset: int, along: int | None) -> None:
    if opset == 10 and along is not None:
        pytest.skip("a scale for each channel came with opset 13")
    x = normal(3, 4, 5) * 3
    size = () if along is None else (x.shape[along],)
    scale = np.linspace(0.01, 0.05, int(np.prod(size)), dtype=np.float32).reshape(size)
    zero = levels(kind, *size, bound=20)
    axis = {} if along is None else {"axis": along}
    check("QuantizeLinear", {"x": x, "s": scale, "z": zero}, opset=opset, exact=True, **axis)
    check("DequantizeLinear", {"x": levels(kind, 3, 4, 5), "s": scale, "z": zero}, opset=opset, exact=True, **axis)


def test_dequantize_linear_of_accumulators_and_without_a_zero_point() -> None:
    x = np.random.default_rng(0).integers(-(2**30), 2**30, (2, 3)).astype(np.int32)
    check("DequantizeLinear", {"x": x, "s": scalar(1e-3)}, exact=True, opset=13)
    check("QuantizeLinear", {"x": normal(2, 3), "s": scalar(0.02)}, exact=True, opset=13)


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_blocks(kind: str) -> None:
    zero = np.array([[1, 2, 3], [4, 5, 6]], kind)
    scale = np.abs(normal(2, 3)) * 0.01 + 0.01
    how: dict[str, Any] = {"axis": 1, "block_size": 2, "opset": 21}
    check("QuantizeLinear", {"x": normal(2, 6), "s": scale, "z": zero}, exact=True, **how)
    x = np.arange(12, dtype=kind).reshape(2, 6)
    check("DequantizeLinear", {"x": x, "s": scale, "z": zero}, exact=True, **how)


def test_dynamic_quantize_linear() -> None:
    for x in (normal(3, 5), np.abs(normal(3, 5)) + 1, -np.abs(normal(3, 5)) - 1, np.zeros((2, 2), np.float32)):
        check("DynamicQuantizeLinear", {"x": x}, outputs=("y", "s", "z"), exact=True, opset=11)


CONVOLUTIONS = list(product(KINDS, KINDS, (False, True), (1, 2), ((1, 1), (3, 3))))


@pytest.mark.parametrize(("kind", "weights", "channels", "group", "kernel"), CONVOLUTIONS)
def test_qlinear_conv(kind: str, weights: str, channels: bool, group: int, kernel: tuple[int, int]) -> None:
    if kind == "int8" and weights == "uint8":
        pytest.skip("onnxruntime has no such kernel")
    size = (6,) if channels else ()
    w = levels(weights, 6, 4 // group, *kernel, bound=64)
    wz = np.full(size, 0 if weights == "int8" else 120, weights)
    ws = np.linspace(0.01, 0.02, int(np.prod(size)), dtype=np.float32).reshape(size)
    inputs: Inputs = {
        "x": levels(kind, 2, 4, 7, 6), "xs": scalar(0.02), "xz": scalar(3, kind), "w": w, "ws": ws, "wz": wz,
        "ys": scalar(0.11), "yz": scalar(5, kind), "b": np.arange(6, dtype=np.int32) * 100 - 200,
    }  # fmt: skip
    check("QLinearConv", inputs, group=group, strides=[2, 1], auto_pad="SAME_UPPER", opset=10)
    del inputs["b"]
    check("QLinearConv", inputs, group=group, pads=[1, 0, 0, 1], opset=10)


@pytest.mark.parametrize(("kind", "weights"), list(product(KINDS, KINDS)))
def test_integer_sums(kind: str, weights: str) -> None:
    x, w = levels(kind, 2, 4, 7, 6), levels(weights, 6, 4, 3, 3, bound=64)
    zeros = {"xz": scalar(3, kind), "wz": scalar(2, weights)}
    if kind == "uint8":
        check("ConvInteger", {"x": x, "w": w, **zeros}, exact=True, opset=10)
        check("ConvInteger", {"x": x, "w": w}, exact=True, opset=10, strides=[2, 2])
    a, b = levels(kind, 2, 5, 4), levels(weights, 4, 3, bound=64)
    if not (kind == "int8" and weights == "uint8"):
        check("MatMulInteger", {"a": a, "b": b, **zeros}, exact=True, opset=10)
        check("MatMulInteger", {"a": a, "b": b}, exact=True, opset=10)
        check("MatMulInteger", {"a": a, "b": b, "az": scalar(1, kind), "bz": levels(weights, 3)}, exact=True, opset=10)


def test_long_sums_are_exact() -> None:
    """30,000 products of up to 255 * 255 pass 2**24, where float32 begins to round."""
    a, b = np.full((1, 30_000), 255, np.uint8), np.full((30_000, 2), 255, np.uint8)
    a[0, 1], b[3, 1] = 254, 252
    model = one_node("MatMulInteger", {"a": a, "b": b}, stored=["b"], opset=10)
    assert np.abs(caf.run(model, {"a": a})["y"]).max() > 2**24
    check("MatMulInteger", {"a": a, "b": b}, exact=True, opset=10)


@pytest.mark.parametrize(("kind", "weights", "stored"), list(product(KINDS, KINDS, (True, False))))
def test_qlinear_matmul(kind: str, weights: str, stored: bool) -> None:
    if kind == "int8" and weights == "uint8":
        pytest.skip("onnxruntime has no such kernel")
    inputs: Inputs = {
        "a": levels(kind, 2, 5, 4), "b": levels(weights, 4, 3, bound=64), "as": scalar(0.02), "az": scalar(9, kind),
        "bs": scalar(0.01), "bz": scalar(1, weights), "ys": scalar(0.1), "yz": scalar(7, kind),
    }  # fmt: skip
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"] if stored else list(inputs)
    if stored:
        check("QLinearMatMul", {k: inputs[k] for k in order}, opset=10)
        return
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    model = one_node(
        "QLinearMatMul", {k: inputs[k] for k in names}, stored=[n for n in names if n not in "ab"], opset=10
    )
    feeds = {k: v for k, v in inputs.items() if k in "ab" and v is not None}
    assert caf.to_torch(model, feeds).parity.ok


@pytest.mark.parametrize("kind", KINDS)
def test_operators_of_onnxruntimes_quantiser(kind: str) -> None:
    x, y = levels(kind, 2, 4, 6, 5), levels(kind, 2, 4, 6, 5, seed=1)
    xs, xz, ys, yz = scalar(0.05), scalar(11, kind), scalar(0.04), scalar(3, kind)
    how: dict[str, Any] = {"domain": "com.microsoft", "opset": 17}
    one: Inputs = {"x": x, "xs": xs, "xz": xz, "ys": ys, "yz": yz}
    pair: Inputs = {
        "a": x,
        "as": xs,
        "az": xz,
        "b": y,
        "bs": ys,
        "bz": yz,
        "cs": scalar(0.1),
        "cz": xz,
    }
    check("QLinearAdd", pair, **how)
    check("QLinearMul", pair, **how)
    check("QLinearLeakyRelu", one, alpha=0.2, **how)
    check("QLinearSigmoid", {**one, "ys": scalar(1 / 256)}, **how)
    check("QLinearGlobalAveragePool", one, **how)
    check("QLinearAveragePool", one, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], **how)
    check(
        "QLinearConcat",
        {"ys": ys, "yz": yz, "x": x, "xs": xs, "xz": xz, "w": y, "ws": ys, "wz": yz},
        fed=3,
        axis=1,
        **how,
    )


@pytest.mark.parametrize(("kind", "since", "axis"), list(product(KINDS, (11, 13), (1, 2, -1))))
def test_quantised_softmax(kind: str, since: int, axis: int) -> None:
    zero = 0 if kind == "uint8" else -128
    model = text(
        f"g ({kind}[2,3,5] x) => ({kind}[2,3,5] y) <float xs = {{0.05}}, {kind} xz = {{7}}, float ys = {{0.00390625}}, "
        f"{kind} yz = {{{zero}}}> "
        f"{{ y = com.microsoft.QLinearSoftmax <axis = {axis}, opset = {since}> (x, xs, xz, ys, yz) }}"
    )
    assert caf.to_torch(model, {"x": levels(kind, 2, 3, 5)}).parity.ok


def test_products_with_quantised_weights() -> None:
    how: dict[str, Any] = {"domain": "com.microsoft", "opset": 17}
    b, scales = levels("uint8", 8, 3), np.array([0.01, 0.02, 0.03], np.float32)
    bias = normal(3)
    check(
        "DynamicQuantizeMatMul",
        {"a": normal(2, 5, 8), "b": b, "s": scales, "z": levels("uint8", 3), "bias": bias},
        **how,
    )
    check("DynamicQuantizeMatMul", {"a": normal(2, 5, 8), "b": b, "s": scalar(0.01)}, **how)
    a, step, zero = levels("uint8", 5, 8), scalar(0.1), scalar(9, "uint8")
    check(
        "MatMulIntegerToFloat",
        {"a": a, "b": b, "as": step, "bs": scales, "az": zero, "bz": levels("uint8", 3), "bias": bias},
        **how,
    )
    left: Inputs = {"a": a, "as": step, "az": zero}
    right: Inputs = {"b": levels("uint8", 3, 8), "bs": scalar(0.02), "bz": scalar(100, "uint8")}
    rest: Inputs = {"c": np.array([5, -7, 900], np.int32), "ys": scalar(0.3), "yz": scalar(4, "uint8")}
    check("QGemm", {**left, **right, **rest}, transB=1, **how)


@pytest.mark.parametrize("zeros", [False, True])
def test_weights_of_four_bits(zeros: bool) -> None:
    k, n, block = 40, 6, 16
    blocks = -(-k // block)
    inputs: Inputs = {
        "a": normal(2, 3, k), "b": levels("uint8", n, blocks, block // 2), "s": np.abs(normal(n * blocks)) * 0.05
    }  # fmt: skip
    if zeros:
        inputs["z"] = levels("uint8", n * ((blocks + 1) // 2))
    check("MatMulNBits", inputs, K=k, N=n, bits=4, block_size=block, domain="com.microsoft", opset=17)


def test_rounding_passes_slopes_and_halves_go_to_the_even_number() -> None:
    x = torch.tensor([0.5, 1.5, -2.5, 0.3], requires_grad=True)
    y = rounded(x)
    assert y.tolist() == [0, 2, -2, 0]
    (slope,) = torch.autograd.grad((y * torch.arange(4.0)).sum(), x)
    assert slope.tolist() == [0, 1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its jit
        assert torch.func.jvp(rounded, (x.detach(),), (torch.ones(4),))[1].tolist() == [1, 1, 1, 1]
    assert torch.func.vmap(rounded)(x.detach()[:, None])[:, 0].tolist() == [0, 2, -2, 0]


QDQ = """g (float[1,6] x) => (float[1,6] y) <float scale = {0.5}, uint8 zero = {10}> {
  q = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (q, scale, zero) }"""


def test_the_slope_is_straight_through_within_the_clipping_range() -> None:
    feeds = {"x": np.array([[-5.3, -4.9, 0.1, 3.3, 122.4, 122.9]], np.float32)}  # 0.5 * (0 - 10) to 0.5 * (255 - 10)
    tail = caf.to_torch(text(QDQ), feeds)
    x = torch.from_numpy(feeds["x"]).requires_grad_(True)
    (slope,) = torch.autograd.grad(tail({"x": x})["y"].sum(), x)
    assert slope.tolist() == [[0, 1, 1, 1, 1, 0]]
    assert tail.parity.slope_rel is None
    assert any("constant between its steps" in f for f in tail.parity.findings)


def test_integers_come_out_in_their_own_type() -> None:
    model = text("g (float[1,4] x) => (uint8[1,4] q) <float s = {0.1}, uint8 z = {3}> { q = QuantizeLinear (x, s, z) }")
    tail = caf.to_torch(model, {"x": normal(1, 4)})
    assert tail({"x": torch.zeros(1, 4)})["q"].dtype == torch.uint8


def saturating() -> tuple[caf.Model, Arrays]:
    """All weights 127, all activations 255: pairs of products pass what 16 bits hold."""
    inputs = {
        "x": np.full((1, 8, 4, 4), 255, np.uint8), "xs": scalar(0.01), "xz": scalar(0, "uint8"),
        "w": np.full((4, 8, 1, 1), 127, np.int8), "ws": scalar(0.01), "wz": scalar(0, "int8"),
        "ys": scalar(0.2), "yz": scalar(0, "uint8"),
    }  # fmt: skip
    return one_node("QLinearConv", inputs, stored=list(inputs)[1:], opset=10), {"x": inputs["x"]}


def test_a_saturating_kernel_is_named_as_a_finding() -> None:
    model, feeds = saturating()
    exact = np.rint(255 * 127 * 8 * 1e-4 / 0.2)
    given = float(caf.run(model, feeds)["y"].ravel()[0])
    tail = caf.to_torch(model, feeds)
    assert tail.parity.ok
    assert float(tail({"x": torch.from_numpy(feeds["x"])})["y"].ravel()[0]) == exact
    told = " ".join(tail.parity.findings)
    assert ("saturate" in told) == (given != exact), "this processor's kernel decides which of the two it is"


def test_a_wrong_operator_is_not_taken_for_a_saturating_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from l2caf_onnx.tail.ops import quantised

    model, feeds = saturating()
    right = quantised.requantised
    monkeypatch.setattr(quantised, "requantised", lambda *a: right(*a) - 3)
    monkeypatch.setattr(convert, "CHAIN", convert.CHAIN[:1])  # the next converter has a QLinearConv of its own
    with pytest.raises(caf.ParityError, match="QLinearConv") as error:
        caf.to_torch(model, feeds)
    assert error.value.op == "QLinearConv"


@pytest.mark.parametrize("variant", ["int8-qdq", "int8-qoperator", "int8-weights"])
def test_a_real_model_of_int8(variant: str, chelsea: Arrays, efficientnet: caf.Model) -> None:
    model = real(f"efficientnet-lite0-{variant}.onnx")
    feeds = {model.inputs[0].name: next(iter(chelsea.values()))}
    tail = caf.to_torch(model, feeds)
    assert tail.parity.ok
    assert tail.converter == "onnx2torch"
    stops = [b for b in caf.breakpoints(model) if b.quantised]
    assert len(stops) >= sum(b.op_type != "Clip" for b in caf.breakpoints(efficientnet))  # those became quantisers
    for stop in (stops[-2], stops[len(stops) // 2]):
        found = caf.attend(
            model, feeds, at=stop.name, constraint="l2-nonneg", proof="model" if stop is stops[-2] else "tail"
        )
        assert (found.solver, found.proof.ok) == ("lbfgs", True)
        uniform = np.full(found.filter.shape[1:], found.radius[0], np.float32)
        cut = caf.cut(model, stop.name)
        whole = caf.run(model, feeds)
        filtered = caf.run(caf.insert_filter(model, stop.name, uniform), feeds)
        name = cut.to[0]
        loss = float(np.mean((whole[name] - filtered[name]) ** 2))
        own = caf.run(caf.insert_filter(model, stop.name, found.filter), feeds)[name]
        assert found.loss[0] == pytest.approx(float(np.mean((whole[name] - own) ** 2)), rel=1e-5)
        assert found.loss[0] < 0.8 * loss
    usual = caf.attend(model, feeds, at=stops[-2].name)
    assert (usual.solver, usual.proof.ok) == ("slope", True)
    (name,) = caf.cut(model, stops[-2].name).to
    kept = caf.run(caf.insert_filter(model, stops[-2].name, usual.filter), feeds)[name]
    moved = float(np.mean((caf.run(model, feeds)[name] - kept) ** 2))
    assert usual.loss[0] == pytest.approx(moved, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["int8-qdq", "int8-qoperator", "int8-weights"])
def test_a_real_model_of_int8_at_every_breakpoint(
    variant: str, chelsea: Arrays, efficientnet: caf.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(solvers.SOLVERS, "lbfgs", solvers.Lbfgs(max_evaluations=3))  # whether, not how well
    path = f"efficientnet-lite0-{variant}.onnx"
    model = real(path)
    feeds = {model.inputs[0].name: next(iter(chelsea.values()))}
    stops = caf.breakpoints(model)
    places = sum(b.op_type != "Clip" for b in caf.breakpoints(efficientnet))  # quantisers clip
    assert sum(b.quantised for b in stops) >= places
    for stop in stops:
        found = caf.attend(model, feeds, at=stop.name, solver="lbfgs")
        assert found.proof.ok, stop.name
        assert found.parity is not None
        assert found.parity.ok, stop.name
        assert np.isfinite(found.loss).all()
        model = real(path)  # lets go of what was made for this one


def test_an_unknown_quantisation_is_refused_by_name() -> None:
    inputs = {"x": normal(2, 3), "s": scalar(0.1)}
    model = one_node("QuantizeLinear", inputs, stored=["s"], opset=21, output_dtype=onnx.TensorProto.FLOAT8E4M3FN)
    with pytest.raises(caf.L2cafError, match="QuantizeLinear"):
        caf.to_torch(model, {"x": inputs["x"]})
