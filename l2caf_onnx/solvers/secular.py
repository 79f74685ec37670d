"""The scalar equation behind a quadratic on a sphere, and the three ways to a spectrum in which it is scalar.

In the eigenvectors of G the minimiser of f'Gf - 2q'f over ||f|| = r is x_i = b_i / (lambda_i + mu), and mu is the one
root of ||x(mu)|| = r that is >= -lambda_min (Gander, Golub & von Matt, "A constrained eigenvalue problem", 1989; Moré &
Sorensen, "Computing a trust region step", 1983; Hager, "Minimizing a quadratic over a sphere", 2001). The spectrum
comes from G itself, from the smaller side J J', or from a Krylov space where neither fits (Golub & von Matt,
"Quadratically constrained least squares and quadratic problems", 1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Operator = Callable[[Vector], Vector]

EPS = float(np.finfo(np.float64).eps)
HARD = 1e-12
"""The lowest eigenvectors' share of q that counts as rounding: below it the case is the hard one."""


def length(x: Vector) -> float:
    """||x||, at a third of the price of numpy's norm for short vectors."""
    return math.sqrt(float(x @ x))


def secular_root(gaps: Vector, b: Vector) -> float:
    """The t > 0 at which x_i = b_i / (gaps_i + t) has norm 1; gaps >= 0 with at least one b_i/gaps_i large enough.

    Newton's iteration on 1/||x||, which is concave and almost linear in t, so that from the left it never passes the
    root (Reinsch, "Smoothing by spline functions II", 1971); a bracket guards it against rounding.
    """
    low = max(float((np.abs(b) - gaps).max()), 1e-280)  # each term alone is at most 1
    high = max(length(b), low)  # ||x|| <= ||b|| / t
    t = low
    for _ in range(100):
        inverse = 1.0 / (gaps + t)
        x = b * inverse
        square = float(x @ x)
        norm = math.sqrt(square)
        if abs(norm - 1) <= 4 * EPS:
            break
        low, high = (t, high) if norm > 1 else (low, t)
        following = t + (norm - 1) * square / float((x * x) @ inverse)
        if not low < following < high:
            following = math.sqrt(low) * math.sqrt(high)
        if abs(following - t) <= EPS * t:
            break
        t = following
    return t


def on_sphere(gaps: Vector, b: Vector, r: float, scale: float) -> tuple[float, Vector, float]:
    """Minimise sum(gaps_i x_i^2 - 2 b_i x_i) where x and a part outside of its space have norm r together.

    Args:
        gaps: (k,) eigenvalues above the lowest one of the whole space, which may lie outside of these k.
        b: (k,) q in these eigenvectors.
        r: The norm.
        scale: The largest eigenvalue in absolute value; gaps of a few rounding errors of it are taken for none.

    Returns:
        t >= 0 with (gaps + t) x = b, x, and the length that is missing to r, to be given to any lowest eigenvectors:
        0 except in the hard case, where t = 0 and x is 0 along those of the lowest eigenvectors that it holds.
    """
    unit = max(float(gaps.max(initial=0.0)), length(b) / r)
    lowest = gaps <= 4 * gaps.size * EPS * scale
    if length(b[lowest]) <= HARD * length(b):
        x = np.where(lowest, 0.0, b / np.where(lowest, 1.0, gaps))
        missing = r * r - float(x @ x)
        if missing >= 0:
            return 0.0, x, math.sqrt(missing)
    t = secular_root(gaps / unit, b / (unit * r)) * unit
    return t, b / (gaps + t), 0.0


def flattest(project: Operator, cells: int, diagonal: Callable[[], Vector]) -> Vector:
    """The unit vector (cells,) of a subspace that has the largest sum, so that the choice depends on nothing else.

    `project` is the orthogonal projector onto the subspace. Where all of its vectors sum to 0, the one nearest to the
    axis that is nearest to the subspace, by `diagonal` of the projector.
    """
    start = np.full(cells, 1 / math.sqrt(cells))
    found = project(start)
    if length(found) < 1e-7:
        start = np.zeros(cells)
        start[int(np.argmax(np.round(diagonal(), 7)))] = 1.0
        found = project(start)
    norm = length(found)
    if norm == 0:  # there is no such subspace
        return found
    found = project(found / norm)
    return found / length(found)


@dataclass(frozen=True, slots=True)
class Sphere:
    """A filter (cells,) on the sphere, its multiplier, and whether the part outside of q's space was needed."""

    filter: Vector
    multiplier: float
    hard: bool


def from_spectrum(values: Vector, vectors: Matrix, q: Vector, r: float) -> Sphere:
    """The minimiser by the eigenvalues (cells,), ascending, and eigenvectors (cells, cells) of G."""
    scale = max(-float(values[0]), float(values[-1]))
    gaps = values - values[0]
    t, x, missing = on_sphere(gaps, vectors.T @ q, r, scale)
    f = vectors @ x
    if missing > 0:
        lowest = vectors[:, gaps <= 4 * gaps.size * EPS * scale]
        f += missing * flattest(lambda z: lowest @ (lowest.T @ z), q.size, lambda: (lowest * lowest).sum(1))
    return Sphere(f * (r / length(f)), t - float(values[0]), missing > 0)


def from_rows(values: Vector, vectors: Matrix, rows: Matrix, difference: Vector, r: float) -> Sphere:
    """The minimiser by the spectrum of the smaller side, rows rows' = U S U', of `rows` (M, cells) with M < cells.

    The eigenvectors of G = rows' rows are rows' u / sqrt(s), all others have the eigenvalue 0, and so mu >= 0. None of
    the former is formed: f = rows' U x / sqrt(s).
    """
    kept = values > 4 * values.size * EPS * max(float(values[-1]), 0.0)
    s, u = values[kept], vectors[:, kept]
    root = np.sqrt(s)
    t, x, missing = on_sphere(s, root * (u.T @ difference), r, float(s[-1]) if s.size else 0.0)
    f = rows.T @ (u @ (x / root))
    if missing > 0:
        f += missing * flattest(
            lambda z: z - rows.T @ (u @ ((u.T @ (rows @ z)) / s)),
            rows.shape[1],
            lambda: 1 - np.einsum("ij,ij->j", rows, (u / s) @ (u.T @ rows)),
        )
    return Sphere(f * (r / length(f)), t, missing > 0)


@dataclass(frozen=True, slots=True)
class Krylov:
    """V (k, cells), orthonormal rows, and the tridiagonal V G V' (k, k): G seen from one vector."""

    basis: Matrix
    projected: Matrix
    exhausted: bool  # the space is invariant: nothing more is to be found from that vector


def bidiagonalise(
    multiply: Operator,
    transpose: Operator,
    start: Vector,
    *,
    steps: int,
    rounding: float = 1e-14,
    enough: Callable[[Matrix, float], bool] | None = None,
) -> Krylov:
    """Golub & Kahan's bidiagonalisation of J from `start` (cells,), the right basis fully reorthogonalised.

    That side alone suffices, as Simon & Zha show ("Low-rank matrix approximation using the Lanczos bidiagonalization
    process", 2000). What is below `rounding` of the largest element ends it. `enough` sees the tridiagonal matrix and
    its next off-diagonal element, ever more rarely.
    """
    steps = max(1, min(steps, start.size, int(5e8 / (8 * start.size))))
    basis = np.empty((steps, start.size))
    alphas, betas = np.zeros(steps), np.zeros(steps)
    v = start / length(start)
    u = np.zeros(0)
    check, done = 8, 0
    exhausted = False
    for k in range(steps):
        basis[k] = v
        w = multiply(v)
        if k:
            w = w - betas[k - 1] * u
        alphas[k] = length(w)
        done = k + 1
        largest = float(alphas[:done].max())
        if alphas[k] <= rounding * largest or largest == 0:  # J v is 0: the last vector adds no output
            exhausted = True
            break
        u = w / alphas[k]
        v = transpose(u) - alphas[k] * v
        for _ in range(2):
            v = v - basis[:done].T @ (basis[:done] @ v)
        betas[k] = length(v)
        if betas[k] <= rounding * largest or done == start.size:
            exhausted = True
            break
        v = v / betas[k]
        if enough is not None and done >= check:
            check = done + max(8, done // 2)
            if enough(_tridiagonal(alphas[:done], betas[: done - 1]), float(alphas[k] * betas[k])):
                break
    return Krylov(basis[:done], _tridiagonal(alphas[:done], betas[: done - 1]), exhausted)


def _tridiagonal(alphas: Vector, betas: Vector) -> Matrix:
    upper = np.diag(alphas) + np.diag(betas, 1)
    return upper.T @ upper
