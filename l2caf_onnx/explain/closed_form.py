"""The exact solver on a collapsed tail: a question becomes g or G and q, sample by sample, and the answer is proved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from l2caf_onnx.filters import Grid, Smooth, norm_of
from l2caf_onnx.objectives import Objective
from l2caf_onnx.records import Certificate
from l2caf_onnx.solvers import exact

from .collapsed import Collapsed, Vectors, host
from .solved import Rho, Solved

Lifted = Grid | Smooth | None

BUMPS = 1024  # cells beyond which no matrix of bumps is made
_FORMS = {"l2": ("linear", "squares"), "l2-nonneg": ("linear", "squares"), "softmax": ("linear",)}


def has_closed_form(objective: Objective, constraint: str, lift: Lifted = None) -> bool:
    """Whether the exact solver knows that objective on that constraint set, for filters made of that."""
    if lift is None:
        return objective.form in _FORMS.get(constraint, ())
    return objective.form == "linear" and constraint == "l2-nonneg" and math.prod(lift.spatial) <= BUMPS


def closed_form(
    tail: Collapsed,
    objective: Objective,
    constraint: str,
    rho: Rho,
    classes: Sequence[int] | None,
    *,
    lift: Lifted,
    seed: int,
) -> Solved:
    """Minimise on the collapsed tail, each sample by itself; what it gives there is left to be asked.

    Args:
        tail: What is asked.
        objective: Of the question, bound to what is watched.
        constraint: One for which it `has_closed_form`.
        rho: (N,) sizes.
        classes: Of each sample the class asked about, or None.
        lift: What filters are made of; None: they are free in every cell.
        seed: Of the descents where least squares with f >= 0 are not convex.

    Raises:
        SolverError: the outputs asked about do not depend on the filter.
        InputError: see `Objective.losses`.
    """
    radii = [norm_of(r, tail.cells) for r in rho.tolist()]
    if objective.form == "linear":
        answers, passes = _of_linear(*_linear(tail, objective, classes), constraint, radii, lift), 1
    else:
        with torch.no_grad():
            answers, passes = _least_squares(tail, constraint, radii, seed), tail.passes
    found = answers[0].filter if len(answers) == 1 else np.stack([a.filter for a in answers])
    kinds = tuple(a.kind for a in answers)
    return Solved(
        filter=found.astype(np.float32).reshape(tail.onnx.shape),
        loss=np.array([a.loss for a in answers]),
        evaluations=np.full(tail.samples, passes),
        stop_reason=tuple(a.reason for a in answers),
        solver="exact",
        rho=rho,
        certificate=Certificate(
            kind="global" if all(k == "global" for k in kinds) else "gap",
            kinds=kinds,
            multiplier=np.array([a.multiplier for a in answers]),
            residuals=np.array([a.residual for a in answers]),
            gap=np.array([a.gap for a in answers]),
        ),
    )


def _linear(tail: Collapsed, objective: Objective, classes: Sequence[int] | None) -> tuple[Vectors, Vectors]:
    """Loss(f) = offset + slope . f: the slopes J' dL/dz, (N, cells), and the offsets (N,)."""
    if not objective.sums_few or tail.classes is None:
        target = torch.tensor(classes, device=tail.origin.device) if classes is not None else None
        with torch.enable_grad():
            z = tail.origin.detach().clone().requires_grad_(True)
            losses = objective.losses(tail.named(z), tail.normal, samples=tail.samples, target=target)
            (weights,) = torch.autograd.grad(losses.sum(), z)
        with torch.no_grad():
            return host(tail.gradient(weights)), host(losses.detach())
    places, shares = objective.terms(tail.scores if objective.ranks else None, tail.classes, classes)
    offsets = np.array([float(shares[n].astype(np.float64) @ zero[places[n]]) for n, zero in enumerate(tail.zero)])
    return tail.combined(places, shares), offsets


def _of_linear(
    slopes: Vectors, offsets: Vectors, constraint: str, radii: Sequence[float], lift: Lifted
) -> list[exact.Answer]:
    """The minimiser of each sample."""
    rows = zip(slopes, radii, offsets.tolist(), strict=True)
    if lift is not None:
        return [exact.linear_in_cone(g, exact.cone_of(lift), r, o) for g, r, o in rows]
    if constraint == "softmax":
        root = math.sqrt(slopes.shape[1])
        return [exact.linear_softmax(g, r * root, o) for g, r, o in rows]
    solve = exact.linear_on_sphere if constraint == "l2" else exact.linear_nonneg
    return [solve(g, r, o) for g, r, o in rows]


def _least_squares(tail: Collapsed, constraint: str, radii: Sequence[float], seed: int) -> list[exact.Answer]:
    """Loss(f) = sum_m w_m (z_m(1) - z_m(f))^2, z(1) - z(f) = J (1 - f)."""
    weights = np.concatenate([np.full(n, 1 / (len(tail.shapes) * n)) for n in tail.sizes])
    answers = []
    for n, radius in enumerate(radii):
        if tail.fits:
            problem = exact.LeastSquares.from_change(tail.jacobian[n].cpu().numpy(), weights)
        else:
            problem = _matrix_free(tail, n, weights)
        if constraint == "l2":
            answers.append(exact.least_squares_on_sphere(problem, radius))
        else:
            answers.append(exact.least_squares_nonneg(problem, radius, seed=seed))
    return answers


def _matrix_free(tail: Collapsed, sample: int, weights: Vectors) -> exact.LeastSquares:
    """The problem of one sample by products with J and J' alone."""
    roots, shape = np.sqrt(weights), tail.onnx.spatial
    device, number = tail.origin.device, torch.tensor([sample])

    def multiply(f: Vectors) -> Vectors:
        with torch.no_grad():
            given = torch.from_numpy(f.astype(np.float32)).reshape(1, *shape).to(device)
            moved: Vectors = tail.move(given, number)[0].double().cpu().numpy()
        return roots * moved

    def transpose(z: Vectors) -> Vectors:
        rows = torch.zeros(tail.samples, tail.size, device=device)
        rows[sample] = torch.from_numpy((roots * z).astype(np.float32)).to(device)
        found: Vectors = tail.gradient(rows)[sample].double().cpu().numpy()
        return found

    difference = multiply(np.ones(tail.cells))
    return exact.LeastSquares.matrix_free(multiply, transpose, difference, tail.cells)
