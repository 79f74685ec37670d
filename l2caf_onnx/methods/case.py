"""What a method is given, and the few things that all methods do with it.

A batch is a convenience: whatever a method asks, it asks for each sample by itself, and rows of several samples share a
call of the score only to fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""Activations (k, C, *spatial), and (k,) int64 on the CPU, the samples of the batch that they stand for -> scores (k,).

Differentiable and separable: score i depends on row i and sample i alone. A sample may be asked for more than once.
"""

_SILENT = 1e-5
"""A gradient that moves the score by less than this part of it, whatever is hidden, is of float32's roundings: the
length of an embedding that has length 1, for one."""

_FLAT = 1e-6
"""Values whose range is within this part of the largest size are constant: a few float32 roundings, no structure."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """What a method may ask.

    Attributes:
        activation: (N, C, *spatial) floating, what arrived at S1: channels second, one to three spatial axes.
        score: What is to be explained, of any activation put in the place of a sample's own; it holds what else the
            sample has (bypass, target). Higher: more of the class.
        batch: So many rows at most go into one call of `score`.
        seed: Of whatever is random.
    """

    activation: Tensor
    score: Score
    batch: int
    seed: int

    @property
    def samples(self) -> int:
        """N."""
        return self.activation.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The sizes of the spatial axes."""
        return tuple(self.activation.shape[2:])


def gradients(case: Case) -> Tensor:
    """The gradient (N, C, *spatial) float32 of each sample's score by its own activation.

    The caller's grad mode does not matter, and no other tensor collects a gradient. A score that does not depend on
    the activation, or by no more than roundings, has gradient zero.
    """
    parts: list[Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        for numbers in _chunks(case.samples, case.batch):
            leaf = case.activation[numbers.to(case.activation.device)].detach().clone().requires_grad_(True)
            scores = _checked(case.score(leaf, numbers), len(numbers))
            if not scores.requires_grad:
                parts.append(torch.zeros_like(leaf).detach())
                continue
            (found,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True, materialize_grads=True)
            moved = (found * leaf.detach()).float().abs().flatten(1).sum(1)
            parts.append(torch.where(along(moved > _SILENT * scores.detach().abs(), found.ndim), found, 0))
    return torch.cat(parts).float()


def scores(case: Case, activations: Tensor, samples: Tensor) -> Tensor:
    """The scores (k,) float64 on the CPU of `activations` (k, C, *spatial), k at most `case.batch`; no gradient."""
    with torch.no_grad():
        found = case.score(activations.to(case.activation.dtype), samples)
    return _checked(found, len(samples)).detach().double().cpu()


def questions(case: Case, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of a sample and one of its `count` questions, as (samples, questions) (k,) int64, k <= `case.batch`.

    A sample's questions come one after the other.
    """
    for pair in _chunks(case.samples * count, case.batch):
        yield pair // count, pair % count


def finished(maps: Tensor) -> Tensor:
    """`maps` (N, *spatial) as they leave the room: float32 and of no graph; a constant one, or one with NaN, is 0."""
    flat = maps.detach().flatten(1)
    drawn = torch.isfinite(flat).all(1) & ~constant(flat)
    return torch.where(along(drawn, maps.ndim), maps.detach(), 0).float()


def constant(values: Tensor) -> Tensor:
    """(N,) bool: in which rows of `values` (N, k) all are the same up to rounding."""
    low, high = values.amin(1), values.amax(1)
    return high - low <= _FLAT * torch.maximum(high.abs(), low.abs())


def along(values: Tensor, rank: int) -> Tensor:
    """(k, ...) with as many axes of size 1 after it as make `rank` axes."""
    return values.reshape(*values.shape, *[1] * (rank - values.ndim))


def _chunks(count: int, size: int) -> Iterator[Tensor]:
    """0 to `count` - 1, in order, in parts of `size` at most."""
    for start in range(0, count, size):
        yield torch.arange(start, min(start + size, count))


def _checked(scores: Tensor, rows: int) -> Tensor:
    if scores.shape != (rows,):
        raise ValueError(f"the score function gave shape {tuple(scores.shape)} for {rows} activations")
    return scores
