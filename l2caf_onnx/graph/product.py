"""Matrices: those that a model stores, and a product with one as a model of its own, at which onnxruntime is quick."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from .model import Model

ROWS, PRODUCT = "rows", "product"
_OPSET, _IR = 13, 8


def matrices(model: Model, *, least: int) -> dict[str, NDArray[np.float32]]:
    """The stored float32 matrices of at least so many numbers, by name."""
    return {
        name: np.array(onnx.numpy_helper.to_array(tensor))
        for name, tensor in model.initialisers.items()
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT and prod(tensor.dims) >= least
    }


def product(matrix: NDArray[np.float32]) -> Model:
    """rows (n, C) -> product (n, M) = rows matrix', for `matrix` (M, C)."""
    size, channels = matrix.shape
    stored = onnx.numpy_helper.from_array(np.ascontiguousarray(matrix.T), "matrix")
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [ROWS, "matrix"], [PRODUCT], name="product")],
        "product",
        [onnx.helper.make_tensor_value_info(ROWS, kind, ["n", channels])],
        [onnx.helper.make_tensor_value_info(PRODUCT, kind, ["n", size])],
        [stored],
    )
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    return Model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR), name="product")
