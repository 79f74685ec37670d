"""What kind of change a candidate is, read from both graphs: each kind has its own measure of harmless.

Read from types and weights alone, nothing is run. A single faulty layer is no retraining: it is a model of the same
weights, one of them wrong, and is held to the measure of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.nodes import walk
from l2caf_onnx.records import Change

_QUANTISERS = ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_QUANTISED = ("QLinear", "QGemm", "QAttention", "MatMulNBits", "DynamicQuantize")
_SMALL = 64  # numbers of a weight that says nothing
_ALIKE = 0.9  # mean cosine of the rows of two weights that are the same but for folded scales
_MOST = 0.5  # of the weights that have a counterpart

Weight = NDArray[np.float32]


def change_of(reference: Model, candidate: Model) -> tuple[Change, str]:
    """The class of the change, and one sentence on what tells it.

    "int8" where the candidate computes in integers; else "float16" where it holds half precision; else "retrained"
    where over half of the weights that have a counterpart of their size point elsewhere (by rows, so that folded scales
    do not count); "identical" where both graphs are the same; else "float32".
    """
    if reference.proto.graph.SerializeToString(deterministic=True) == candidate.proto.graph.SerializeToString(
        deterministic=True
    ):
        return "identical", "Both graphs are the same, byte for byte."
    quantised = _quantised_ops(candidate)
    if quantised:
        return "int8", f"The candidate computes in integers: it has {', '.join(sorted(quantised)[:3])}."
    if uses_half(candidate):
        return "float16", "The candidate holds float16 numbers."
    same, pairs = _agreement(reference, candidate)
    if pairs and same < _MOST * pairs:
        return "retrained", f"Of {pairs} weights that have a counterpart of their size, {pairs - same} differ wholly."
    return "float32", "Both compute in float32, with the same weights but for folding."


def _quantised_ops(model: Model) -> set[str]:
    return {n.op_type for n in walk(model.proto.graph) if n.op_type in _QUANTISERS or n.op_type.startswith(_QUANTISED)}


def _agreement(reference: Model, candidate: Model) -> tuple[int, int]:
    """How many weights of the reference have their like in the candidate, of how many that have one of their size."""
    theirs: dict[tuple[int, ...], list[tuple[str, Weight]]] = {}
    for name, weight in _weights(candidate):
        theirs.setdefault(tuple(sorted(weight.shape)), []).append((name, weight))
    same = pairs = 0
    for name, weight in _weights(reference):
        others = theirs.get(tuple(sorted(weight.shape)), [])
        if not others:
            continue
        pairs += 1
        named = [w for n, w in others if n == name]
        rest = [w for n, w in others if n != name]
        same += any(_alike(weight, other) for other in (*named, *rest))
    return same, pairs


def _weights(model: Model) -> Iterator[tuple[str, Weight]]:
    """The stored weights of two axes or more, as float32."""
    folder = str(model.base_dir) if model.base_dir is not None else ""
    for name, tensor in model.initialisers.items():
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and len(tensor.dims) >= 2:
            values = onnx.numpy_helper.to_array(tensor, folder).astype(np.float32)
            if values.size >= _SMALL and sum(d > 1 for d in values.shape) >= 1:
                yield name, values


def _alike(one: Weight, other: Weight) -> bool:
    return any(_rows_agree(one, form) for form in ([other, other.T] if other.ndim == 2 else [other]))


def _rows_agree(one: Weight, other: Weight) -> bool:
    if one.shape != other.shape:
        return False
    if one.ndim == 2 and one.shape[0] < one.shape[1]:  # the longer side may be the one along which scales were folded
        both = [_cosine(one, other), _cosine(one.T, other.T)]
    else:
        both = [_cosine(one.reshape(len(one), -1), other.reshape(len(other), -1))]
    return max(both) >= _ALIKE


def _cosine(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """The mean over rows of |cosine|."""
    one, other = one.astype(np.float64), other.astype(np.float64)  # a broken weight may be near the largest float32
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    kept = sizes > 0
    if not kept.any():
        return 1.0
    return float(np.mean(np.abs((one * other).sum(1)[kept]) / sizes[kept]))
