"""Solvers: how a loss is minimised over the filters of a constraint set, one solver a file.

Each is a frozen record of hyper-parameters with one method, `minimise`, that takes a function and gives a `Solution`
(the shape of optimistix). They know functions and tensors, nothing of networks. Blackbox's function gives outputs, not
a loss with its gradient; Slope's takes filters of any size.
"""

from __future__ import annotations

from l2caf_onnx.errors import InputError

from .adam import Adam
from .blackbox import Blackbox
from .lbfgs import Lbfgs
from .sgd import Sgd
from .slope import Slope
from .solution import LossFunction, Solution, Solver

__all__ = ["SOLVERS", "Adam", "Blackbox", "Lbfgs", "LossFunction", "Sgd", "Slope", "Solution", "Solver", "resolve"]

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Sgd(), Adam(), Lbfgs())}
"""Those that follow a gradient."""

_OTHERS: dict[str, Slope | Blackbox] = {solver.name: solver for solver in (Slope(), Blackbox())}


def resolve(name: str) -> Solver | Slope | Blackbox:
    """The solver of that name, with its default hyper-parameters; "auto" is for the caller to decide.

    Raises:
        InputError: there is none.
    """
    if name in _OTHERS:
        return _OTHERS[name]
    if name not in SOLVERS:
        raise InputError(
            f"There is no solver {name!r}.", how=f"Choose one of {', '.join((*SOLVERS, *_OTHERS))}, or auto."
        )
    return SOLVERS[name]
