"""What is asked of `attend`, every default filled in: a plan that can be printed, checked and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from l2caf_onnx import objectives, solvers
from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.filters import CONSTRAINTS, parse_radius
from l2caf_onnx.runtime import Level

Target = int | str | Sequence[int]

DEFAULT_RADIUS = 0.5
PRESETS = ("paper",)
PROOFS = ("tail", "model")


@dataclass(frozen=True, slots=True)
class Query:
    """One question of `attend_many`; the fields are the parameters of `attend`."""

    at: str
    to: str | Sequence[str] | None = None
    target: Target | None = None
    objective: str | None = None
    constraint: str | None = None
    radius: float | str | None = None
    solver: str = "auto"
    preset: str | None = None
    layout: str | None = None


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
    """

    target: int | tuple[int, ...] | str | None
    objective: objectives.Objective
    constraint: str
    radius: float | str
    solver: solvers.Solver | solvers.Blackbox
    exact: Literal["no", "where possible", "only"]
    fallback: solvers.Blackbox | None
    absolute: bool
    proof: str
    level: Level
    seed: int

    def rho(self, cells: int) -> float:
        """The radius as rho, for a filter of so many cells.

        Raises:
            InputError: no positive number.
            SolverError: rho >= 1 for an objective whose trivial answer is f = 1.
        """
        rho = parse_radius(self.radius, cells)
        if self.objective.name == "outputs" and rho >= 1:
            raise SolverError(
                f"With the objective 'outputs' the radius {rho:g} has the trivial answer f = 1, that changes nothing.",
                where=f"rho is the filter's norm divided by sqrt({cells}); 1 is the size of the all-ones filter.",
                how="Choose a radius below 1, such as 0.5, or 'unit'.",
            )
        return rho


def plan(
    *,
    target: Target | None = None,
    objective: str | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    solver: str = "auto",
    preset: str | None = None,
    proof: str = "tail",
    ort_level: str = "disable",
    seed: int = 0,
) -> Plan:
    """Fill in what the user left open; what is given wins over the preset, and that over the defaults.

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
    if objective is None:
        objective = "outputs" if classes is None else ("paper-class" if paper else "target")
    chosen = objectives.resolve(objective)
    if chosen.class_specific and classes is None:
        raise InputError(
            f"The objective {objective!r} is about a class.", how="Give a target: a class index or 'top1'."
        )
    if not chosen.class_specific and classes is not None:
        raise InputError(
            f"The objective {objective!r} takes no target.",
            how="Leave the target out, or choose the objective 'target'.",
        )
    constraint = constraint or "l2"
    if constraint not in CONSTRAINTS:
        raise InputError(f"There is no constraint {constraint!r}.", how=f"Choose one of {', '.join(CONSTRAINTS)}.")
    if radius is None:
        radius = "unit" if paper else DEFAULT_RADIUS
    parse_radius(radius, 4)  # whether it is one at all does not depend on the number of cells
    fallback = solvers.Blackbox() if solver == "auto" and constraint == "l2" else None
    if solver == solvers.Blackbox.name and constraint != "l2":
        raise InputError(
            f"The solver {solver!r} cannot keep to the constraint {constraint!r}.",
            how="Choose the constraint 'l2', or another solver.",
        )
    exact: Literal["no", "where possible", "only"] = "no"
    if solver == "auto":
        solver, exact = ("sgd", "no") if paper else ("lbfgs", "where possible")
    elif solver == "exact":
        solver, exact = "lbfgs", "only"
    if ort_level not in get_args(Level):
        raise InputError(
            f"There is no optimisation level {ort_level!r}.", how=f"Choose one of {', '.join(get_args(Level))}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"The seed {seed!r} cannot be used.", how="Give a whole number from 0.")
    return Plan(
        target=classes,
        objective=chosen,
        constraint=constraint,
        radius=radius,
        solver=solvers.resolve(solver),
        exact=exact,
        fallback=fallback,
        absolute=paper,
        proof=proof,
        level=cast(Level, ort_level),
        seed=seed,
    )


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

    return operator.index(value)  # type: ignore[arg-type]  # it raises the TypeError that is wanted
