"""What is asked of `attend`, every default filled in: a plan that can be printed, checked and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, SupportsIndex, cast, get_args

from l2caf_onnx import methods, objectives, solvers
from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.filters import CONSTRAINTS, parse_radius
from l2caf_onnx.runtime import Level

Target = int | str | Sequence[int]

OURS = "l2caf"
AUTO = "auto"
DEFAULT_RADIUS = 0.5
_SHARP = (
    0.05  # sigma of the solver "slope" for questions of no class: what holds an output has an edge, says a toy's clip
)
SMOOTH = "smooth"  # as "slope" is for a class
PRESETS = ("paper",)
PROOFS = ("tail", "model")


@dataclass(frozen=True, slots=True)
class Query:
    """One question of `attend_many`; the fields are the parameters of `attend`."""

    at: str
    to: str | Sequence[str] | None = None
    target: Target | None = None
    objective: str | Callable[..., Any] | None = None
    constraint: str | None = None
    radius: float | str | None = None
    solver: str = "auto"
    preset: str | None = None
    layout: str | None = None
    basis: str | int | None = None
    select: str | Sequence[str] | None = None
    reference: Mapping[str, Any] | None = None
    method: str = "l2caf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A question with nothing left open but the sizes.

    Attributes:
        target: Class indices (one, or one a sample), "top1", or None.
        objective: What is minimised.
        constraint: The set that the filter lives on.
        radius: rho, or "unit".
        solver: How it is minimised where `exact` is not to be or cannot.
        exact: Whether the exact solver is to be used; "only": it was asked for by name.
        fallback: What is used where there is no gradient to be had; None: nothing, `solver` was asked for by name.
        absolute: Whether the map shows |f| (the paper's) or max(f, 0).
        proof: "tail" or "model".
        level: onnxruntime's optimisation level at which the model is deployed; "disable" is the reference itself.
        seed: Of every random choice.
        basis: What the filter is made of, as `attend` takes it.
        exact_basis: Likewise where the exact solver finds it, over maps of two axes or more.
        anew: Whether the solver "slope" sets the target by half against the classes that are strongest under each
            occlusion, where the objective ranks them, and by half against those of the unfiltered model. Not of tokens.
        select: What of S2 is watched; None: all.
        reference: Feeds of the input that S2 is held against, for objectives that want one.
        method: What makes the map in the place of L2-CAF; None: nothing.
        trace: Whether the filters that the solver tries are kept.
    """

    target: int | tuple[int, ...] | str | None
    objective: objectives.Objective
    constraint: str
    radius: float | str
    solver: solvers.Solver | solvers.Slope | solvers.Blackbox
    exact: Literal["no", "where possible", "only"]
    fallback: solvers.Blackbox | None
    absolute: bool
    proof: str
    level: Level
    seed: int
    basis: str | int | None = None
    exact_basis: str | int | None = None
    anew: bool = False
    select: str | Sequence[str] | None = None
    reference: Mapping[str, Any] | None = None
    method: methods.Method | None = None
    trace: bool = False

    @property
    def changes(self) -> bool:
        """Whether it asks how little the outputs change, which f = 1 answers trivially."""
        return self.objective.name in ("outputs", "cosine")

    @property
    def logits(self) -> bool:
        """Whether S2 is watched before a softmax or sigmoid."""
        return self.objective.class_specific or self.target is not None

    def rho(self, cells: int) -> float | None:
        """The radius as rho, for a filter of so many cells; None: it is to be calibrated.

        Raises:
            InputError: no positive number.
            SolverError: rho >= 1 for an objective whose trivial answer is f = 1.
        """
        if self.radius == AUTO:
            return None
        rho = parse_radius(self.radius, cells)
        if self.changes and rho >= 1:
            raise SolverError(
                f"With the objective {self.objective.name!r} the radius {rho:g} has the trivial answer f = 1, that "
                "changes nothing.",
                where=f"rho is the filter's norm divided by sqrt({cells}); 1 is the size of the all-ones filter.",
                how="Choose a radius below 1, such as 0.5, or 'unit'.",
            )
        return rho


def plan(
    *,
    target: Target | None = None,
    objective: str | Callable[..., Any] | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    solver: str = "auto",
    preset: str | None = None,
    basis: str | int | None = None,
    select: str | Sequence[str] | None = None,
    reference: Mapping[str, Any] | None = None,
    method: str = OURS,
    proof: str = "tail",
    ort_level: str = "disable",
    seed: int = 0,
    trace: bool = False,
) -> Plan:
    """Fill in what the user left open; what is given wins over the preset, and that over the defaults.

    Where neither objective, constraint, radius nor solver is named, the defaults are what measured best (README, "Maps
    that tell the truth"): f >= 0, the radius "auto", for a class its contrast with the strongest others, in closed form
    over smooth filters where the tail is affine, and by the solver "slope" elsewhere, over smooth filters too where
    cells are few, and with others that are ranked under each occlusion too. If any of them is named, what is left
    open is the paper's sphere, rho 0.5, the target's own score, free in every cell, by "exact" or "lbfgs".

    `preset="paper"`: the paper's class-specific or class-oblivious loss, norm 1, the authors' SGD loop, |f| drawn.

    Raises:
        InputError: an unknown name, a target that is no class, or a target and an objective that do not go together.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"There is no preset {preset!r}.", how=f"Choose one of {', '.join(PRESETS)}.")
    if proof not in PROOFS:
        raise InputError(f"There is no proof {proof!r}.", how=f"Choose one of {', '.join(PROOFS)}.")
    paper = preset == "paper"
    classes = _classes(target)
    left_open = objective is None and constraint is None and radius is None and solver == "auto" and not paper
    measured = left_open and method == OURS  # nothing was said of how to ask: what measured best
    if objective is None:
        objective = _usual_objective(classes is not None, select is not None, reference is not None, paper)
        if classes is not None and measured:
            objective = "contrast"
    if callable(objective):
        chosen = objectives.wrapped(objective, getattr(objective, "__name__", "function"))
    else:
        chosen = objectives.resolve(objective)
    if chosen.class_specific and classes is None:
        raise InputError(
            f"The objective {chosen.name!r} is about a class.", how="Give a target: a class index or 'top1'."
        )
    if not (chosen.class_specific or chosen.may_have_target) and classes is not None:
        raise InputError(
            f"The objective {chosen.name!r} takes no target.",
            how="Leave the target out, or choose the objective 'target'.",
        )
    if (chosen.against == "reference") != (reference is not None):
        raise InputError(
            f"The objective {chosen.name!r} needs an input to compare with."
            if reference is None
            else f"The objective {chosen.name!r} compares with no other input.",
            how="Give `reference` (--reference) with the objective 'similarity'.",
        )
    constraint = constraint or ("l2-nonneg" if measured else "l2")
    if constraint not in CONSTRAINTS:
        raise InputError(f"There is no constraint {constraint!r}.", how=f"Choose one of {', '.join(CONSTRAINTS)}.")
    if radius is None:
        radius = "unit" if paper else AUTO if measured else DEFAULT_RADIUS
    if radius != AUTO:
        parse_radius(radius, 4)  # whether it is one at all does not depend on the number of cells
    free = constraint in ("l2", "l2-nonneg")
    fallback = solvers.Blackbox() if solver == "auto" and free else None
    if solver in (solvers.Blackbox.name, solvers.Slope.name) and not free:
        raise InputError(
            f"The solver {solver!r} cannot keep to the constraint {constraint!r}.",
            how="Choose the constraint 'l2' or 'l2-nonneg', or another solver.",
        )
    if solver in (solvers.Slope.name, solvers.Blackbox.name) and basis is not None:
        raise InputError(f"The solver {solver!r} takes no basis.", how="Leave one of them out.")
    exact: Literal["no", "where possible", "only"] = "no"
    by_slope = measured and basis is None
    if solver == "auto":
        solver, exact = ("sgd", "no") if paper else ("slope" if by_slope else "lbfgs", "where possible")
    elif solver == "exact":
        solver, exact = "lbfgs", "only"
    if ort_level not in get_args(Level):
        raise InputError(
            f"There is no optimisation level {ort_level!r}.", how=f"Choose one of {', '.join(get_args(Level))}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"The seed {seed!r} cannot be used.", how="Give a whole number from 0.")
    how = solvers.resolve(solver)
    if by_slope and isinstance(how, solvers.Slope) and not chosen.class_specific:
        how = replace(how, sigma=_SHARP)
    return Plan(
        target=classes,
        objective=chosen,
        constraint=constraint,
        radius=radius,
        solver=how,
        exact=exact,
        fallback=fallback,
        absolute=paper,
        proof=proof,
        level=cast(Level, ort_level),
        seed=seed,
        basis=basis,
        exact_basis=SMOOTH if by_slope and chosen.class_specific else basis,
        anew=by_slope and chosen.ranks,
        select=select,
        reference=reference,
        method=None if method == OURS else methods.resolve(method),
        trace=trace,
    )


_kept = lru_cache(maxsize=256, typed=True)(plan)


def planned(**asked: Any) -> Plan:
    """As `plan`, and once for the same question; a function of the user's may be another the next time."""
    objective = asked.get("objective")
    if objective is None or (isinstance(objective, str) and objective in objectives.OBJECTIVES):
        with contextlib.suppress(TypeError):  # feeds and lists are no keys
            return _kept(**asked)
    return plan(**asked)


def _usual_objective(classes: bool, select: bool, reference: bool, paper: bool) -> str:
    if classes:
        return "paper-class" if paper else "target"
    return "similarity" if reference else "value" if select else "outputs"


def _classes(target: Target | None) -> int | tuple[int, ...] | str | None:
    if target is None:
        return None
    if isinstance(target, str):
        if target == "top1":
            return target
        raise InputError(f"There is no target {target!r}.", how="Give a class index, one index a sample, or 'top1'.")
    try:
        if isinstance(target, bool):
            raise TypeError
        return tuple(_index(t) for t in target) if isinstance(target, Iterable) else _index(target)
    except TypeError as e:
        raise InputError(f"The target {target!r} is no class index.", how="Give whole numbers, or 'top1'.") from e


def _index(value: object) -> int:
    import operator

    return operator.index(cast(SupportsIndex, value))  # it raises the TypeError that is wanted
