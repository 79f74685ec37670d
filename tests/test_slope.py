"""The solver "slope": against numpy, against differences of onnxruntime under each occlusion, and on a real network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls  # scikit-learn brings it
from torch import Tensor

import l2caf_onnx as caf
from l2caf_onnx.errors import SolverError
from l2caf_onnx.explain.filtered import ONE_BY_ONE
from l2caf_onnx.filters import lifts, occlusions, space
from l2caf_onnx.filters.occlusions import _dealt
from l2caf_onnx.regress.watch import Question
from l2caf_onnx.solvers import Slope, resolve
from l2caf_onnx.solvers.slope import correlation, regression
from tests.conftest import VIT, Arrays, normal, text, weighted
from tests.test_bumps import gaussians
from tests.test_explain import BAKED, BENT, POOLED, UNMAPPED, feeds_of

Array = NDArray[np.float64]
SPATIAL = [(7, 7), (14, 9), (3, 4), (50,), (5, 6, 4)]


# What is hidden


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("count", [16, 64])
def test_every_cell_is_hidden_half_of_the_time_and_otherwise_in_each(spatial: tuple[int, ...], count: int) -> None:
    found = occlusions(spatial, count).numpy()
    assert found.shape == (count, *spatial)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_allclose(found.mean(0), 0.5, atol=1e-6)
    np.testing.assert_allclose(found[: count // 2] + found[count // 2 :], 1, atol=1e-6)
    flat = found.reshape(count, -1)
    assert len(np.unique(flat.round(4), axis=0)) > 0.8 * count
    assert (flat.std(0) > 0.1).all()  # each cell is hidden and shown
    neighbours, far = (np.corrcoef(flat[:, 0], flat[:, k])[0, 1] for k in (1, -1))
    assert neighbours > far  # in patches


def test_zeros_and_ones_are_dealt_evenly() -> None:
    """All rows of a Hadamard matrix: each column half ones, each pair of columns with all four combinations alike."""
    dealt = _dealt(64, 49, torch.Generator().manual_seed(3)).double().numpy()
    signs = 2 * dealt - 1
    np.testing.assert_allclose(signs.sum(0), 0)
    np.testing.assert_allclose(signs.T @ signs, 64 * np.eye(49))


def test_each_frame_is_hidden_in_patches_of_its_own() -> None:
    found = occlusions((4, 8, 8), 32, frames=True)
    assert found.shape == (32, 4, 8, 8)
    assert len({tuple(f.flatten().tolist()) for f in found[0]}) == 4


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_long_axes_are_blurred_alike(monkeypatch: pytest.MonkeyPatch, sigma: float) -> None:
    w = torch.from_numpy(normal(2, 30, 11).astype(np.float64))
    lift = lifts.Smooth(spatial=(30, 11), sigma=sigma)
    expected = lift.values(w)
    monkeypatch.setattr(lifts, "_LONG", 10)
    torch.testing.assert_close(lift.values(w), expected, rtol=1e-9, atol=1e-12)
    assert (lift.values(w.square()) >= 0).all()


# The closed form


def neighbourhood(size: int, sigma: float) -> Array:
    """Row i: how much of each cell is in the mean about cell i."""
    near = np.exp(-0.5 * ((np.arange(size)[:, None] - np.arange(size)) / (sigma * size)) ** 2)
    return np.asarray(near / near.sum(1).max())


@pytest.mark.parametrize("constraint", ["l2", "l2-nonneg"])
@pytest.mark.parametrize("frames", [False, True])
def test_the_mean_slope_of_a_quadratic_is_that_in_the_middle(constraint: str, frames: bool) -> None:
    """dL/df = G f + b, the mean of the occlusions is 1/2, so the mean slope is G 1/2 + b; S by hand."""
    cells, rho = (3, 4, 5), torch.tensor([0.5, 2.0])
    root, b = normal(2, 60, 60).astype(np.float64) / 8, normal(2, 60, seed=1).astype(np.float64) - 2
    gram = root @ root.transpose(0, 2, 1)
    g, tilt = torch.from_numpy(gram).float(), torch.from_numpy(b).float()

    def loss(f: Tensor, numbers: Tensor) -> Tensor:
        flat = f.flatten(1)
        return torch.einsum("ka,kab,kb->k", flat, g[numbers], flat) / 2 + (tilt[numbers] * flat).sum(1)

    within = space(constraint, rho, cells, frames=frames)
    found = Slope(at_once=5).minimise(loss, within)
    raw = (gram.sum(2) / 2 + b).reshape(2, *cells)
    blurs = [np.eye(3) if frames else neighbourhood(3, 0.1), neighbourhood(4, 0.1), neighbourhood(5, 0.1)]
    slope = np.einsum("nxyz,ax,by,cz->nabc", raw, *blurs)
    down = -slope if constraint == "l2" else np.maximum(-slope, 0)
    axes = (2, 3) if frames else (1, 2, 3)
    size = rho.numpy().reshape(2, 1, 1, 1) * np.sqrt(20 if frames else 60)
    expected = size * down / np.sqrt((down**2).sum(axes, keepdims=True))
    np.testing.assert_allclose(found.filter.numpy(), expected, rtol=1e-4, atol=1e-5 * size.max())
    np.testing.assert_allclose(found.loss.numpy(), loss(found.filter, torch.arange(2)).numpy(), rtol=1e-6)
    assert found.evaluations.tolist() == [64, 64]


def test_where_no_cell_lowers_the_loss_the_one_that_raises_it_least_is_taken() -> None:
    """And a frame that plays no part keeps the filter that has no preference."""
    weights = torch.arange(1.0, 25.0).reshape(1, 2, 3, 4)
    weights[:, 1] = 0
    within = space("l2-nonneg", torch.tensor([0.5]), (2, 3, 4), frames=True)
    found = Slope(sigma=1e-3).minimise(lambda f, _: (weights * f).flatten(1).sum(1), within).filter[0].numpy()
    assert np.count_nonzero(found[0]) == 1
    assert found[0, 0, 0] == pytest.approx(0.5 * np.sqrt(12))
    np.testing.assert_allclose(found[1], 0.5, rtol=1e-6)


def test_a_slope_that_is_not_finite_is_refused() -> None:
    within = space("l2-nonneg", torch.tensor([0.5]), (4, 4))
    with pytest.raises(SolverError, match="not finite"):
        Slope().minimise(lambda f, _: f.sqrt().flatten(1).sum(1), within)  # slope 1/0 where a cell is hidden
    with pytest.raises(SolverError, match="not finite"):
        Slope().minimise(lambda f, _: f.log().flatten(1).sum(1), within)


# In attend


def test_against_differences_of_onnxruntime() -> None:
    """The slope by every cell under every occlusion, by central differences of the filtered `.onnx`; of the 39 others
    those count that are among the 20 strongest, of the unfiltered model or under that occlusion, by half each.
    """
    graph = BENT.replace("v>", "v, float[40] b>").replace("(f, v)", "(f, v, b)")  # a bias: no ties where all is hidden
    model, feeds = weighted(graph), feeds_of(graph, 1)
    found = caf.attend(model, feeds, at="s", target=3)
    assert (found.solver, found.objective, found.constraint) == ("slope", "contrast", "l2-nonneg")
    assert found.proof.ok
    masks, step = occlusions((4, 4), 64).numpy(), 1e-2
    moved = [masks[:, None] + s * step * np.eye(16).reshape(1, 16, 4, 4) for s in (1, -1)]
    filters = np.concatenate([m.reshape(-1, 4, 4) for m in moved]).astype(np.float32)
    x = np.repeat(feeds["x"], len(filters), 0)
    scores = caf.run(caf.insert_filter(model, "s", filters), {"x": x})["y"].astype(np.float64)
    seen = caf.run(caf.insert_filter(model, "s", masks), {"x": np.repeat(feeds["x"], 64, 0)})["y"]
    shares = np.stack([(strongest(own, 3) + strongest(caf.run(model, feeds)["y"][0], 3)) / 2 for own in seen])
    assert ((shares > 0) & (shares < 1 / 20)).any()  # so that both kinds are seen
    shares[:, 3] = -1
    losses = np.einsum("skco,ko->skc", scores.reshape(2, 64, 16, 40), shares)
    slope = ((losses[0] - losses[1]) / (2 * step)).mean(0)
    bumps = gaussians(4, 4)
    weights, _ = nnls(bumps, -slope)
    best = bumps @ weights
    assert 0 < np.count_nonzero(weights) < 16  # so that w >= 0 is seen
    expected = (found.radius[0] * 4 * best / np.linalg.norm(best)).reshape(4, 4)
    np.testing.assert_allclose(found.filter[0], expected, atol=5e-3 * expected.max())
    plain = caf.run(model, feeds)["y"][0]
    kept = caf.run(caf.insert_filter(model, "s", found.filter), feeds)["y"][0]
    assert found.loss[0] == pytest.approx(strongest(plain, 3) @ kept - kept[3], rel=1e-4)  # the objective's own


def strongest(scores: NDArray[Any], target: int) -> Array:
    """1/20 at each of the 20 largest scores but the target's."""
    order = [k for k in np.argsort(-scores) if k != target][:20]
    return np.isin(np.arange(len(scores)), order) / 20


def towards(wanted: Array) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss whose gradient is `wanted` under every occlusion."""
    return lambda f, _: (torch.from_numpy(wanted) * f.double()).flatten(1).sum(1)


def test_few_cells_are_answered_over_bumps() -> None:
    cells = (8, 8)
    within = space("l2-nonneg", torch.tensor([0.42, 0.3]), cells)
    wanted = normal(*cells).astype(np.float64)
    found = Slope(bumps=lifts.Smooth(spatial=cells, sigma=0.12)).minimise(towards(wanted), within)
    s = gaussians(*cells)
    best = s @ nnls(s, -wanted.ravel())[0]
    for n, rho in enumerate((0.42, 0.3)):
        np.testing.assert_allclose(found.filter[n].ravel(), best * rho * 8 / np.linalg.norm(best), atol=1e-4)
    assert all("bumps of 0.12" in reason for reason in found.stop_reason)


@pytest.mark.parametrize(
    ("cells", "constraint", "frames"),
    [((9, 8), "l2-nonneg", False), ((8, 8), "l2", False), ((4, 4, 4), "l2-nonneg", True)],
    ids=["more cells than occlusions", "sphere", "frames"],
)
def test_elsewhere_bumps_play_no_part(cells: tuple[int, ...], constraint: str, frames: bool) -> None:
    within, loss = space(constraint, torch.tensor([0.42]), cells, frames=frames), towards(normal(*cells).astype(float))
    plain = Slope().minimise(loss, within)
    found = Slope(bumps=lifts.Smooth(spatial=cells, sigma=0.12, frames=frames)).minimise(loss, within)
    assert torch.equal(found.filter, plain.filter)
    assert found.stop_reason == plain.stop_reason


def test_of_samples_that_are_regressed_the_mean_stays() -> None:
    """Of the second the gradient does not tell."""
    within = space("l2-nonneg", torch.full((2,), 0.42), (8, 8))
    plain = Slope().minimise(saturating, within)
    found = Slope(bumps=lifts.Smooth(spatial=(8, 8), sigma=0.12)).minimise(saturating, within)
    assert torch.equal(found.filter[1], plain.filter[1])
    assert not torch.allclose(found.filter[0], plain.filter[0])
    assert ["bumps" in reason for reason in found.stop_reason] == [True, False]


def test_a_result_says_smooth_only_where_all_of_it_is() -> None:
    """Where a cell is hidden the gradient points elsewhere, without an effect: such a sample is regressed."""
    model = weighted("""g (float[N,2,4,4] x) => (float[N,3] y)
    <float k = {8}, float c = {100}, float much = {1000}, float[32,3] w, float[32,3] v> {
      s = Relu (x)  m = Mul (s, k)  t = Tanh (m)  f = Flatten (t)  a = Gemm (f, w)
      d = Mul (s, c)  q = Mul (d, d)  n = Neg (q)  e = Exp (n)  h = Mul (s, e)  r = Mul (h, much)  g = Flatten (r)
      b = Gemm (g, v)  y = Add (a, b) }""")
    feeds = {"x": 1 + np.abs(normal(1, 2, 4, 4))}
    found = caf.attend(model, feeds, at="s", target=1)
    assert (found.solver, found.basis, found.evaluations.tolist()) == ("slope", None, [64 + 256])
    assert "regression" in found.stop_reason[0]


@pytest.mark.parametrize(
    ("graph", "way"), [(BENT, "together"), (BAKED, "vmap"), (UNMAPPED, "loop")], ids=["together", "vmap", "loop"]
)
def test_a_batch_is_answered_as_its_samples_are(graph: str, way: str) -> None:
    model, feeds = weighted(graph), feeds_of(graph, 3)
    asked: dict[str, Any] = {"at": "s", "target": [1, 0, 1]}
    found = caf.attend(model, feeds, **asked)
    assert found.solver == "slope"
    assert (ONE_BY_ONE in found.notes) == (way == "loop")
    assert found.proof.ok
    for n in range(3):
        alone = caf.attend(model, {"x": feeds["x"][n : n + 1]}, at="s", target=asked["target"][n])
        np.testing.assert_allclose(found.filter[n], alone.filter[0], atol=1e-5)
        np.testing.assert_allclose(found.loss[n], alone.loss[0], rtol=1e-5)
    again = caf.attend(model, feeds, **asked, seed=5)
    np.testing.assert_array_equal(again.filter, found.filter)  # nothing hangs on the seed


def test_it_is_the_default_where_nothing_is_named_and_may_be_asked_for_by_name() -> None:
    model, feeds = weighted(BENT), feeds_of(BENT, 1)
    plain = caf.attend(model, feeds, at="s")
    assert (plain.solver, plain.objective, plain.constraint) == ("slope", "outputs", "l2-nonneg")
    assert "neighbourhood of 0.05" in plain.stop_reason[0]
    assert plain.basis is None
    about = caf.attend(model, feeds, at="s", target=1)  # 16 cells
    assert (about.solver, about.basis) == ("slope", "smooth")
    assert "bumps of 0.12 " in about.stop_reason[0]
    assert caf.attend(model, feeds, at="s", target=1, solver="slope", constraint="l2-nonneg").basis is None
    assert caf.attend(model, feeds, at="s", radius=0.5).solver == "lbfgs"
    assert caf.attend(model, feeds, at="s", basis=2).solver == "lbfgs"
    assert caf.attend(model, feeds, at="s", target=1, radius=0.5).solver == "lbfgs"
    assert caf.attend(weighted(POOLED), feeds_of(POOLED, 1), at="s", target=1).solver == "exact"
    named = caf.attend(model, feeds, at="s", solver="slope")
    assert (named.solver, named.objective, named.constraint, named.basis) == ("slope", "outputs", "l2", None)
    assert named.proof.ok
    assert np.linalg.norm(named.filter) == pytest.approx(0.5 * 4, rel=1e-5)
    assert "64 occlusions" in named.stop_reason[0]


def test_baselines_ask_as_they_always_did() -> None:
    """What is stored must be found again, so that no default of attend reaches it."""
    for affine in (False, True):
        asked = Question().planned([1], affine=affine)
        assert isinstance(asked.solver, Slope)
        assert (asked.objective.name, asked.anew, asked.exact_basis) == ("contrast", False, None)
        assert asked.solver.bumps is None


def test_what_has_no_closed_form_here_is_refused() -> None:
    model, feeds = weighted(BENT), feeds_of(BENT, 1)
    for constraint in ("softmax", "gaussian"):
        with pytest.raises(caf.InputError, match=constraint):
            caf.attend(model, feeds, at="s", solver="slope", constraint=constraint)
    for solver in ("slope", "blackbox"):
        with pytest.raises(caf.InputError, match="no basis"):
            caf.attend(model, feeds, at="s", solver=solver, basis=3)
    with pytest.raises(caf.InputError, match=r"shape \(1, 40\)"):  # not of all that is run at once
        caf.attend(model, feeds, at="s", target=1, select="y[:, :, 3]")
    assert isinstance(resolve("slope"), Slope)
    assert caf.attend(model, feeds, at="s", solver="lbfgs", basis=3).basis == "3"
    assert caf.attend(model, feeds, at="s", target=1, method="gradcam", basis=3).basis is None  # it makes no filter


def test_a_tail_that_does_not_depend_on_the_filter_is_dead() -> None:
    model = text("""g (float[N,2,4,4] x) => (float[N,3] y) <float zero = {0}> {
      s = Relu (x)  z = Mul (s, zero)  t = Tanh (z)  p = GlobalAveragePool (t)  f = Flatten (p)
      y = Concat <axis = 1> (f, f, f) }""")
    with pytest.raises(caf.SolverError, match=r"does not|same"):
        caf.attend(model, {"x": normal(1, 2, 4, 4)}, at="s", target=0)


def test_the_trace_shows_the_filter_as_occlusions_come_in() -> None:
    found = caf.attend(weighted(BENT), feeds_of(BENT, 1), at="s", target=3, trace=True)
    assert found.trace is not None
    assert found.trace.shape == (4, 1, 4, 4)  # 16 at once
    np.testing.assert_array_equal(found.trace[-1], found.filter)
    assert not np.allclose(found.trace[0], found.trace[-1])


BLOCK = "/_blocks.10/Add_output_0"


def test_the_last_bit_of_a_pixel_hardly_moves_it(efficientnet: caf.Model, chelsea: Arrays) -> None:
    """In the middle of a real network, where single gradients are mostly noise."""
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32) * 2 / 255
    (name,) = chelsea
    feeds = {name: np.concatenate([chelsea[name], chelsea[name] + noise])}
    found = caf.attend(efficientnet, feeds, at=BLOCK, target="top1")
    assert (found.solver, found.evaluations.tolist()) == ("slope", [64, 64])
    assert found.proof.ok
    a, b = found.filter.reshape(2, -1).astype(np.float64)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert a.min() >= 0
    assert np.linalg.norm(a) == pytest.approx(0.42 * 14, rel=1e-5)


# Where the gradient does not tell

EFFECT = torch.zeros(2, 8, 8)
EFFECT[:, 4:6, 1:3] = 1.0


def saturating(f: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A cell counts by being there, whatever its size, as a token before a layer norm does; the second sample has a
    gradient besides, at hidden cells, that points elsewhere and is gone before it has had an effect.
    """
    there = -(EFFECT[numbers] * torch.tanh(8 * f)).flatten(1).sum(1)
    elsewhere = EFFECT[numbers].flip(1).roll(3, 2)
    beside = -(1e3 * elsewhere * f * torch.exp(-((100 * f) ** 2))).flatten(1).sum(1)
    return there + beside * (numbers == 1)


def test_what_the_gradient_does_not_tell_is_measured_for_the_samples_concerned() -> None:
    within = space("l2-nonneg", torch.full((2,), 0.42), (8, 8))
    found = Slope().minimise(saturating, within)
    for n in range(2):
        y, x = divmod(int(found.filter[n].argmax()), 8)
        assert EFFECT[n, y, x] == 1
    assert found.evaluations.tolist() == [64, 64 + 256]
    assert "regression on 256 occlusions" not in found.stop_reason[0]
    assert "regression on 256 occlusions" in found.stop_reason[1]
    told = Slope(better=3).minimise(saturating, within)  # by the gradient alone it would be wrong
    y, x = divmod(int(told.filter[1].argmax()), 8)
    assert EFFECT[1, y, x] == 0


def test_where_it_is_known_not_to_tell_no_gradient_is_taken() -> None:
    seen: list[torch.Tensor] = []

    def loss(f: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        assert not f.requires_grad
        seen.append(f)
        return saturating(f, numbers)

    within = space("l2-nonneg", torch.full((2,), 0.42), (8, 8))
    found = Slope(untold=True).minimise(loss, within)
    hidden = torch.cat(seen[:-1])[::2]
    assert hidden.shape == (256, 8, 8)
    assert np.unique(hidden.numpy()).tolist() == [0.0, 1.0]  # hidden wholly or not at all
    assert found.evaluations.tolist() == [256, 256]
    assert all("regression on 256" in r for r in found.stop_reason)
    for n in range(2):
        y, x = divmod(int(found.filter[n].argmax()), 8)
        assert EFFECT[n, y, x] == 1


def test_tokens_are_regressed_by_hiding_them_in_onnxruntime_too() -> None:
    """And set against the strongest others of the unfiltered model alone."""
    model = weighted(VIT.replace("float[N,5]", "float[N,40]").replace("float[4,5] wo", "float[4,40] wo"))
    feeds = {"x": np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    found = caf.attend(model, feeds, at="s", target=1)
    assert (found.solver, found.evaluations.tolist(), found.grid) == ("slope", [256], "1+4x4")
    assert found.proof.ok
    masks = occlusions((4, 4), 256).round().numpy()
    filtered = caf.insert_filter(model, "s", masks, layout="NTC[1+4x4]")
    scores = caf.run(filtered, {"x": np.repeat(feeds["x"], 256, 0)})["y"].astype(np.float64)
    losses = scores @ strongest(caf.run(model, feeds)["y"][0], 1) - scores[:, 1]
    flat = masks.reshape(256, 16).astype(np.float64)
    gains = (losses - losses.mean()) @ (flat - flat.mean(0)) / ((flat - flat.mean(0)) ** 2).sum(0)
    blur = neighbourhood(4, 0.1)
    down = np.maximum(-blur @ gains.reshape(4, 4) @ blur.T, 0)
    np.testing.assert_allclose(found.filter[0], found.radius[0] * 4 * down / np.linalg.norm(down), atol=1e-3)


def test_tokens_that_decide_nothing_are_refused() -> None:
    dead = weighted(VIT.replace("y = MatMul (z, wo)", "m = MatMul (z, wo)  y = Sub (m, m)"))
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    with pytest.raises(SolverError, match=r"dead|does not respond"):
        caf.attend(dead, feeds, at="s", target=1)


def test_a_regression_of_dealt_masks_finds_what_each_cell_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    effects = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    masks = torch.randint(2, (4000, 5), generator=generator).double()
    losses = masks @ effects.T + 2
    torch.testing.assert_close(regression(masks, losses), effects, rtol=0, atol=0.12)
    torch.testing.assert_close(correlation(masks @ effects.T, losses), torch.ones(3, dtype=torch.float64))
    assert correlation(masks[:, :1], torch.ones(4000, 1, dtype=torch.float64)).tolist() == [0.0]
