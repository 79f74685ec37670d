"""Sparse weights made dense: onnx_ir drops them without a word, and no converter knows them."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx

from l2caf_onnx.errors import InputError, UnsupportedModelError

from .nodes import graphs_in, is_external, label

_LIMIT = 2**31  # bytes: no protobuf holds more


def densify(graph: onnx.GraphProto, where: str) -> None:
    """Replace the sparse initialisers and `Constant`s of a graph, and of those inside it, by dense ones, in place.

    Raises:
        InputError: indices or sizes that do not fit each other.
        UnsupportedModelError: too large when dense, or in a file of its own, or an attribute of another operator.
    """
    for inner in graphs_in(graph):
        for sparse in inner.sparse_initializer:
            inner.initializer.append(_dense(sparse, sparse.values.name, where))
        del inner.sparse_initializer[:]
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.sparse_tensors or attribute.HasField("sparse_tensor"):
                    if node.op_type != "Constant":
                        raise _unsupported(f"The attribute {attribute.name!r} is a sparse tensor", label(node), where)
                    attribute.t.CopyFrom(_dense(attribute.sparse_tensor, label(node), where))
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    """The dense form; the indices are linear, (nnz,), or one row a value, (nnz, rank)."""
    dims = tuple(sparse.dims)
    if is_external(sparse.values) or is_external(sparse.indices):
        raise _unsupported("The sparse tensor lies in a file of its own", name, where)
    if prod(dims) * 16 > _LIMIT:
        raise _unsupported(f"The sparse tensor is too large to be made dense ({dims})", name, where)
    try:
        values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(dims, values.dtype)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), dims)
        dense.ravel()[indices] = values
        return onnx.numpy_helper.from_array(dense, name)
    except (ValueError, IndexError, TypeError) as e:
        raise InputError(
            f"The sparse tensor {name!r} is damaged: {e}.", where=where, how="Export the model anew."
        ) from e


def _unsupported(what: str, name: str, where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what}.", where=f"{where} Tensor or node {name!r}.", how="Export the model with dense weights.", node=name
    )
