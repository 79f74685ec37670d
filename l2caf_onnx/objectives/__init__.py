"""Objectives: how far a filter has changed what arrives at S2, as one number for each sample.

NT are the outputs of the tail for the activation as it is, FT those for the filtered one (Taha et al., ECCV 2020, arXiv
2007.09748, equations 1 and 2). Each objective takes both as {name: tensor} and gives the losses (N,) to be minimised;
loss i depends on sample i alone, so that one backward pass of their sum gives every sample its own gradient.
"""

from __future__ import annotations

from l2caf_onnx.errors import InputError

from .changes import COSINE, OUTPUTS, SIMILARITY, VALUE
from .classes import CONTRAST, LOG_SOFTMAX, PAPER_CLASS, PROBABILITY, TARGET
from .custom import custom, wrapped
from .objective import Objective, Outputs, class_scores
from .selection import Selection, selected, selection

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Outputs",
    "Selection",
    "class_scores",
    "custom",
    "resolve",
    "selected",
    "selection",
    "wrapped",
]

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        OUTPUTS, COSINE, SIMILARITY, VALUE, TARGET, CONTRAST, LOG_SOFTMAX, PROBABILITY, PAPER_CLASS
    )
}  # fmt: skip


def resolve(name: str) -> Objective:
    """The objective of that name; "file.py:function" is a function of the user's.

    Raises:
        InputError: there is none.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ".py:" in name:
        return custom(name)
    raise InputError(
        f"There is no objective {name!r}.",
        how=f"Choose one of {', '.join(OBJECTIVES)}, or a function of yours as file.py:function.",
    )
