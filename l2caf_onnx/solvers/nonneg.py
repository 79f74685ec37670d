"""Least squares with f >= 0: the convex problem over the ball, and local descent on the sphere where that is not tight.

With mu >= -lambda_min the function f'(G + mu I)f - 2q'f is convex and, on the sphere, the loss but for a constant; its
minimiser over f >= 0 is found by exchanging blocks of active cells (Júdice & Pires, 1994; Kim & Park, "Fast nonnegative
matrix factorization", 2011), and mu by Newton's iteration on the norm, as on the sphere. If the norm reaches r the
answer is global. Otherwise the problem is hard in general, and descent from several starts is what there is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .quadratic import LeastSquares
from .secular import EPS, Matrix, Vector, length

Mask = NDArray[np.bool_]

_FEW = 256
"""Weights that are exchanged by blocks."""

LEAST_SHIFT = 1e-11
"""How far above -lambda_min the multiplier is tried, as a share of the largest eigenvalue; below is the hard case."""


def _on_cells(problem: LeastSquares, cells: Mask, mu: float) -> tuple[Vector, Vector]:
    """x and y of (G + mu I) x = q and (G + mu I) y = x on these cells only, by the smaller side."""
    if problem.gram is not None:
        h = problem.gram[np.ix_(cells, cells)]
    else:
        assert problem.rows is not None
        assert problem.difference is not None
        b = problem.rows[:, cells]
        if b.shape[0] < b.shape[1]:  # (B'B + mu)^-1 B' = B' (B B' + mu)^-1
            k = b @ b.T
            k.flat[:: k.shape[0] + 1] += mu
            inverse = np.linalg.inv(k)
            z = inverse @ problem.difference
            return z @ b, (inverse @ z) @ b
        h = b.T @ b
    h.flat[:: h.shape[0] + 1] += mu
    inverse = np.linalg.inv(h)
    q = problem.q[cells]
    x = inverse @ q
    x += inverse @ (q - h @ x)  # near the hard case the inverse alone leaves a residual
    return x, inverse @ x


def _nonneg_quadratic(problem: LeastSquares, mu: float, passive: Mask, largest: float) -> tuple[Vector, Mask, float]:
    """The minimiser of f'(G + mu I)f - 2q'f over f >= 0, its positive cells, and -||f|| d||f||/dmu.

    Args:
        problem: G and q.
        mu: Above -lambda_min, so that the minimiser is unique.
        passive: (cells,) the cells taken for positive at first.
        largest: The largest eigenvalue, for what counts as rounding.
    """
    n = problem.cells
    passive = passive.copy()
    fewest, tries, slope = n + 1, 3, 0.0
    f = np.zeros(n)
    for _ in range(5 * n + 50):
        f = np.zeros(n)
        slope = 0.0
        if passive.any():
            x, y = _on_cells(problem, passive, mu)
            f[passive] = x
            slope = float(x @ y)
        s = problem.times(f) + mu * f - problem.q
        size = float(np.abs(f).max())
        rounding = 1e-13 * (float(np.abs(problem.q).max()) + (largest + abs(mu)) * size)
        wrong = np.where(passive, f < -1e-13 * size, s < -rounding)
        count = int(wrong.sum())
        if count == 0:
            break
        if count < fewest:
            fewest, tries = count, 3
        elif tries > 0:
            tries -= 1
        else:  # Murty: the last one alone, which cannot cycle
            wrong[: int(np.flatnonzero(wrong)[-1])] = False
        passive ^= wrong
    return np.maximum(f, 0.0), passive, slope


def weights(gram: Matrix, q: Vector) -> Vector:
    """The minimiser of w'Gw - 2q'w over w >= 0, G positive semidefinite, by exchanging the weights that are positive.

    Few are exchanged by blocks, in a handful of rounds. Of many whose columns of G are nearly sums of one another,
    blocks do not settle: they are let in one by one (Lawson & Hanson, "Solving Least Squares Problems", 1974, in the
    form of Bro & de Jong, "A fast non-negativity-constrained least squares algorithm", 1997), and so those that are in
    are apart.
    """
    rounding = 1e-13 * float(np.abs(q).max())
    found = _by_blocks(gram, q, rounding) if q.size <= _FEW else None
    return _one_by_one(gram, q, rounding) if found is None else found


def _by_blocks(gram: Matrix, q: Vector, rounding: float) -> Vector | None:
    """None: it did not settle."""
    positive = q > 0
    fewest = q.size + 1
    while True:
        w = np.zeros(q.size)
        try:
            w[positive] = np.linalg.solve(gram[positive][:, positive], q[positive])
        except np.linalg.LinAlgError:
            return None
        wrong = np.where(positive, w < 0, q - gram @ w > rounding)
        count = int(np.count_nonzero(wrong))
        if count == 0:
            return w
        if count >= fewest:
            return None
        fewest = count
        positive ^= wrong


def _one_by_one(gram: Matrix, q: Vector, rounding: float) -> Vector:
    positive = np.zeros(q.size, dtype=bool)
    w, pull = np.zeros(q.size), q.copy()
    for _ in range(3 * q.size):
        outside = np.where(positive, -np.inf, pull)
        entering = int(outside.argmax())
        if outside[entering] <= rounding:
            break
        positive[entering] = True
        while True:
            s = np.zeros(q.size)
            part = gram[positive][:, positive]
            try:
                s[positive] = np.linalg.solve(part, q[positive])
            except np.linalg.LinAlgError:  # more of them than cells
                s[positive] = np.linalg.lstsq(part, q[positive], rcond=None)[0]
            below = positive & (s <= 0)
            if not below.any():
                break
            step = float((w[below] / (w[below] - s[below]).clip(np.finfo(float).tiny)).min())
            w += min(step, 1.0) * (s - w)
            positive &= w > 1e-15 * float(w.max())
            w[~positive] = 0.0
        w = s
        pull = q - gram @ w
    return w


def over_ball(problem: LeastSquares, r: float, guess: float, passive: Mask) -> tuple[Vector, float]:
    """The minimiser over f >= 0, ||f|| <= r of the loss made convex, and its multiplier mu > -lambda_min.

    ||f|| is r up to rounding, or less, and then mu is as low as it may be: the ball's minimum is inside.

    Args:
        problem: As G or as rows.
        r: The radius.
        guess: A multiplier to start from, that of the sphere.
        passive: (cells,) the cells taken for positive at first.
    """
    lowest, largest = problem.extremes()
    q = problem.q
    least = LEAST_SHIFT * max(largest, EPS * length(q) / r)
    low, high = least, max(length(np.maximum(q, 0)) / r, 2 * least)  # ||f|| <= ||max(q, 0)|| / t
    t = min(max(guess + lowest, least), high)
    seen_low = False
    f = np.zeros(q.size)
    for _ in range(80):
        f, passive, slope = _nonneg_quadratic(problem, t - lowest, passive, largest)
        norm = length(f)
        if abs(norm - r) <= 1e-14 * r:
            break
        if norm > r:
            low, seen_low = t, True
        else:
            high = t
            if t <= least:
                break
        following = t + (norm - r) * norm * norm / (r * slope) if slope > 0 else 0.0
        if following <= low and not seen_low:
            following = least
        elif not low < following < high:
            following = math.sqrt(low * high)
        if abs(following - t) <= 2 * EPS * t:
            break
        t = following
    return f, t - lowest


def over_ball_by_gradients(problem: LeastSquares, r: float, steps: int = 3000) -> tuple[Vector, float]:
    """As `over_ball`, for two functions: accelerated projected gradients with restarts, and so not to the last digit.

    Nesterov's method as in Beck & Teboulle (FISTA, 2009), restarted where it turns back (O'Donoghue & Candès, 2015).
    """
    largest = 1.05 * problem.extremes()[1]
    f = ahead = np.zeros(problem.cells)
    momentum = 1.0
    for _ in range(steps):
        p = np.maximum(ahead - (problem.times(ahead) - problem.q) / largest, 0.0)
        p *= min(1.0, r / (length(p) or 1.0))
        step = p - f
        if length(step) <= max(1e-13, 0.1 * problem.noise()) * r:
            f = p
            break
        if float((ahead - p) @ step) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = p + (momentum - 1) / following * step
        f, momentum = p, following
    return f, max(0.0, float(problem.q @ f - f @ problem.times(f)) / (r * r))


def starts_on_sphere(problem: LeastSquares, r: float, relaxed: Vector, free: Vector, seed: int, count: int) -> Matrix:
    """Filters (K, cells) >= 0 of norm r to descend from: what is known of the problem, then `count` seeded ones.

    The relaxed minimiser itself and lengthened evenly, both signs of the free one, the even filter, the best single
    cell, then absolute values of normal numbers.
    """
    n = problem.cells
    rows = [relaxed, np.maximum(free, 0), np.maximum(-free, 0), np.ones(n)]
    a, b, c = float(n), float(relaxed.sum()), float(relaxed @ relaxed) - r * r
    if c < 0:
        rows.append(relaxed + (-b + math.sqrt(b * b - a * c)) / a)
    square = problem.gram.diagonal() if problem.gram is not None else None
    if problem.gram is None and problem.rows is not None:
        square = np.einsum("ij,ij->j", problem.rows, problem.rows)
    if square is not None:
        single = np.zeros(n)
        single[int(np.argmin(r * square - 2 * problem.q))] = 1.0
        rows.append(single)
    normal = np.random.default_rng(seed).standard_normal((count, n))
    f = np.concatenate([np.stack(rows), np.abs(normal)])
    norms = np.sqrt((f * f).sum(1))
    return np.asarray(f[norms > 0] * (r / norms[norms > 0])[:, None])


def descend(problem: LeastSquares, starts: Matrix, r: float, steps: int = 400) -> Matrix:
    """Go down on the sphere with f >= 0 from every row of `starts` at once; no row's loss rises.

    On the sphere the loss is at most the linear function whose slope is that of f'(G - lambda_max I)f - 2q'f at the
    present f, and that is minimised in closed form.
    """
    largest = 1.0001 * problem.extremes()[1]
    f = starts
    for _ in range(steps):
        p = np.maximum(largest * f - problem.times(f) + problem.q, 0.0)
        norms = np.sqrt((p * p).sum(1, keepdims=True))
        following = np.where(norms > 0, p * (r / np.where(norms > 0, norms, 1.0)), f)
        moved = float(np.abs(following - f).max())
        f = following
        if moved <= 1e-10 * r:
            break
    return f


def polish(problem: LeastSquares, f: Vector, r: float, most: int = 600) -> Vector:
    """Newton's iteration for f's conditions on its positive cells, projected; steps that do not help are not taken."""
    largest = problem.extremes()[1]
    rounding = 1e-14 * (largest * r * r + length(problem.q) * r)
    loss = _quadratic(problem, f)
    for _ in range(30):
        product = problem.times(f)
        mu = float(problem.q @ f - f @ product) / (r * r)
        s = product + mu * f - problem.q
        free = (f > 1e-12 * r) | (s < -1e-10 * (length(problem.q) + largest * r))
        count = int(free.sum())
        if length(s[free]) <= 1e-14 * (length(problem.q) + largest * r) or count > most:
            break
        border = np.zeros((count + 1, count + 1))
        border[:count, :count] = _block(problem, free) + mu * np.eye(count)
        border[:count, count] = border[count, :count] = f[free]
        step = np.zeros(f.size)
        step[free] = np.linalg.lstsq(border, np.append(-s[free], 0.0), rcond=1e-11)[0][:count]
        for share in (1.0, 0.5, 0.1, 0.01):
            tried = np.maximum(f + share * step, 0.0)
            tried[~free] = 0.0
            norm = length(tried)
            if norm == 0:
                continue
            tried *= r / norm
            value = _quadratic(problem, tried)
            if value <= loss + (rounding if share == 1.0 else 0.0):
                break
        else:
            break
        moved = float(np.abs(tried - f).max())
        f, loss = tried, value
        if moved <= 1e-15 * r:
            break
    return f


def _quadratic(problem: LeastSquares, f: Vector) -> float:
    return float(f @ problem.times(f) - 2 * (problem.q @ f))


def _block(problem: LeastSquares, cells: Mask) -> Matrix:
    if problem.gram is not None:
        return problem.gram[np.ix_(cells, cells)]
    assert problem.rows is not None
    b = problem.rows[:, cells]
    return np.asarray(b.T @ b)
