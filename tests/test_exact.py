"""The exact solver against dense search, constructed optima and brute force; every certificate recomputed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.solvers.exact import (
    Answer,
    LeastSquares,
    least_squares_nonneg,
    least_squares_on_sphere,
    linear_nonneg,
    linear_on_sphere,
    linear_softmax,
)

Array = NDArray[np.float64]
Quadratic = tuple[Array, Array, float]  # G, q, c


def quadratic(gqc: Quadratic, f: Array) -> float:
    g, q, c = gqc
    return float(f @ g @ f - 2 * q @ f + c)


def unit(gqc: Quadratic, r: float) -> float:
    """The loss moves between about plus and minus that."""
    return float(np.linalg.norm(gqc[0], 2)) * r * r + 2 * float(np.linalg.norm(gqc[1])) * r


def dense(cells: int, rank: int, seed: int, *, centre: float = 0.0) -> Quadratic:
    rng = np.random.default_rng(seed)
    j = rng.standard_normal((rank, cells)) + centre
    d = j @ rng.standard_normal(cells) + rng.standard_normal(rank)
    return j.T @ j, j.T @ d, float(d @ d)


def circle(cells: int, r: float) -> Array:
    """Points (K, cells) all over the sphere in 2-D or 3-D."""
    if cells == 2:
        angles = np.linspace(0, 2 * math.pi, 100_001)
        return r * np.stack([np.cos(angles), np.sin(angles)], 1)
    k = np.arange(200_000) + 0.5
    z, a = 1 - 2 * k / k.size, math.pi * (1 + 5**0.5) * k
    s = np.sqrt(1 - z * z)
    return r * np.stack([s * np.cos(a), s * np.sin(a), z], 1)


def values(gqc: Quadratic, f: Array) -> Array:
    g, q, c = gqc
    return np.asarray(((f @ g) * f).sum(1) - 2 * f @ q + c)


def check_sphere(gqc: Quadratic, r: float, a: Answer, *, tol: float = 1e-9) -> None:
    """Each condition of global optimality, from its definition: the answer's word is taken for nothing."""
    g, q, _ = gqc
    top = np.linalg.norm(g, 2)
    assert a.kind == "global"
    assert np.linalg.norm(a.filter) == pytest.approx(r, rel=1e-12)
    assert a.loss == pytest.approx(quadratic(gqc, a.filter), rel=1e-10, abs=1e-11 * unit(gqc, r))
    s = g @ a.filter + a.multiplier * a.filter - q
    size = np.linalg.norm(q) if np.linalg.norm(q) > 1e-13 * top * r else top * r
    assert np.linalg.norm(s) <= tol * size + 1e-14 * top * r
    assert abs(a.residual - np.linalg.norm(s) / size) <= 1e-11 + 1e-14 * top * r / size
    assert a.multiplier + np.linalg.eigvalsh(g)[0] >= -1e-12 * top
    assert 0 <= a.gap <= 1e-9 * unit(gqc, r)
    assert a.reason.endswith(".")


def check_nonneg(gqc: Quadratic, r: float, a: Answer, *, tol: float = 1e-6) -> None:
    g, q, _ = gqc
    top = np.linalg.norm(g, 2)
    size = np.linalg.norm(q) if np.linalg.norm(q) > 1e-13 * top * r else top * r
    f = a.filter
    assert (f >= 0).all()
    assert np.linalg.norm(f) == pytest.approx(r, rel=1e-12)
    assert a.loss == pytest.approx(quadratic(gqc, f), rel=1e-10, abs=1e-11 * unit(gqc, r))
    assert a.gap >= 0
    s = g @ f + a.multiplier * f - q
    worst = max(float(np.linalg.norm(np.minimum(s, 0))), float(np.linalg.norm(s[f > 0])), abs(float(s @ f)) / r)
    assert abs(a.residual - worst / size) <= 1e-10 + 1e-14 * top * r / size
    if a.kind == "global":
        assert worst <= tol * size
        assert a.multiplier + np.linalg.eigvalsh(g)[0] >= -1e-10 * top
        assert a.gap <= 2e-9 * unit(gqc, r)
    else:
        assert a.kind == "gap"


def stationary(gqc: Quadratic, r: float) -> list[Array]:
    """All f with (G + mu I) f = q and norm r, by the quadratic eigenproblem (G + mu I)^2 y = q q'y / r^2."""
    g, q, _ = gqc
    n = q.size
    if not q.any():
        vectors = np.linalg.eigh(g)[1].T * r
        return [*vectors, *-vectors]
    pencil = np.block([[-g, np.eye(n)], [np.outer(q, q) / r**2, -g]])
    found = []
    eigenvalues, vectors = np.linalg.eigh(g)
    for k, v in enumerate(vectors.T):
        if abs(v @ q) < 1e-10 * np.linalg.norm(q):  # mu = -lambda_k leaves f free along v
            f = np.linalg.pinv(g - eigenvalues[k] * np.eye(n), rcond=1e-10) @ q
            if f @ f <= r * r:
                found += [f + sign * math.sqrt(r * r - f @ f) * v for sign in (1, -1)]
    for mu in np.linalg.eigvals(pencil):
        if abs(mu.imag) < 1e-6 * (1 + abs(mu)):
            try:
                f = np.linalg.solve(g + mu.real * np.eye(n), q)
            except np.linalg.LinAlgError:
                continue
            if abs(np.linalg.norm(f) - r) < 1e-3 * r:
                found.append(f * r / np.linalg.norm(f))
    return found


def brute_nonneg(gqc: Quadratic, r: float) -> float:
    """The least loss over f >= 0, ||f|| = r: every stationary point of every set of positive cells."""
    g, q, c = gqc
    best = math.inf
    for k in range(1, q.size + 1):
        for cells in itertools.combinations(range(q.size), k):
            i = list(cells)
            part = (g[np.ix_(i, i)], q[i], c)
            points = [np.array([r])] if k == 1 else stationary(part, r)
            best = min([best, *(quadratic(part, f) for f in points if (f >= 0).all())])
    return best


# ---- linear


def test_linear_on_sphere() -> None:
    g = np.random.default_rng(0).standard_normal(49)
    a = linear_on_sphere(g, 3.0, offset=2.0)
    np.testing.assert_allclose(a.filter, -3 * g / np.linalg.norm(g), rtol=1e-14)
    assert a.loss == pytest.approx(2 - 3 * np.linalg.norm(g), rel=1e-13)
    assert np.linalg.norm(g + a.multiplier * a.filter) <= 1e-14 * np.linalg.norm(g)
    assert (a.kind, a.residual <= 1e-14, a.gap <= 1e-12) == ("global", True, True)


@pytest.mark.parametrize("cells", [2, 3])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_linear_nonneg_against_dense_search(cells: int, shift: float) -> None:
    points = np.abs(circle(cells, 2.0))
    for seed in range(5):
        g = np.random.default_rng(seed).standard_normal(cells) + shift
        a = linear_nonneg(g, 2.0, offset=1.0)
        searched = float((points @ g).min()) + 1
        assert (a.filter >= 0).all()
        assert np.linalg.norm(a.filter) == pytest.approx(2.0, rel=1e-14)
        assert a.loss == pytest.approx(1 + g @ a.filter, rel=1e-13)
        # near a corner of f >= 0 the points miss the minimum by their distance, about 0.01 in 3-D
        assert searched - 0.03 * np.linalg.norm(g) <= a.loss <= searched + 1e-12
        s = g + a.multiplier * a.filter
        assert max(-s.min(), abs(s @ a.filter)) <= 1e-12
        assert (a.kind, a.residual <= 1e-13, a.gap <= 1e-12) == ("global", True, True)


def test_linear_nonneg_where_no_cell_helps() -> None:
    a = linear_nonneg([3.0, 1.0, 2.0, 1.0], 2.0)
    assert a.filter.tolist() == [0, 2, 0, 0]
    assert a.loss == 2
    assert "1 others" in a.reason
    assert linear_nonneg([0.0, 1.0], 2.0).loss == 0


def test_linear_softmax_is_an_infimum() -> None:
    g = np.random.default_rng(1).standard_normal(6)
    a = linear_softmax(g, 4.0, offset=1.0)
    assert a.filter.tolist() == [4.0 if i == g.argmin() else 0.0 for i in range(6)]
    assert a.loss == pytest.approx(1 + 4 * g.min(), rel=1e-14)
    assert math.isnan(a.multiplier)
    assert "attain" in a.reason
    sharp = np.exp(50 * (g.min() - g))
    assert 1 + 4 * g @ (sharp / sharp.sum()) >= a.loss
    assert linear_softmax([1.0, 1.0], 1.0).filter.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("solve", [linear_on_sphere, linear_nonneg, linear_softmax])
def test_linear_refusals(solve: Callable[..., Answer]) -> None:
    with pytest.raises(SolverError, match="does not depend on S1"):
        solve(np.zeros(4), 1.0)
    with pytest.raises(SolverError, match="NaN"):
        solve(np.array([1.0, np.nan]), 1.0)
    with pytest.raises(InputError):
        solve(np.ones(4), 0.0)
    with pytest.raises(InputError):
        solve(np.ones((2, 2)), 1.0)
    a, b = solve(np.array([1.0, -2.0, 3.0]) * 1e-160, 1.0), solve(np.array([1.0, -2.0, 3.0]), 1.0)
    np.testing.assert_allclose(a.filter, b.filter, rtol=1e-14, atol=0)
    assert a.residual <= 1e-14


# ---- least squares on the sphere


@pytest.mark.parametrize("cells", [2, 3])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_on_sphere_against_dense_search(cells: int, rank: int, r: float) -> None:
    points = circle(cells, r)
    for seed in range(5):
        gqc = dense(cells, rank, seed)
        a = least_squares_on_sphere(LeastSquares.from_gram(*gqc), r)
        check_sphere(gqc, r, a)
        searched = values(gqc, points).min()
        assert searched - 1e-4 * unit(gqc, r) <= a.loss <= searched + 1e-12 * unit(gqc, r)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 10**6), st.floats(-6, 3), st.floats(-2, 2))
def test_on_sphere_finds_the_constructed_minimum(cells: int, seed: int, shift: float, size: float) -> None:
    """From G, f and mu > -lambda_min comes q = (G + mu I) f, whose only minimiser is that f."""
    rng = np.random.default_rng(seed)
    j = rng.standard_normal((cells + 3, cells))
    g = j.T @ j
    f = rng.standard_normal(cells) * 10.0**size
    mu = -np.linalg.eigvalsh(g)[0] + 10.0**shift * np.linalg.norm(g, 2)
    q, r = g @ f + mu * f, float(np.linalg.norm(f))
    gqc = (g, q, 0.0)
    a = least_squares_on_sphere(LeastSquares.from_gram(*gqc), r)
    check_sphere(gqc, r, a)
    np.testing.assert_allclose(a.filter, f, rtol=0, atol=1e-7 * r)
    assert a.multiplier == pytest.approx(mu, rel=1e-7, abs=1e-9 * float(np.linalg.norm(g, 2)))


def with_values(eigenvalues: list[float], seed: int = 0) -> tuple[Array, Array]:
    """G of these eigenvalues, and its eigenvectors."""
    v = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))[0]
    return (v * eigenvalues) @ v.T, v


@pytest.mark.parametrize("eigenvalues", [[1, 2, 3, 4], [0, 0, 2, 5], [1, 1, 1, 7], [2, 2, 2, 2], [-1, 0, 1, 2]])
@pytest.mark.parametrize("part", [0.0, 1e-15, 1e-10, 1e-6, 1e-2])
@pytest.mark.parametrize("r", [0.1, 5.0])
def test_hard_and_nearly_hard(eigenvalues: list[float], part: float, r: float) -> None:
    g, v = with_values(eigenvalues)
    q = v @ np.where(np.array(eigenvalues) == min(eigenvalues), part, 1.0)
    gqc = (g, q, 3.0)
    if not part and len(set(eigenvalues)) == 1:
        q = np.zeros(4)
        gqc = (g, q, 3.0)
    a = least_squares_on_sphere(LeastSquares.from_gram(*gqc), r)
    check_sphere(gqc, r, a)
    if (
        part <= 1e-15 and r == 5 and (len(set(eigenvalues)) > 1 or not part)
    ):  # longer than all the rest of f at mu = -lambda_min
        assert a.multiplier == pytest.approx(-min(eigenvalues), abs=1e-12)
        assert "hard case" in a.reason
        lowest = v[:, np.array(eigenvalues) == min(eigenvalues)]
        assert (lowest @ (lowest.T @ a.filter)).sum() >= -1e-12  # of two signs the one with the larger sum


def test_hard_case_does_not_depend_on_the_basis() -> None:
    """Among the lowest eigenvectors the flattest is taken, whatever basis LAPACK gives of them."""
    v = np.linalg.qr(np.random.default_rng(7).standard_normal((6, 6)))[0]
    found = []
    for seed in range(4):
        turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
        w = np.hstack([v[:, :3] @ turn, v[:, 3:]])
        problem = LeastSquares.from_gram((w * np.array([0.0, 0, 0, 1, 2, 3])) @ w.T, v[:, 3], 1.0)
        found.append(least_squares_on_sphere(problem, 4.0).filter)
    for f in found[1:]:
        np.testing.assert_allclose(f, found[0], rtol=0, atol=1e-10)
    rest = v[:, :3] @ (v[:, :3].T @ np.ones(6))
    np.testing.assert_allclose(found[0], v[:, 3] + 15**0.5 * rest / np.linalg.norm(rest), rtol=0, atol=1e-10)


def test_lowest_eigenvector_of_sum_zero() -> None:
    v = np.array([1, -1, 0, 0]) / math.sqrt(2)
    g = np.eye(4) - np.outer(v, v)
    a = least_squares_on_sphere(LeastSquares.from_gram(g, np.zeros(4), 0.0), 2.0)
    np.testing.assert_allclose(np.abs(a.filter), 2 * np.abs(v), rtol=0, atol=1e-12)
    assert a.loss == pytest.approx(0, abs=1e-14)


def test_no_curvature_and_nothing_at_all() -> None:
    q = np.array([3.0, 4.0])
    a = least_squares_on_sphere(LeastSquares.from_gram(np.zeros((2, 2)), q, 1.0), 2.0)
    check_sphere((np.zeros((2, 2)), q, 1.0), 2.0, a)
    np.testing.assert_allclose(a.filter, [1.2, 1.6], rtol=1e-14)
    for solve in (least_squares_on_sphere, least_squares_nonneg):
        for problem in (
            LeastSquares.from_gram(np.zeros((3, 3)), np.zeros(3), 1.0),
            LeastSquares.from_jacobian(np.zeros((2, 3)), np.ones(2), np.ones(2)),
            LeastSquares.from_jacobian(np.zeros((5, 3)), np.ones(5), np.ones(5)),
            LeastSquares.matrix_free(lambda f: np.zeros(4), lambda z: np.zeros(3), np.ones(4), 3),
        ):
            with pytest.raises(SolverError, match="does not depend on S1"):
                solve(problem, 1.0)


@pytest.mark.parametrize("solve", [least_squares_on_sphere, least_squares_nonneg])
@pytest.mark.parametrize("scale", [1e-8, 1e8, 1e-100, 1e100])
@pytest.mark.parametrize("r", [0.2, 1.5, 7.0])
def test_scale_changes_nothing(solve: Callable[..., Answer], scale: float, r: float) -> None:
    for seed, rank in ((0, 12), (1, 12), (2, 4)):
        g, q, c = dense(9, rank, seed, centre=0.5)
        a = solve(LeastSquares.from_gram(g, q, c), r)
        b = solve(LeastSquares.from_gram(scale * g, scale * q, scale * c), r)
        assert a.kind == b.kind
        assert b.loss == pytest.approx(scale * a.loss, rel=1e-7, abs=1e-10 * scale * unit((g, q, c), r))
        if solve is least_squares_on_sphere:
            np.testing.assert_allclose(b.filter, a.filter, rtol=0, atol=1e-7 * r)
            assert b.multiplier == pytest.approx(scale * a.multiplier, rel=1e-8, abs=1e-10 * scale)


def test_gram_in_float32_with_rounding_below_zero() -> None:
    rng = np.random.default_rng(3)
    j = rng.standard_normal((10, 49)).astype(np.float32)
    g, q = (j.T @ j).astype(np.float64), (j.T @ (j @ np.ones(49, np.float32))).astype(np.float64)
    assert np.linalg.eigvalsh(g)[0] < 0
    for r in (1.0, 3.5, 20.0):
        a = least_squares_on_sphere(LeastSquares.from_gram(g, q, float(q.sum())), r)
        check_sphere((g, q, float(q.sum())), r, a)
        check_nonneg((g, q, float(q.sum())), r, least_squares_nonneg(LeastSquares.from_gram(g, q, float(q.sum())), r))


@pytest.mark.parametrize(
    ("outputs", "cells"),
    [(1, 2), (1, 49), (10, 49), (48, 49), (49, 49), (200, 49), (1, 300), (40, 300), (299, 300), (30, 5000)],
)
@pytest.mark.parametrize("rho", [0.1, 0.6, 1.5])
@pytest.mark.parametrize("solve", [least_squares_on_sphere, least_squares_nonneg])
def test_forms_agree(outputs: int, cells: int, rho: float, solve: Callable[..., Answer]) -> None:
    """J of either shape, G, and two functions; above 4,096 cells no matrix of cells x cells exists to compare with."""
    rng = np.random.default_rng(outputs)
    j = rng.standard_normal((outputs, cells)) * np.maximum(rng.standard_normal(cells), 0.05)
    d, w = j @ np.ones(cells), np.full(outputs, 1 / outputs)
    b, t = j * np.sqrt(w)[:, None], d * np.sqrt(w)
    r = rho * math.sqrt(cells)
    a = solve(LeastSquares.from_jacobian(j, d, w), r)
    off = b @ a.filter - t
    open_to_all = solve is least_squares_nonneg and rho > 1  # then a gap may remain
    assert a.kind == "global" or open_to_all
    assert a.loss == pytest.approx(float(off @ off), rel=1e-10, abs=1e-20)
    free = solve(LeastSquares.matrix_free(lambda f: b @ f, lambda z: b.T @ z, t, cells), r)
    scale = float(np.linalg.norm(b, 2)) ** 2 * r * r
    assert free.kind == "gap" or abs(free.loss - a.loss) <= 1e-9 * scale
    assert free.loss - free.gap <= a.loss + 1e-12 * scale
    if free.multiplier >= 0 and solve is least_squares_on_sphere:
        assert free.kind == "global"
        np.testing.assert_allclose(free.filter, a.filter, rtol=0, atol=1e-7 * r)
    if cells < 4096:
        gqc = (b.T @ b, b.T @ t, float(t @ t))
        other = solve(LeastSquares.from_gram(*gqc), r)
        assert abs(other.loss - a.loss) <= 1e-9 * scale + (a.gap if open_to_all else 0)
        (check_sphere if solve is least_squares_on_sphere else check_nonneg)(gqc, r, a)
        if solve is least_squares_on_sphere:
            np.testing.assert_allclose(other.filter, a.filter, rtol=0, atol=1e-6 * r)


def test_neither_square_is_formed_where_both_sides_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2caf_onnx.solvers.quadratic.LARGEST_SIDE", 20)
    rng = np.random.default_rng(0)
    j = rng.standard_normal((40, 60))
    d, w = j @ np.ones(60), np.full(40, 1 / 40)
    problem = LeastSquares.from_jacobian(j, d, w)
    assert (problem.gram, problem.rows) == (None, None)
    check_sphere((j.T @ j / 40, j.T @ d / 40, float(d @ d) / 40), 3.0, least_squares_on_sphere(problem, 3.0))


def test_products_in_float32_are_certified_to_their_noise() -> None:
    rng = np.random.default_rng(0)
    j = rng.standard_normal((300, 80)).astype(np.float32)
    t = j @ np.ones(80, np.float32)
    problem = LeastSquares.matrix_free(lambda f: j @ f.astype(np.float32), lambda z: j.T @ z.astype(np.float32), t, 80)
    whole = j.astype(np.float64)
    gqc = (whole.T @ whole, whole.T @ t, float(t.astype(np.float64) @ t.astype(np.float64)))
    a, b = least_squares_on_sphere(problem, 4.0), least_squares_on_sphere(LeastSquares.from_gram(*gqc), 4.0)
    assert a.kind == "global"
    assert 1e-10 < a.residual < 1e-5
    np.testing.assert_allclose(a.filter, b.filter, rtol=0, atol=1e-4)


def test_beyond_the_free_minimum_two_functions_certify_a_gap_only() -> None:
    gqc = dense(30, 50, 0)
    j = np.linalg.cholesky(gqc[0]).T
    t = np.linalg.solve(j.T, gqc[1])
    a = least_squares_on_sphere(LeastSquares.matrix_free(lambda f: j @ f, lambda z: j.T @ z, t, 30), 50.0)
    exact = least_squares_on_sphere(LeastSquares.from_gram(gqc[0], gqc[1], float(t @ t)), 50.0)
    assert exact.multiplier < 0
    assert (a.kind, exact.kind) == ("gap", "global")
    assert exact.loss - 1e-9 <= a.loss
    assert a.loss - a.gap <= exact.loss


@pytest.mark.parametrize("cells", [7, 40, 300])
def test_dead_cells_are_the_hard_case(cells: int) -> None:
    """One active cell, all others without activation: where r is longer than it wants, they take the rest."""
    j = np.zeros((10, cells))
    j[:, 3] = np.arange(1, 11)
    d, w = j[:, 3] * 1.0, np.full(10, 0.1)
    for problem in (
        LeastSquares.from_jacobian(j, d, w),
        LeastSquares.matrix_free(lambda f: j @ f / 10**0.5, lambda z: j.T @ z / 10**0.5, d / 10**0.5, cells),
    ):
        for solve in (least_squares_on_sphere, least_squares_nonneg):
            a = solve(problem, 2.0)
            assert a.kind == "global"
            assert a.loss == pytest.approx(0, abs=1e-20)
            assert a.filter[3] == pytest.approx(1, rel=1e-10)
            np.testing.assert_allclose(np.delete(a.filter, 3), math.sqrt(3 / (cells - 1)), rtol=1e-9)
            short = solve(problem, 0.5)
            np.testing.assert_allclose(short.filter, 0.5 * np.eye(cells)[3], rtol=0, atol=1e-12)


# ---- f >= 0


@pytest.mark.parametrize("cells", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("r", [0.3, 2.0, 8.0])
def test_nonneg_against_brute_force(cells: int, rank: int, r: float) -> None:
    """ "global" is the optimum, and "gap" bounds what is missing to it."""
    for seed in range(6):
        gqc = dense(cells, rank, 100 * rank + seed)
        a = least_squares_nonneg(LeastSquares.from_gram(*gqc), r, seed=seed)
        check_nonneg(gqc, r, a)
        best = brute_nonneg(gqc, r)
        rounding = 1e-9 * unit(gqc, r)
        assert a.loss - a.gap <= best + rounding
        if a.kind == "global":
            assert a.loss <= best + rounding


def test_brute_force_meets_dense_search() -> None:
    for cells in (2, 3):
        for seed in range(5):
            gqc = dense(cells, 2, seed)
            searched = values(gqc, np.abs(circle(cells, 2.0))).min()
            assert searched - 0.02 * unit(gqc, 2.0) <= brute_nonneg(gqc, 2.0) <= searched + 1e-9


def test_both_kinds_occur_and_the_best_of_starts_is_nearly_always_the_optimum() -> None:
    kinds, missed = set(), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        g = with_values([0.0, 0.5, 3, 4, 5], seed)[0]
        gqc = (g, rng.standard_normal(5) - 0.5, 0.0)
        a = least_squares_nonneg(LeastSquares.from_gram(*gqc), 2.0)
        best = brute_nonneg(gqc, 2.0)
        check_nonneg(gqc, 2.0, a)
        assert best - 1e-9 <= a.loss
        assert a.loss - a.gap <= best + 1e-9
        kinds.add(a.kind)
        missed += a.loss > best + 1e-7
        if a.kind == "gap":
            assert a.residual <= 1e-6  # a local minimum, at least stationary
            assert "open" in a.reason
    assert kinds == {"global", "gap"}
    assert missed <= 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 60), st.integers(0, 10**6), st.floats(-4, 2))
def test_nonneg_finds_the_constructed_minimum(cells: int, seed: int, shift: float) -> None:
    """From G, f >= 0, s >= 0 with f's = 0 and mu > -lambda_min comes q = (G + mu I) f - s."""
    rng = np.random.default_rng(seed)
    j = rng.standard_normal((cells + 3, cells))
    g = j.T @ j
    on = rng.random(cells) < 0.6
    on[0] = True
    f = np.where(on, rng.random(cells) + 0.1, 0.0)
    top = float(np.linalg.norm(g, 2))
    s = np.where(on, 0.0, (rng.random(cells) + 0.01) * top * 0.1)
    mu = -np.linalg.eigvalsh(g)[0] + 10.0**shift * top
    gqc, r = (g, g @ f + mu * f - s, 0.0), float(np.linalg.norm(f))
    a = least_squares_nonneg(LeastSquares.from_gram(*gqc), r)
    check_nonneg(gqc, r, a)
    assert a.kind == "global"
    np.testing.assert_allclose(a.filter, f, rtol=0, atol=1e-8 * r)
    assert a.multiplier == pytest.approx(mu, rel=1e-8, abs=1e-9 * top)


def test_nonneg_with_nothing_to_gain() -> None:
    """q <= 0: each cell alone makes it worse, and the convex problem's minimum is f = 0."""
    gqc = (np.diag([3.0, 1.0, 2.0]), np.array([-1.0, -2.0, -0.1]), 5.0)
    a = least_squares_nonneg(LeastSquares.from_gram(*gqc), 1.0)
    check_nonneg(gqc, 1.0, a)
    assert a.loss == pytest.approx(brute_nonneg(gqc, 1.0), rel=1e-9)
    assert a.loss - a.gap <= brute_nonneg(gqc, 1.0) + 1e-12


def test_seeds_repeat() -> None:
    gqc = (with_values([0.0, 0.5, 3, 4, 5], 1)[0], np.random.default_rng(1).standard_normal(5) - 0.5, 0.0)
    one, two = (least_squares_nonneg(LeastSquares.from_gram(*gqc), 2.0, seed=3, starts=4) for _ in range(2))
    np.testing.assert_array_equal(one.filter, two.filter)


def test_mistakes_are_named() -> None:
    good = LeastSquares.from_gram(np.eye(2), np.ones(2), 1.0)
    for r in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="norm"):
            least_squares_on_sphere(good, r)
    with pytest.raises(InputError, match="fit"):
        LeastSquares.from_gram(np.eye(3), np.ones(2), 1.0)
    with pytest.raises(InputError, match="fit"):
        LeastSquares.from_jacobian(np.eye(3), np.ones(2), np.ones(3))
    with pytest.raises(InputError, match="negative"):
        LeastSquares.from_jacobian(np.eye(2), np.ones(2), -np.ones(2))
    with pytest.raises(InputError, match="transpose"):
        LeastSquares.matrix_free(lambda f: f, lambda z: z, np.ones(3), 2)
    with pytest.raises(SolverError, match="NaN"):
        LeastSquares.from_gram(np.full((2, 2), np.inf), np.ones(2), 0.0)
    bad = np.eye(2)
    bad[0, 0] = np.nan
    with pytest.raises(SolverError, match="NaN"):
        LeastSquares.from_jacobian(bad, np.ones(2), np.ones(2))
