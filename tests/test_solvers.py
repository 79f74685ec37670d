"""Every solver on problems whose minimum on the sphere is known in closed form; then what is special to each.

The oracles: a linear loss has its minimum at -r g / ||g||; least squares at (G + mu I) f = q with mu >= -lambda_min(G)
and ||f|| = r, found by an eigendecomposition and a bisection in numpy float64 (Nocedal & Wright, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.filters import ConstraintSet, Sphere, constraint_set
from l2caf_onnx.solvers import SOLVERS, Adam, Lbfgs, LossFunction, Sgd, Solution, resolve
from l2caf_onnx.solvers.linesearch import Wolfe

Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost these small tensors more than they give, by far where other work keeps the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Problem:
    """A loss of 3 filters (or of one, where `only`), the radii, and the least loss of each sample."""

    losses: LossFunction
    sphere: ConstraintSet
    shape: tuple[int, ...]
    least: list[float]

    def at(self, f: Tensor) -> Tensor:
        return self.losses(f, torch.arange(len(f)))

    def solve(self, solver: str | Lbfgs | Sgd | Adam, seed: int = 0) -> Solution:
        chosen = SOLVERS[solver] if isinstance(solver, str) else solver
        return chosen.minimise(self.losses, self.sphere, self.shape, generator=torch.Generator().manual_seed(seed))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(values: Array) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def least_squares_on_sphere(gram: Array, q: Array, r: float) -> Array:
    """argmin f'Gf - 2q'f, ||f|| = r: the root of the secular equation ||(G + mu I)^-1 q|| = r right of -lambda_min."""
    values, vectors = np.linalg.eigh(gram)
    c = vectors.T @ q
    low, high = -values[0], -values[0] + np.linalg.norm(q) / r
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(c / (values + mu)) > r else (low, mu)
    return np.asarray(vectors @ (c / (values + high)))


def linear(only: int | None = None) -> Problem:
    """L = g'f, all cells of g apart and with a mean, as from one logit of an affine tail."""
    g = rng(1).normal(-0.3, 1, (3, 5, 7))[slice(None) if only is None else slice(only, only + 1)]
    radii = np.array([1.0, 2.5, 0.4])[slice(None) if only is None else slice(only, only + 1)]
    weights = tensor(g)
    return Problem(
        losses=lambda f, i: (weights[i] * f).sum((1, 2)),
        sphere=Sphere(tensor(radii)),
        shape=g.shape,
        least=[-r * float(np.linalg.norm(one)) for r, one in zip(radii, g, strict=True)],
    )


def affine_tail(only: int | None = None, rho: float = 1 / 7, outputs: int = 1000) -> Problem:
    """L = mean((J f - J 1)^2), J (outputs x 49) = Gemm x global average of 64 smooth non-negative channels."""
    cells = np.stack(np.meshgrid(np.arange(7), np.arange(7)), -1).reshape(1, 49, 2)
    jacobians, least = [], []
    r = rho * 7
    for seed in range(3) if only is None else [only]:
        draw = rng(seed)
        centre, width = draw.uniform(0, 7, (64, 1, 2)), draw.uniform(0.5, 2.5, (64, 1))
        maps = draw.exponential(1, (64, 1)) * np.exp(-((cells - centre) ** 2).sum(-1) / (2 * width**2))
        jacobian = draw.normal(0, 0.25, (outputs, 64)) @ maps / 16
        wanted = jacobian @ np.ones(49)
        best = least_squares_on_sphere(jacobian.T @ jacobian / outputs, jacobian.T @ wanted / outputs, r)
        assert float(np.linalg.norm(best)) == pytest.approx(r, rel=1e-9)
        jacobians.append(jacobian)
        least.append(float(np.mean((jacobian @ best - wanted) ** 2)))
    j = tensor(np.stack(jacobians))
    normal = j.sum(2)
    return Problem(
        losses=lambda f, i: (torch.einsum("noc,nc->no", j[i], f.flatten(1)) - normal[i]).square().mean(1),
        sphere=Sphere(r),
        shape=(len(least), 7, 7),
        least=least,
    )


def nearest_point(only: int | None = None) -> Problem:
    """L = ||f - p||^2 for p on the sphere, of which the minimum is 0; one spatial axis."""
    chosen = slice(None) if only is None else slice(only, only + 1)
    p = rng(5).normal(0, 1, (3, 12))
    points = tensor(2 * p / np.linalg.norm(p, axis=1, keepdims=True))[chosen]
    return Problem(
        losses=lambda f, i: (f - points[i]).square().sum(1),
        sphere=Sphere(2.0),
        shape=tuple(points.shape),
        least=[0.0] * len(points),
    )


PROBLEMS = {"linear": linear, "affine tail": affine_tail, "nearest point": nearest_point}
ALLOWED = {"lbfgs": 1e-5, "adam": 1e-3, "sgd": 1e-3}
"""The gap to the least loss, as a part of the range of losses between the uniform filter and it."""


def gaps(problem: Problem, solution: Solution) -> list[float]:
    start = problem.at(problem.sphere.uniform_point(problem.shape)).tolist()
    ends = solution.loss.tolist()
    return [(end - least) / (begin - least) for end, begin, least in zip(ends, start, problem.least, strict=True)]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_solver_finds_each_minimum(name: str, problem: str) -> None:
    posed = PROBLEMS[problem]()
    solution = posed.solve(name)
    assert max(gaps(posed, solution)) <= ALLOWED[name]
    assert min(gaps(posed, solution)) >= -1e-5  # float32's error of a loss, in parts of what there is to gain
    assert solution.filter.shape == posed.shape
    assert solution.filter.dtype == torch.float32
    radii = posed.sphere.radii(3).tolist()
    assert solution.filter.flatten(1).double().norm(dim=1).tolist() == pytest.approx(radii, rel=1e-6)
    np.testing.assert_allclose(solution.loss.numpy(), posed.at(solution.filter).numpy(), rtol=1e-6, atol=1e-7)
    assert solution.evaluations.dtype == torch.int64
    assert len(solution.stop_reason) == 3
    assert all(reason.endswith(".") for reason in solution.stop_reason)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_batch_gives_what_its_samples_give_alone(name: str, problem: str) -> None:
    together = PROBLEMS[problem]().solve(name)
    for i in range(3):
        alone = PROBLEMS[problem](i).solve(name)
        np.testing.assert_allclose(together.filter[i].numpy(), alone.filter[0].numpy(), rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.loss[i].numpy(), alone.loss[0].numpy(), rtol=1e-5, atol=1e-6)
        assert abs(int(together.evaluations[i] - alone.evaluations[0])) <= (50 if name != "lbfgs" else 2)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_seed_gives_the_same_bits_and_nothing_global_changes(name: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    problem = affine_tail()
    with torch.no_grad():
        first = problem.solve(name, seed=3)
        assert not torch.is_grad_enabled()
    second = problem.solve(name, seed=3)
    assert torch.equal(first.filter, second.filter)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.evaluations, second.evaluations)
    assert first.stop_reason == second.stop_reason
    assert not first.filter.requires_grad
    assert not first.loss.requires_grad
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", SOLVERS)
def test_weights_of_the_tail_collect_no_gradient(name: str) -> None:
    weight = torch.ones(1, 6, requires_grad=True)
    SOLVERS[name].minimise(lambda f, _: (weight * f).sum(1), Sphere(1.0), (1, 6), generator=torch.Generator())
    assert weight.grad is None


@pytest.mark.parametrize("name", SOLVERS)
def test_a_start_that_is_not_finite_is_refused_by_sample(name: str) -> None:
    offset = torch.tensor([0.0, math.nan, math.inf])
    with pytest.raises(SolverError, match=r"Samples 1, 2 of 3"):
        SOLVERS[name].minimise(lambda f, i: f.sum(1) + offset[i], Sphere(1.0), (3, 4), generator=torch.Generator())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_loss_that_breaks_off_leaves_a_finite_answer_and_the_other_samples_alone(name: str) -> None:
    # Sample 0 turns to NaN on the way to its minimum; sample 1 is an ordinary linear loss.
    weights = torch.tensor([[-3.0, 1.0, 1.0], [-3.0, 1.0, 1.0]])

    def losses(f: Tensor, i: Tensor) -> Tensor:
        value = (weights[i] * f).sum(1)
        forbidden = torch.tensor([True, False])[i] & (value < -2.5)
        return torch.where(forbidden, torch.nan, value)

    sphere, both = Sphere(1.0), torch.arange(2)
    solution = SOLVERS[name].minimise(losses, sphere, (2, 3), generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(solution.loss).all()
    assert solution.filter.norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-6)
    np.testing.assert_allclose(solution.loss.numpy(), losses(solution.filter, both).numpy(), rtol=1e-6, atol=1e-7)
    assert solution.loss[1].item() == pytest.approx(-math.sqrt(11), rel=1e-3)
    assert solution.loss[0].item() < float(losses(sphere.uniform_point((2, 3)), both)[0])
    if name != "lbfgs":
        assert "finite" in solution.stop_reason[0]
        assert "finite" not in solution.stop_reason[1]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("detached", [True, False])
def test_a_dead_tail_is_said_and_its_start_returned(name: str, detached: bool) -> None:
    solution = SOLVERS[name].minimise(
        lambda f, _: torch.ones(len(f)) if detached else 1 + 0 * f.sum(1),
        Sphere(1.0),
        (2, 9),
        generator=torch.Generator(),
    )
    assert solution.loss.tolist() == [1, 1]
    assert all("gradient" in reason for reason in solution.stop_reason)
    assert all("respond" in reason for reason in solution.stop_reason)
    if name != "adam":
        assert torch.equal(solution.filter, Sphere(1.0).uniform_point((2, 9)))
    assert solution.evaluations.tolist() == ([3, 3] if name == "lbfgs" else [51, 51])


def test_the_solvers_resolve_by_name() -> None:
    assert [resolve(name).name for name in (*SOLVERS, "blackbox")] == ["sgd", "adam", "lbfgs", "blackbox"]
    for name in ("auto", "exact", "LBFGS"):
        with pytest.raises(InputError, match="sgd, adam, lbfgs, slope, blackbox"):
            resolve(name)


# --- L-BFGS where the least loss is known; the rest of it is in test_lbfgs.py ---


@pytest.mark.parametrize("rho", [1 / 7, 0.3, 0.5, 0.7, 0.9])
def test_lbfgs_needs_few_evaluations_on_an_affine_tail(rho: float) -> None:
    problem = affine_tail(rho=rho)
    for limit in (10, 200):
        solution = problem.solve(Lbfgs(max_evaluations=limit))
        relative = [(end - least) / least for end, least in zip(solution.loss.tolist(), problem.least, strict=True)]
        assert max(relative) <= 1e-4
        assert int(solution.evaluations.max()) <= (10 if limit == 10 else 15)
    assert all(reason.startswith(("It converged", "It settled")) for reason in solution.stop_reason)


def test_lbfgs_keeps_the_best_filter_at_its_limit_and_says_so() -> None:
    problem = affine_tail(rho=0.7)
    losses = [problem.solve(Lbfgs(max_evaluations=limit)).loss for limit in (1, 2, 3, 5)]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(losses))
    solution = problem.solve(Lbfgs(max_evaluations=3))
    assert solution.evaluations.tolist() == [3] * 3
    assert all("limit of 3 evaluations" in reason for reason in solution.stop_reason)


# --- the authors' two loops ---


def loop_of_the_authors(losses: LossFunction, w: Tensor, optimiser: torch.optim.Optimizer, steps: int) -> int:
    """Their loop for one sample, with torch's own optimiser and a rate from 0.5 to 1e-5; returns the steps taken."""
    compared = torch.tensor(32767.0)
    for k in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-5 + (0.5 - 1e-5) * (1 - k / 1000)
        loss = losses(torch.nn.functional.normalize(w.flatten(1)).reshape(w.shape), torch.arange(1)).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if k % 50 == 0:
            if (loss.detach() - compared).abs() < 1e-6:
                return k + 1
            compared = loss.detach()
    return steps


def test_sgd_is_the_pytorch_program_step_for_step() -> None:
    problem = affine_tail(only=1)
    w = torch.ones(1, 7, 7, requires_grad=True)
    taken = loop_of_the_authors(problem.losses, w, torch.optim.SGD([w]), 1000)
    solution = problem.solve("sgd")
    assert solution.evaluations.tolist() == [taken]
    assert taken % 50 == 1
    np.testing.assert_allclose(solution.filter.numpy(), (w / w.norm()).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert f"At step {taken - 1} the loss had moved by" in solution.stop_reason[0]


def test_sgd_takes_the_step_of_the_iteration_that_stops() -> None:
    # The loss never changes by 1e-6, but its slope is not zero: the program stops at step 50, after 51 steps.
    g = torch.tensor([[1e-8, -1e-8, 0.0]])
    solution = Sgd().minimise(lambda f, _: (g * f).sum(1), Sphere(1.0), (1, 3), generator=torch.Generator())
    assert solution.evaluations.tolist() == [51]
    assert "At step 50" in solution.stop_reason[0]
    assert "respond" not in solution.stop_reason[0]


def test_adam_is_the_formula_of_tensorflow_1_in_float64() -> None:
    problem = affine_tail(only=0)
    sphere = Sphere(1.0)
    shape = (1, 7, 7)
    w = sphere.normal(shape, torch.Generator().manual_seed(11)).double()
    m, v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    taken, compared = 0, 32767.0
    for k in range(1000):
        leaf = w.clone().requires_grad_(True)
        loss = problem.at((leaf / leaf.norm()).float()).sum()
        (g,) = torch.autograd.grad(loss, leaf)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.5 * (1 - k / 1000) * math.sqrt(1 - 0.999 ** (k + 1)) / (1 - 0.9 ** (k + 1))
        w, taken = w - rate * m / (v.sqrt() + 1e-8), k + 1
        if k % 50 == 0:
            if abs(loss.item() - compared) < 1e-6:
                break
            compared = loss.item()
    solution = Adam().minimise(problem.losses, sphere, shape, generator=torch.Generator().manual_seed(11))
    assert abs(int(solution.evaluations) - taken) <= 50
    np.testing.assert_allclose(solution.filter.numpy(), (w / w.norm()).float().numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", [Sgd(steps=120, tolerance=0), Adam(steps=120, tolerance=0)])
def test_all_steps_are_taken_where_the_loss_keeps_moving(solver: Sgd | Adam) -> None:
    solution = linear().solve(solver)
    assert solution.evaluations.tolist() == [120] * 3
    assert solution.stop_reason == ("All 120 steps were taken.",) * 3


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_that_has_finished_leaves_the_batch(name: str) -> None:
    # Sample 0 is flat, sample 2 is not; only while a sample searches is it evaluated, and that is what is counted.
    asked: list[list[int]] = []
    g = torch.tensor([[0.0, 0.0, 0.0], [1e-7, 0.0, -1e-7], [1.0, 2.0, -5.0]])

    def losses(f: Tensor, i: Tensor) -> Tensor:
        assert i.dtype == torch.int64
        assert i.device.type == "cpu"
        if torch.is_grad_enabled():
            asked.append(i.tolist())
        return 1 + (g[i] * f).sum(1)

    problem = Problem(losses, Sphere(torch.tensor([1.0, 2.0, 3.0])), (3, 3), [])
    solution = problem.solve(name)
    assert asked[0] == [0, 1, 2]
    assert asked[-1] == [2]
    assert [sum(i in numbers for numbers in asked) for i in range(3)] == solution.evaluations.tolist()
    assert solution.loss[2].item() == pytest.approx(1 - 3 * math.sqrt(30), rel=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_neither_a_broken_sample_nor_a_slow_one_changes_another(name: str) -> None:
    # Sample 0 turns to NaN on its way, sample 2 is ill conditioned and takes its time; sample 1 is as it is alone.
    middle = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    slow = torch.diag(torch.tensor([1e4, 30.0, 1.0, 1e-3]))
    grams = torch.stack([middle, middle, slow])
    q = torch.tensor([[-3.0, 1.0, 1.0, 1.0]] * 2 + [[1.0, 2.0, 0.1, 0.2]])

    def of(chosen: list[int]) -> LossFunction:
        def losses(f: Tensor, i: Tensor) -> Tensor:
            own = torch.tensor(chosen)[i]
            value = torch.einsum("ka,kab,kb->k", f, grams[own], f) - 2 * (q[own] * f).sum(1)
            return torch.where((own == 0) & (value < -2), torch.nan, value)

        return losses

    sphere = Sphere(1.5)
    together = Problem(of([0, 1, 2]), sphere, (3, 4), []).solve(name, seed=5)
    alone = Problem(of([1]), sphere, (1, 4), []).solve(name, seed=5)
    assert torch.isfinite(together.loss).all()
    assert int(together.evaluations[1]) == int(alone.evaluations)
    np.testing.assert_allclose(together.filter[1].numpy(), alone.filter[0].numpy(), rtol=0, atol=1e-6)
    assert together.stop_reason[1] == alone.stop_reason[0]


# --- f >= 0 and the softmax: minima known in closed form ---


def nonneg_linear(only: int | None = None) -> Problem:
    """L = g'f, f >= 0: r max(-g, 0) / ||max(-g, 0)||; in sample 2 all g > 0, and it is all in the cell of least g."""
    g = rng(2).normal(-0.1, 1, (3, 4, 5))
    g[2] = np.abs(g[2]) + 0.05
    radii = np.array([1.0, 2.5, 0.4])
    least = [
        -r * float(np.linalg.norm(np.maximum(-one, 0))) if one.min() < 0 else r * float(one.min())
        for r, one in zip(radii, g, strict=True)
    ]
    return posed_for("l2-nonneg", lambda w, f: (w * f).sum((1, 2)), (g,), radii, least, only)


def nonneg_least_squares(only: int | None = None) -> Problem:
    """L = f'Gf - 2q'f: q is such that a chosen f >= 0 with zeros obeys the KKT conditions with mu >= 0: global."""
    grams, qs, least = [], [], []
    for seed in range(3):
        draw = rng(10 + seed)
        j = draw.normal(0, 1, (12, 10))
        f = np.maximum(draw.normal(0.2, 1, 10), 0)
        f *= 1.5 / np.linalg.norm(f)
        s = np.where(f == 0, draw.uniform(0.1, 1, 10), 0)
        gram = j.T @ j
        q = gram @ f + draw.uniform(0, 2) * f - s
        grams.append(gram)
        qs.append(q)
        least.append(float(f @ gram @ f - 2 * q @ f))

    def losses(gram: Tensor, q: Tensor, f: Tensor) -> Tensor:
        return torch.einsum("ka,kab,kb->k", f, gram, f) - 2 * (q * f).sum(1)

    return posed_for("l2-nonneg", losses, (np.stack(grams), np.stack(qs)), np.full(3, 1.5), least, only)


def softmax_least_squares(only: int | None = None) -> Problem:
    """L = |J (f - f*)|^2 for an f* of the simplex, of which the minimum is 0."""
    jacobians, points = [], []
    for seed in range(3):
        draw = rng(20 + seed)
        p = np.exp(draw.normal(0, 1, 8))
        jacobians.append(draw.normal(0, 0.2, (9, 8)))
        points.append(2.0 * math.sqrt(8) * p / p.sum())

    def losses(j: Tensor, point: Tensor, f: Tensor) -> Tensor:
        return torch.einsum("koc,kc->ko", j, f - point).square().sum(1)

    return posed_for("softmax", losses, (np.stack(jacobians), np.stack(points)), np.full(3, 2.0), [0.0] * 3, only)


def softmax_linear(only: int | None = None) -> Problem:
    """L = g'f: the infimum s min(g) is at one cell and is not attained."""
    g = rng(30).normal(0, 1, (3, 12))
    least = [1.5 * math.sqrt(12) * float(one.min()) for one in g]
    return posed_for("softmax", lambda w, f: (w * f).sum(1), (g,), np.full(3, 1.5), least, only)


def posed_for(
    name: str,
    losses: Callable[..., Tensor],
    data: tuple[Array, ...],
    radii: Array,
    least: list[float],
    only: int | None,
) -> Problem:
    chosen = slice(None) if only is None else slice(only, only + 1)
    own = [tensor(d[chosen]) for d in data]
    shape = data[0].shape[1:] if len(data) == 1 else data[1].shape[1:]
    count = 3 if only is None else 1
    return Problem(
        losses=lambda f, i: losses(*(d[i] for d in own), f),
        sphere=constraint_set(name, tensor(radii[chosen])),
        shape=(count, *shape),
        least=least[chosen],
    )


CONSTRAINED = {
    "f >= 0, linear": nonneg_linear,
    "f >= 0, least squares": nonneg_least_squares,
    "softmax, least squares": softmax_least_squares,
    "softmax, linear": softmax_linear,
}
EXACTLY = Lbfgs(loss_tolerance=1e-6)


@pytest.mark.parametrize("solver", [EXACTLY, Sgd(tolerance=0), Adam(tolerance=0)], ids=lambda s: str(s.name))
@pytest.mark.parametrize("problem", CONSTRAINED)
def test_each_solver_finds_each_minimum_on_the_other_sets(solver: Lbfgs | Sgd | Adam, problem: str) -> None:
    posed = CONSTRAINED[problem]()
    solution = posed.solve(solver)
    allowed = 2e-3 if problem == "softmax, linear" else 1e-5 if solver.name == "lbfgs" else 2e-2
    assert max(gaps(posed, solution)) <= allowed
    assert min(gaps(posed, solution)) >= -1e-5
    assert float(solution.filter.min()) >= 0
    f, radii = solution.filter.flatten(1).double(), posed.sphere.radii(3).double()
    sizes = f.sum(1) / math.sqrt(f.shape[1]) if posed.sphere.name == "softmax" else f.norm(dim=1)
    assert sizes.tolist() == pytest.approx(radii.tolist(), rel=1e-6)
    np.testing.assert_allclose(solution.loss.numpy(), posed.at(solution.filter).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("problem", CONSTRAINED)
def test_a_batch_gives_what_its_samples_give_alone_on_the_other_sets(problem: str) -> None:
    together = CONSTRAINED[problem]().solve("lbfgs")
    for i in range(3):
        alone = CONSTRAINED[problem](i).solve("lbfgs")
        np.testing.assert_allclose(together.filter[i].numpy(), alone.filter[0].numpy(), rtol=1e-3, atol=2e-4)
        assert abs(int(together.evaluations[i] - alone.evaluations[0])) <= 2


def test_the_softmax_says_that_it_has_concentrated() -> None:
    solution = softmax_linear().solve(EXACTLY)
    assert all("concentrated" in reason for reason in solution.stop_reason)
    g = rng(30).normal(0, 1, (3, 12))
    assert solution.filter.argmax(1).tolist() == g.argmin(1).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_lbfgs_ends_at_a_kkt_point_where_f_may_not_be_negative(seed: int) -> None:
    # Indefinite quadratics: any KKT point will do. t = g - f <f, g> / r^2 is 0 where f > 0, and >= 0 where f = 0.
    draw, r = rng(100 + seed), 2.0
    half = draw.normal(0, 1, (30, 30))
    gram, q = torch.from_numpy(half + half.T), torch.from_numpy(draw.normal(0, 3, 30))

    def losses(f: Tensor, _: Tensor) -> Tensor:
        return torch.einsum("ka,ab,kb->k", f, gram, f) - 2 * f @ q

    solution = Lbfgs(loss_tolerance=1e-13, gradient_tolerance=1e-6, line_search=Wolfe(rounding=1e-15)).minimise(
        losses, constraint_set("l2-nonneg", r, dtype=torch.float64), (1, 30), generator=torch.Generator().manual_seed(0)
    )
    f = solution.filter[0]
    g = 2 * (gram @ f - q)
    t = (g - f * float(f @ g) / r**2).numpy()
    zero = f.numpy() == 0
    scale = abs(float(solution.loss))
    assert 0 < zero.sum() < 30
    assert float(f.min()) >= 0
    assert float(f.norm()) == pytest.approx(r, rel=1e-12)
    assert np.abs(t[~zero]).max() <= 1e-4 * scale
    assert t[zero].min() >= -1e-4 * scale
    assert int(solution.evaluations) <= 150
