"""graph/unroll.py and sequences.py: control flow that constants steer, taken apart, equals what onnxruntime does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import l2caf_onnx as caf
from l2caf_onnx.graph import unroll
from l2caf_onnx.graph.nodes import walk
from l2caf_onnx.graph.sequences import OPERATORS
from l2caf_onnx.tail import convert
from l2caf_onnx.tail.fold import fold
from tests.conftest import normal, real, text

BRANCHES = """<then_branch = t () => (float[2,3,4] p) { p = Neg (r) }, else_branch = e () => (float[2,3,4] q)
    <float[4] w = {1,2,3,4}> { q = Mul (r, w) }>"""
TWICE = "body = l (int64 i, bool k, float[2,3,4] s) => (bool m, float[2,3,4] o) { m = Identity (k) o = Mul (s, s) }"
ADDS = """body = l (int64 i, bool k, float[2,3,4] s) => (bool m, float[2,3,4] o, float[2,3] row)
    { m = Identity (k) f = Cast <to = 1> (i) o = Add (s, f) row = ReduceMean <axes = [2], keepdims = 0> (o) }"""
UNTIL = """body = l (int64 i, bool k, float[2,3,4] s) => (bool m, float[2,3,4] o, float[2,3,4] all)
    { m = Less (i, last) o = Sigmoid (s) all = Identity (o) }"""
COUNTS = """body = l (int64 i, bool k, int64 c, float[2,3,4] s) => (bool m, int64 d, float[2,3,4] o)
    { d = Add (c, one) m = Less (d, last) o = Tanh (s) }"""
SUMS = """num_scan_inputs = {scanned}, scan_input_axes = [{axes}], scan_input_directions = [{back}],
    scan_output_axes = [{out}], scan_output_directions = [{reverse}],
    body = b (float[{state}] s, float[{state}] v) => (float[{state}] t, float[{state}] u)
    {{ t = Add (s, v) h = Tanh (t) u = Add (h, s) }}"""


def scan(axis: int = 0, back: int = 0, out: int = 0, reverse: int = 0) -> str:
    left = [d for k, d in enumerate((2, 3, 4)) if k != axis % 3]
    state = ",".join(map(str, left))
    zeros = ",".join("0" * int(np.prod(left)))
    written = SUMS.format(scanned=1, axes=axis, back=back, out=out, reverse=reverse, state=state)
    return f"<float[{state}] start = {{{zeros}}}> {{ r = Relu (x) last, y = Scan <{written}> (start, r) }}"


# What is declared in the graph's angle brackets, and its nodes; x is float[2,3,4].
GRAPHS = {
    "If, then": f"<bool c = {{1}}> {{ r = Relu (x) y = If (c) {BRANCHES} }}",
    "If, else": f"<bool c = {{0}}> {{ r = Relu (x) y = If (c) {BRANCHES} }}",
    "If on a size": f"<int64 i = {{1}}, int64 three = {{3}}> {{ r = Relu (x) s = Shape (x) n = Gather (s, i) "
    f"c = Equal (n, three) y = If (c) {BRANCHES} }}",
    "If in If": "<bool c = {1}, bool d = {0}> { r = Relu (x) y = If (c) <then_branch = t () => (float[2,3,4] p) "
    f"{{ p = If (d) {BRANCHES.replace('(float[2,3,4] p) { p', '(float[2,3,4] pp) { pp')} }}, "
    "else_branch = e () => (float[2,3,4] z) { z = Identity (r) }> }",
    "a condition inside a branch": "<bool c = {1}> { r = Relu (x) y = If (c) <then_branch = t () => (float[2,3,4] p) "
    f"{{ d = Not (c) p = If (d) {BRANCHES.replace('(float[2,3,4] p) { p', '(float[2,3,4] pp) { pp')} }}, "
    "else_branch = e () => (float[2,3,4] z) { z = Identity (r) }> }",
    "two Ifs with the same names inside": f"<bool c = {{1}}, bool d = {{0}}> {{ r = Relu (x) "
    f"a = If (c) {BRANCHES} b = If (d) {BRANCHES} y = Add (a, b) }}",
    "Loop": f"<int64 n = {{2}}> {{ r = Relu (x) y = Loop (n, , r) <{TWICE}> }}",
    "Loop that collects": f"<int64 n = {{3}}, bool c = {{1}}> {{ r = Relu (x) f, y = Loop (n, c, r) <{ADDS}> }}",
    "Loop whose condition comes out false": "<bool c = {1}, int64 last = {2}> "
    f"{{ r = Relu (x) f, a = Loop (, c, r) <{UNTIL}> y = Concat <axis = 1> (f, r) z = ReduceSum <keepdims = 0> (a) }}",
    "Loop that counts in its state": "<bool c = {1}, int64 zero = {0}, int64 one = {1}, int64 last = {3}> "
    f"{{ r = Relu (x) d, y = Loop (, c, zero, r) <{COUNTS}> }}",
    "Loop with both": "<bool c = {1}, int64 last = {5}, int64 n = {2}> "
    f"{{ r = Relu (x) y, a = Loop (n, c, r) <{UNTIL}> }}",
    "Loop that does not run": f"<int64 n = {{0}}> {{ r = Relu (x) s = Loop (n, , r) <{TWICE}> y = Sigmoid (s) }}",
    "Loop in Loop": "<int64 n = {2}> { r = Relu (x) y = Loop (n, , r) <body = outer (int64 j, bool g, float[2,3,4] a) "
    f"=> (bool h, float[2,3,4] b) {{ h = Identity (g) b = Loop (n, , a) <{TWICE}> }}> }}",
    "Scan": scan(),
    "Scan from the end": scan(back=1, reverse=1),
    "Scan along another axis": scan(axis=1, out=1),
    "Scan along the last axis": scan(axis=-1, out=-1, back=1),
    "a sequence that a Loop fills": """<int64 n = {3}> { r = Relu (x) e = SequenceEmpty <dtype = 1> ()
      f, q = Loop (n, , r, e) <body = l (int64 i, bool k, float[2,3,4] s, seq(float[2,3,4]) p)
        => (bool m, float[2,3,4] o, seq(float[2,3,4]) w) { m = Identity (k) o = Sigmoid (s) w = SequenceInsert (p, o) }>
      y = ConcatFromSequence <axis = 1> (q) }""",
    "a sequence built, stacked": "{ r = Relu (x) s = Neg (x) q = SequenceConstruct (r, s) "
    "y = ConcatFromSequence <axis = 1, new_axis = 1> (q) }",
    "a sequence read": "<int64 minus = {-1}, int64 one = {1}> { r = Relu (x) s = Neg (x) q = SequenceConstruct (r, s) "
    "w = SequenceInsert (q, s, one) v = SequenceErase (w, minus) a = SequenceAt (v, one) n = SequenceLength (v) "
    "f = Cast <to = 1> (n) y = Mul (a, f) }",
    "a tensor split into a sequence": "<int64 two = {2}, int64 one = {1}> { r = Relu (x) "
    "q = SplitToSequence <axis = 2> (r, two) y = SequenceAt (q, one) }",
    "split by sizes": "<int64[2] sizes = {1,3}, int64 one = {1}> { r = Relu (x) "
    "q = SplitToSequence <axis = -1> (r, sizes) y = SequenceAt (q, one) }",
    "split one by one": "<int64 one = {1}> { r = Relu (x) q = SplitToSequence <axis = 1, keepdims = 0> (r) "
    "y = SequenceAt (q, one) }",
}  # fmt: skip


def built(graph: str, name: str = "lap") -> caf.Model:
    outputs = "y, z" if " z = ReduceSum" in graph else "y"
    model = text(f"g (float[2,3,4] x) => ({outputs}) {graph}")
    for node in model.proto.graph.node:
        node.name = name if node.op_type == "Loop" else node.name
    return model


def control_flow(model: caf.Model) -> set[str]:
    return {n.op_type for n in walk(model.proto.graph)} & {"If", "Loop", "Scan", *OPERATORS}


@pytest.mark.parametrize("name", GRAPHS)
def test_taken_apart_it_is_the_same(name: str) -> None:
    model = built(GRAPHS[name], "lap#7")  # a name like those that peeled loops once had
    feeds = {"x": normal(2, 3, 4)}
    assert control_flow(model)
    flat = fold(model, feeds).model
    assert not control_flow(flat)
    for seed in (0, 1):
        fed = {"x": normal(2, 3, 4, seed=seed)}
        for (key, want), have in zip(caf.run(model, fed).items(), caf.run(flat, fed).values(), strict=True):
            np.testing.assert_array_equal(have, want, err_msg=key)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_tail_is_torch_and_proved(name: str) -> None:
    model = built(GRAPHS[name])
    tail = caf.to_torch(model, {"x": normal(2, 3, 4)})
    assert (tail.converter, tail.parity.ok) == ("onnx2torch", True)
    fed = {"x": normal(2, 3, 4, seed=1)}
    for key, want in caf.run(model, fed).items():
        np.testing.assert_allclose(tail({"x": torch.from_numpy(fed["x"])})[key].numpy(), want, rtol=1e-4, atol=1e-6)


ATTENDED = """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <int64 n = {2}, float half = {0.5}> {
  r = Relu (x)
  y = Loop (n, , r) <body = l (int64 i, bool k, float[N,2,4,4] s) => (bool m, float[N,2,4,4] o)
    { m = Identity (k) t = Tanh (s) o = Mul (t, half) }> }"""


def test_attention_goes_through_a_loop() -> None:
    found = caf.attend(text(ATTENDED), {"x": normal(2, 2, 4, 4)}, at="r", proof="model")
    assert (found.solver, found.converter, found.proof.ok) == ("slope", "onnx2torch", True)


# A course that the data decide: no torch form is true for all data.
DATA = {
    "If": """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float zero = {0}> { r = Relu (x)
      s = ReduceSum <keepdims = 0> (r)  c = Greater (s, zero)
      y = If (c) <then_branch = t () => (float[N,2,4,4] p) { p = Tanh (r) },
                  else_branch = e () => (float[N,2,4,4] q) { q = Neg (r) }> }""",
    "Loop": """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float small = {0.9}, bool yes = {1}> { r = Sigmoid (x)
      y = Loop (, yes, r) <body = l (int64 i, bool k, float[N,2,4,4] s) => (bool m, float[N,2,4,4] o)
        { o = Mul (s, small) t = ReduceMax <keepdims = 0> (o) m = Greater (t, small) }> }""",
}


@pytest.mark.parametrize("kind", DATA)
def test_what_the_data_steer_is_proved_whoever_converts_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One converter runs control flow as Python does; without it there is the solver that needs no gradient."""
    model, feeds = text(DATA[kind]), {"x": normal(1, 2, 4, 4)}
    found = caf.attend(model, feeds, at="r", proof="model")
    assert (found.converter, found.proof.ok) == ("onnx2pytorch", True)
    model = text(DATA[kind])
    monkeypatch.setattr(convert, "CHAIN", convert.CHAIN[:1])
    found = caf.attend(model, feeds, at="r", proof="model")
    assert (found.solver, found.parity, found.proof.ok) == ("blackbox", None, True)
    assert any(kind in note for note in found.notes)
    with pytest.raises(caf.UnsupportedModelError, match=kind):
        caf.attend(model, feeds, at="r", solver="lbfgs")


def test_what_would_grow_beyond_measure_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unroll, "LIMIT", 5)
    model = built(GRAPHS["Loop that collects"])
    assert control_flow(fold(model, {"x": normal(2, 3, 4)}).model) == {"Loop"}


SWITCHED = """g (float[N,2,4,4] x, int64 rate) => (float[N,2,4,4] y) <int64 high = {16000}> { r = Relu (x)
  c = Equal (rate, high)
  y = If (c) <then_branch = t () => (float[N,2,4,4] p) { p = Tanh (r) },
              else_branch = e () => (float[N,2,4,4] q) { q = Sigmoid (r) }> }"""


def test_an_input_that_is_held_may_steer() -> None:
    model, x = text(SWITCHED), normal(1, 2, 4, 4)
    for rate in (16000, 8000, 16000):
        found = caf.attend(model, {"x": x, "rate": np.array(rate)}, at="r", proof="model")
        assert (found.solver, found.converter, found.proof.ok) == ("slope", "onnx2torch", True)


def test_a_tail_made_for_one_course_refuses_another() -> None:
    model, feeds = text(SWITCHED), {"x": normal(1, 2, 4, 4), "rate": np.array(16000)}
    tail = caf.to_torch(model, feeds, held=["rate"])
    assert tail.reads == ("x",)
    fed = {"x": torch.from_numpy(feeds["x"]), "rate": torch.tensor(16000)}
    np.testing.assert_allclose(tail(fed)["y"].numpy(), caf.run(model, feeds)["y"], rtol=1e-6)
    with pytest.raises(caf.InputError, match=r"'rate' steers .* made for 16000"):
        tail({**fed, "rate": torch.tensor(8000)})
    other = caf.to_torch(model, {**feeds, "rate": np.array(8000)}, held=["rate"])
    assert other is not tail
    assert caf.to_torch(model, feeds, held=["rate"]) is tail


def test_a_real_model_whose_whole_network_is_inside_an_if() -> None:
    """silero-vad: an If on the sampling rate, an LSTM in each branch; the sound itself is the breakpoint.

    The state has its samples along the second axis, of which nothing tells: filters are tried one at a time.
    """
    model = real("silero-vad.onnx")
    feeds = {"input": normal(1, 576) * 0.1, "state": normal(2, 1, 128, seed=1), "sr": np.array(16000)}
    found = caf.attend(model, feeds, at="input", to="stateN", layout="NT", proof="model")
    assert (found.solver, found.converter, found.proof.ok) == ("lbfgs", "onnx2torch", True)
    assert found.filter.shape == (1, 576)
