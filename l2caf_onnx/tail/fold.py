"""Folding: at the sizes of the example, all that does not depend on data becomes a stored constant.

onnxruntime computes the constants, unoptimised, so that each is exactly what the deployed model would compute; nodes
that depend on data keep their names and their arithmetic. Control flow that such constants steer is taken apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.rewrite import bake
from l2caf_onnx.graph.static import static_at_given_sizes
from l2caf_onnx.graph.unroll import has_control_flow, steering, unrolled

Arrays = Mapping[str, NDArray[Any]]

_ROUNDS = 300  # of control flow within control flow, or of iterations peeled one by one


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded model, and those of the held inputs whose values decided its course: it is true for these alone."""

    model: Model
    fixed: frozenset[str] = frozenset()


def fold(model: Model, example: Arrays, held: Collection[str] = ()) -> Folded:
    """`model` fixed to the sizes in `example`, with constants and shape arithmetic computed.

    Args:
        model: Any.
        example: {input name: array}.
        held: Inputs whose values will stay those of the example; they are baked in where they steer control flow.
    """
    model, fixed = _without_control_flow(model, example, held)
    static = static_at_given_sizes(model)
    wanted = [name for name in model.producers if name in static and _is_read(model, name, static)]
    sizes = {name: np.shape(array) for name, array in example.items()}
    return Folded(bake(model, _values(model, example, wanted), sizes), fixed)


def _values(model: Model, example: Arrays, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    made = [name for name in wanted if name in model.producers]
    return runtime.run(extract(model, [i.name for i in model.inputs], made), example) if made else {}


def _without_control_flow(model: Model, example: Arrays, held: Collection[str]) -> tuple[Model, frozenset[str]]:
    """`model` with all If, Loop, Scan and sequences taken apart that constants (and which of `held`) decide."""
    fixed: frozenset[str] = frozenset()
    for _ in range(_ROUNDS):
        if not has_control_flow(model):
            break
        values, shapes, decisive = steering(model, held)
        found = {**example, **_values(model, example, tuple(dict.fromkeys((*values, *shapes))))}
        known = {n: found[n] for n in values if n in found}
        sizes = {n: np.shape(found[n]) for n in shapes if n in found}
        further = unrolled(model, known, sizes)
        if further is None:
            break
        model, fixed = further, fixed | decisive
    return model, fixed


def _is_read(model: Model, name: str, static: frozenset[str]) -> bool:
    """Whether something that depends on data reads it, or it is itself an output."""
    nodes = model.proto.graph.node
    if any(o.name == name for o in model.outputs):
        return True
    return any(o not in static for i in model.consumers.get(name, ()) for o in nodes[i].output if o)
