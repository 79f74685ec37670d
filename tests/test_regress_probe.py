"""Intermediates as real numbers, segments fed from outside, and the noise of twins against what it is by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import l2caf_onnx as caf
from l2caf_onnx.records import Change
from l2caf_onnx.regress.feeding import remade
from l2caf_onnx.regress.local import relative
from l2caf_onnx.regress.probe import Probe, chunks
from l2caf_onnx.regress.twins import MEASURES, noise, tolerances
from tests.conftest import normal, text, weighted

NET = """g (float[N,6] x) => (float[N,3] y) <float[6,4] w, float[4,3] v, int64[2] flat = {-1,4}>
{ a = MatMul (x, w)  r = Relu (a)  n = Shape (r)  f = Reshape (r, flat)  b = MatMul (f, v)  y = Softmax (b) }"""
X = {"x": normal(5, 6)}
SMALL_CRNN = Path(__file__).resolve().parents[1] / "models" / "small-crnn-ts17.onnx"


def stored(model: caf.Model, name: str) -> np.ndarray:
    import onnx

    return np.array(onnx.numpy_helper.to_array(model.initialisers[name]))


def test_what_is_data_is_seen_and_nothing_else() -> None:
    probe = Probe(weighted(NET))
    assert probe.names == ("a", "r", "f", "b", "y")
    depths = [probe.depth[n] for n in probe.names]
    assert depths == sorted(depths)
    assert depths[-1] == 1
    assert probe.before["b"] == {"x", "a", "r", "f"}


def test_values_against_numpy() -> None:
    model = weighted(NET)
    found = Probe(model).values(X, ("a", "r", "b"))
    a = X["x"] @ stored(model, "w")
    np.testing.assert_allclose(found["a"], a, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["b"], np.maximum(a, 0) @ stored(model, "v"), rtol=1e-5, atol=1e-5)


def test_quantised_tensors_are_read_through_their_scale() -> None:
    model = text(
        """g (float[N,4] x) => (float[N,4] y) <float s = {0.5}, uint8 z = {10}>
        { q = QuantizeLinear (x, s, z)  t = Identity (q)  y = DequantizeLinear (t, s, z) }"""
    )
    probe = Probe(model)
    x = {"x": np.array([[0.2, 1.0, -3.0, 9.9]], np.float32)}
    found = probe.values(x, ("q", "y"))
    assert found["q"].tolist() == found["y"].tolist() == [[0.0, 1.0, -3.0, 10.0]]
    assert probe.stored("q", x["x"]).tolist() == [[10, 12, 4, 30]]
    assert probe.stored("q", x["x"]).dtype == np.uint8


def test_what_is_fed_is_made_anew() -> None:
    model = weighted(NET)
    r, b = normal(5, 4, seed=1), normal(5, 3, seed=2)
    made = remade(Probe(model), {"r": r, "b": b}, X)
    np.testing.assert_allclose(made["r"], np.maximum(X["x"] @ stored(model, "w"), 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made["b"], r @ stored(model, "v"), rtol=1e-5, atol=1e-5)
    later = remade(Probe(model), {"b": b}, X, ["y"])["y"]
    np.testing.assert_allclose(later, np.exp(b) / np.exp(b).sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([[3.0, 4.0]], 0.0),
        ([[3.0, 9.0]], 1.0),
        ([[np.inf, 4.0]], np.inf),
        ([[np.nan, 4.0]], np.inf),
    ],
)
def test_relative_errors(other: list[list[float]], expected: float) -> None:
    found = relative(np.array([[3.0, 4.0]], np.float32), np.array(other, np.float32), 1)
    assert found.tolist() == [expected]


def test_a_tensor_of_zeros() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert relative(zeros, zeros, 2).tolist() == [0, 0]
    assert relative(zeros, zeros + 1, 2).tolist() == [np.inf, np.inf]


def test_a_sample_of_zeros_is_held_against_the_others() -> None:
    values = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    found = relative(values, values + np.array([[0.0, 0.0], [0.0, 5e-6]], np.float32), 2)
    np.testing.assert_allclose(found, [0, 5e-6 / (1e-3 * 5 / np.sqrt(2))], rtol=1e-5)


def test_parts_are_bounded() -> None:
    sizes = {"a": 5, "b": 5, "c": 5, "d": 30, "e": 1}
    assert list(chunks(list(sizes), sizes, 10)) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_noise_grows_with_the_class() -> None:
    probe = Probe(weighted(NET))
    kinds: tuple[Change, ...] = ("float32", "float16", "int8")
    found = [noise(probe, ("a", "b"), [(5, X)], kind) for kind in kinds]
    for name in ("a", "b"):
        sizes = [f[name] for f in found]
        assert 1e-8 < sizes[0] < 1e-5 < sizes[1] < sizes[2] < np.inf
    assert set(noise(probe, ("a",), [(5, X)], "retrained").values()) == {np.inf}


def test_tolerances_are_above_noise_and_floor() -> None:
    measure = MEASURES["int8"]
    found = tolerances({"a": 1.0, "b": 0.0}, "int8")
    assert found == {"a": measure.factor, "b": measure.floor}


def test_samples_are_found_where_the_layout_has_them() -> None:
    probe = Probe(caf.load(SMALL_CRNN))  # the tensor behind its transpose is TNC
    values = normal(6, 6, 4)
    np.testing.assert_array_equal(probe.by_sample("/Transpose_output_0", values, 6), values.transpose(1, 0, 2))
    assert probe.by_sample("/Transpose_output_0", values, 5).shape == (1, 6, 6, 4)
    assert probe.by_sample("nowhere known", values, 6).shape == (6, 6, 4)
