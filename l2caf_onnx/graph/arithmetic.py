"""The small integer sums by which exporters compute shapes, in numpy: what a Reshape is told once the sizes are known.

ONNX's own reference implementation knows every operator, but takes a millisecond for each of the thousands of nodes
that a transformer has; these few are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .nodes import attribute, is_external

Array = NDArray[Any]
LARGEST = 256  # elements: sizes and indices, no weights

_NUMPY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "And": np.logical_and, "Ceil": np.ceil, "Equal": np.equal, "Floor": np.floor, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "Identity": np.copy, "Less": np.less, "LessOrEqual": np.less_equal,
    "Max": np.maximum, "Min": np.minimum, "Mul": np.multiply, "Neg": np.negative, "Not": np.logical_not,
    "Sqrt": np.sqrt, "Sub": np.subtract, "Where": np.where,
}  # fmt: skip


def computed(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Array | None:
    """The value that a node makes of small arrays; None where it is no such operator, or refuses."""
    if any(v is None or v.size > LARGEST for v in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            made = _made(node, [v for v in inputs if v is not None])
    except (ValueError, IndexError, TypeError, KeyError, ArithmeticError):
        return None
    return made if made is not None and made.size <= LARGEST else None


def _made(node: onnx.NodeProto, v: list[Array]) -> Array | None:  # one line an operator
    op = node.op_type
    if op in _NUMPY:
        return np.asarray(_NUMPY[op](*v))
    match op:
        case "Div":
            whole = v[0].dtype.kind in "iu"
            return np.asarray(np.trunc(v[0] / v[1]).astype(v[0].dtype) if whole else v[0] / v[1])
        case "Mod":
            return np.asarray(np.mod(v[0], v[1]))
        case "Cast":
            return v[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", 1)))
        case "Gather":
            return np.asarray(np.take(v[0], v[1], axis=attribute(node, "axis", 0)))
        case "Concat":
            return np.concatenate(v, axis=attribute(node, "axis", 0))
        case "Slice":
            return np.asarray(v[0][indices(v[0].ndim, v[1:])])
        case "Unsqueeze":
            places = v[1] if len(v) > 1 else attribute(node, "axes", [0])
            return np.expand_dims(v[0], tuple(int(a) for a in np.ravel(places)))
        case "Squeeze":
            return np.squeeze(v[0])
        case "Reshape":
            return v[0].reshape([int(s) for s in v[1]])
        case "Transpose":
            return np.transpose(v[0], attribute(node, "perm", None))
        case "ConstantOfShape":
            filler = attribute(node, "value", None)
            value = onnx.numpy_helper.to_array(filler).ravel()[0] if filler is not None else np.float32(0)
            return np.full([int(s) for s in v[0]], value) if prod(map(int, v[0])) <= LARGEST else None
        case "ReduceProd":
            return np.asarray(np.prod(v[0], keepdims=bool(attribute(node, "keepdims", 1))))
        case "Range":
            return np.arange(*(x.item() for x in v)) if abs(v[1] - v[0]) <= LARGEST * abs(v[2]) else None
    return None


def indices(rank: int, parts: Sequence[Array]) -> tuple[slice, ...]:
    """Slice's starts, ends, axes, steps as numpy wants them."""
    starts, ends = parts[0].ravel(), parts[1].ravel()
    axes = parts[2].ravel() if len(parts) > 2 else np.arange(len(starts))
    steps = parts[3].ravel() if len(parts) > 3 else np.ones(len(starts), np.int64)
    found = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop: int | None = int(end)
        if step < 0 and end < -(2**31):
            stop = None
        found[int(axis)] = slice(int(start), stop, int(step))
    return tuple(found)


def small(tensor: onnx.TensorProto) -> Array | None:
    """The values of a tensor that may be a shape or an index; None of a large or damaged one."""
    try:
        fits = not is_external(tensor) and prod(tensor.dims) <= LARGEST
        return onnx.numpy_helper.to_array(tensor) if fits else None
    except (ValueError, KeyError, TypeError):
        return None
