"""The filter in the graph, against multiplication by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.graph.insert import FILTER_INPUT, broadcastable, open_filter
from l2caf_onnx.graph.layout import axes
from tests.conftest import VIT, weighted

RNG = np.random.default_rng(0)


def model_of(text: str, opset: int = 17) -> caf.Model:
    """A model from ONNX text."""
    return caf.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}'))


LAYOUTS = [
    ("NCHW", (2, 3, 4, 5), "nchw,nhw->nchw", (2, 4, 5)),
    ("NHWC", (2, 4, 5, 3), "nhwc,nhw->nhwc", (2, 4, 5)),
    ("NCL", (2, 3, 4), "ncl,nl->ncl", (2, 4)),
    ("NTC", (2, 4, 3), "ntc,nt->ntc", (2, 4)),
    ("TNC", (4, 2, 3), "tnc,nt->tnc", (2, 4)),
    ("NCDHW", (2, 3, 2, 4, 5), "ncdhw,ndhw->ncdhw", (2, 2, 4, 5)),
    ("WHNC", (5, 4, 2, 3), "whnc,nwh->whnc", (2, 5, 4)),
]


@pytest.mark.parametrize(("layout", "shape", "formula", "filter_shape"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
@pytest.mark.parametrize("dtype", ["float", "float16", "double"])
def test_every_layout(
    layout: str, shape: tuple[int, ...], formula: str, filter_shape: tuple[int, ...], dtype: str
) -> None:
    sizes = ",".join(map(str, shape))
    model = model_of(f"g ({dtype}[{sizes}] x) => ({dtype}[{sizes}] y) {{ s = Neg (x) y = Neg (s) }}")
    before = model.proto.SerializeToString()
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    x = RNG.standard_normal(shape).astype(kind)
    f = RNG.standard_normal(filter_shape).astype(np.float32)
    expected = np.einsum(formula, x.astype(np.float64), f.astype(kind).astype(np.float64))
    rtol = {"float": 1e-6, "float16": 1e-3, "double": 1e-12}[dtype]
    filtered = caf.insert_filter(model, "s", f, layout=layout)
    onnx.checker.check_model(filtered.proto, full_check=True)
    np.testing.assert_allclose(caf.run(filtered, {"x": x})["y"], expected, rtol=rtol, atol=1e-7)
    opened = open_filter(model, "s", layout=layout)
    fed = {"x": x, FILTER_INPUT: broadcastable(f, axes(layout))}
    np.testing.assert_allclose(caf.run(opened, fed)["y"], expected, rtol=rtol, atol=1e-7)
    assert model.proto.SerializeToString() == before


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize(
    ("layout", "shape", "formula"),
    [
        ("NTC[1+2x4+2]", (2, 11, 3), "ntc,nt->ntc"),
        ("TNC[1+2x4+2]", (11, 2, 3), "tnc,nt->tnc"),
        ("NGTC[1+2x4+2]", (2, 4, 11, 3), "ngtc,nt->ngtc"),
        ("NCT[1+2x2x2+2]", (2, 3, 11), "nct,nt->nct"),
    ],
)
def test_tokens_around_a_grid_are_kept(layout: str, shape: tuple[int, ...], formula: str, batch: int | None) -> None:
    sizes = ",".join(map(str, shape))
    model = model_of(f"g (float[{sizes}] x) => (float[{sizes}] y) {{ s = Neg (x) y = Neg (s) }}")
    grid = axes(layout).cells(shape)
    x = RNG.standard_normal(shape).astype(np.float32)
    f = RNG.standard_normal((*([batch] if batch else []), *grid)).astype(np.float32)  # type: ignore[arg-type]  # ints
    rows = np.broadcast_to(f.reshape(-1, 8), (2, 8))
    whole = np.concatenate([np.ones((2, 1)), rows, np.ones((2, 2))], axis=1)
    expected = np.einsum(formula, x, whole)
    filtered = caf.insert_filter(model, "s", f, layout=layout)
    np.testing.assert_allclose(caf.run(filtered, {"x": x})["y"], expected, rtol=1e-6, atol=0)
    if batch == 2:
        fed = {"x": x, FILTER_INPUT: broadcastable(f, axes(layout))}
        opened = caf.run(open_filter(model, "s", layout=layout), fed)["y"]
        np.testing.assert_allclose(opened, expected, rtol=1e-6, atol=0)


def test_a_filter_on_the_tokens_of_a_transformer() -> None:
    """By hand: the recorded tokens multiplied, fed to the tail by name."""
    model, x = weighted(VIT), RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    c = caf.cut(model, "s")
    recorded = caf.run(c.head, {"x": x})
    f = RNG.standard_normal((4, 4)).astype(np.float32)
    by_hand = recorded["s"].copy()
    by_hand[:, 1:] *= f.reshape(1, 16, 1)
    expected = caf.run(c.tail, {i.name: by_hand if i.name == "s" else recorded[i.name] for i in c.tail.inputs})["y"]
    found = caf.run(caf.insert_filter(model, "s", f), {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(caf.InputError, match=r"shape \(17,\); \(4, 4\) is needed.*layout NTC\[1\+4x4\]"):
        caf.insert_filter(model, "s", np.ones(17))
    flat = caf.insert_filter(model, "s", np.concatenate([[1], f.ravel()]), layout="NTC[]")
    np.testing.assert_allclose(caf.run(flat, {"x": x})["y"], found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (2, 4, 5)])
def test_one_filter_for_all_or_one_for_each(shape: tuple[int, ...]) -> None:
    model = model_of("g (float[N,3,4,5] x) => (float[N,3,4,5] y) { s = Neg (x) y = Neg (s) }")
    x, f = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32), RNG.standard_normal(shape).astype(np.float32)
    expected = x * np.broadcast_to(f, (2, 4, 5))[:, None]
    np.testing.assert_allclose(caf.run(caf.insert_filter(model, "s", f), {"x": x})["y"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "g (float[2,3,4,5] x) => (float[2,3,4,5] s, float[2,3,4,5] z) { s = Neg (x) z = Neg (s) }", id="output"
        ),
        pytest.param("g (float[2,3,4,5] x) => (float[2,3,4,5] s) { s = Neg (x) }", id="only an output"),
        pytest.param("g (float[2,3,4,5] s) => (float[2,3,4,5] z) { z = Neg (s) }", id="input"),
    ],
)
def test_inputs_and_outputs_keep_their_names(text: str) -> None:
    model = model_of(text)
    x, f = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32), RNG.standard_normal((4, 5)).astype(np.float32)
    filtered = caf.insert_filter(model, "s", f)
    assert filtered.inputs == model.inputs
    assert [o.name for o in filtered.outputs] == [o.name for o in model.outputs]
    (name,) = (i.name for i in model.inputs)
    whole, found = caf.run(model, {name: x}), caf.run(filtered, {name: x})
    for output, value in whole.items():
        np.testing.assert_allclose(found[output], value * f, rtol=1e-6, atol=0)


def test_what_a_subgraph_captures_is_filtered_too() -> None:
    model = model_of("""g (float[1,2,3] x) => (float[1,2,3] y) <bool c = {1}>
    { s = Neg (x) y = If (c) <then_branch = t () => (float[1,2,3] a) { a = Neg (s) },
                              else_branch = e () => (float[1,2,3] b) { b = Identity (s) }> }""")
    x, f = np.ones((1, 2, 3), np.float32), np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(caf.run(caf.insert_filter(model, "s", f, layout="NCL"), {"x": x})["y"], x * f)


def test_filters_multiply_up() -> None:
    model = model_of("g (float[1,2,3,4] x) => (float[1,2,3,4] y) { s = Neg (x) y = Neg (s) }")
    x, f = np.ones((1, 2, 3, 4), np.float32), RNG.standard_normal((3, 4)).astype(np.float32)
    twice = caf.insert_filter(caf.insert_filter(model, "s", f), "s", f)
    np.testing.assert_allclose(caf.run(twice, {"x": x})["y"], x * f * f, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_quantised_tensor_is_multiplied_as_the_number_that_it_stands_for(kind: str) -> None:
    """Dequantize, multiply, quantise alike."""
    zero = {"uint8": 120, "int8": -3}[kind]
    model = model_of(f"""g (float[2,3,4,4] x) => (float[2,3,4,4] y) <float s = {{0.05}}, {kind} z = {{{zero}}}>
    {{ q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }}""")
    assert [b.quantised for b in caf.breakpoints(model)] == [False, True, False]
    x, f = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32), RNG.uniform(0, 2, (2, 4, 4)).astype(np.float32)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    scale = np.float32(0.05)

    def rounded(v: NDArray[Any]) -> NDArray[Any]:
        return (np.clip(np.round(v / scale) + zero, low, high) - zero) * scale

    found = caf.run(caf.insert_filter(model, "q", f), {"x": x})["y"]
    expected = rounded(rounded(x) * f[:, None])
    assert np.abs(found - expected).max() <= scale * 1.001  # a tie may round either way
    assert (np.abs(found - expected) > 1e-5).mean() < 0.01


@pytest.mark.parametrize(
    ("f", "layout", "error", "message"),
    [
        (np.ones((4, 4)), None, caf.InputError, "shape"),
        (np.ones((3, 4, 5)), None, caf.InputError, "shape"),
        (np.ones(4), None, caf.InputError, "shape"),
        (np.full((4, 5), np.nan), None, caf.InputError, "NaN"),
        (np.ones((4, 5)), "NCH", caf.InputError, "layout"),
    ],
)
def test_mistakes(f: NDArray[Any], layout: str | None, error: type[Exception], message: str) -> None:
    model = model_of("g (float[2,3,4,5] x) => (float[2,3,4,5] y) { s = Neg (x) y = Neg (s) }")
    with pytest.raises(error, match=message):
        caf.insert_filter(model, "s", f, layout=layout)
