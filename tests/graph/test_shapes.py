"""graph/shapes.py and contrib.py: types and shapes as far as the file tells, at no cost in weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

import l2caf_onnx as caf
from l2caf_onnx.graph.shapes import tensors
from tests.conftest import normal, parse, text


def shape_of(nodes: str, *, inputs: str = "float[N,3,H,W] x", stored: str = "float[1] one = {1}") -> caf.TensorInfo:
    """The type and shape of y, which is not declared."""
    return tensors(text(f"g ({inputs}) => (y) <{stored}> {{ {nodes} }}"))["y"]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("y = Relu (x)", ("N", 3, "H", "W")),
        ("y = Transpose <perm = [0, 2, 3, 1]> (x)", ("N", "H", "W", 3)),
        ("y = GlobalAveragePool (x)", ("N", 3, 1, 1)),
        ("y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", ("N", 3)),
        ("y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", ("N", 3, "?", "?")),
        ("s = Shape (x) y = Reshape (x, s)", ("N", 3, "H", "W")),
    ],
)
def test_symbolic_sizes_are_kept(nodes: str, shape: tuple[int | str, ...]) -> None:
    assert shape_of(nodes) == caf.TensorInfo("y", "float32", shape)


def test_padding_computed_as_torch_does() -> None:
    """The exporter's ReplicationPad: a list of pads is filled up, turned over by Slice and Transpose, and flattened."""
    nodes = (
        "few = Constant <value_ints = [1, 2, 3, 4]> () length = Constant <value_ints = [4]> () "
        "zeros = ConstantOfShape <value = int64[1] {0}> (length) all = Concat <axis = 0> (few, zeros) "
        "form = Constant <value_ints = [-1, 2]> () pairs = Reshape (all, form) "
        "start = Constant <value_ints = [-1]> () end = Constant <value_ints = [-9223372036854775807]> () "
        "axis = Constant <value_ints = [0]> () turned = Slice (pairs, start, end, axis, start) "
        "across = Transpose <perm = [1, 0]> (turned) flat = Reshape (across, start) pads = Cast <to = 7> (flat) "
        "y = Pad (x, pads)"
    )
    assert shape_of(nodes, inputs="float[N,3,10,20] x").shape == ("N", 3, 10 + 7, 20 + 3)


def test_one_constant_that_cannot_be_evaluated_spoils_no_other() -> None:
    nodes = "lost = Reshape (three, three) size = Mul (three, three) y = Reshape (x, size)"
    assert shape_of(nodes, inputs="float[N] x", stored="int64[2] three = {3, 3}").shape == (9, 9)


@pytest.mark.parametrize(
    ("nodes", "inputs", "shape"),
    [
        ("y = Reshape (x, s)", "float[N,3,H,W] x, int64[3] s", ("?", "?", "?")),
        ("y = Expand (x, s)", "float[N,3] x, int64[4] s", ("?", "?", "?", 3)),
        ("y = ConstantOfShape (s)", "float[N] x, int64[2] s", ("?", "?")),
        ("a = Reshape (x, s) b = Relu (a) y = Reshape (b, t)", "float[N] x, int64[2] s, int64[3] t", ("?",) * 3),
        ("y = Reshape (x, s)", "float[N,3,H,W] x, int64[K] s", None),
        ("y = Foo.Bar (x)", "float[N,3,H,W] x", None),
        ("i = NonZero (x) y = Cast <to = 1> (i)", "float[N,3,H,W] x", (4, "?")),
    ],
)
def test_what_cannot_be_told_stays_open(nodes: str, inputs: str, shape: tuple[int | str, ...] | None) -> None:
    assert shape_of(nodes, inputs=inputs).shape == shape


@pytest.mark.parametrize(
    "nodes",
    [
        "y = ConstantOfShape (huge)",
        "one = Constant <value_float = 1.0> () y = Expand (one, huge)",
        "one = Constant <value_floats = [1.0, 1.0]> () a = Reshape (one, form) y = Tile (a, huge)",
        "zero = Constant <value_int = 0> () by = Constant <value_int = 1> () y = Range (zero, end, by)",
    ],
)
def test_nothing_huge_is_made(nodes: str) -> None:
    """Sizes of 10^15 elements would not fit in memory: those who evaluate constants must not try."""
    stored = "int64[2] huge = {100000000, 10000000}, int64 end = {1000000000000000}, int64[2] form = {1, 2}"
    assert shape_of(f"{nodes} unused = Relu (x)", stored=stored).name == "y"


@pytest.mark.parametrize("kind", ["initialiser", "Constant"])
def test_weights_are_not_copied_for_inference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = onnx.numpy_helper.from_array(normal(64, 3, 70, 70), "w")
    proto = parse("g (float[N,3,H,W] x) => (y) { y = Conv (x, w) }")
    if kind == "Constant":
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weights))
    else:
        proto.graph.initializer.append(weights)
    infer, sizes = onnx.shape_inference.infer_shapes, list[int]()

    def watched(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        sizes.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    assert tensors(caf.load(proto))["y"].shape == ("N", 64, "?", "?")
    assert sizes
    assert max(sizes) < 1000


def test_declared_shapes_that_lie_do_no_harm() -> None:
    model = text("g (float[N,3,8,8] x) => (float[N,5,8,8] y) <float[N,7] a> { a = Relu (x) y = Relu (a) }")
    assert {i.shape for i in tensors(model).values()} == {("N", 3, 8, 8)}
    assert [(b.name, b.shape) for b in caf.breakpoints(model)] == [(n, ("N", 3, 8, 8)) for n in "xay"]


LIES = {"sizes": "float[1,3,5,5] a", "rank": "float[1,3,5] a", "after it": "float[1,3,5,5] b, float[1,2] m"}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_declared_wrongly_of_the_tensors_inside_is_overruled(lie: str) -> None:
    """onnxruntime runs such models: the sizes are only declared."""
    model = text(
        f"g (float[1,3,8,8] x) => (float[1,9] y) <{LIES[lie]}> "
        "{ a = Relu (x) b = Neg (a) m = ReduceMean <axes = [2,3], keepdims = 0> (b) y = Exp (m) }"
    )
    found = caf.attend(model, {"x": normal(1, 3, 8, 8)}, at="a")
    assert found.filter.shape == (1, 8, 8)
    assert found.proof.ok
    assert caf.cut(model, "b").tail.inputs[0].shape == (1, 3, 8, 8)


def test_what_is_declared_serves_where_nothing_can_be_inferred() -> None:
    model = text("g (float[1,3,8,8] x) => (float[1,3,4,4] y) <float[1,3,4,4] a> { a = acme.Halve (x) y = Relu (a) }")
    assert {n: i.shape for n, i in tensors(model).items() if n != "x"} == {"a": (1, 3, 4, 4), "y": (1, 3, 4, 4)}


# --- operators of onnxruntime's own, against what onnxruntime makes of them

_Q = "s, z"
_ROW = "float[4] row = {1, 2, 3, 4}, float s = {0.1}, uint8 z = {3}"
CONTRIB = {
    "Gelu": "y = com.microsoft.Gelu (x)",
    "FastGelu": "y = com.microsoft.FastGelu (x, row)",
    "BiasGelu": "y = com.microsoft.BiasGelu (x, row)",
    "QuickGelu": "y = com.microsoft.QuickGelu (x)",
    "SkipLayerNormalization": "y = com.microsoft.SkipLayerNormalization (x, x, row)",
    "FusedMatMul": "t = Transpose <perm = [0, 2, 1]> (x) y = com.microsoft.FusedMatMul (x, t)",
    "FusedConv": 'y = com.microsoft.FusedConv <activation = "Relu", strides = [2]> (x, kernel)',
    "FusedGemm": 'r = Reshape (x, flat) y = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (r, r)',
    "QLinearAdd": f"q = QuantizeLinear (x, s, z) y = com.microsoft.QLinearAdd (q, {_Q}, q, {_Q}, {_Q})",
    "QLinearMul": f"q = QuantizeLinear (x, s, z) y = com.microsoft.QLinearMul (q, {_Q}, q, {_Q}, {_Q})",
    "QLinearSigmoid": f"q = QuantizeLinear (x, s, z) y = com.microsoft.QLinearSigmoid (q, {_Q}, {_Q})",
    "QLinearLeakyRelu": f"q = QuantizeLinear (x, s, z) y = com.microsoft.QLinearLeakyRelu (q, {_Q}, {_Q})",
    "QLinearConcat": f"q = QuantizeLinear (x, s, z) y = com.microsoft.QLinearConcat <axis = 1> ({_Q}, q, {_Q})",
    "QLinearAveragePool": (
        f"q = QuantizeLinear (x, s, z) r = Unsqueeze (q, one) "
        f"y = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2], strides = [2, 1]> (r, {_Q}, {_Q})"
    ),
    "QLinearGlobalAveragePool": (
        f"q = QuantizeLinear (x, s, z) r = Unsqueeze (q, one) "
        f"y = com.microsoft.QLinearGlobalAveragePool (r, {_Q}, {_Q})"
    ),
    "QGemm": (
        f"q = QuantizeLinear (x, s, z) r = Reshape (q, flat) "
        f'y = com.microsoft.QGemm <transB = 1> (r, {_Q}, r, {_Q}, "", {_Q})'
    ),
    "QuantizeLinear": f"y = com.microsoft.QuantizeLinear (x, {_Q})",
}


@pytest.mark.parametrize("op", CONTRIB)
def test_onnxruntimes_own_operators(op: str) -> None:
    stored = (
        f"{_ROW}, float[5,3,2] kernel = {{{', '.join(['1'] * 30)}}}, int64[2] flat = {{6, 4}}, int64[1] one = {{1}}"
    )
    model = text(f"g (float[2,3,4] x) => (y) <{stored}> {{ {CONTRIB[op]} }}")
    info = tensors(model)["y"]
    made = caf.run(model, {"x": normal(2, 3, 4)})["y"]
    assert (info.dtype, info.shape) == (str(made.dtype), made.shape)


def test_onnxruntimes_operators_whose_shape_no_standard_one_has() -> None:
    model = text("g (float[2,3,4] x) => (y) { y = com.microsoft.FusedMatMul <transA = 1> (x, x) }")
    assert tensors(model)["y"].shape is None
    assert caf.run(model, {"x": normal(2, 3, 4)})["y"].shape == (2, 4, 4)


def test_real_models_leave_nothing_open(efficientnet: caf.Model) -> None:
    infos = tensors(efficientnet)
    assert all(info.shape is not None and info.dtype != "?" for info in infos.values())
    assert all("N" in (info.shape or ()) for name, info in infos.items() if name in {"image", "logits"})
    assert np.all([s.shape[0] == "N" for s in caf.breakpoints(efficientnet)])
