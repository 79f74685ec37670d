"""Folding: at the sizes of the example, all that does not depend on data becomes a stored constant.

onnxruntime computes the constants, unoptimised, so that each is exactly what the deployed model would compute; nodes
that depend on data keep their names and their arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.rewrite import bake
from l2caf_onnx.graph.static import static_at_given_sizes


def fold(model: Model, example: Mapping[str, NDArray[Any]]) -> Model:
    """`model` fixed to the sizes in `example`, with constants and shape arithmetic computed."""
    static = static_at_given_sizes(model)
    wanted = [name for name in model.producers if name in static and _is_read(model, name, static)]
    values: dict[str, NDArray[Any]] = {}
    if wanted:
        values = runtime.run(extract(model, [i.name for i in model.inputs], wanted), example)
    return bake(model, values, {name: np.shape(array) for name, array in example.items()})


def _is_read(model: Model, name: str, static: frozenset[str]) -> bool:
    """Whether something that depends on data reads it, or it is itself an output."""
    nodes = model.proto.graph.node
    if any(o.name == name for o in model.outputs):
        return True
    return any(o not in static for i in model.consumers.get(name, ()) for o in nodes[i].output if o)
