"""int8: what a sound candidate rounds is foretold node by node, so that a single layer quantised badly is found."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

import l2caf_onnx as caf
from l2caf_onnx.regress.bisect import local_errors
from l2caf_onnx.regress.given import both
from l2caf_onnx.regress.local import typical
from l2caf_onnx.regress.prints import likeness, sheets
from l2caf_onnx.regress.probe import Probe
from l2caf_onnx.regress.session import Session, session
from l2caf_onnx.regress.steps import Grain, Steps, grain_of, steps_of
from l2caf_onnx.regress.twins import MEASURES, WEIGHTS_ALONE, ranges_of
from l2caf_onnx.regress.weights import by_weights
from scripts.faults import int8
from scripts.faults.fault import Fault
from scripts.faults.subjects import Subject, subject
from tests.conftest import normal, text, weighted

FORMS = {
    "QDQ": (CalibrationMethod.MinMax, QuantFormat.QDQ),
    "QOperator": (CalibrationMethod.MinMax, QuantFormat.QOperator),
    "percentile": (CalibrationMethod.Percentile, QuantFormat.QDQ),
}
NETS = ("toy-cnn", "toy-embedding", "toy-vit")


@cache
def net(name: str) -> Subject:
    return subject(name, 24)


@cache
def sound(name: str, form: str = "QDQ") -> onnx.ModelProto:
    return int8.quantised(net(name), *FORMS[form])


def bisected(name: str, proto: onnx.ModelProto) -> caf.Bisection:
    return caf.bisect(caf.load(net(name).proto), caf.load(proto), net(name).feeds)


def side_by_side(name: str, proto: onnx.ModelProto) -> Session:
    data = both(
        caf.load(net(name).proto), caf.load(proto), net(name).feeds, preprocess=None, candidate_inputs=None,
        candidate_preprocess=None,
    )  # fmt: skip
    reference, candidate = data.reference.model, data.candidate.model
    return session(reference, candidate, data, given=None, change=None, providers=None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETS)
def test_the_error_of_every_sound_node_is_foretold(name: str, form: str) -> None:
    found = bisected(name, sound(name, form))
    shares = np.array([n.local / n.noise for n in found.nodes])
    assert found.change == "int8"
    assert found.ok, found.first
    assert shares.max() < 0.9
    assert 0.25 < np.median(shares[shares > 0.01]) < 0.6  # nor is the line far above


def test_a_kernel_that_saturates_is_told_from_a_layer_at_fault(tmp_path: Path) -> None:
    """With int8 weights of eight bits this processor decides whether the model is sound."""
    own = net("toy-cnn")
    onnx.save(int8.folded(own), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", int8.Reader(own.calibrating), weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8, per_channel=True, quant_format=QuantFormat.QOperator,
    )  # fmt: skip
    found = bisected("toy-cnn", onnx.load(tmp_path / "int8.onnx"))
    assert any("saturates on this processor" in n for n in found.notes) == (not found.ok)
    compared = caf.compare(caf.load(own.proto), caf.load(tmp_path / "int8.onnx"), own.feeds)
    assert any("saturates on this processor" in n for n in compared.notes) == (not found.ok)
    (fault, *_) = planted("toy-cnn", "clipped")
    assert not any("saturates" in n for n in bisected("toy-cnn", fault.proto).notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETS[:2])
def test_a_sound_model_raises_no_alarm(name: str, form: str) -> None:
    found = caf.compare(caf.load(net(name).proto), caf.load(sound(name, form)), net(name).feeds)
    assert not [s for s in found.scores if s.subject == "tensor" and not s.ok]


def planted(name: str, family: str) -> list[Fault]:
    kinds = {
        "clipped": lambda: int8.clipped(sound(name)),
        "four bits": lambda: int8.four_bits(sound(name), int8.folded(net(name))),
    }
    return list(kinds[family]())


@pytest.mark.parametrize("family", ["clipped", "four bits"])
@pytest.mark.parametrize("name", NETS[:2])
def test_one_layer_quantised_badly_is_named(name: str, family: str) -> None:
    faults = [f for f in planted(name, family) if f.strength in ("", "/4")]
    assert len(faults) == 3
    for fault in faults:
        first = bisected(name, fault.proto).first
        assert first is not None, fault.where
        assert first.candidate in fault.tensors


@pytest.mark.parametrize(("options", "grain"), [
    ({"per_channel": True}, Grain(most=127, each=True)),
    ({"per_channel": True, "reduce_range": True}, Grain(most=64, each=True)),
    ({"per_channel": False}, Grain(most=127, each=False)),
])  # fmt: skip
def test_how_fine_all_layers_are_is_a_choice_and_how_one_is_a_fault(
    tmp_path: Path, options: dict[str, bool], grain: Grain
) -> None:
    own = net("toy-cnn")
    onnx.save(int8.folded(own), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", int8.Reader(own.calibrating), weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8, **options,
    )  # fmt: skip
    made = onnx.load(tmp_path / "int8.onnx")
    assert grain_of(caf.load(made)) == grain
    found = bisected("toy-cnn", made)
    assert found.ok
    assert any("one scale for all channels" in note for note in found.notes) is not grain.each
    if grain.each:  # one layer with one scale, in a model whose layers have one for each channel
        worst = [f for f in int8.per_tensor(sound("toy-cnn"), int8.folded(own)) if f.place in ("first", "middle")]
        assert [bisected("toy-cnn", f.proto).first is not None for f in worst] == [True, True]


@pytest.mark.parametrize("name", NETS)
def test_what_weights_alone_lose_is_foretold(name: str) -> None:
    """Of every layer: what it reads is narrowed, and fed as it was before."""
    held = side_by_side(name, sound(name))
    found = by_weights(held, list(range(8)))
    assert set(found) == {n for n, s in held.steps.items() if s.weights and not s.output}
    assert len(found) > 10
    for errors, allowed in found.values():
        assert errors.shape == (8,)
        if allowed > MEASURES["int8"].floor:
            assert typical(errors, "int8") * WEIGHTS_ALONE / allowed == pytest.approx(1, abs=0.02)


def test_weights_that_are_coarse_are_seen_behind_inputs_that_lose_more() -> None:
    """The first layer's weights lose a bit, which loses less than what the picture loses before it."""
    made = onnx.ModelProto()
    made.CopyFrom(sound("toy-cnn"))
    layer = next(n for n in made.graph.node if n.op_type == "Conv")
    widening = next(n for n in made.graph.node if n.output[0] == layer.input[1])
    stored = next(t for t in made.graph.initializer if t.name == widening.input[0])
    coarse = np.rint(numpy_helper.to_array(stored) / 2) * 2
    stored.CopyFrom(numpy_helper.from_array(coarse.clip(-127, 127).astype(np.int8), stored.name))
    held = side_by_side("toy-cnn", made)
    (name,) = (a.reference for a in held.alignment if a.candidate == layer.output[0])
    together = local_errors(held, thresholds=1.0)
    (local,) = (n.local for n in together if n.tensor == name)
    errors, allowed = by_weights(held, list(range(8)))[name]
    assert local < held.tolerances()[name]
    assert np.median(errors) > 1.4 * allowed
    assert [n.tensor for n in local_errors(held) if not n.ok] == [name]


def test_an_activation_that_a_narrow_range_replaces_is_not_missed() -> None:
    """The convolution has the name of the Relu that was left out: what is narrowed is its counterpart."""
    reference = weighted(
        """g (float[N,3,8,8] x) => (float[N,2,4,4] y) <float[4,3,3,3] w, float[2,4,3,3] v>
        { c = Conv (x, w)  r = Relu (c)  y = Conv (r, v) }"""
    )
    candidate = onnx.ModelProto()
    candidate.CopyFrom(reference.proto)
    nodes = {n.output[0]: n for n in candidate.graph.node}
    nodes["c"].output[0] = "r"
    nodes["y"].input[0] = "d"
    candidate.graph.node.remove(nodes["r"])
    x = normal(4, 3, 8, 8)
    (r,) = Probe(reference).values({"x": x}, ["r"]).values()
    scale, zero = np.float32(r.max() / 255), np.uint8(0)
    candidate.graph.initializer.extend(
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (("s", scale), ("z", zero))]
    )
    candidate.graph.node.insert(1, helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], "q"))
    candidate.graph.node.insert(2, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"))
    found = caf.bisect(reference, caf.load(candidate), {"x": x})
    assert {a.reference: a.candidate for a in found.alignment} == {"c": "r", "r": "d", "y": "y"}
    assert found.ok


def test_the_steps_of_a_layer_between_quantisers() -> None:
    model = text(
        """g (float[N,4] x) => (float[N,3] y) <float s = {0.1}, uint8 z = {128},
        int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] u = {0.1,0.1,0.1}, int8[3] n = {0,0,0}>
        { xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z)  v = DequantizeLinear <axis = 1> (w, u, n)
          a = MatMul (xd, v)  aq = QuantizeLinear (a, s, z)  ad = DequantizeLinear (aq, s, z)  y = Softmax (ad) }"""
    )

    def told(*names: str) -> dict[str, Steps]:
        pairs = [
            caf.Aligned(reference=n, candidate=n, how="name", order=None, scale=1.0, confidence=1.0) for n in names
        ]
        return steps_of(Probe(model), pairs)

    assert told("a", "ad", "y") == {
        "a": Steps(weights=True, inputs=True),
        "ad": Steps(output=True),
        "y": Steps(),
    }
    assert told("xd", "a", "y") == {
        "xd": Steps(output=True),
        "a": Steps(weights=True),
        "y": Steps(inputs=True),
    }
    assert told("aq", "y") == {"aq": Steps(weights=True, inputs=True, output=True), "y": Steps(inputs=True)}


def test_ranges_hold_zero_and_those_of_shares_are_known() -> None:
    model = text("g (float[N,4] x) => (float[N,4] y) { a = Abs (x)  b = Add (a, a)  y = Softmax (b) }")
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    found = ranges_of(Probe(model), ("a", "y"), [{"x": x}, {"x": 2 * x}])
    assert found == {"a": (0.0, 6.0), "y": (0.0, 1.0), "x": (-4.0, pytest.approx(6.1))}  # beside the grid of a picture


@pytest.mark.parametrize(
    ("factor", "values", "scale"),
    [(2.0, 64, 0.5), (1.05, 64, 1.0), (2.0, 4, 1.0), (1 / 255, 64, 255.0)],
    ids=["twice", "drift", "too few to tell", "bytes"],
)
def test_a_scale_is_told_by_many_values_and_not_by_drift(factor: float, values: int, scale: float) -> None:
    own = np.random.default_rng(0).uniform(1, 2, (values,)).astype(np.float32)
    found = likeness(sheets({"a": own}, turned=False)[values], sheets({"b": own * factor}, turned=False)[values])
    np.testing.assert_allclose(found.scale, scale, rtol=1e-4)


def test_the_maps_of_tokens_hold_where_only_numbers_are_rounded() -> None:
    """By gradient, which tells nothing of tokens, their cosines went down to 0."""
    feeds = {k: v[:8] for k, v in net("toy-vit").feeds.items()}
    found = caf.compare(caf.load(net("toy-vit").proto), caf.load(sound("toy-vit")), feeds)
    (cosines,) = (s.values for s in found.scores if (s.subject, s.metric) == ("attention", "cosine"))
    assert len(cosines) == 8
    assert cosines.min() > 0.95
    assert found.ok
