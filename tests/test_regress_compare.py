"""Two models at once: what is harmless passes, what is a fault does not, and each line says where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError, TensorNotFoundError
from l2caf_onnx.regress.calibrate import noise_of, spread
from l2caf_onnx.regress.given import samples
from l2caf_onnx.regress.observe import Observer
from l2caf_onnx.regress.observed import observed
from l2caf_onnx.regress.variants import variants
from l2caf_onnx.regress.watch import Seen, Watch
from tests.conftest import MODELS, normal, real, weighted
from tests.test_regress_baseline import FEEDS, model
from tests.test_regress_check import changed, noised, other_input, permuted, put, relu_twice, renamed, unbiased, weight

NORM = """g (float[N,3,12,12] x) => (float[N,6] y)
<float[4,3,3,3] k1, float[4] s, float[4] o, float[4] m, float[4] v = {0.5, 1.0, 2.0, 0.1}, float[8,4,3,3] k2,
 float[6,8] w>
{ h = Conv <pads = [1,1,1,1]> (x, k1)  n = BatchNormalization (h, s, o, m, v)  a = Relu (n)
  c = Conv <strides = [2,2]> (a, k2)  r = Relu (c)  p = GlobalAveragePool (r)  f = Flatten (p)
  y = Gemm <transB = 1> (f, w) }"""


def optimised(proto: onnx.ModelProto, folder: Path, level: str) -> caf.Model:
    """What onnxruntime saves of a model at that level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return caf.load(folder / "optimised.onnx")


def turned(proto: onnx.ModelProto) -> None:
    """The input as NHWC."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[3].dim_value = dims[3].dim_value, dims[1].dim_value
    proto.graph.node.insert(0, onnx.helper.make_node("Transpose", ["x"], ["nchw"], "turn", perm=[0, 3, 1, 2]))
    proto.graph.node[1].input[0] = "nchw"


def of_one(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def lower_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 14


HARMLESS: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "renamed": renamed,
    "another name of the input": other_input,
    "another node": relu_twice,
    "NHWC": turned,
    "a batch of one": of_one,
    "lower opset": lower_opset,
}
FAULTS = {"noise of 1%": noised, "two channels exchanged": permuted, "bias dropped": unbiased}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_changes_pass(kind: str) -> None:
    found = caf.compare(model(), changed(HARMLESS[kind]), FEEDS)
    assert found.failures == ()
    assert found.ok
    assert found.change in ("float32", "identical")
    assert [p.at for p in found.pairs] == ["r"]
    assert found.pairs[0].reference.shape == (23, 6, 6)
    judged = {(s.subject, s.metric) for s in found.scores if s.threshold is not None}
    assert {("output", "error"), ("output", "top1"), ("attention", "cosine")} <= judged


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_norms_may_be_folded(tmp_path: Path, level: str) -> None:
    one = weighted(NORM)
    other = optimised(one.proto, tmp_path, level)
    assert "BatchNormalization" not in {n.op_type for n in other.proto.graph.node}
    found = caf.compare(one, other, FEEDS)
    assert found.failures == ()
    assert found.change == "float32"


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_do_not_pass(kind: str) -> None:
    found = caf.compare(model(), changed(FAULTS[kind]), FEEDS)
    assert not found.ok
    assert found.change == "float32"
    error = next(s for s in found.failures if (s.subject, s.metric) == ("output", "error"))
    assert error.threshold is not None
    assert "harmless variations on 23 inputs" in error.threshold.source
    y = [caf.run(m, FEEDS)["y"] for m in (model(), changed(FAULTS[kind]))]
    np.testing.assert_allclose(
        error.values, np.linalg.norm(y[1] - y[0], axis=1) / np.linalg.norm(y[0], axis=1), rtol=1e-3
    )
    local = {s.name: float(np.nanmax(s.values)) for s in found.scores if s.metric == "local"}
    at_fault = {"noise of 1%": "g2", "two channels exchanged": "h", "bias dropped": "y"}[kind]
    assert max(local, key=lambda name: local[name]) == at_fault
    assert max(v for name, v in local.items() if name != at_fault) < 1e-4


def test_other_inputs_for_the_candidate_are_a_fault_of_preprocessing() -> None:
    wrong = {"x": FEEDS["x"][:, ::-1].copy()}
    assert caf.compare(model(), model(), FEEDS).ok
    found = caf.compare(model(), model(), FEEDS, candidate_inputs=wrong)
    assert not found.ok
    with pytest.raises(InputError, match="given 23 samples, the candidate 3"):
        caf.compare(model(), model(), FEEDS, candidate_inputs={"x": wrong["x"][:3]})


def test_the_users_lines_and_breakpoints() -> None:
    other = changed(renamed)
    strict = caf.compare(model(), other, FEEDS, at=["a", "r"], thresholds={"attention.iou@a": 1.1}, calibrate=False)
    assert [(p.at, p.candidate_at) for p in strict.pairs] == [("a", "t1"), ("r", "t3")]
    assert [(s.name, s.metric) for s in strict.failures] == [("a", "iou")]
    sources = {s.threshold.source for s in strict.scores if s.threshold and s.threshold.source.startswith("Bundled")}
    assert any("no noise was measured" in s for s in sources)
    assert caf.compare(model(), changed(noised), FEEDS, thresholds={"output.error": 0.5}, target="none").ok
    with pytest.raises(InputError, match="not compared"):
        caf.compare(model(), other, FEEDS, thresholds={"output.error@z": 1})
    with pytest.raises(TensorNotFoundError, match="no tensor 'q'"):
        caf.compare(model(), other, FEEDS, at="q")


def test_the_alignment_may_be_given() -> None:
    found = caf.compare(model(), changed(renamed), FEEDS, align={"r": "t3"})
    assert next(a for a in found.alignment if a.reference == "r").how == "given"
    with pytest.raises(TensorNotFoundError):
        caf.compare(model(), changed(renamed), FEEDS, align={"r": "t33"})


def test_targets_are_those_of_the_reference() -> None:
    other = changed(permuted)
    y = caf.run(model(), FEEDS)["y"].argmax(1)
    for target, asked in ((None, y), ("top1", y), (2, np.full(23, 2))):
        (pair,) = caf.compare(model(), other, FEEDS, target=target, at="r").pairs
        for name, filters in ((model(), pair.reference), (other, pair.candidate)):
            alone = caf.attend(
                name, FEEDS, at="r", target=asked.tolist(), objective="contrast", constraint="l2-nonneg", radius=0.5
            )
            np.testing.assert_allclose(filters, alone.filter, atol=1e-4)
    with pytest.raises(InputError, match="no target"):
        caf.compare(model(), other, FEEDS, target="best")


def test_an_input_with_nan_fails_by_itself() -> None:
    def overflows(proto: onnx.ModelProto) -> None:
        put(proto, "k2", (np.sign(weight(proto, "k2")[1]) * 3e38).astype(np.float32))

    found = caf.compare(model(), changed(overflows), FEEDS)
    assert not found.ok
    error = next(s for s in found.failures if (s.subject, s.metric) == ("output", "error"))
    assert np.isinf(error.values).all()


def test_a_candidate_without_the_output_is_told() -> None:
    def two(proto: onnx.ModelProto) -> None:
        proto.graph.output[0].name = "f"
        proto.graph.output.append(onnx.ValueInfoProto(name="p"))
        del proto.graph.node[-1]

    with pytest.raises(InputError, match="no output that does the work of 'y'"):
        caf.compare(model(), changed(two), FEEDS)


def test_no_input_is_told() -> None:
    with pytest.raises(InputError):
        caf.compare(model(), model(), {"x": FEEDS["x"][:0]})


def test_the_noise_is_that_of_the_variations() -> None:
    """Against each variation run by hand."""
    one = model()
    watch = Watch(outputs=(Seen(name="y", own="y"),))
    data = samples(one, FEEDS, None)
    seen = observed(Observer(one, watch), data, None)
    noise, notes = noise_of(one, "float16", watch, data, seen, batch=10, providers=None)
    assert notes == []
    plain = caf.run(one, FEEDS, level="all")["y"]
    errors = []
    for variant in variants(one, "float16", [FEEDS], attention=False):
        y = caf.run(variant.model, FEEDS, level=variant.level or "all")["y"]
        errors.append(np.linalg.norm(y - plain, axis=1) / np.linalg.norm(plain, axis=1))
    own = noise["output.error@y"]
    assert own.variations == len(errors) == 2
    np.testing.assert_allclose(own.values, np.concatenate(errors), rtol=0.02, atol=1e-7)
    assert 1e-5 < own.values.max() < 1e-2


@pytest.mark.parametrize("change", ["float16", "int8"])
def test_rounded_variations_round(change: Any) -> None:
    one = model()
    plain = caf.run(one, FEEDS)["y"]
    for variant in variants(one, change, [FEEDS], attention=False):
        off = np.linalg.norm(caf.run(variant.model, FEEDS)["y"] - plain) / np.linalg.norm(plain)
        assert (1e-5 < off < 2e-3) if change == "float16" else (1e-3 < off < 0.1)


def test_variations_leave_the_model_alone() -> None:
    one = model()
    before = one.proto.SerializeToString(deterministic=True)
    for change in ("float32", "float16", "int8"):
        assert variants(one, change, [FEEDS], attention=True)
    assert variants(one, "retrained", [FEEDS], attention=True) == ()
    assert one.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("count", "most"), [(1, 24), (5, 24), (24, 24), (225, 24), (225, 1)])
def test_inputs_are_evenly_spread(count: int, most: int) -> None:
    found = spread(count, most)
    assert len(found) == min(count, most)
    assert found[0] == 0
    assert len(found) == 1 or found[-1] == count - 1
    assert len(found) < 3 or np.ptp(np.diff(found)) <= 1


def test_a_real_model(tmp_path: Path) -> None:
    one = real("efficientnet-lite0.onnx")
    photos = [str(MODELS / "photos" / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    fused = optimised(one.proto, tmp_path, "ORT_ENABLE_EXTENDED")
    found = caf.compare(one, fused, photos, preprocess="lite")
    assert found.failures == ()
    assert all(image is not None and image.shape == (224, 224, 3) for image in found.images)

    def slightly(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4 and t.dims[0] > 100)
        values = onnx.numpy_helper.to_array(tensor)
        noise = normal(*values.shape) * values.std() * 0.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(values + noise, tensor.name))

    proto = onnx.ModelProto()
    proto.CopyFrom(one.proto)
    slightly(proto)
    assert not caf.compare(one, proto, photos, preprocess="lite").ok
