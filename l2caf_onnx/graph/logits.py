"""The logits behind a probability: what a Softmax or Sigmoid at the end of a network was given.

After a saturated softmax the gradient of a sure class vanishes; objectives about a class need what comes before it.
"""

from __future__ import annotations

from .model import Model

_SQUASHING = {"Softmax", "LogSoftmax", "Sigmoid"}
_TRANSPARENT = {"Identity", "Cast", "Reshape", "Squeeze"}


def logits_of(model: Model, name: str) -> tuple[str, str] | None:
    """(the tensor before it, the operator) where `name` is made by a Softmax, LogSoftmax or Sigmoid.

    Only Identity, Cast, Reshape and Squeeze may stand between; None otherwise.
    """
    while name in model.producers:
        node = model.proto.graph.node[model.producers[name]]
        if node.op_type in _SQUASHING:
            return node.input[0], node.op_type
        if node.op_type not in _TRANSPARENT:
            return None
        name = node.input[0]
    return None
