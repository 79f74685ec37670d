"""Shuffling the weights behind a breakpoint: a map that does not change with them does not show what was learnt.

The values of a tensor are permuted, not drawn anew: its distribution, and so the size of what it computes, stays as it
is, for quantised weights too. Scales of normalisations are left alone: they keep the signal alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from .cut import resolve_to
from .model import Model
from .paths import reached, reaching

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)
_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_CARRIERS = ("Identity", "DequantizeLinear", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")


def weight_layers(model: Model, at: str, to: str | Sequence[str] | None = None) -> tuple[tuple[str, ...], ...]:
    """The stored weights of the tail from `at` to `to`, a tuple of names for each node that has some, the top first.

    A node's weights are its stored tensors of two axes or more, and with them its biases: those of one axis that it
    reads too. What the head reads as well is left out, as changing it would change the activation.

    Raises:
        TensorNotFoundError, CutError: see `cut`.
    """
    live = reached(model, at) & reaching(model, resolve_to(model, at, to))
    inside = [
        any(o in live for o in node.output) and any(r in live for r in reads)
        for node, reads in zip(model.proto.graph.node, model.reads, strict=True)
    ]
    carriers = {k for k, node in enumerate(model.proto.graph.node) if node.op_type in _CARRIERS and not inside[k]}
    outside = {
        stored
        for k, reads in enumerate(model.reads)
        if not inside[k] and k not in carriers
        for r in reads
        if (stored := _stored(model, r)) is not None
    }
    found: list[tuple[str, ...]] = []
    taken: set[str] = set(outside)
    for index in range(len(model.proto.graph.node) - 1, -1, -1):
        if not inside[index]:
            continue
        names = [s for r in model.reads[index] if (s := _stored(model, r)) is not None and s not in taken]
        tensors = [model.initialisers[n] for n in names]
        if not any(_is_weight(t) for t in tensors):
            continue
        own = tuple(t.name for t in tensors if _is_weight(t) or _is_bias(t))
        found.append(own)
        taken.update(own)
    return tuple(found)


def permuted(model: Model, names: Iterable[str], seed: int) -> Model:
    """`model` with the values of each stored tensor of `names` permuted, each by draws of its own place in `names`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    stored = {t.name: t for t in proto.graph.initializer}
    folder = str(model.base_dir or Path())
    for place, name in enumerate(names):
        values = onnx.numpy_helper.to_array(model.initialisers[name], folder)
        shuffled = np.random.default_rng([seed, place]).permutation(values.ravel()).reshape(values.shape)
        stored[name].CopyFrom(onnx.numpy_helper.from_array(shuffled, name))
    return Model(proto, base_dir=model.base_dir, name=f"{model.name}, randomised")


def _stored(model: Model, name: str) -> str | None:
    """The stored tensor that `name` is, or is made of by operators that keep its values in place or nearly so."""
    for _ in range(len(_CARRIERS)):
        if name in model.initialisers:
            return name
        index = model.producers.get(name)
        if index is None or model.proto.graph.node[index].op_type not in _CARRIERS:
            return None
        name = model.proto.graph.node[index].input[0]
    return None


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (*_FLOATS, *_INTEGERS) and sum(d > 1 for d in tensor.dims) >= 1 and len(tensor.dims) >= 2


def _is_bias(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in _FLOATS and len(tensor.dims) == 1 and tensor.dims[0] > 1
