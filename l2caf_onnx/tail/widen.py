"""A float16 model in float32: what its arithmetic would be without the rounding, for the sake of its slope.

Torch's float16 gradient overflows, and near saturation is wrong (tanh's is 1 - y², of a rounded y: off by 15%). Nor can
onnxruntime judge it, for the difference of two float16 outputs is mostly rounding: on small nets off by 5% in one case
of three, whatever the step. The float32 form of the same graph has the derivative that float16 approximates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.nodes import subgraphs

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPES = ("to", "dtype")  # attributes that name an element type


def widened(model: Model) -> Model:
    """`model` with all float16 and bfloat16 arithmetic in float32; inputs and outputs too."""
    return model.cache.get("widened", lambda: _widened(model))


def widened_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the widened model takes in place of `arrays`."""
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}


def _widened(model: Model) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if model.base_dir is not None:
        onnx.external_data_helper.load_external_data_for_model(proto, str(model.base_dir))
    _widen(proto.graph)
    return Model(proto, name=model.name)


def _widen(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.name in _TYPES and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
        for inner in subgraphs(node):
            _widen(inner)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _HALF:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
