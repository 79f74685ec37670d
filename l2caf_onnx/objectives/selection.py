"""What of S2 is watched: elements, regions and reductions of outputs, several of them with weights.

One term is `[WEIGHT *] OUTPUT [INDEX] [.max() | .min() | .mean() | .sum()]`, as in `boxes[0, 12, 4]`, `logits[:, :, 3,
5]`, `0.5 * scores[:, :, 7].max()`. The index is numpy's, of the output as the model gives it, its batch axis included,
of which 0 or `:` is written: every sample is asked the same. What is watched then takes the place of the outputs, for
any objective. A weight is that of the term's own loss where an objective has one for each output, a part of the whole
where it is their mean; of class scores, which are read together, it is a factor.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor

from l2caf_onnx.errors import InputError

from .objective import Form, Objective, Outputs, by_sample, widened

Place = int | slice | EllipsisType
Index = tuple[Place, ...]

_REDUCTIONS = ("max", "min", "mean", "sum")
_HOW = 'Write it as numpy does, with the batch axis: "boxes[0, 12, 4]", "0.5 * scores[:, :, 7].max()".'


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One thing that is watched.

    Attributes:
        text: As the user wrote it.
        output: Of the tail.
        index: Into the output as the model gives it; () for all.
        reduction: Over all that the index leaves of a sample; "" for none.
        weight: What it is multiplied by.
    """

    text: str
    output: str
    index: Index
    reduction: str
    weight: float

    def of(self, outputs: Outputs, batch: int, samples: int) -> Tensor:
        """What is watched, (N, ...), unweighted; `batch`: the axis of the samples in the model's own output, or -1."""
        value = by_sample(self.output, widened(outputs[self.output]), samples)
        found = value[self._placed(value.ndim, batch, value.shape)]
        if found.numel() == 0:
            raise InputError(
                f"{self.text!r} selects nothing.", where=f"Output {self.output!r} has shape {tuple(value.shape)}."
            )
        if self.reduction:
            flat = found.reshape(samples, -1)
            found = getattr(flat, {"max": "amax", "min": "amin"}.get(self.reduction, self.reduction))(1)
        return found

    def _placed(self, rank: int, batch: int, shape: Sequence[int]) -> Index:
        """The index for an output with its samples in front; `batch` -1: the model's own has no axis of samples."""
        own = rank - 1 if batch < 0 else rank
        index = list(self.index)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index[at : at + 1] = [slice(None)] * (own - len(index) + 1)
        index += [slice(None)] * (own - len(index))
        if len(index) != own:
            raise InputError(
                f"{self.text!r} has {len(index)} indices; the output has {own} axes.",
                where=f"Output {self.output!r} of shape {tuple(shape[rank - own :])}.",
                how=_HOW,
            )
        sample = index.pop(batch) if batch >= 0 else slice(None)
        if sample != 0 and sample != slice(None):
            raise InputError(
                f"{self.text!r} selects among the samples of the batch; each is asked the same.",
                where=f"Axis {batch} of output {self.output!r}.",
                how="Write 0 or : there.",
            )
        for axis, (i, size) in enumerate(zip(index, shape[1:], strict=True)):
            if isinstance(i, int) and not -size <= i < size:
                raise InputError(
                    f"{self.text!r} is out of range: the index {i} of an axis of {size}.",
                    where=f"Axis {axis + (axis >= batch >= 0)} of output {self.output!r}.",
                )
        return (slice(None), *index)


@dataclass(frozen=True, slots=True)
class Selection:
    """Terms, and where the model's outputs have their samples."""

    terms: tuple[Term, ...]
    batch: Mapping[str, int]

    @property
    def linear(self) -> bool:
        """Whether what is watched is linear in the outputs."""
        return all(t.reduction in ("", "mean", "sum") for t in self.terms)

    def of(self, outputs: Outputs, samples: int) -> dict[str, Tensor]:
        """What is watched, batch first and unweighted, by the text of its term."""
        return {t.text: t.of(outputs, self.batch[t.output], samples) for t in self.terms}


def selection(text: str | Sequence[str], batch: Mapping[str, int]) -> Selection:
    """Read a selection; `batch` has the axis of the samples in each output of the tail, or -1.

    Raises:
        InputError: no such output, or not of that form.
    """
    parts = [text] if isinstance(text, str) else list(text)
    terms = tuple(_term(part, list(batch)) for part in parts)
    if not any(t.weight for t in terms):
        raise InputError("The selection is empty, or all of its weights are 0.", where=f"{parts}.", how=_HOW)
    if len({t.text for t in terms}) < len(terms):
        raise InputError("A term is selected twice.", where=f"{', '.join(parts)}.", how="Give it one weight.")
    return Selection(terms, dict(batch))


def selected(objective: Objective, text: str | Sequence[str], batch: Mapping[str, int]) -> Objective:
    """The objective of what a selection leaves of the outputs.

    Raises:
        InputError: see `selection`.
    """
    chosen = selection(text, batch)

    weights = {t.text: t.weight for t in chosen.terms}

    def losses(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
        after = chosen.of(filtered, samples)
        before = chosen.of(normal, samples) if normal else {}
        if objective.joins is None:
            after, before = ({k: v * weights[k] for k, v in own.items()} for own in (after, before))
            return objective.losses(after, before, samples=samples, target=target)
        total = torch.zeros(())
        for name, value in after.items():
            against = {name: before[name]} if before else {}
            own = objective.losses({name: value}, against, samples=samples, target=target)
            total = total.to(own) + weights[name] * own
        return total if objective.joins == "sum" else total / sum(abs(w) for w in weights.values())

    form: Form | None = "linear" if objective.form == "linear" and chosen.linear else None
    watched = " + ".join(t.text for t in chosen.terms)
    return replace(objective, formula=f"{objective.formula}, of {watched}", form=form, _losses=losses, _terms=None)


def _term(text: str, outputs: Sequence[str]) -> Term:
    rest, weight = text.strip(), 1.0
    before, star, after = rest.partition("*")
    if star and not any(rest.startswith(name) for name in outputs):
        try:
            weight, rest = float(before), after.strip()
        except ValueError as e:
            raise InputError(f"The weight {before.strip()!r} is no number.", where=f"{text!r}.", how=_HOW) from e
    name = max((o for o in outputs if rest.startswith(o) and _ends(rest[len(o) :])), key=len, default=None)
    if name is None:
        raise InputError(
            f"{text!r} names no output that is watched.", where=f"Watched are {', '.join(outputs)}.", how=_HOW
        )
    match = re.fullmatch(r"\s*(\[[^\]]*\])?\s*(?:\.(\w+)\(\))?\s*", rest[len(name) :])
    if match is None or (match.group(2) and match.group(2) not in _REDUCTIONS):
        raise InputError(f"{text!r} cannot be read.", where=f"After {name!r}.", how=_HOW)
    index = _index(match.group(1), text) if match.group(1) else ()
    if not math.isfinite(weight):
        raise InputError(f"The weight {weight} cannot be used.", where=f"{text!r}.")
    return Term(text=text, output=name, index=index, reduction=match.group(2) or "", weight=weight)


def _ends(rest: str) -> bool:
    return re.match(r"\s*(\[|\.\w+\(\)\s*$|$)", rest) is not None


def _index(brackets: str, text: str) -> Index:
    """What stands in brackets, read by Python's own grammar; nothing of it is run."""
    try:
        node = ast.parse(f"x{brackets}", mode="eval").body
        assert isinstance(node, ast.Subscript)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        index = tuple(_part(p) for p in parts)
        if index.count(Ellipsis) > 1:
            raise ValueError
    except (SyntaxError, ValueError, AssertionError) as e:
        raise InputError(f"The index {brackets} cannot be read.", where=f"{text!r}.", how=_HOW) from e
    return index


def _part(node: ast.expr) -> Place:
    if isinstance(node, ast.Slice):
        bounds = [None if n is None else ast.literal_eval(n) for n in (node.lower, node.upper, node.step)]
        if all(b is None or type(b) is int for b in bounds) and (bounds[2] is None or bounds[2] > 0):
            return slice(*bounds)
        raise ValueError
    value = ast.literal_eval(node)
    if type(value) is int or value is Ellipsis:
        return value
    raise ValueError
