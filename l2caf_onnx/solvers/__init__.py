"""Solvers: how a loss is minimised over the filters of a constraint set, one solver a file.

Each is a frozen record of hyper-parameters with one method, `minimise`, that takes a function and gives a `Solution`
(the shape of optimistix). They know functions and tensors, nothing of networks.
"""

from __future__ import annotations

from l2caf_onnx.errors import InputError

from .adam import Adam
from .lbfgs import Lbfgs
from .sgd import Sgd
from .solution import LossFunction, Solution, Solver

__all__ = ["SOLVERS", "Adam", "Lbfgs", "LossFunction", "Sgd", "Solution", "Solver", "resolve"]

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Sgd(), Adam(), Lbfgs())}


def resolve(name: str) -> Solver:
    """The solver of that name, with its default hyper-parameters; "auto" is for the caller to decide.

    Raises:
        InputError: there is none.
    """
    if name not in SOLVERS:
        raise InputError(f"There is no solver {name!r}.", how=f"Choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]
