"""Attention end to end: on tiny graphs against closed forms, and on the real network against what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import l2caf_onnx as caf
from l2caf_onnx.tail import convert
from tests.conftest import VIT, weighted

SOLVERS = ("lbfgs", "adam", "sgd")
Arrays = Mapping[str, NDArray[Any]]


def network(text: str) -> caf.Model:
    """A model from ONNX text; inputs after the first become seeded weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    rng = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        weights = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, value.name))
    return caf.load(proto)


AFFINE = """g (float[N,3,4,5] x, float[6,3] w, float[6] b) => (float[N,6] y)
{ s = Abs (x) p = GlobalAveragePool (s) q = Flatten (p) y = Gemm <transB = 1> (q, w, b) }"""
DEEP = """g (float[N,3,6,6] x, float[4,3,3,3] k, float[5,4] w) => (float[N,5] y)
{ s = Abs (x) c = Conv <pads = [1,1,1,1]> (s, k) r = Relu (c) p = GlobalAveragePool (r) q = Flatten (p)
  y = Gemm <transB = 1> (q, w) }"""


def picture(*shape: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Noise to feed."""
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def collapsed(model: caf.Model, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(J, b) of an affine tail y = J f + b at s = |x|, by hand: (outputs, cells), (outputs,)."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    a = np.abs(x[0]).reshape(3, -1).astype(np.float64)
    return stored["w"].astype(np.float64) @ a / a.shape[1], stored["b"].astype(np.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_objective_has_a_closed_form(solver: str) -> None:
    """f* = -r g / ||g|| (algorithm.md, fact 1)."""
    model, feeds = network(AFFINE), picture(1, 3, 4, 5)
    jacobian, _ = collapsed(model, feeds["x"])
    a = caf.attend(model, feeds, at="s", target=2, solver=solver, radius=0.7)
    best = 0.7 * np.sqrt(20) * jacobian[2] / np.linalg.norm(jacobian[2])
    np.testing.assert_allclose(a.filter[0].ravel(), best, rtol=0, atol=0.02)
    assert np.linalg.norm(a.filter) == pytest.approx(0.7 * np.sqrt(20), rel=1e-5)
    assert a.solver == solver


def test_least_squares_against_the_secular_equation() -> None:
    model, feeds = network(AFFINE), picture(1, 3, 4, 5)
    jacobian, _ = collapsed(model, feeds["x"])
    a = caf.attend(model, feeds, at="s")
    gram, q = jacobian.T @ jacobian, jacobian.T @ jacobian.sum(1)
    values, vectors = np.linalg.eigh(gram)
    radius, weights = 0.5 * np.sqrt(20), vectors.T @ q
    low, high = -values[0] + 1e-12, 1e6
    for _ in range(200):  # ||(G + mu I)^-1 q|| falls with mu
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(weights / (values + mu)) > radius else (low, mu)
    best = vectors @ (weights / (values + mu))
    optimum = float(np.mean((jacobian @ (1 - best)) ** 2))
    assert a.loss[0] == pytest.approx(optimum, rel=1e-3, abs=1e-9)
    assert a.objective == "outputs"
    assert a.target is None


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("options", [{}, {"target": [3, 0, 1]}, {"target": "top1"}], ids=str)
def test_a_batch_gives_what_singles_give(solver: str, options: dict[str, Any]) -> None:
    """On a smooth tail: at a ReLU's kinks, roundings that differ with the batch lead to other ends (seen: 0.3%)."""
    model, feeds = network(DEEP.replace("Relu", "Tanh")), picture(3, 3, 6, 6)
    batch = caf.attend(model, feeds, at="s", solver=solver, **options)
    for i in range(3):
        own = {k: v[i] if isinstance(v, list) else v for k, v in options.items()}
        single = caf.attend(model, {"x": feeds["x"][i : i + 1]}, at="s", solver=solver, **own)
        assert batch.loss[i] == pytest.approx(single.loss[0], rel=1e-3, abs=1e-6)
        assert (batch.target or (None,) * 3)[i] == (single.target or (None,))[0]


def test_a_model_of_fixed_batch_takes_any_number_of_samples() -> None:
    fixed, free = network(DEEP.replace("[N,3,6,6]", "[1,3,6,6]").replace("[N,5]", "[1,5]")), network(DEEP)
    feeds = picture(3, 3, 6, 6)
    one, many = (caf.attend(m, feeds, at="s", target=[1, 2, 3]) for m in (fixed, free))
    assert one.filter.shape == (3, 6, 6)
    np.testing.assert_allclose(one.loss, many.loss, rtol=1e-3, atol=1e-6)
    assert len(one.stop_reason) == len(one.evaluations) == len(one.radius) == 3


def test_several_breakpoints_share_one_head() -> None:
    model, feeds = network(DEEP), picture(2, 3, 6, 6)
    together = caf.attend(model, feeds, at=["s", "c"])
    assert [a.at for a in together] == ["s", "c"]
    for a in together:
        np.testing.assert_array_equal(a.filter, caf.attend(model, feeds, at=a.at).filter)


@pytest.mark.parametrize(
    ("sizes", "means", "shape", "layout", "spatial"),
    [
        ("N,4,5,2", "1,2", (2, 4, 5, 2), "NHWC", (4, 5)),
        ("N,2,4,5", "2,3", (2, 2, 4, 5), "NCHW", (4, 5)),
        ("N,2,7", "2", (2, 2, 7), "NCL", (7,)),
        ("N,7,2", "1", (2, 7, 2), "NTC", (7,)),
        ("N,2,3,4,5", "2,3,4", (2, 2, 3, 4, 5), "NCDHW", (3, 4, 5)),
    ],
)
def test_layouts(sizes: str, means: str, shape: tuple[int, ...], layout: str, spatial: tuple[int, ...]) -> None:
    mean = f"ReduceMean <axes = [{means}], keepdims = 0> (s)"
    text = f"g (float[{sizes}] x) => (y) {{ s = Abs (x) y = {mean} }}"
    a = caf.attend(network(text), picture(*shape), at="s", layout=layout, target=1, proof="model")
    assert a.filter.shape == (2, *spatial)
    assert a.heatmap.shape == (2, *spatial)
    assert a.layout == layout
    assert a.proof.ok


@pytest.mark.parametrize(
    ("at", "layout", "options", "filter", "heatmap"),
    [
        ("s", "NTC", {}, (4, 4), (8, 8)),
        ("s", "NTC", {"layout": "NTC[]"}, (17,), (17,)),
        ("s", "NTC", {"layout": "NTC[1+2x8]"}, (2, 8), (8, 8)),
        ("kt", "NGCT", {}, (4, 4), (8, 8)),
        ("a", "NGTS", {}, (17, 17), (17, 17)),  # query x key is no picture, though it has two axes too
    ],
)
def test_tokens_of_a_grid_are_a_picture(
    at: str, layout: str, options: dict[str, Any], filter: tuple[int, ...], heatmap: tuple[int, ...]
) -> None:
    model, feeds = weighted(VIT), picture(2, 3, 8, 8)
    a = caf.attend(model, feeds, at=at, target=1, objective="target", proof="model", **options)
    assert (a.layout, a.filter.shape, a.heatmap.shape) == (layout, (2, *filter), (2, *heatmap))
    assert a.proof.ok
    assert a.parity is not None
    assert a.parity.ok
    assert a.grid == ("" if filter[0] == 17 else "1+" + "x".join(map(str, filter)))
    assert any("class" in note and a.grid in note for note in a.notes) == bool(a.grid)
    spec = options.get("layout")
    scores = caf.run(caf.insert_filter(model, at, a.filter, layout=spec), feeds)["y"]
    np.testing.assert_allclose(a.loss, -scores[:, 1], rtol=1e-4, atol=1e-6)


def test_a_grid_of_open_sizes() -> None:
    model = weighted(VIT.replace("float[N,3,8,8] x", "float[N,3,h,w] x"))
    a = caf.attend(model, picture(2, 3, 8, 8), at="u", to="z", proof="model")
    assert (a.filter.shape, a.heatmap.shape, a.proof.ok) == ((2, 4, 4), (2, 8, 8), True)


def test_behind_the_last_attention_only_the_class_token_is_read() -> None:
    with pytest.raises(caf.SolverError, match=r"tail is dead.*class token.*break before the last attention"):
        caf.attend(weighted(VIT), picture(1, 3, 8, 8), at="r")


def test_a_grid_that_is_not_of_that_tensor() -> None:
    with pytest.raises(caf.InputError, match=r"9 tokens; the tensor has 17"):
        caf.attend(weighted(VIT), picture(1, 3, 8, 8), at="s", layout="NTC[3x3]")


@pytest.mark.parametrize("at", ["x", "b", "d"])
def test_recurrent_nets_have_the_batch_in_the_middle(at: str) -> None:
    """Samples are taken along the second axis; each alone gives what it gives among others."""
    model = weighted(
        "g (float[9,N,3] x) => (float[N,8] y) <float[2,16,3] w, float[2,16,4] r, int64[3] joined = {0,0,-1}> "
        '{ a = Neg (x) b = LSTM <hidden_size = 4, direction = "bidirectional"> (a, w, r) '
        "c = Transpose <perm = [0,2,1,3]> (b) d = Reshape (c, joined) y = ReduceMean <axes = [0], keepdims = 0> (d) }"
    )
    feeds = picture(9, 3, 3)
    a = caf.attend(model, feeds, at=at, target=[0, 1, 2], proof="model")
    assert a.filter.shape == a.heatmap.shape == (3, 9)
    assert a.layout == {"x": "TNC", "b": "TGNC", "d": "TNC"}[at]
    assert a.proof.ok
    for i in range(3):
        single = caf.attend(model, {"x": feeds["x"][:, i : i + 1]}, at=at, target=i, batch_size=1)
        assert single.loss[0] == pytest.approx(a.loss[i], rel=1e-3, abs=1e-6)
    one_by_one = caf.attend(model, feeds, at=at, target=[0, 1, 2], batch_size=1)
    np.testing.assert_allclose(one_by_one.loss, a.loss, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("proof", ["tail", "model"])
def test_proof_and_parity_are_in_every_result(proof: str) -> None:
    a = caf.attend(network(DEEP), picture(2, 3, 6, 6), at="c", proof=proof)
    assert a.parity is not None
    for found in (a.parity, a.proof):
        assert found.ok
        assert found.max_rel <= found.rtol == 1e-4
        assert (found.provider, found.level) == ("CPUExecutionProvider", "disable")
    assert a.parity.slope_rel is not None
    assert a.parity.slope_rel <= 2e-2
    assert a.proof_kind == proof


def test_the_filtered_model_gives_the_loss() -> None:
    """An oracle outside torch: insert the filter, run onnxruntime, compute the objective by numpy."""
    model, feeds = network(DEEP), picture(2, 3, 6, 6)
    a = caf.attend(model, feeds, at="s")
    changed = caf.run(caf.insert_filter(model, "s", a.filter), feeds)["y"] - caf.run(model, feeds)["y"]
    np.testing.assert_allclose(a.loss, np.mean(changed.astype(np.float64) ** 2, axis=1), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_classes_are_asked_before_the_softmax(op: str) -> None:
    text = (
        DEEP.replace("y = Gemm", "z = Gemm")
        .replace(" }", f" u = {op} (z) y = Identity (u) }}")
        .replace("float[N,5] y", "y")
    )
    model, feeds = network(text), picture(1, 3, 6, 6)
    a = caf.attend(model, feeds, at="s", target=1)
    assert a.to == ("z",)
    assert any(op in note and "'z'" in note for note in a.notes)
    assert caf.attend(model, feeds, at="s").to == ("y",)


def test_heatmap_shows_the_positive_part_or_the_papers_absolute_value() -> None:
    model, feeds = network(AFFINE), picture(1, 3, 4, 5)
    for options, shown in (({"target": 2}, lambda f: np.maximum(f, 0)), ({"target": 2, "preset": "paper"}, np.abs)):
        a = caf.attend(model, feeds, at="s", **options)
        values = shown(a.filter)
        expected = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(a.heatmap, expected, rtol=0, atol=1e-6)


def test_the_papers_preset() -> None:
    model, feeds = network(DEEP), picture(1, 3, 6, 6)
    preset = caf.attend(model, feeds, at="s", target=1, preset="paper")
    spelled = caf.attend(model, feeds, at="s", target=1, objective="paper-class", radius="unit", solver="sgd")
    np.testing.assert_array_equal(preset.filter, spelled.filter)
    assert np.linalg.norm(preset.filter) == pytest.approx(1, rel=1e-5)
    assert (preset.objective, preset.solver, preset.constraint) == ("paper-class", "sgd", "l2")
    assert preset.radius[0] == pytest.approx(1 / 6)


def test_a_dead_tail_is_an_error() -> None:
    """A bias that closes the ReLU for every filter of norm 1, but not for f = 1 (algorithm.md, fact 3)."""
    text = """g (float[N,1,6,6] x) => (y) { s = Abs (x) m = Constant <value_float = 2.0> () d = Sub (s, m)
    r = Relu (d) y = ReduceMean <axes = [2,3], keepdims = 0> (r) }"""
    feeds = {"x": np.full((1, 1, 6, 6), 3, np.float32) + picture(1, 1, 6, 6)["x"] / 10}
    with pytest.raises(caf.SolverError, match="dead") as error:
        caf.attend(network(text), feeds, at="s", radius=0.05)
    assert "larger radius" in str(error.value)
    assert caf.attend(network(text), feeds, at="s", radius=0.9).proof.ok


def test_a_constant_output_is_dead_too() -> None:
    text = "g (float[N,1,4,4] x) => (y) { s = Abs (x) z = Sub (s, s) y = ReduceMean <axes = [2,3], keepdims = 0> (z) }"
    with pytest.raises(caf.SolverError, match="dead"):
        caf.attend(network(text), picture(1, 1, 4, 4), at="s")


class _Deaf(nn.Module):
    """A converted module whose gradient vanishes for small filters, which the slope at f = 1 cannot see."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: torch.Tensor) -> Any:
        quiet = [t.detach() if t.abs().max() < 0.9 else t for t in tensors]
        found = self.inner(*quiet)
        return found if found.requires_grad else found + 0 * sum(t.sum() for t in tensors)


def test_a_zero_gradient_where_onnxruntime_moves_is_the_converters_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    real = convert.CHAIN[0]
    deaf = convert.Converter("deaf", lambda proto: _Deaf(real.convert(proto)))
    monkeypatch.setattr(convert, "CHAIN", (deaf,))
    feeds = {"x": picture(1, 3, 6, 6)["x"] / 10}
    with pytest.raises(caf.ParityError, match="zero gradient"):
        caf.attend(network(DEEP), feeds, at="s", radius=0.05, solver="lbfgs")
    found = caf.attend(network(DEEP), feeds, at="s", radius=0.05)  # left to choose, it goes on without a gradient
    assert (found.solver, found.converter, found.parity) == ("blackbox", "", None)
    assert found.proof.ok
    assert any("zero gradient" in note for note in found.notes)


BAD: dict[str, tuple[dict[str, Any], type[caf.L2cafError], str]] = {
    "trivial radius": ({"radius": 1.0}, caf.SolverError, "trivial"),
    "negative radius": ({"radius": -1}, caf.InputError, "radius"),
    "radius in words": ({"radius": "large"}, caf.InputError, "radius"),
    "solver": ({"solver": "magic"}, caf.InputError, "lbfgs"),
    "objective": ({"objective": "joy"}, caf.InputError, "paper-class"),
    "constraint": ({"constraint": "l3"}, caf.InputError, "l2"),
    "preset": ({"preset": "rock"}, caf.InputError, "paper"),
    "proof": ({"proof": "pudding"}, caf.InputError, "tail"),
    "device": ({"device": "abacus"}, caf.InputError, "cpu"),
    "seed": ({"seed": -1}, caf.InputError, "seed"),
    "batch size": ({"batch_size": 0}, caf.InputError, "batch size"),
    "class out of range": ({"target": 5}, caf.InputError, "out of range"),
    "negative class": ({"target": -1}, caf.InputError, "out of range"),
    "class as bool": ({"target": True}, caf.InputError, "class"),
    "class in words": ({"target": "cat"}, caf.InputError, "cat"),
    "fractional class": ({"target": 1.5}, caf.InputError, "class"),
    "number of classes": ({"target": [1, 2, 3]}, caf.InputError, "3 targets for 2"),
    "class without objective": ({"target": 1, "objective": "outputs"}, caf.InputError, "no target"),
    "objective without class": ({"objective": "target"}, caf.InputError, "about a class"),
    "no breakpoint": ({"at": []}, caf.InputError, "at"),
    "unknown breakpoint": ({"at": "ss"}, caf.TensorNotFoundError, "'s'"),
    "one cell": ({"at": "p"}, caf.CutError, "fewer than two"),
    "no space": ({"at": "q"}, caf.CutError, "fewer than two"),
    "not downstream": ({"at": "c", "to": "s"}, caf.CutError, "depend"),
    "layout": ({"layout": "NC"}, caf.InputError, "layout"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes(case: str) -> None:
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        caf.attend(network(DEEP), picture(2, 3, 6, 6), **{"at": "s", **options})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"z": np.zeros((1, 3, 6, 6), np.float32)}, "'z'"),
        ({"x": np.zeros((1, 3, 6, 5), np.float32)}, "shape"),
        ({"x": np.zeros((3, 6, 6), np.float32)}, "shape"),
        ({"x": np.zeros((1, 3, 6, 6), np.float64)}, "float64"),
        ({"x": np.zeros((0, 3, 6, 6), np.float32)}, "empty"),
        ({"x": np.full((1, 3, 6, 6), np.nan, np.float32)}, "NaN"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Arrays, message: str) -> None:
    with pytest.raises(caf.InputError, match=message):
        caf.attend(network(DEEP), feeds, at="s")


def test_nan_in_the_activations_is_named() -> None:
    model = network(DEEP.replace("s = Abs (x)", "s = Sqrt (x)"))
    with pytest.raises(caf.InputError, match="an activation 's'"):
        caf.attend(model, picture(1, 3, 6, 6), at="s")


def test_deterministic_and_nothing_of_the_callers_changes() -> None:
    model, feeds = network(DEEP), picture(1, 3, 6, 6)
    before = model.proto.SerializeToString(), feeds["x"].copy(), torch.get_rng_state(), torch.get_num_threads()
    first = caf.attend(model, feeds, at="s", target=1, solver="adam", seed=3)
    again = caf.attend(network(DEEP), feeds, at="s", target=1, solver="adam", seed=3)
    np.testing.assert_array_equal(first.filter, again.filter)
    assert model.proto.SerializeToString() == before[0]
    np.testing.assert_array_equal(feeds["x"], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == before[3]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode: Any) -> None:
    expected = caf.attend(network(DEEP), picture(1, 3, 6, 6), at="s")
    with mode():
        found = caf.attend(network(DEEP), picture(1, 3, 6, 6), at="s")
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(found.filter, expected.filter)


def test_the_real_network(efficientnet: caf.Model, chelsea: Arrays) -> None:
    """Class-oblivious at the last conv, unit norm: lbfgs passes below where the authors' loop ends (algorithm.md)."""
    at = "/_swish_1/Clip_output_0"
    paper, ours = (
        caf.attend(efficientnet, chelsea, at=at, radius="unit", solver=solver, proof="model")
        for solver in ("sgd", "lbfgs")
    )
    assert ours.loss[0] < paper.loss[0]
    assert paper.loss[0] - ours.loss[0] == pytest.approx(5e-4, abs=3e-4)
    assert ours.evaluations[0] <= 10
    assert paper.evaluations[0] == 1000
    assert ours.proof.ok
    assert paper.proof.ok
    assert ours.heatmap.shape == (1, 224, 224)
