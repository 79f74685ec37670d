"""Filters that are sums of bumps: the closed form over their cone against brute force, and as a class's default."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.explain import closed_form, solving
from l2caf_onnx.solvers import nonneg
from l2caf_onnx.solvers.exact import Answer, Cone, LeastSquares, least_squares_on_sphere, linear_in_cone, linear_nonneg
from tests.conftest import normal, weighted
from tests.test_explain import BENT, POOLED, SPREAD, feeds_of

Array = NDArray[np.float64]


def gaussians(rows: int, columns: int, sigma: float = 0.12) -> Array:
    """(cells, cells): a Gaussian about each cell of a map."""
    sides = [
        np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / (sigma * n)) ** 2) for n in (rows, columns)
    ]  # fmt: skip
    return np.asarray(np.kron(*sides), np.float64)


def brute(g: Array, bumps: Array, r: float) -> float:
    """The least g'f: for every set of bumps the projection of -g onto their span, where it is a sum of them."""
    best = min(float(g @ s) * r / float(np.linalg.norm(s)) for s in bumps.T)
    for count in range(1, bumps.shape[1] + 1):
        for chosen in itertools.combinations(range(bumps.shape[1]), count):
            part = bumps[:, chosen]
            w = np.linalg.lstsq(part, -g, rcond=None)[0]
            if (w >= 0).all() and w.any():
                p = part @ w
                best = min(best, float(g @ p) * r / float(np.linalg.norm(p)))
    return best


def check(a: Answer, g: Array, bumps: Array, r: float, offset: float = 0.0) -> None:
    """Optimal by the definition of a projection: what is left of -g pulls at no bump, and not along p."""
    f = a.filter
    assert np.linalg.norm(f) == pytest.approx(r, rel=1e-12)
    assert (f >= 0).all()
    assert a.loss == pytest.approx(offset + float(g @ f), rel=1e-10, abs=1e-12 * float(np.linalg.norm(g)) * r)
    p = f * (-float(g @ f) / (r * r))
    left = -g - p
    sizes = np.linalg.norm(bumps, axis=0) * np.linalg.norm(g)
    assert ((left @ bumps) / sizes).max() <= 1e-10
    assert abs(left @ p) <= 1e-10 * float(g @ g)
    assert a.kind == "global"
    assert a.gap <= 1e-9 * r * np.linalg.norm(g)
    assert a.reason.endswith(".")
    assert a.multiplier == pytest.approx(-float(g @ f) / (r * r), rel=1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_a_linear_loss_against_every_set_of_bumps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, count = int(rng.integers(2, 9)), int(rng.integers(1, 8))
    bumps = rng.random((cells, count)) * (rng.random((cells, count)) < 0.7) + 0.01
    g = rng.standard_normal(cells) + rng.choice([-1.0, 0.0, 1.0])
    a = linear_in_cone(g, Cone.of(bumps), 1.7, 2.0)
    assert a.loss - 2 == pytest.approx(brute(g, bumps, 1.7), rel=1e-9, abs=1e-9)
    assert a.kind == "global"


@pytest.mark.parametrize("sides", [(7, 7), (3, 11), (14, 14), (28, 20)])
@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["noise", "smooth", "a bump", "all", "all but one"])
def test_on_maps_of_any_size(sides: tuple[int, int], sigma: float, kind: str) -> None:
    """Wide bumps are nearly sums of one another, and the largest Gram matrix here is singular to 1e-16."""
    bumps = gaussians(*sides, sigma)
    noise = normal(len(bumps)).astype(np.float64)
    g = {
        "noise": noise,
        "smooth": bumps @ noise,
        "a bump": -bumps[:, 9],
        "all": -bumps @ np.abs(noise),
        "all but one": np.where(np.arange(len(bumps)) == 9, 1.0, -1.0),
    }[kind]
    a = linear_in_cone(g, Cone.of(bumps), 3.0, 1.0)
    if (g @ bumps < 0).any():
        check(a, g, bumps, 3.0, 1.0)


def test_single_cells_are_bumps_too() -> None:
    g = normal(30).astype(np.float64)
    a, b = linear_in_cone(g, Cone.of(2 * np.eye(30)), 2.0), linear_nonneg(g, 2.0)
    np.testing.assert_allclose(a.filter, b.filter, atol=1e-12)
    assert a.multiplier == pytest.approx(b.multiplier)


def test_where_no_bump_helps_it_is_one() -> None:
    bumps = gaussians(5, 5)
    g = np.linspace(1, 2, 25)
    a = linear_in_cone(g, Cone.of(bumps), 2.0)
    each = (g @ bumps) / np.linalg.norm(bumps, axis=0)
    best = bumps[:, each.argmin()]
    np.testing.assert_allclose(a.filter, 2 * best / np.linalg.norm(best))
    assert a.kind == "global"
    assert a.loss == pytest.approx(2 * each.min())
    assert f"bump {each.argmin()}" in a.reason


def test_blocks_that_do_not_settle_go_on_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bumps, g = gaussians(6, 6), normal(36).astype(np.float64)
    cone = Cone.of(bumps)
    expected = linear_in_cone(g, cone, 1.0).filter
    monkeypatch.setattr(nonneg, "_by_blocks", lambda *_: None)
    np.testing.assert_allclose(linear_in_cone(g, cone, 1.0).filter, expected, atol=1e-9)


@pytest.mark.parametrize(
    "bumps", [np.ones(3), np.zeros((0, 2)), np.eye(3) - 0.1, np.diag([1.0, 0, 1]), np.full((2, 2), np.nan)]
)
def test_what_is_no_bump_is_refused(bumps: Array) -> None:
    with pytest.raises(InputError, match="bumps"):
        Cone.of(bumps)


def test_a_slope_that_does_not_fit_is_refused() -> None:
    cone = Cone.of(np.eye(4))
    with pytest.raises(InputError, match="5 cells"):
        linear_in_cone(np.ones(5), cone, 1.0)
    with pytest.raises(SolverError, match="same loss"):
        linear_in_cone(np.zeros(4), cone, 1.0)
    with pytest.raises(InputError, match="norm"):
        linear_in_cone(np.ones(4), cone, 0.0)


# As the question of a class


def slope_of(model: caf.Model, feeds: dict[str, NDArray[np.float32]], at: str, target: int) -> Array:
    """Of the contrast of three outputs, by forward runs of onnxruntime: the tail is affine."""
    cut = caf.cut(model, at)
    recorded = {**feeds, **caf.run(cut.head, feeds)}
    tail = {i.name: recorded[i.name] for i in cut.tail.inputs}
    cells = tail[at].shape[2] * tail[at].shape[3]

    def contrast(f: Array) -> float:
        shape = (1, 1, *tail[at].shape[2:])
        (z,) = caf.run(cut.tail, {**tail, at: tail[at] * f.reshape(shape).astype(np.float32)}).values()
        others = np.delete(z[0].astype(np.float64), target)
        return float(others.mean() - z[0, target])

    nothing = contrast(np.zeros(cells))
    return np.array([contrast(e) - nothing for e in np.eye(cells)])


@pytest.mark.parametrize(("graph", "target"), [(POOLED, 0), (POOLED, 2), (SPREAD, 1)])
def test_a_class_is_asked_about_over_smooth_filters_where_nothing_is_named(graph: str, target: int) -> None:
    model, feeds = weighted(graph), feeds_of(graph, 1)
    found = caf.attend(model, feeds, at="s", target=target)
    rows, columns = found.filter.shape[1:]
    g = slope_of(model, feeds, "s", target)
    expected = linear_in_cone(g, Cone.of(gaussians(rows, columns)), float(np.linalg.norm(found.filter)))
    np.testing.assert_allclose(found.filter[0].ravel(), expected.filter, atol=2e-4 * expected.filter.max())
    assert found.certificate is not None
    assert (found.solver, found.basis, found.certificate.kind, found.proof.ok) == ("exact", "smooth", "global", True)
    named = caf.attend(
        model, feeds, at="s", target=target, objective="contrast", constraint="l2-nonneg", radius=0.42, basis="smooth"
    )
    np.testing.assert_array_equal(named.filter, found.filter)
    free = caf.attend(model, feeds, at="s", target=target, basis="full")
    p = np.maximum(-g, 0)
    expected_free = p * np.linalg.norm(free.filter) / np.linalg.norm(p)
    np.testing.assert_allclose(free.filter[0].ravel(), expected_free, atol=2e-4 * expected_free.max())
    assert free.loss[0] < found.loss[0]  # of more filters the best is better
    assert caf.attend(model, feeds, at="s").basis is None  # of all outputs, free in every cell


def test_along_a_line_nothing_is_smoothed() -> None:
    model = weighted("""g (float[N,2,11] x) => (float[N,4] y) <float[6,2,3] w, float[6,4] v> {
      c = Conv (x, w)  s = Relu (c)  p = GlobalAveragePool (s)  f = Flatten (p)  y = Gemm (f, v) }""")
    feeds = {"x": normal(1, 2, 11)}
    found = caf.attend(model, feeds, at="s", target=2)
    free = caf.attend(model, feeds, at="s", target=2, basis="full")
    assert (found.solver, found.basis, found.filter.shape) == ("exact", None, (1, 9))
    np.testing.assert_array_equal(found.filter, free.filter)
    smooth = caf.attend(
        model, feeds, at="s", target=2, basis="smooth", objective="contrast", constraint="l2-nonneg", radius=0.42
    )
    assert (smooth.solver, smooth.basis) == ("exact", "smooth")
    assert smooth.loss[0] > found.loss[0]


def test_a_batch_gives_what_singles_give() -> None:
    model, feeds = weighted(POOLED), feeds_of(POOLED, 3)
    found = caf.attend(model, feeds, at="s", target=[0, 1, 2])
    for n in range(3):
        alone = caf.attend(model, {k: v[n : n + 1] for k, v in feeds.items()}, at="s", target=n)
        np.testing.assert_allclose(found.filter[n], alone.filter[0], atol=1e-5)


@pytest.mark.parametrize("graph", [POOLED, SPREAD], ids=["pooled", "spread"])
@pytest.mark.parametrize("basis", ["smooth", "3", "2>3", "smooth:0.3"])
def test_a_basis_has_a_closed_form_where_descent_ends(graph: str, basis: str) -> None:
    model, feeds = weighted(graph), feeds_of(graph, 2)
    asked: dict[str, Any] = {"at": "s", "target": 1, "constraint": "l2-nonneg", "basis": basis}
    found = caf.attend(model, feeds, **asked)
    descended = caf.attend(model, feeds, **asked, solver="lbfgs")
    assert (found.solver, found.basis, descended.certificate) == ("exact", basis, None)
    assert found.certificate is not None
    assert found.certificate.kinds == ("global", "global")
    assert (found.loss <= descended.loss + 1e-5).all()
    np.testing.assert_allclose(found.loss, descended.loss, rtol=0.02, atol=1e-4)


def test_what_has_no_closed_form_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = weighted(POOLED), feeds_of(POOLED, 1)
    nonnegative: dict[str, Any] = {"at": "s", "target": 1, "constraint": "l2-nonneg"}
    assert caf.attend(model, feeds, **nonnegative, basis="2+smooth").solver == "lbfgs"  # an average
    assert caf.attend(model, feeds, at="s", target=1, basis="smooth", constraint="l2").solver == "lbfgs"
    assert caf.attend(model, feeds, at="s", basis="smooth", constraint="l2-nonneg").solver == "lbfgs"
    with pytest.raises(SolverError, match="that basis"):
        caf.attend(model, feeds, **nonnegative, basis="2+smooth", solver="exact")
    monkeypatch.setattr(closed_form, "BUMPS", 8)
    monkeypatch.setattr(solving, "BUMPS", 8)
    assert caf.attend(model, feeds, **nonnegative, basis="smooth").solver == "lbfgs"
    large = caf.attend(model, feeds, at="s", target=2)
    np.testing.assert_array_equal(large.filter, caf.attend(model, feeds, at="s", target=2, basis="full").filter)
    assert (large.solver, large.basis) == ("exact", None)
    bent = caf.attend(weighted(BENT), feeds_of(BENT, 1), at="s", target=1)
    assert (bent.solver, bent.basis) == ("slope", None)


# Least squares about the filter 1


@pytest.mark.parametrize(("outputs", "cells"), [(1, 4), (20, 9), (9, 20), (5, 300)])
@pytest.mark.parametrize("even", [True, False])
def test_a_change_of_outputs_is_the_same_by_its_gram_matrix(outputs: int, cells: int, even: bool) -> None:
    j = normal(outputs, cells)
    weights = np.full(outputs, 1 / outputs) if even else np.linspace(0.1, 1, outputs)
    whole = j.astype(np.float64)
    one = LeastSquares.from_change(j, weights)
    other = LeastSquares.from_jacobian(whole, whole.sum(1), weights)
    f = np.abs(normal(cells, seed=1)).astype(np.float64)
    expected = float(weights @ (whole @ (f - 1)) ** 2)
    assert one.loss(f) == pytest.approx(expected, rel=1e-10)
    assert one.loss(np.ones(cells)) == pytest.approx(0, abs=1e-20 * expected)
    np.testing.assert_allclose(one.q, other.q, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.times(f), other.times(f), rtol=1e-9, atol=1e-10)
    a, b = least_squares_on_sphere(one, 1.0), least_squares_on_sphere(other, 1.0)
    assert a.kind == "global"
    assert a.loss == pytest.approx(b.loss, rel=1e-9)


def test_a_change_with_numbers_that_cannot_be_is_refused() -> None:
    with pytest.raises(SolverError, match="NaN"):
        LeastSquares.from_change(np.full((2, 3), np.inf), np.ones(2))
    with pytest.raises(InputError, match="negative"):
        LeastSquares.from_change(np.ones((2, 3)), -np.ones(2))
