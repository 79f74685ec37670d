"""ONNX's shape inference for one node whose inputs have known sizes: for operators that `trace` does not follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .contrib import stand_in
from .model import Model
from .shapes import tensors


def inferred(
    node: onnx.NodeProto, model: Model, sizes: Mapping[str, tuple[int, ...]], values: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """The sizes of the outputs, as far as those of the inputs (and the values of small ones) decide them."""
    if node.op_type == "Constant":  # a weight: its values are not needed
        return {}
    opset = model.opset() or 0
    standard = stand_in(node, opset) or node
    found: dict[str, tuple[int, ...]] = {}
    try:
        schema = onnx.defs.get_schema(standard.op_type, opset, "")
        types = {
            i: onnx.helper.make_tensor_type_proto(_element(i, model, values), sizes[i])
            for i in standard.input
            if i in sizes
        }
        data = {i: onnx.numpy_helper.from_array(values[i], i) for i in standard.input if i in values}
        opsets = list(model.proto.opset_import)
        made = onnx.shape_inference.infer_node_outputs(schema, standard, types, data, opset_imports=opsets)
        for name, kind in made.items():
            dims = kind.tensor_type.shape.dim
            if kind.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                found[name] = tuple(d.dim_value for d in dims)
    except Exception:  # noqa: BLE001  # onnx raises bare errors of many kinds where it knows too little: no shape is known
        return {}
    return found


def _element(name: str, model: Model, values: Mapping[str, NDArray[Any]]) -> int:
    if name in values:
        return int(onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype))
    if name in model.initialisers:
        return int(model.initialisers[name].data_type)
    dtype = tensors(model)[name].dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) if dtype not in ("?", "bfloat16") else 1
