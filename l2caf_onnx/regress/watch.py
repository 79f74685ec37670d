"""What is looked at in a model, and what is asked of its attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.query import Plan, plan
from l2caf_onnx.solvers import Slope

from .straight import Straight


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of attention at every breakpoint, as the arguments of `attend`.

    The defaults are chosen for repeatability: where the tail is affine there is one answer, and it moves no more than
    the activations do; a radius that is searched for ("auto") may jump.
    """

    to: str | Sequence[str] | None = None
    objective: str | None = None
    constraint: str = "l2-nonneg"
    radius: float | str = 0.5
    basis: str | int | None = None
    layout: str | None = None
    seed: int = 0

    def planned(self, targets: Sequence[int] | None, *, affine: bool) -> Plan:
        """As a plan, about those classes.

        Of a class, where no objective is named, its contrast with the strongest others, in closed form where the tail
        is affine, else by the solver "slope", which draws nothing at random and has one answer too. Where the reference
        is `affine` but this tail is not (roundings were put into it), the slope is taken where nothing is filtered, as
        the closed form does. Of tokens always by regression on occlusions, elsewhere never, even where it would tell
        more of a sample: two models that hardly differ must not be asked in two ways.
        """
        own = None if targets is None else list(targets)
        objective = self.objective or (None if own is None else "contrast")
        made = plan(
            target=own, objective=objective, constraint=self.constraint, radius=self.radius, basis=self.basis,
            seed=self.seed,
        )  # fmt: skip
        by_slope = own is not None and self.objective is None and self.basis is None and made.fallback is not None
        if not by_slope:
            return made
        return replace(made, solver=Straight() if affine else Slope(better=math.inf))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A tensor that is watched: its name in the comparison, in this model, and how its axes are turned to be compared.

    Attributes:
        name: As the reference calls it.
        own: As this model calls it.
        order: Of the axes; None: as they are.
        scale: What the values are multiplied by.
    """

    name: str
    own: str
    order: tuple[int, ...] | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is looked at in a model.

    Attributes:
        tensors: Intermediates.
        at: {name in the comparison: own name} of the breakpoints.
        affine: Which of the breakpoints have an affine tail in the reference.
        outputs: What the model returns.
        question: What is asked of attention.
    """

    tensors: tuple[Seen, ...] = ()
    at: Mapping[str, str] = field(default_factory=dict)
    affine: frozenset[str] = frozenset()
    outputs: tuple[Seen, ...] = ()
    question: Question = Question()


def question_of(
    to: str | Sequence[str] | None,
    objective: str | None,
    constraint: str | None,
    radius: float | str | None,
    basis: str | int | None,
    layout: str | None,
    seed: int,
) -> Question:
    """What is asked of attention, with defaults for what is None."""
    usual = Question()
    return Question(
        to=to if to is None or isinstance(to, str) else tuple(to),
        objective=objective,
        constraint=constraint or usual.constraint,
        radius=usual.radius if radius is None else radius,
        basis=basis,
        layout=layout,
        seed=seed,
    )


def targets_of(target: int | str | None, count: int) -> list[int] | str | None:
    """`target` as `Observer.see` takes it.

    Raises:
        InputError: no class, "top1" or "none".
    """
    if target is None or target == "top1":
        return "top1"
    if target == "none":
        return None
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        raise InputError(f"There is no target {target!r}.", how='Give a class index, "top1", or "none".')
    return [target] * count
