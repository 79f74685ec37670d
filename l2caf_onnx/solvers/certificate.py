"""What is known of a minimiser: the answer's record, and the bounds that make it global or leave a gap.

For any f of norm r and any mu with H = G + mu I positive semidefinite, s = H f - q bounds what every other g of that
norm can gain: loss(f) - loss(g) = 2 s'(f - g) - (g - f)'H(g - f) <= 2 s'f + 2 r ||s||, and where f, g >= 0 the same
with ||min(s, 0)||. Nothing here trusts how f and mu were found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy import minimum

from .quadratic import LeastSquares
from .secular import EPS, Vector, length

CERTIFIED = 1e-9
"""A gap is closed if it is at most this share of lambda_max r^2 + ||q|| r, between which numbers the loss moves."""
STATIONARY = 1e-6
"""And the residual at most this: a gap goes with its square. Both widen to 30 times the noise of inexact products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample's minimiser.

    Attributes:
        filter: (cells,) float64.
        loss: At the filter.
        kind: "global": certified global optimum (or infimum); "gap": the best found, with a bound.
        multiplier: mu of (G + mu I) f = q, or of g + mu f = 0; nan where there is none (softmax). For a "gap" with
            f >= 0 it is the local one, (q'f - f'Gf) / r^2.
        residual: The worst of the first-order conditions: ||s|| with s = (G + mu I) f - q, or s = g + mu f; with
            f >= 0 ||min(s, 0)||, ||s|| over the cells f > 0, and |f's| / r. Divided by ||q|| (||g||), and by
            lambda_max r where q is no more than rounding, below 1e-13 of that.
        gap: Upper bound of the loss minus the optimum, in units of the loss; about 0 for "global".
        reason: Why this is the answer, and what could not be certified.
    """

    filter: Vector
    loss: float
    kind: str
    multiplier: float
    residual: float
    gap: float
    reason: str


def residual_unit(problem: LeastSquares, r: float) -> float:
    """What residuals are divided by: ||q||, or lambda_max r where q is rounding."""
    largest = problem.extremes()[1] * r
    norm = length(problem.q)
    return norm if norm > 1e-13 * largest else largest


def _closed(problem: LeastSquares, gap: float, residual: float, r: float) -> bool:
    largest = problem.extremes()[1] * r
    coarse = 30 * problem.noise()
    rounding = 100 * EPS * largest / residual_unit(problem, r)  # where q is tiny, products with G drown it
    scale = (largest + length(problem.q)) * r
    return gap <= max(CERTIFIED, coarse) * scale and residual <= max(STATIONARY, coarse, rounding)


def _floor(problem: LeastSquares) -> float:
    """A sum of squares is not below 0; of a quadratic given by its coefficients that is not known."""
    return -math.inf if problem.difference is None and problem.centre is None else 0.0


def certify_on_sphere(
    problem: LeastSquares, f: Vector, mu: float, r: float, reason: str, *, below: float = -math.inf
) -> Answer:
    """Certify f and mu >= -lambda_min by real products with G; `below` is any other lower bound of the loss."""
    s = problem.times(f) + mu * f - problem.q
    loss = problem.loss(f)
    residual = length(s) / residual_unit(problem, r)
    gap = min(max(0.0, 2 * float(f @ s) + 2 * r * length(s)), max(0.0, loss - max(below, _floor(problem))))
    kind = "global" if _closed(problem, gap, residual, r) else "gap"
    if kind == "gap":
        reason += " The certificate does not close: the residual or the gap is above its tolerance."
    return Answer(filter=f, loss=loss, kind=kind, multiplier=mu, residual=residual, gap=gap, reason=reason)


def nonneg_residual(problem: LeastSquares, f: Vector, mu: float, r: float) -> tuple[float, Vector]:
    s = problem.times(f) + mu * f - problem.q
    worst = max(length(minimum(s, 0)), length(s[f > 0]), abs(float(f @ s)) / r)
    return worst / residual_unit(problem, r), s


def certify_nonneg(
    problem: LeastSquares, f: Vector, mu: float, r: float, reason: str, *, below: float = -math.inf
) -> Answer:
    """As `certify_on_sphere`, for f >= 0."""
    residual, s = nonneg_residual(problem, f, mu, r)
    loss = problem.loss(f)
    gap = max(0.0, 2 * max(float(f @ s), 0.0) + 2 * r * length(minimum(s, 0)))
    gap = min(gap, max(0.0, loss - max(below, _floor(problem))))
    kind = "global" if _closed(problem, gap, residual, r) else "gap"
    return Answer(filter=f, loss=loss, kind=kind, multiplier=mu, residual=residual, gap=gap, reason=reason)


def lower_bound(problem: LeastSquares, f: Vector, mu: float, r: float, *, nonnegative: bool) -> float:
    """A lower bound of the loss on the sphere by weak duality, from any f and any mu >= -lambda_min."""
    h = problem.times(f) + mu * f
    s = h - problem.q
    return problem.c - float(f @ h) - mu * r * r - 2 * r * length(minimum(s, 0) if nonnegative else s)
