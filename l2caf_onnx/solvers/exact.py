"""The minimum over filters of norm r in closed form, for tails that are affine in the filter, with its certificate.

One function for each pair of objective (linear; least squares) and constraint (the sphere; its part f >= 0; softmax)
for which the optimum can be had without iterating on the tail. Each says what it certified (see `certificate`).
"""

from __future__ import annotations

import math

import numpy as np

from . import nonneg
from .certificate import Answer, certify_nonneg, certify_on_sphere, lower_bound, nonneg_residual, residual_unit
from .linear import Cone, check_radius, cone_of, linear_in_cone, linear_nonneg, linear_on_sphere, linear_softmax
from .quadratic import LeastSquares
from .secular import Matrix, Vector, flattest, from_rows, from_spectrum, length, on_sphere

__all__ = [
    "Answer",
    "Cone",
    "LeastSquares",
    "cone_of",
    "least_squares_nonneg",
    "least_squares_on_sphere",
    "linear_in_cone",
    "linear_nonneg",
    "linear_on_sphere",
    "linear_softmax",
]

KRYLOV_STEPS = 400


def least_squares_on_sphere(problem: LeastSquares, r: float) -> Answer:
    """Minimise f'Gf - 2q'f + c over ||f|| = r: (G + mu I) f = q with mu >= -lambda_min (see `secular`).

    Where q has no part along the lowest eigenvectors and the rest is shorter than r (the hard case; q = 0), a multiple
    of a lowest eigenvector is added: of all that are equally good the one with the largest sum.

    Raises:
        SolverError: G and q are zero.
        InputError: r is not a positive number.
    """
    check_radius(r)
    problem.refuse_constant()
    if problem.multiply is not None:
        return _by_krylov(problem, r)
    values, vectors = problem.spectrum()
    if problem.gram is not None:
        found = from_spectrum(values, vectors, problem.q, r)
    else:
        assert problem.rows is not None
        assert problem.difference is not None
        found = from_rows(values, vectors, problem.rows, problem.difference, r)
    reason = "The root of the secular equation at or above minus the lowest eigenvalue."
    if found.hard:
        reason = "The hard case: a lowest eigenvector completes the norm; others are equally good."
    return certify_on_sphere(problem, found.filter, found.multiplier, r, reason)


def least_squares_nonneg(problem: LeastSquares, r: float, *, seed: int = 0, starts: int = 8) -> Answer:
    """Minimise f'Gf - 2q'f + c over ||f|| = r, f >= 0.

    Global where the convex problem over the ball reaches the sphere, or where descent finds a filter at its minimum;
    otherwise the best of what is known and `starts` seeded descents, with the gap to the convex problem's minimum.

    Raises:
        SolverError: G and q are zero.
        InputError: r is not a positive number.
    """
    free = least_squares_on_sphere(problem, r)
    f = free.filter
    if free.kind == "global" and (f >= 0).all():
        return certify_nonneg(problem, f, free.multiplier, r, "The minimum on the whole sphere is nowhere negative.")
    if problem.multiply is None:
        relaxed, mu = nonneg.over_ball(problem, r, free.multiplier, f > 0)
    else:
        relaxed, mu = nonneg.over_ball_by_gradients(problem, r)
    norm = length(relaxed)
    if abs(norm - r) <= 1e-6 * r:
        reason = "The convex problem over the ball with f >= 0 has its minimum on the sphere."
        answer = certify_nonneg(problem, relaxed * (r / norm), mu, r, reason)
        if answer.kind == "global":
            return answer
    below = lower_bound(problem, relaxed, mu, r, nonnegative=True)
    found = nonneg.descend(problem, nonneg.starts_on_sphere(problem, r, relaxed, f, seed, starts), r)
    order = np.argsort([problem.loss(row) for row in found])
    best = found[order[0]]
    if problem.multiply is None:
        best = min((nonneg.polish(problem, found[k], r) for k in order[:3]), key=problem.loss)
    loss = problem.loss(best)
    lowest = problem.extremes()[0]
    reason = "The convex problem's minimum lies inside the ball and extends to the sphere at equal loss, with f >= 0."
    extended = certify_nonneg(problem, best, max(mu, -lowest), r, reason, below=below)
    if extended.kind == "global":
        return extended
    local = float(problem.q @ best - best @ problem.times(best)) / (r * r)
    return Answer(
        filter=best,
        loss=loss,
        kind="gap",
        multiplier=local,
        residual=nonneg_residual(problem, best, local, r)[0],
        gap=min(max(loss - below, 0.0), extended.gap),
        reason=f"The best of {len(found)} local descents with f >= 0: the convex problem's minimum lies inside the "
        "ball, so that whether a better filter of this norm exists is open; the gap bounds by how much.",
    )


def _by_krylov(problem: LeastSquares, r: float) -> Answer:
    """The sphere in the form of two functions: mu >= 0 is what can be certified, for G = J'J has no lower eigenvalue.

    Where mu >= 0 is not enough, which takes a filter of norm r beyond that of the free minimum, the null space of J
    completes it if there is one; if not, the best in the Krylov space is given with the gap to the free minimum.
    """
    q = problem.q
    size = length(q)
    inside, krylov = np.zeros(q.size), None
    if size > 0:

        def enough(projected: Matrix, following: float) -> bool:
            _, y, _ = _projected(projected, size, r)
            return abs(following * float(y[-1])) <= max(1e-12, problem.noise()) * size

        krylov = problem.krylov(q, KRYLOV_STEPS, enough)
        mu, y, missing = _projected(krylov.projected, size, r)
        inside = y @ krylov.basis
        if missing == 0:
            reason = f"The root of the secular equation in a Krylov space of {len(y)} dimensions, and mu >= 0."
            return certify_on_sphere(problem, inside * (r / length(inside)), mu, r, reason)
    below = lower_bound(problem, inside, 0.0, r, nonnegative=False)
    null = _null_vector(problem)
    null -= inside * (float(inside @ null) / (float(inside @ inside) or 1.0))
    missing = math.sqrt(max(r * r - float(inside @ inside), 0.0))
    f = inside + null * (missing / (length(null) or 1.0))
    reason = "The free minimum is shorter than r; a filter that the outputs do not see completes it (mu = 0)."
    answer = certify_on_sphere(problem, f * (r / length(f)), 0.0, r, reason, below=below)
    if answer.kind == "global":
        return answer
    if krylov is None:
        krylov = problem.krylov(np.random.default_rng(0).standard_normal(q.size), KRYLOV_STEPS)
    values, vectors = np.linalg.eigh(krylov.projected)
    b = vectors[0] * size if size > 0 else np.zeros(values.size)
    t, x, missing = on_sphere(values - values[0], b, r, float(values[-1]))
    x[0] += missing
    f = (vectors @ x) @ krylov.basis
    f *= r / length(f)
    mu = t - float(values[0])
    loss = problem.loss(f)
    if answer.loss < loss:
        return answer
    return Answer(
        filter=f,
        loss=loss,
        kind="gap",
        multiplier=mu,
        residual=length(problem.times(f) + mu * f - q) / residual_unit(problem, r),
        gap=max(0.0, loss - below),
        reason="The norm is beyond that of the free minimum, and the lowest eigenvalue, which decides then, is not "
        "known without a matrix: the best in a Krylov space, with the gap to the free minimum.",
    )


def _projected(projected: Matrix, size: float, r: float) -> tuple[float, Vector, float]:
    """mu >= 0, the filter in the Krylov space (k,), and the length that it lacks of r."""
    values, vectors = np.linalg.eigh(projected)
    t, x, missing = on_sphere(np.maximum(values, 0.0), vectors[0] * size, r, float(values[-1]))
    return t, vectors @ x, missing


def _null_vector(problem: LeastSquares) -> Vector:
    """A unit vector that J takes to zero, as nearly as Krylov spaces give one: what G's least squares leave of ones."""
    cutoff = max(1e-14, problem.noise())

    def project(z: Vector) -> Vector:
        seen = problem.times(z)
        size = length(seen)
        if size <= cutoff * problem.extremes()[1] * length(z):
            return z

        def enough(projected: Matrix, following: float) -> bool:
            y = np.linalg.lstsq(projected, size * np.eye(len(projected))[0], rcond=cutoff)[0]
            return abs(following * float(y[-1])) <= max(1e-13, problem.noise()) * size

        krylov = problem.krylov(seen, KRYLOV_STEPS, enough)
        y = np.linalg.lstsq(krylov.projected, size * np.eye(len(krylov.projected))[0], rcond=cutoff)[0]
        return np.asarray(z - y @ krylov.basis)

    return flattest(project, problem.cells, lambda: np.random.default_rng(0).random(problem.cells))
