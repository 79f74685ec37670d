"""Faults of batch norms, in models that still have them: another epsilon, statistics that are not the network's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from .fault import Fault
from .graphs import array, copied, near, own, put, set_attribute, settled, spread

EPSILONS = (1e-3, 1e-2)  # TensorFlow's, where torch's 1e-5 was meant; and one that nobody overlooks
STALE = 0.1  # of a standard deviation, and of the variance: what a few more steps of training move


def epsilon(proto: onnx.ModelProto) -> Iterator[Fault]:
    """Another framework's epsilon."""
    for value in EPSILONS:
        for place, index in _norms(proto):
            made = copied(proto)
            set_attribute(made.graph.node[index], "epsilon", value)
            yield _done(made, index, "batch-norm epsilon", f"{value:g}", place)


def statistics(proto: onnx.ModelProto, seed: int = 0) -> Iterator[Fault]:
    """Statistics never loaded (mean 0, variance 1), or those of some steps before."""
    for strength in ("stale", "unset"):
        for place, index in _norms(proto):
            made = copied(proto)
            mean, variance = own(made, index, 3), own(made, index, 4)
            values, spreads = array(made, mean), array(made, variance)
            rng = np.random.default_rng([seed, index])
            if strength == "unset":
                put(made, mean, np.zeros_like(values))
                put(made, variance, np.ones_like(spreads))
            else:
                moved = values + STALE * np.sqrt(spreads) * rng.standard_normal(len(values))
                put(made, mean, moved.astype(values.dtype))
                put(made, variance, (spreads * np.exp(STALE * rng.standard_normal(len(values)))).astype(values.dtype))
            yield _done(made, index, "batch-norm statistics", strength, place)


def _norms(proto: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    found = [i for i, n in enumerate(proto.graph.node) if n.op_type == "BatchNormalization"]
    return spread(proto, found, lambda i: i)


def _done(made: onnx.ModelProto, index: int, family: str, strength: str, place: str) -> Fault:
    node = made.graph.node[index]
    seen = near(made, [node.output[0]])
    return Fault(family=family, strength=strength, place=place, where=node.name, proto=settled(made), tensors=seen)
