"""Solvers, one a file."""

from ..errors import InputError
from .adam import Adam
from .lbfgs import Lbfgs
from .sgd import Sgd
from .solution import Solution, Solver

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Sgd(), Adam(), Lbfgs())}


def resolve(name: str) -> Solver:
    if name not in SOLVERS:
        raise InputError(f"There is no solver {name!r}.", how=f"Choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]


__all__ = ["SOLVERS", "Adam", "Lbfgs", "Sgd", "Solution", "Solver", "resolve"]
