"""Which tensor is which: renamed, turned, fused, re-spelled, faulty, and names that lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

import l2caf_onnx as caf
from l2caf_onnx.records import Aligned
from l2caf_onnx.regress.align import align
from l2caf_onnx.regress.feeding import as_candidate, as_reference, reordered, turned_back
from l2caf_onnx.regress.probe import Probe
from tests.conftest import normal, weighted

NET = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[4,3,3,3] w0, float[4] b0, float[4,4,3,3] w1, float[4] b1, float[4,5] w2>
{ c0 = Conv <pads = [1,1,1,1]> (x, w0, b0)  r0 = Relu (c0)
  c1 = Conv <pads = [1,1,1,1]> (r0, w1, b1)  s = Add (c1, r0)  r1 = Relu (s)
  p = GlobalAveragePool (r1)  f = Flatten (p)  y = MatMul (f, w2) }"""
TENSORS = ("c0", "r0", "c1", "s", "r1", "p", "f", "y")
X = {"x": normal(2, 3, 8, 8)}


def aligned(
    reference: caf.Model, candidate: caf.Model, given: Mapping[str, str] | None = None, turned: bool = False
) -> dict[str, Aligned]:
    feeds = {candidate.inputs[0].name: X["x"].transpose(0, 2, 3, 1) if turned else X["x"]}
    return {a.reference: a for a in align(Probe(reference), Probe(candidate), X, feeds, given)}


def edited(**renamed: str) -> onnx.ModelProto:
    """The network, with tensors of other names."""
    proto = onnx.ModelProto()
    proto.CopyFrom(weighted(NET).proto)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(n, n) for n in names]
    for output in proto.graph.output:
        output.name = renamed.get(output.name, output.name)
    return proto


def other_weights(proto: onnx.ModelProto, name: str, seed: int = 9) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            values = normal(*tensor.dims, seed=seed)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return proto


def test_by_name() -> None:
    found = aligned(weighted(NET), caf.load(edited()))
    assert {r: a.candidate for r, a in found.items()} == {t: t for t in TENSORS}
    assert all(a.how == "name" and a.confidence > 0.999 and a.scale == 1 for a in found.values())


def test_renamed() -> None:
    names = {t: f"n{k}" for k, t in enumerate(TENSORS)}
    found = aligned(weighted(NET), caf.load(edited(**names)))
    assert {r: a.candidate for r, a in found.items()} == names
    assert {a.how for a in found.values()} == {"activations"}


def test_a_name_that_is_reused_does_not_fool() -> None:
    swapped = {"c0": "c1", "c1": "c0", "r0": "r1", "r1": "r0", "s": "c9"}
    found = aligned(weighted(NET), caf.load(edited(**swapped)))
    assert {r: a.candidate for r, a in found.items()} == {t: swapped.get(t, t) for t in TENSORS}


@pytest.mark.parametrize("weight", ["w0", "w1"])
@pytest.mark.parametrize("rename", [False, True])
def test_behind_a_fault_the_graph_tells(weight: str, rename: bool) -> None:
    names = {t: f"n{k}" for k, t in enumerate(TENSORS)} if rename else {}
    found = aligned(weighted(NET), caf.load(other_weights(edited(**names), weight)))
    assert {r: a.candidate for r, a in found.items()} == {t: names.get(t, t) for t in TENSORS}
    faulty = found["c0" if weight == "w0" else "c1"]
    assert faulty.how == ("position" if rename else "name")
    assert faulty.confidence < 0.9


def test_turned_axes() -> None:
    """NHWC inside: Conv is spelled as Transpose, Conv, Transpose."""
    turned = weighted(
        """g (float[N,8,8,3] x) => (float[N,5] z)
        <float[4,3,3,3] w0, float[4] b0, float[4,4,3,3] w1, float[4] b1, float[4,5] w2>
        { xt = Transpose <perm = [0,3,1,2]> (x)  k0 = Conv <pads = [1,1,1,1]> (xt, w0, b0)
          h0 = Transpose <perm = [0,2,3,1]> (k0)  q0 = Relu (h0)  u0 = Transpose <perm = [0,3,1,2]> (q0)
          k1 = Conv <pads = [1,1,1,1]> (u0, w1, b1)  h1 = Transpose <perm = [0,2,3,1]> (k1)  a = Add (h1, q0)
          q1 = Relu (a)  m = ReduceMean <axes = [1,2], keepdims = 0> (q1)  z = MatMul (m, w2) }"""
    )
    found = aligned(weighted(NET), turned, turned=True)
    assert found["s"].candidate == "a"
    assert found["s"].order == (0, 3, 1, 2)
    assert found["r1"].candidate == "q1"
    assert found["y"].candidate == "z"
    assert found["y"].order is None


def test_what_is_fused_has_no_counterpart() -> None:
    fused = weighted(
        """g (float[N,3,8,8] x) => (float[N,5] y)
        <float[4,3,3,3] w0, float[4] b0, float[4,4,3,3] w1, float[4] b1, float[4,5] w2>
        { r0 = com.microsoft.FusedConv <activation = "Relu", pads = [1,1,1,1]> (x, w0, b0)
          r1 = com.microsoft.FusedConv <activation = "Relu", pads = [1,1,1,1]> (r0, w1, b1, r0)
          p = GlobalAveragePool (r1)  f = Flatten (p)  y = MatMul (f, w2) }"""
    )
    found = aligned(weighted(NET), fused)
    assert {r: a.candidate for r, a in found.items()} == {t: t for t in ("r0", "r1", "p", "f", "y")}


def test_a_rectifier_moved_into_a_quantiser_is_seen_through_its_name() -> None:
    """onnxruntime's quantiser lets the convolution write under the rectifier's name."""
    proto = edited()
    (relu,) = [n for n in proto.graph.node if n.output[0] == "r0"]
    proto.graph.node.remove(relu)
    proto.graph.node[0].output[0] = "r0"
    for name, value in (("scale", np.float32(0.05)), ("zero", np.uint8(0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    proto.graph.node.insert(1, onnx.helper.make_node("QuantizeLinear", ["r0", "scale", "zero"], ["q"], "quantise"))
    proto.graph.node.insert(2, onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "widen"))
    for node in list(proto.graph.node)[3:]:
        node.input[:] = ["d" if i == "r0" else i for i in node.input]
    found = aligned(weighted(NET), caf.load(proto))
    assert found["c0"].candidate == "r0"
    assert found["r0"].candidate in ("q", "d")
    assert {t: found[t].candidate for t in ("c1", "s", "y")} == {"c1": "c1", "s": "s", "y": "y"}


def test_pairs_that_make_each_other_good_are_none() -> None:
    """A bias moved to the other side of a reshape: the product before it is another, and nothing is wrong."""
    head = "g (float[N,4,6] x) => (float[N,4,5] y) <float[6,5] w, float[5] b, int64[2] flat = {-1,6}, "
    one = weighted(head + "int64[3] back = {-1,4,5}> { m = MatMul (x, w)  a = Add (m, b)  y = Relu (a) }")
    other = weighted(
        head + "int64[3] back = {-1,4,5}> { t = Reshape (x, flat)  g = Gemm (t, w, b)  a = Reshape (g, back)"
        "  y = Relu (a) }"
    )
    feeds = {"x": normal(3, 4, 6)}
    found = {a.reference: a.candidate for a in align(Probe(one), Probe(other), feeds, feeds)}
    assert found["y"] == "y"
    assert "m" not in found


def test_given_pairs_win() -> None:
    found = aligned(weighted(NET), caf.load(edited()), {"c0": "c1"})
    assert (found["c0"].candidate, found["c0"].how) == ("c1", "given")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"nowhere": "c0"}, caf.TensorNotFoundError),
        ({"c0": "nowhere"}, caf.TensorNotFoundError),
        ({"c0": "c1", "r0": "c1"}, caf.InputError),
        ({"c0": "y"}, caf.InputError),
    ],
)
def test_given_pairs_that_cannot_be(given: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        aligned(weighted(NET), weighted(NET), given)


@pytest.mark.parametrize("order", [None, (0, 3, 1, 2), (0, 2, 3, 1)])
def test_turning_there_and_back(order: tuple[int, ...] | None) -> None:
    values = normal(2, 3, 4, 5)
    assert np.array_equal(turned_back(reordered(values, order), order, values.shape), values)
    pair = Aligned(reference="a", candidate="b", how="given", order=order, scale=2.0, confidence=1.0)
    assert np.array_equal(as_candidate(pair, as_reference(pair, values), values.shape), values)
