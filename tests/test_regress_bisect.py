"""Does bisect name the node that a fault was planted in? Faults of many kinds in a network with branches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import l2caf_onnx as caf
from tests.conftest import Arrays, normal, real, weighted

NET = """g (float[N,3,9,9] x) => (float[N,5] y)
<float[6,3,3,3] w0, float[6] b0, float[6,6,3,3] w1, float[6] b1, float[6,6,1,1] w2, float[6] gain, float[6] shift,
 float[6] mean, float[6,5] w3, float[5] b3, float low = {0}, float high = {3}, float far = {40}>
{ c0 = Conv <pads = [1,1,0,0], strides = [2,2]> (x, w0, b0)  r0 = Relu (c0)
  c1 = Conv <pads = [1,1,1,1]> (r0, w1, b1)  n1 = BatchNormalization (c1, gain, shift, mean, ones)
  s = Add (n1, r0)  r1 = Relu (s)  c2 = Conv (r1, w2)  a = Softmax <axis = 1> (c2)  m = Mul (a, r1)
  t = Clip (m, low, high)  p = GlobalAveragePool (t)  f = Flatten (p)  g0 = MatMul (f, w3)  y = Add (g0, b3) }"""
X = {"x": normal(6, 3, 9, 9)}
Edit = Callable[[onnx.ModelProto], None]


def reference() -> caf.Model:
    model = weighted(NET.replace("float[6] mean,", "float[6] mean, float[6] ones = {1,2,1,3,1,2},"))
    return model


def node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in proto.graph.node if output in n.output)
    return found


def put(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                made = np.ascontiguousarray(change(numpy_helper.to_array(tensor)), np.float32)
                tensor.CopyFrom(numpy_helper.from_array(made, name))

    return edit


def attribute(output: str, name: str, value: object) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        found = node(proto, output)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def removed(output: str, kept: str) -> Edit:
    """What `output` was is now read from `kept`."""

    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.node.remove(node(proto, output))
        for n in proto.graph.node:
            n.input[:] = [kept if i == output else i for i in n.input]

    return edit


def other_operator(output: str, op: str, *inputs: str) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        found = node(proto, output)
        found.op_type = op
        found.input[:] = [found.input[0], *inputs]

    return edit


def noised(w: np.ndarray) -> np.ndarray:
    return np.asarray(w + 0.01 * w.std() * normal(*w.shape, seed=7))


def four_bits(w: np.ndarray) -> np.ndarray:
    step = np.abs(w).max() / 7
    return np.asarray(np.rint(w / step) * step)


FAULTS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "weights noised by 1%, first": (put("w0", noised), ("c0",)),
    "weights noised by 1%, middle": (put("w1", noised), ("c1",)),
    "weights noised by 1%, last": (put("w3", noised), ("g0",)),
    "kernel flipped": (put("w1", lambda w: w[:, :, ::-1, ::-1]), ("c1",)),
    "kernel transposed": (put("w0", lambda w: w.swapaxes(2, 3)), ("c0",)),
    "channels permuted": (put("w2", lambda w: w[::-1]), ("c2",)),
    "bias dropped": (put("b1", np.zeros_like), ("c1",)),
    "four bits": (put("w1", four_bits), ("c1",)),
    "epsilon": (attribute("n1", "epsilon", 1e-2), ("n1",)),
    "statistics": (put("mean", lambda m: m + 0.1), ("n1",)),
    "padding of the other side": (attribute("c0", "pads", [0, 0, 1, 1]), ("c0",)),
    "Softmax over the wrong axis": (attribute("a", "axis", 2), ("a",)),
    "residual dropped": (removed("s", "n1"), ("n1", "r1")),
    "a ReLU dropped": (removed("r0", "c0"), ("c0", "c1", "s")),
    "ReLU for Clip": (other_operator("t", "Relu"), ("t",)),
    "Clip for ReLU": (other_operator("r1", "Clip", "low", "far"), ("r1", "c2", "m")),
}

UNPLACED = ("a ReLU dropped", "ReLU for Clip")
"""Without names, and with neither operator nor values alike, only a later node is named."""


def candidate(edit: Edit, *, rename: bool = False) -> tuple[caf.Model, dict[str, str]]:
    proto = onnx.ModelProto()
    proto.CopyFrom(reference().proto)
    edit(proto)
    names = {o: o for n in proto.graph.node for o in n.output}
    if rename:
        names = {o: f"n{k}" for k, o in enumerate(names)}
        for n in proto.graph.node:
            n.name = ""
            n.input[:] = [names.get(i, i) for i in n.input]
            n.output[:] = [names.get(o, o) for o in n.output]
        for output in proto.graph.output:
            output.name = names[output.name]
    del proto.graph.value_info[:]
    return caf.load(proto), names


@pytest.mark.parametrize("rename", [False, True], ids=["names kept", "renamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_planted_node_is_named(fault: str, rename: bool) -> None:
    edit, where = FAULTS[fault]
    model, names = candidate(edit, rename=rename)
    found = caf.bisect(reference(), model, X)
    assert not found.ok
    assert found.first is not None
    assert found.change == "float32"
    if not (rename and fault in UNPLACED):
        assert found.first.candidate in {names.get(w) for w in where}
    assert found.first.local > found.first.noise


@pytest.mark.parametrize("rename", [False, True], ids=["names kept", "renamed"])
def test_a_fault_is_local_and_what_follows_inherits(rename: bool) -> None:
    model, names = candidate(FAULTS["kernel flipped"][0], rename=rename)
    found = {n.candidate: n for n in caf.bisect(reference(), model, X).nodes}
    assert found[names["c0"]].inherited == 0
    assert not found[names["c1"]].ok
    for later in ("n1", "s", "r1"):
        assert found[names[later]].ok
        assert found[names[later]].inherited > 0.01


def test_two_faults_are_ranked() -> None:
    def both(proto: onnx.ModelProto) -> None:
        FAULTS["weights noised by 1%, first"][0](proto)
        FAULTS["kernel flipped"][0](proto)

    found = caf.bisect(reference(), candidate(both)[0], X)
    assert found.first is not None
    assert found.first.candidate == "c0"
    assert [n.candidate for n in found.ranked[:2]] == ["c1", "c0"]


@pytest.mark.parametrize("rename", [False, True], ids=["names kept", "renamed"])
def test_nothing_is_named_where_nothing_is_wrong(rename: bool) -> None:
    found = caf.bisect(reference(), candidate(lambda proto: None, rename=rename)[0], X)
    assert found.ok
    assert max(n.local for n in found.nodes) < 1e-6


def test_other_inputs_are_told_and_no_node_is_named() -> None:
    found = caf.bisect(
        reference(), candidate(lambda proto: None, rename=True)[0], X, candidate_inputs={"x": X["x"] + 1}
    )
    assert found.ok or (found.first is not None and found.first.candidate == "n0")
    assert any("preprocessing" in note for note in found.notes)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_network_with_branches(seed: int) -> None:
    model = real("toy-cnn.onnx")
    weights = [n for n in model.proto.graph.node if n.op_type == "Conv"]
    chosen = weights[[3, 8][seed]]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    put(chosen.input[1], noised)(proto)
    feeds: Arrays = {"image": np.random.default_rng(seed).uniform(0, 1, (4, 1, 64, 64)).astype(np.float32)}
    found = caf.bisect(model, caf.load(proto), feeds)
    assert found.first is not None
    assert found.first.node == chosen.name


def test_what_cannot_be_judged_is_refused_not_found_sound() -> None:
    other = weighted("g (float[N,3,9,9] x) => (float[N,2] y) <float[2,3,3,3] w> { c = Conv (x, w)  "
                     "p = GlobalMaxPool (c)  y = Flatten (p) }")  # fmt: skip
    with pytest.raises(caf.InputError, match="nothing to bisect"):
        caf.bisect(reference(), other, X, change="float32")
    proto = onnx.ModelProto()
    proto.CopyFrom(reference().proto)
    rng = np.random.default_rng(5)
    for name in ("w0", "w1", "w2", "w3"):
        put(name, lambda w: rng.standard_normal(w.shape))(proto)
    trained_anew = caf.load(proto)
    with pytest.raises(caf.InputError, match="tells a fault from training"):
        caf.bisect(reference(), trained_anew, X)
    assert not caf.bisect(reference(), trained_anew, X, thresholds=1e-3).ok
    assert not caf.bisect(reference(), trained_anew, X, change="float32").ok


@pytest.mark.parametrize("ask", [caf.bisect, caf.compare])
def test_a_class_of_change_that_there_is_not_is_told(ask: Callable[..., object]) -> None:
    with pytest.raises(caf.InputError, match="no class of change 'int9'"):
        ask(reference(), reference(), X, change="int9")
