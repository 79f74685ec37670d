"""Half precision: whether a model computes in it, which changes what can be asked of agreement."""

from __future__ import annotations

import onnx

from .model import Model


def uses_half(model: Model) -> bool:
    """Whether float16 or bfloat16 weights, inputs or casts are inside."""
    return bool(_types(model) & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def uses_bfloat16(model: Model) -> bool:
    """Whether bfloat16 is: onnxruntime has few kernels for it, and numpy no type."""
    return onnx.TensorProto.BFLOAT16 in _types(model)


def _types(model: Model) -> set[int]:
    """Of weights, inputs and casts."""
    return model.cache.get("types", lambda: _types_in(model.proto.graph))


def _types_in(graph: onnx.GraphProto) -> set[int]:
    casts = (a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to")
    stored = (a.t.data_type for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value")
    inputs = (v.type.tensor_type.elem_type for v in graph.input)
    return {*(t.data_type for t in graph.initializer), *stored, *casts, *inputs}
