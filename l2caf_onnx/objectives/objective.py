"""What an objective is, and how it reads the outputs of a tail: by sample, of floating type, as class scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import InputError

Outputs = Mapping[str, Tensor]
Losses = Callable[[Outputs, Outputs, int, Tensor | None], Tensor]
Form = Literal["linear", "squares"]
Scores = NDArray[np.floating[Any]]
Places = NDArray[np.int64]
Weights = NDArray[np.float32]
Terms = Callable[[Scores | None, Places], tuple[Places, Weights]]
"""(scores (N, K) of the unfiltered model, target (N,)) -> the k scores that the loss sums and their weights, (N, k)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss per sample.

    Attributes:
        name: As `attend(objective=...)` takes it.
        formula: What is minimised.
        source: Where it comes from.
        class_specific: Whether it is about one class: it needs `target`, and class scores before the softmax.
        may_have_target: Whether it takes a target but does not need one.
        against: What the filtered outputs are held against: the model's own, or those for the input `reference`.
        form: "linear" in FT; "squares": the mean over the outputs of the mean of (NT - FT)^2; None: neither.
        joins: How it makes one loss of several outputs, each of which has its own: "mean" or "sum"; None: it reads
            them together.
        ranks: Whether `terms` depends on how the unfiltered model ranks the classes.
    """

    name: str
    formula: str
    source: str
    class_specific: bool
    may_have_target: bool = False
    against: Literal["normal", "reference"] = "normal"
    form: Form | None = None
    joins: Literal["mean", "sum"] | None = None
    ranks: bool = False
    _losses: Losses
    _terms: Terms | None = None

    def losses(self, filtered: Outputs, normal: Outputs, *, samples: int, target: Tensor | None = None) -> Tensor:
        """The losses (N,) of `filtered` (FT) against `normal` (NT), N = `samples`; `target` (N,) int64 are classes.

        Raises:
            InputError: outputs that this objective cannot be formed from, or a target that is missing or out of range.
        """
        return self._losses(filtered, normal, samples, target)

    @property
    def sums_few(self) -> bool:
        """Whether the loss is a sum of a few weighted class scores, which `terms` tells."""
        return self._terms is not None

    def terms(self, scores: Scores | None, classes: int, target: Sequence[int] | None) -> tuple[Places, Weights]:
        """The indices and weights, (N, k) each, of the class scores whose sum is the loss (see `sums_few`).

        Args:
            scores: (N, K) of the unfiltered model; None where `ranks` says that they are not needed.
            classes: K.
            target: Of each sample.

        Raises:
            InputError: a target that is missing or out of range.
        """
        assert self._terms is not None
        refuse_outside(target, classes)
        return self._terms(scores, np.asarray(target, np.int64))


def class_scores(outputs: Outputs, *, samples: int | None = None) -> Tensor:
    """The scores (N, K) of K classes in the only floating output, where it has one axis of classes besides the batch.

    Accepts (N, K), (N, K, 1, 1), (N, 1, 1, K) and the like, and (K,) for one sample.

    Args:
        outputs: Of the tail, by name.
        samples: N; None: the first dimension, or 1 where that is all there is.

    Raises:
        InputError: no or several floating outputs, or one of another shape.
    """
    found = floating(outputs)
    if len(found) != 1:
        raise InputError(
            f"A class objective needs exactly one output of class scores; there are {len(found)}.",
            where=f"Outputs {sorted(found)}.",
            how="Name the one that holds the scores by `to`.",
        )
    ((name, scores),) = found.items()
    if samples is None:
        samples = scores.shape[0] if scores.ndim > 1 else 1
    whole = scores[None] if scores.ndim == samples == 1 else by_sample(name, scores, samples)
    if whole.ndim < 2 or sum(size != 1 for size in whole.shape[1:]) > 1 or whole.numel() == 0:
        raise InputError(
            f"Output {name!r} of shape {tuple(scores.shape)} is not one vector of class scores for each sample.",
            how='Choose another output by `to`, the scores of one place by `select`, such as "logits[:, :, 3, 5]", or '
            'the objective "outputs", that takes any.',
        )
    return widened(whole).flatten(1)


def checked(target: Tensor | None, classes: int) -> Tensor:
    """The target (N,), if each is one of K `classes`.

    Raises:
        InputError: it is not, or there is none.
    """
    refuse_outside(None if target is None else target.tolist(), classes)
    assert target is not None
    return target


def refuse_outside(target: Sequence[int] | None, classes: int) -> None:
    """Raise InputError where there is no target, or one that is none of K `classes`."""
    if target is None:
        raise InputError("A class objective needs a target class.", how=f"Give `target`, from 0 to {classes - 1}.")
    outside = [k for k in target if not 0 <= k < classes]
    if outside:
        raise InputError(
            f"Target {outside} is out of range: there are {classes} classes.",
            how=f"Give indices from 0 to {classes - 1}.",
        )


def floating(outputs: Outputs) -> dict[str, Tensor]:
    """The outputs that can be differentiated and have elements; indices, counts and masks cannot."""
    return {name: t for name, t in outputs.items() if t.is_floating_point() and t.numel()}


def widened(tensor: Tensor) -> Tensor:
    """At least float32: the square of a float16 overflows at 256."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def by_sample(name: str, tensor: Tensor, samples: int) -> Tensor:
    """`tensor` with axis 0 the samples; with one sample, an output that has no batch axis is that sample's whole."""
    if tensor.ndim and tensor.shape[0] == samples:
        return tensor
    if samples == 1:
        return tensor[None]
    raise InputError(
        f"Output {name!r} of shape {tuple(tensor.shape)} does not have the {samples} samples along its first axis.",
        how="Run one sample at a time, or choose another output by `to`.",
    )


def rows(name: str, tensor: Tensor, samples: int) -> Tensor:
    """A row of numbers for each sample, (N, M)."""
    return by_sample(name, widened(tensor), samples).reshape(samples, -1)


def several(outputs: Outputs, what: str) -> dict[str, Tensor]:
    """The floating outputs.

    Raises:
        InputError: there is none.
    """
    found = floating(outputs)
    if not found:
        kinds = {name: str(tensor.dtype) for name, tensor in outputs.items()}
        raise InputError(
            f"The objective {what!r} needs an output of floating type to compare.", where=f"The outputs are {kinds}."
        )
    return found
