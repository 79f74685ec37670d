"""How far a quantised node is off, and whose fault it is.

onnxruntime's integer kernels saturate with int8 weights on processors without VNNI. The same node with all its int8
tensors written as uint8, 128 higher, zero points too, is the same arithmetic by another kernel of onnxruntime. If that
agrees with the torch form, the kernel is at fault, and onnxruntime itself says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.agreement import RTOL
from l2caf_onnx.errors import L2cafError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.rewrite import single_node

Arrays = Mapping[str, NDArray[Any]]

_STEP = {"int8": 1, "uint8": 1, "int16": 1, "uint16": 1}  # other integers are sums, indices, counts: exact

# Operator -> pairs (position of quantised factor, of its zero point).
_SUMS = {
    "QLinearConv": ((0, 2), (3, 5)),
    "QLinearMatMul": ((0, 2), (3, 5)),
    "QGemm": ((0, 2), (3, 5)),
    "ConvInteger": ((0, 2), (1, 3)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
    "DynamicQuantizeMatMul": ((1, 3),),
}


def exact_when_unsigned(model: Model, index: int, values: Arrays, found: Arrays) -> bool:
    """Whether the node at `index`, on the inputs in `values`, gives what torch gave (`found`) once written unsigned."""
    outputs = _when_unsigned(model, index, values)
    return outputs is not None and not any(difference(outputs[name], value) for name, value in found.items())


def saturates(model: Model, index: int, values: Arrays) -> bool:
    """Whether the node at `index` gives something else once written unsigned: the same arithmetic by another kernel.

    Args:
        model: Whose node it is.
        index: Among all nodes.
        values: The node's inputs, and its outputs, as onnxruntime gives them.
    """
    outputs = _when_unsigned(model, index, values)
    return outputs is not None and any(difference(values[name], value) for name, value in outputs.items())


def _when_unsigned(model: Model, index: int, values: Arrays) -> dict[str, NDArray[Any]] | None:
    """What the node gives once all its int8 tensors are written as uint8, in the types that it had; None: there are
    none, or onnxruntime has no such kernel.
    """
    node = model.proto.graph.node[index]
    if node.op_type not in _SUMS:
        return None
    alone = single_node(model, index, values)
    proto, fed = onnx.ModelProto(), {i.name: values[i.name] for i in alone.inputs}
    proto.CopyFrom(alone.proto)
    if not _unsigned(proto, fed):
        return None
    try:
        outputs = runtime.run(Model(proto, base_dir=model.base_dir, name=model.name), fed)
    except L2cafError:
        return None
    return {
        name: (given.astype(np.int16) - 128 if given.dtype != values[name].dtype else given).astype(values[name].dtype)
        for name, given in outputs.items()
    }


def _unsigned(proto: onnx.ModelProto, fed: dict[str, NDArray[Any]]) -> bool:
    """Write every int8 tensor of the only node as uint8, 128 higher, in place; whether there was any."""
    int8, uint8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    (node,) = proto.graph.node
    stored = [t for t in proto.graph.initializer if t.data_type == int8]
    given = [v for v in proto.graph.input if v.type.tensor_type.elem_type == int8]
    signed = {v.name for v in (*stored, *given)}
    for tensor in stored:
        shifted = onnx.numpy_helper.to_array(tensor).astype(np.int16) + 128
        tensor.CopyFrom(onnx.numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))
    for value in given:
        value.type.tensor_type.elem_type = uint8
        fed[value.name] = (fed[value.name].astype(np.int16) + 128).astype(np.uint8)
    for place, zero in _SUMS[node.op_type]:
        if node.input[place] in signed and not (len(node.input) > zero and node.input[zero]):
            node.input.extend([""] * (zero + 1 - len(node.input)))
            node.input[zero] = f"l2caf_zero_{place}"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), node.input[zero]))
    return bool(signed)


def difference(reference: NDArray[Any], found: NDArray[Any], step: float = 0.0) -> str:
    """How far a node is off, if further than it may be; "" where not. `step` is that of a float to be quantised."""
    if reference.shape != found.shape:
        return f"of shape {found.shape}, not {reference.shape},"
    if not reference.size:
        return ""
    if reference.dtype.kind not in "f":
        steps = np.abs(reference.astype(np.float64) - found.astype(np.float64)).max()
        return f"{steps:g} steps" if steps > _STEP.get(str(reference.dtype), 0) else ""
    a, b = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return "off in NaN or infinity"
    largest = np.abs(a[finite]).max(initial=0)
    off = np.abs(a[finite] - b[finite]).max(initial=0)
    allowed = max(RTOL.get(str(reference.dtype), 0.0) * largest, step)
    return f"{off / largest if largest else np.inf:.2g} of the largest value" if off > allowed else ""
