"""The TensorFlow program of Taha et al. (ECCV 2020, arXiv 2007.09748), step for step: Adam from a random filter.

The settings and the test for the end are those of their `vanilla` program. Adam is TensorFlow 1's, which differs from
torch's in where epsilon is added: Kingma & Ba, "Adam" (ICLR 2015, arXiv 1412.6980), the variant that ends section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2caf_onnx.filters import ConstraintSet

from .sgd import follow_schedule
from .solution import LossFunction, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam on w, unconstrained, with a learning rate that falls linearly to 0.

    The tail sees the point of the constraint set that belongs to w: r w / ||w|| on the sphere, which is the authors'.
    w starts from N(0, 1), the same draw for each sample. What is returned, and what `evaluations` counts, is as in
    `Sgd`. (Which of two w their last call fetches, that before or after its step, TensorFlow leaves open; this is the
    one after it.)

    Attributes:
        learning_rate: Of the first step.
        steps: The learning rate would be 0 after so many, and it ends there.
        beta1: Decay of the mean of the gradients.
        beta2: Decay of the mean of their squares.
        epsilon: Added to the root of that mean before the bias is corrected.
        check_every: The loss is compared with that of so many steps before.
        tolerance: It stops if the loss moved by less than that, absolutely.
    """

    learning_rate: float = 0.5
    steps: int = 1000
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    check_every: int = 50
    tolerance: float = 1e-6

    name = "adam"

    def minimise(
        self, fn: LossFunction, constraint: ConstraintSet, shape: tuple[int, ...], *, generator: torch.Generator
    ) -> Solution:
        """See `Solver.minimise`."""
        w = constraint.normal(shape, generator)
        return follow_schedule(
            fn,
            constraint,
            w,
            _Moments(self, torch.zeros_like(w), torch.zeros_like(w)).step,
            steps=self.steps,
            check_every=self.check_every,
            tolerance=self.tolerance,
        )


@dataclass(slots=True)
class _Moments:
    """The state of one run: decaying means of the gradients and of their squares, both (N, *spatial)."""

    settings: Adam
    first: Tensor
    second: Tensor

    def step(self, k: int, w: Tensor, gradient: Tensor) -> Tensor:
        """The next w; `k` counts from 0."""
        adam = self.settings
        self.first = adam.beta1 * self.first + (1 - adam.beta1) * gradient
        self.second = adam.beta2 * self.second + (1 - adam.beta2) * gradient.square()
        rate = adam.learning_rate * (1 - k / adam.steps)
        rate *= math.sqrt(1 - adam.beta2 ** (k + 1)) / (1 - adam.beta1 ** (k + 1))
        return w - rate * self.first / (self.second.sqrt() + adam.epsilon)
