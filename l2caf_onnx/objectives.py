"""Objectives: how far a filter has changed what arrives at S2, as one number for each sample.

NT are the outputs of the tail for the activation as it is, FT those for the filtered one (Taha et al., ECCV 2020, arXiv
2007.09748, equations 1 and 2). Each objective takes both as {name: tensor} and gives the losses (N,) to be minimised;
loss i depends on sample i alone, so that one backward pass of their sum gives every sample its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import InputError

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss per sample.

    Attributes:
        name: As `attend(objective=...)` takes it.
        formula: What is minimised.
        class_specific: Whether it is about one class: it needs `target`, and class scores before the softmax.
        others: Of a linear objective, the weight of the scores of other classes; the target's is -1.
        form: "linear" in FT; "squares": the mean over the outputs of the mean of (NT - FT)^2; None: neither.
    """

    name: str
    formula: str
    class_specific: bool
    form: Literal["linear", "squares"] | None = None
    others: float = 0.0
    _losses: Callable[[Outputs, Outputs, int, Tensor | None], Tensor]

    def losses(self, filtered: Outputs, normal: Outputs, *, samples: int, target: Tensor | None = None) -> Tensor:
        """The losses (N,) of `filtered` (FT) against `normal` (NT), N = `samples`; `target` (N,) int64 are classes.

        Raises:
            InputError: outputs that this objective cannot be formed from, or a target that is missing or out of range.
        """
        return self._losses(filtered, normal, samples, target)

    def slopes(self, outputs: Outputs, *, samples: int, target: Tensor | None) -> Tensor:
        """Of a linear objective, its derivative (N, K) by the K class scores, the same everywhere.

        Raises:
            InputError: as `losses`.
        """
        scores = class_scores(outputs, samples=samples)
        _score_of(target, scores)  # it refuses targets that are none
        assert target is not None
        return torch.full_like(scores, self.others).scatter_(1, target.to(scores.device, torch.int64)[:, None], -1.0)


def class_scores(outputs: Outputs, *, samples: int | None = None) -> Tensor:
    """The scores (N, K) of K classes in the only floating output, where it has one axis of classes besides the batch.

    Accepts (N, K), (N, K, 1, 1), (N, 1, 1, K) and the like, and (K,) for one sample.

    Args:
        outputs: Of the tail, by name.
        samples: N; None: the first dimension, or 1 where that is all there is.

    Raises:
        InputError: no or several floating outputs, or one of another shape.
    """
    floating = _floating(outputs)
    if len(floating) != 1:
        raise InputError(
            f"A class objective needs exactly one output of class scores; there are {len(floating)}.",
            where=f"Outputs {sorted(floating)}.",
            how="Name the one that holds the scores by `to`.",
        )
    ((name, scores),) = floating.items()
    if samples is None:
        samples = scores.shape[0] if scores.ndim > 1 else 1
    whole = scores[None] if scores.ndim == samples == 1 else _by_sample(name, scores, samples)
    if whole.ndim < 2 or sum(size != 1 for size in whole.shape[1:]) > 1 or whole.numel() == 0:
        raise InputError(
            f"Output {name!r} of shape {tuple(scores.shape)} is not one vector of class scores for each sample.",
            how='Choose another output by `to`, or the objective "outputs", that takes any.',
        )
    return _widened(whole).flatten(1)


def _outputs_changed(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """Mean over the outputs of the mean over each output's elements of (NT - FT)^2."""
    names = list(_floating(normal))
    if not names:
        kinds = {name: str(tensor.dtype) for name, tensor in normal.items()}
        raise InputError(
            'The objective "outputs" needs an output of floating type to compare.', where=f"The outputs are {kinds}."
        )
    means = []
    for name in names:
        difference = _widened(normal[name]) - _widened(filtered[name])
        means.append(_by_sample(name, difference, samples).reshape(samples, -1).square().mean(1))
    return torch.stack(means).mean(0)


def _others_and_minus_target(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """Sum_j s_j FT_j with s = -1 for the target and +1 for every other class."""
    scores = class_scores(filtered, samples=samples)
    return scores.sum(1) - 2 * _score_of(target, scores)


def _minus_target(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """-FT_target."""
    return -_score_of(target, class_scores(filtered, samples=samples))


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(
            name="outputs", formula="mean((NT - FT)^2)", class_specific=False, form="squares", _losses=_outputs_changed
        ),
        Objective(
            name="paper-class",
            formula="sum_j s_j FT_j, s = -1 for the target, +1 for the others",
            class_specific=True,
            form="linear",
            others=1.0,
            _losses=_others_and_minus_target,
        ),
        Objective(name="target", formula="-FT_target", class_specific=True, form="linear", _losses=_minus_target),
    )
}


def resolve(name: str) -> Objective:
    """The objective of that name.

    Raises:
        InputError: there is none.
    """
    if name not in OBJECTIVES:
        raise InputError(f"There is no objective {name!r}.", how=f"Choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def _floating(outputs: Outputs) -> dict[str, Tensor]:
    """The outputs that can be differentiated and have elements; indices, counts and masks cannot."""
    return {name: t for name, t in outputs.items() if t.is_floating_point() and t.numel()}


def _widened(tensor: Tensor) -> Tensor:
    """At least float32: the square of a float16 overflows at 256."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _by_sample(name: str, tensor: Tensor, samples: int) -> Tensor:
    """`tensor` with axis 0 the samples; with one sample, an output that has no batch axis is that sample's whole."""
    if tensor.ndim and tensor.shape[0] == samples:
        return tensor
    if samples == 1:
        return tensor[None]
    raise InputError(
        f"Output {name!r} of shape {tuple(tensor.shape)} does not have the {samples} samples along its first axis.",
        how="Run one sample at a time, or choose another output by `to`.",
    )


def _score_of(target: Tensor | None, scores: Tensor) -> Tensor:
    """The score of each sample's target, (N,), from `scores` (N, K)."""
    samples, classes = scores.shape
    if target is None:
        raise InputError("A class objective needs a target class.", how=f"Give `target`, from 0 to {classes - 1}.")
    if target.shape != (samples,) or target.is_floating_point():
        raise InputError(
            f"The target of shape {tuple(target.shape)} and type {target.dtype} cannot be used.",
            how=f"Give {samples} class indices, one for each sample.",
        )
    outside = [k for k in target.tolist() if not 0 <= k < classes]
    if outside:
        raise InputError(
            f"Target {outside} is out of range: there are {classes} classes.",
            how=f"Give indices from 0 to {classes - 1}.",
        )
    return scores.gather(1, target.to(scores.device, torch.int64)[:, None])[:, 0]
