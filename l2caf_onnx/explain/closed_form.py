"""The exact solver on a collapsed tail: a question becomes g or G and q, sample by sample, and the answer is proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2caf_onnx.filters import norm_of
from l2caf_onnx.objectives import Objective
from l2caf_onnx.records import Certificate
from l2caf_onnx.solvers import Solution, exact

from .collapsed import Collapsed, Vectors
from .filtered import Outputs

_LINEAR = ("score", "linear")
_FORMS = {"l2": (*_LINEAR, "squares"), "l2-nonneg": (*_LINEAR, "squares"), "softmax": _LINEAR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The answers of a batch.

    Attributes:
        solution: Filters and why they are the answer.
        outputs: Of the tail at them, batch first.
        certificate: What is proved of them.
    """

    solution: Solution
    outputs: Outputs
    certificate: Certificate


def has_closed_form(objective: Objective, constraint: str) -> bool:
    """Whether the exact solver knows that objective on that constraint set."""
    return objective.form in _FORMS.get(constraint, ())


def closed_form(
    tail: Collapsed, objective: Objective, constraint: str, rho: Tensor, target: Tensor | None, seed: int
) -> Closed:
    """Minimise on the collapsed tail, each sample by itself.

    Raises:
        SolverError: the outputs asked about do not depend on the filter.
        InputError: see `Objective.losses`.
    """
    radii = [norm_of(float(r), tail.cells) for r in rho]
    with torch.no_grad():
        normal = (
            tail.outputs(torch.ones(tail.onnx.shape, device=tail.origin.device)) if objective.form != "score" else {}
        )
    if objective.form in _LINEAR:
        answers = _linear(tail, objective, constraint, radii, target, normal)
        passes = 1
    else:
        answers = _least_squares(tail, constraint, radii, seed)
        passes = tail.passes
    shape = tail.onnx.shape
    filters = torch.from_numpy(np.stack([a.filter for a in answers]).astype(np.float32).reshape(shape))
    with torch.no_grad():
        filters = filters.to(tail.origin.device)
        outputs = tail.outputs(filters)
        losses = objective.losses(outputs, normal, samples=tail.samples, target=target)
    kinds = tuple(a.kind for a in answers)
    return Closed(
        solution=Solution(
            filter=filters,
            loss=losses,
            evaluations=torch.full((tail.samples,), passes),
            stop_reason=tuple(a.reason for a in answers),
        ),
        outputs=outputs,
        certificate=Certificate(
            kind="global" if all(k == "global" for k in kinds) else "gap",
            kinds=kinds,
            multiplier=np.array([a.multiplier for a in answers]),
            residuals=np.array([a.residual for a in answers]),
            gap=np.array([a.gap for a in answers]),
        ),
    )


def _linear(
    tail: Collapsed,
    objective: Objective,
    constraint: str,
    radii: Sequence[float],
    target: Tensor | None,
    normal: Outputs,
) -> list[exact.Answer]:
    """Loss(f) = offset + g . f with g = J' dL/dz."""
    if objective.form == "score":
        origin = tail.named(tail.origin)
        offsets = objective.losses(origin, origin, samples=tail.samples, target=target).double().cpu().numpy()
        assert target is not None
        gradients = -tail.row(target).double().cpu().numpy()
    else:
        with torch.enable_grad():
            z = tail.origin.detach().clone().requires_grad_(True)
            losses = objective.losses(tail.named(z), normal, samples=tail.samples, target=target)
            (weights,) = torch.autograd.grad(losses.sum(), z)
        gradients = tail.gradient(weights).double().cpu().numpy()
        offsets = losses.detach().double().cpu().numpy()
    if constraint == "softmax":
        root = float(np.sqrt(tail.cells))
        return [exact.linear_softmax(g, r * root, o) for g, r, o in zip(gradients, radii, offsets, strict=True)]
    solve = exact.linear_on_sphere if constraint == "l2" else exact.linear_nonneg
    return [solve(g, r, o) for g, r, o in zip(gradients, radii, offsets, strict=True)]


def _least_squares(tail: Collapsed, constraint: str, radii: Sequence[float], seed: int) -> list[exact.Answer]:
    """Loss(f) = sum_m w_m (z_m(1) - z_m(f))^2, z(1) - z(f) = J (1 - f)."""
    weights = np.concatenate([np.full(n, 1 / (len(tail.shapes) * n)) for n in tail.sizes])
    answers = []
    for n, radius in enumerate(radii):
        if tail.fits:
            jacobian = tail.jacobian[n].double().cpu().numpy()
            problem = exact.LeastSquares.from_jacobian(jacobian, jacobian.sum(axis=1), weights)
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
