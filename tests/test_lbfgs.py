"""What is special to L-BFGS: deep tails, saddles, dead and broken regions, kinks, and when it stops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from l2caf_onnx.filters import Sphere
from l2caf_onnx.solvers import Adam, Lbfgs, LossFunction, Solution
from l2caf_onnx.solvers.lbfgs import converged


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost these small tensors more than they give, by far where other work keeps the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def solve(
    losses: LossFunction, shape: tuple[int, ...], radius: float | Tensor = 1.0, solver: Lbfgs | Adam | None = None
) -> Solution:
    generator = torch.Generator().manual_seed(0)
    return (solver or Lbfgs()).minimise(losses, Sphere(radius), shape, generator=generator)


class ReluTail:
    """Six convolutions with ReLU on 14x14 maps of 8 channels, halved in the middle, pooled to 50 outputs; seeded."""

    def __init__(self, seed: int, samples: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        maps = torch.randn(samples, 8, 14, 14, generator=generator).clamp_min(0)
        self.activation = 2 * torch.nn.functional.avg_pool2d(maps, 3, 1, 1)
        self.weights = [torch.randn(8, 8, 3, 3, generator=generator) / 6 for _ in range(6)]
        self.biases = [0.2 * torch.randn(8, generator=generator) for _ in range(6)]
        self.gemm = torch.randn(8, 50, generator=generator)
        self.normal = self.run(self.activation)

    def run(self, x: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.nn.functional.conv2d(x, weight, bias, stride=2 if k == 3 else 1, padding=1).relu()
        return x.mean((2, 3)) @ self.gemm

    def losses(self, f: Tensor, i: Tensor) -> Tensor:
        return (self.run(self.activation[i] * f[:, None]) - self.normal[i]).square().mean(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_ends_on_a_deep_relu_tail_where_2000_adam_steps_end(seed: int) -> None:
    tail, shape, radii = ReluTail(seed, samples=3), (3, 14, 14), torch.tensor([1.0, 14 * 0.35, 14 * 0.7])
    solution = solve(tail.losses, shape, radii)
    reference = solve(tail.losses, shape, radii, Adam(steps=2000, learning_rate=0.1, tolerance=0))
    start = tail.losses(Sphere(radii).uniform_point(shape), torch.arange(3))
    gained = (start - solution.loss) / (start - reference.loss)
    # At norm 1 there are several minima, and either may find the better one: 0.93 to 1.11 over the seeds 0 to 5.
    assert gained[0].item() >= 0.9
    assert gained[1:].min().item() >= 0.999
    assert solution.evaluations[0].item() <= 120
    assert solution.evaluations[1:].max().item() <= 60


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 9)])
def test_it_leaves_a_saddle_at_the_uniform_filter(shape: tuple[int, ...]) -> None:
    # L = f'Mf with M = 11'/n + diag(0, ..., 0, -1) made orthogonal to 1: the uniform filter is its maximum.
    cells = math.prod(shape[1:])
    down = torch.zeros(cells)
    down[0], down[1] = 1 / math.sqrt(2), -1 / math.sqrt(2)
    uniform = torch.full((cells,), 1 / math.sqrt(cells))

    def losses(f: Tensor, _: Tensor) -> Tensor:
        return (f.flatten(1) @ uniform).square() - (f.flatten(1) @ down).square()

    solution = solve(losses, shape)
    assert solution.loss.tolist() == pytest.approx([-1, -1], abs=1e-5)


def test_it_keeps_the_uniform_filter_where_it_is_the_minimum() -> None:
    solution = solve(lambda f, _: (f - 0.5).square().sum(1), (2, 4))
    assert solution.filter.tolist() == [[0.5] * 4] * 2
    assert solution.loss.tolist() == [0, 0]


def test_it_with_one_cell_takes_the_better_sign() -> None:
    solution = solve(lambda f, _: f[:, 0, 0], (2, 1, 1), 3.0)
    assert solution.filter.flatten().tolist() == [-3, -3]


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_it_stops_by_itself_where_the_loss_is_mostly_rounding(offset: float) -> None:
    g = torch.randn(3, 35, generator=torch.Generator().manual_seed(1))
    solution = solve(lambda f, i: 1e-2 * (g[i] * f).sum(1) + offset, (3, 35))
    assert int(solution.evaluations.max()) <= 40
    assert all("limit" not in reason for reason in solution.stop_reason)
    assert torch.isfinite(solution.loss).all()


def test_it_crosses_a_kink() -> None:
    # The largest of two linear functions: the minimum is on the edge where they meet, where no gradient vanishes.
    g = torch.tensor([[1.0, 0.2, 0.0, -0.5], [-1.0, 0.3, 0.1, -0.4]])
    solution = solve(lambda f, _: (f @ g.T).amax(1), (1, 4))
    weights = np.linspace(0, 1, 100001)[:, None]
    mixed = weights * g[0].double().numpy() + (1 - weights) * g[1].double().numpy()
    bound = -float(
        np.linalg.norm(mixed, axis=1).min()
    )  # max_i g_i'f >= min over the mixtures: attained at their nearest
    assert float(solution.loss) == pytest.approx(bound, abs=0.05)
    assert int(solution.evaluations) <= 200


@pytest.mark.parametrize(
    ("losses", "gradient", "reason"),
    [
        ([1.0], [1e-5, 0.0], "converged"),
        ([1.0], [1e-3, 0.0], None),
        ([0.0], [0.0, 0.0], "converged"),
        ([0.0], [1e-9, 0.0], None),
        ([5.0, 0.0], [1e-4, 0.0], "converged"),
        ([9.0, 1.0, 1.0, 1.0, 1.0], [1.0, 0.0], "settled"),
        ([9.0, 1.01, 1.0, 1.0, 1.0], [1.0, 0.0], None),
        ([1.0, 1.0, 1.0], [1.0, 0.0], None),
        ([9.0, 1.0, 1.0, 1.0, 1.0], [math.nan, 0.0], "settled"),
    ],
)
def test_convergence_is_judged_by_the_gradient_and_by_the_last_steps(
    losses: list[float], gradient: list[float], reason: str | None
) -> None:
    said = converged(Lbfgs(loss_tolerance=1e-4), losses, np.array(gradient))
    assert (said is None) if reason is None else re.search(reason, said or "")
