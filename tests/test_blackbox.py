"""solvers/blackbox.py: what forward runs alone can find, in closed form, on stairs, in batches and on a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import l2caf_onnx as caf
from l2caf_onnx.cli.app import app
from l2caf_onnx.errors import SolverError
from l2caf_onnx.filters import Sphere
from l2caf_onnx.solvers import Blackbox, Solution
from l2caf_onnx.solvers.blackbox import bases
from l2caf_onnx.tail import convert
from tests.conftest import normal, weighted

Tail = Callable[[torch.Tensor], torch.Tensor]


def solve(
    tails: list[Tail], spatial: tuple[int, ...], *, radius: float = 1.0, loss: Any = None, **settings: Any
) -> Solution:
    """Minimise the sum of squares of each sample's outputs (or `loss` of them); a tail takes (cells,), float64."""

    def respond(filters: torch.Tensor) -> torch.Tensor:
        flat = filters.double().flatten(2)
        return torch.stack([torch.stack([t(f) for t, f in zip(tails, row, strict=True)]) for row in flat])

    chosen = loss or (lambda rows, sample: rows.square().sum(1))
    return Blackbox(**settings).minimise(respond, chosen, Sphere(radius, dtype=torch.float64), (len(tails), *spatial))


def matrix(rows: int, cells: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, cells)))


def test_least_squares_on_the_sphere_is_the_smallest_singular_value() -> None:
    a = matrix(12, 9)
    found = solve([lambda f: a @ f], (3, 3), radius=2.0)
    _, s, v = np.linalg.svd(a.numpy())
    assert float(found.loss[0]) == pytest.approx((2 * s[-1]) ** 2, rel=1e-3)
    assert abs(found.filter.flatten().numpy() @ v[-1]) / 2 == pytest.approx(1, abs=1e-3)
    assert float(found.filter.norm()) == pytest.approx(2)


def test_a_linear_loss_is_minimised_exactly_by_one_round() -> None:
    w = matrix(1, 16)
    found = solve([lambda f: w @ f], (4, 4), loss=lambda rows, sample: rows[:, 0])
    assert float(found.loss[0]) == pytest.approx(-float(w.norm()), rel=1e-6)
    assert int(found.evaluations[0]) <= 4 * 16
    assert f"It took {int(found.evaluations[0])} forward runs." in found.stop_reason[0]


def test_stairs_that_have_no_slope_are_descended() -> None:
    """Outputs rounded to steps of a fiftieth: their gradient is zero wherever there is one."""
    w = torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    found = solve([lambda f: torch.round(50 * w * f) / 50], (4,), loss=lambda rows, sample: rows.sum(1))
    assert float(found.loss[0]) <= -0.95 * float(w.norm())


def test_where_the_uniform_filter_is_too_small_to_matter_single_cells_are_tried() -> None:
    """A threshold that only a filter concentrated in one cell passes, and only cell 5 matters."""
    found = solve([lambda f: torch.relu(f - 0.7)], (9,), loss=lambda rows, sample: -rows[:, 5])
    assert float(found.loss[0]) == pytest.approx(-0.3, abs=0.02)
    assert int(found.filter[0].argmax()) == 5


def test_each_sample_of_a_batch_ends_where_it_ends_alone() -> None:
    kinks = [matrix(7, 6, seed) for seed in range(3)]
    tails: list[Tail] = [lambda f, a=a: torch.relu(a @ f) + 0.3 * (a @ f) for a in kinks]  # type: ignore[misc]
    together = solve(tails, (6,))
    for n, tail in enumerate(tails):
        alone = solve([tail], (6,))
        torch.testing.assert_close(together.filter[n], alone.filter[0], rtol=0, atol=0)
        assert together.evaluations[n] == alone.evaluations[0]
        assert together.stop_reason[n] == alone.stop_reason[0]


def test_the_runs_are_counted_and_limited() -> None:
    runs = 0
    a = matrix(20, 25)

    def tail(f: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return torch.sin(3 * (a @ f))

    found = solve([tail], (5, 5))
    assert int(found.evaluations[0]) == runs <= 4 * 25


@pytest.mark.parametrize("spatial", [(30, 40), (500,), (8, 9, 10)])
def test_a_large_map_goes_from_a_coarse_grid_to_a_finer_one(spatial: tuple[int, ...]) -> None:
    coarse, fine = bases(spatial, Blackbox())
    assert coarse.shape[1] <= 49 < fine.shape[1] <= 196
    for basis in (coarse, fine):
        np.testing.assert_allclose(basis.sum(1), 1)
        assert np.linalg.matrix_rank(basis) == basis.shape[1]
    cells = math.prod(spatial)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in spatial], indexing="ij"))
    bump = torch.from_numpy(np.exp(-4 * (places**2).sum(0)).ravel())
    found = solve([lambda f: bump @ f[:, None]], spatial, radius=math.sqrt(cells) / 2, loss=lambda r, n: -r[:, 0])
    reached = -float(found.loss[0]) / (float(bump.norm()) * math.sqrt(cells) / 2)
    assert reached >= 0.98
    assert int(found.evaluations[0]) <= 4 * 196


def test_an_infinite_start_is_refused() -> None:
    with pytest.raises(SolverError, match="not finite"):
        solve([lambda f: f / 0], (4,))


def test_the_real_model_is_explained_as_well_as_by_gradient(
    efficientnet: caf.Model, chelsea: dict[str, NDArray[Any]]
) -> None:
    """EfficientNet-Lite0's 7x7, before and after its activation, all outputs and one class: 95% of the gain."""
    for at in ("/_conv_head/Conv_output_0", "/_swish_1/Clip_output_0"):
        for target in (None, "top1"):
            asked: dict[str, Any] = {"target": target, "objective": "target" if target else "outputs"}
            best = caf.attend(efficientnet, chelsea, at=at, **asked)
            found = caf.attend(efficientnet, chelsea, at=at, **asked, solver="blackbox")
            start = uniform_loss(efficientnet, chelsea, best)
            assert start - found.loss[0] >= 0.95 * (start - best.loss[0])
            a, b = found.filter.ravel(), best.filter.ravel()
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.98
            assert found.evaluations[0] <= 4 * 49
            assert found.parity is None
            assert found.proof.ok


def uniform_loss(model: caf.Model, feeds: dict[str, NDArray[Any]], a: caf.Attention) -> float:
    """The loss of the filter that is `radius` everywhere, by onnxruntime on the whole filtered model."""
    f = np.full(a.filter.shape[1:], a.radius[0], np.float32)
    (name,) = a.to
    with_output = caf.cut(model, a.at, name)
    fed = {a.at: caf.run(with_output.head, feeds)[a.at]}
    y, z = (
        next(iter(caf.run(m, fed).values())) for m in (with_output.tail, caf.insert_filter(with_output.tail, a.at, f))
    )
    return float(np.mean((y - z) ** 2)) if a.target is None else -float(z[0, a.target[0]])


NO_CONVERTER = """g (float[N,3,6,6] x) => (float[N,4] y) <float[4,3,3,3] w> {
  s = Relu (x)  c = Conv (s, w)  m = ReduceMean <axes = [2,3], keepdims = 0> (c)  r = Round (m)  y = Add (m, r) }"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No converter knows anything."""

    def refuse(proto: onnx.ModelProto) -> Any:
        raise NotImplementedError("unknown here")

    monkeypatch.setattr(convert, "CHAIN", (convert.Converter("none", refuse),))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("proof", ["tail", "model"])
def test_without_a_converter_the_answer_says_so(proof: str) -> None:
    model, feeds = weighted(NO_CONVERTER), {"x": normal(2, 3, 6, 6)}
    found = caf.attend(model, feeds, at="s", proof=proof, constraint="l2")
    assert (found.solver, found.converter, found.parity, found.proof.ok) == ("blackbox", "", None, True)
    assert any("forward runs" in n and "Relu" not in n for n in found.notes)
    for n in range(2):
        alone = caf.attend(model, {"x": feeds["x"][n : n + 1]}, at="s", solver="blackbox")
        np.testing.assert_allclose(alone.filter[0], found.filter[n], atol=1e-4)
    coarse = caf.attend(model, feeds, at="s", proof=proof, constraint="l2", basis=2)
    assert (coarse.solver, coarse.basis) == ("blackbox", None)
    assert any("no basis" in n for n in coarse.notes)
    np.testing.assert_array_equal(coarse.filter, found.filter)
    assert not any("basis" in n for n in found.notes)
    with pytest.raises(caf.UnsupportedModelError):
        caf.attend(model, feeds, at="s", solver="lbfgs")
    with pytest.raises(caf.UnsupportedModelError):
        caf.attend(model, feeds, at="s", solver="sgd")


def test_a_batch_baked_into_the_graph_is_run_one_by_one() -> None:
    model = weighted("""g (float[N,3,6,6] x) => (float[1,4] y) <float[4,108] w, int64[2] flat = {1,108}> {
      s = Relu (x)  f = Reshape (s, flat)  t = Transpose (w)  y = MatMul (f, t) }""")
    feeds = {"x": normal(1, 3, 6, 6)}
    found = caf.attend(model, feeds, at="s", solver="blackbox")
    best = caf.attend(model, feeds, at="s")
    assert found.loss[0] <= best.loss[0] * 1.02
    assert found.proof.ok


def test_large_outputs_are_sketched() -> None:
    model = weighted("""g (float[1,3,20,20] x) => (float[1,200,20,20] y) <float[200,3,3,3] w> {
      s = Relu (x)  c = Conv <pads = [1,1,1,1]> (s, w)  y = Sigmoid (c) }""")
    feeds = {"x": normal(1, 3, 20, 20)}
    found = caf.attend(model, feeds, at="s", solver="blackbox")
    assert found.proof.ok
    filtered = caf.run(caf.insert_filter(model, "s", found.filter), feeds)["y"]
    assert found.loss[0] == pytest.approx(float(np.mean((caf.run(model, feeds)["y"] - filtered) ** 2)), rel=1e-5)
    uniform = caf.run(caf.insert_filter(model, "s", np.full((20, 20), 0.5, np.float32)), feeds)["y"]
    assert found.loss[0] < float(np.mean((caf.run(model, feeds)["y"] - uniform) ** 2))


@pytest.mark.usefixtures("nobody")
def test_the_command_line_prints_that_it_fell_back(tmp_path: Path) -> None:
    model = weighted(NO_CONVERTER)
    (tmp_path / "m.onnx").write_bytes(model.proto.SerializeToString())
    np.save(tmp_path / "x.npy", normal(1, 3, 6, 6))
    out = tmp_path / "out"
    asked = ["attend", str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), "--at", "s", "-o", str(out), "--json"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert "forward runs" in found.stderr
    (row,) = json.loads(found.stdout)["results"]
    assert (row["solver"], row["parity"], row["proof"]["ok"]) == ("blackbox", None, True)


def test_agreement_at_the_level_of_deployment_is_reported() -> None:
    model, feeds = weighted(NO_CONVERTER), {"x": normal(1, 3, 6, 6)}
    assert caf.attend(model, feeds, at="s").deployed is None
    found = caf.attend(model, feeds, at="s", ort_level="all").deployed
    assert found is not None
    assert (found.level, found.ok) == ("all", True)
    with pytest.raises(caf.InputError, match="extended"):
        caf.attend(model, feeds, at="s", ort_level="most")
