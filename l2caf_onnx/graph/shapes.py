"""Types and shapes of every tensor, as far as the file tells, without its weights and without running it.

Exporters compute shapes by chains of small integer operators (PyTorch's static padding: Slice, Transpose, Reshape of a
constant). Inference stops there, so these chains are evaluated first, by ONNX's own reference implementation.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.records import TensorInfo

from .model import Model, value_to_info
from .nodes import subgraphs

_SMALL = 1024  # elements: what a chain of shapes handles, as opposed to weights
_NOT_EVALUATED = {"Shape", "Size", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}


def tensors(model: Model) -> dict[str, TensorInfo]:
    """Name -> type and shape of each top-level tensor that the graph makes or is fed, as far as it can be inferred."""
    return model.cache.get("tensors", lambda: _tensors(model))


def _tensors(model: Model) -> dict[str, TensorInfo]:
    inferred = _infer(_skeleton(model))
    found = {i.name: i for i in model.inputs}
    known = {
        v.name: value_to_info(v)
        for v in (*model.proto.graph.value_info, *model.proto.graph.output, *inferred.value_info, *inferred.output)
    }
    for name in model.names:
        info = known.get(name) or TensorInfo(name, "?", None)
        if info.shape is not None:
            shape = tuple("?" if isinstance(d, str) and d.startswith("unk__") else d for d in info.shape)
            info = TensorInfo(name, info.dtype, shape)
        found.setdefault(name, info)
    return found


def _skeleton(model: Model) -> onnx.ModelProto:
    """The model for shape inference: weights without their data, small constant chains replaced by their values."""
    source = model.proto
    skeleton = onnx.ModelProto(ir_version=source.ir_version)
    skeleton.opset_import.extend(source.opset_import)
    graph = skeleton.graph
    graph.name = source.graph.name or "graph"
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    graph.value_info.extend(source.graph.value_info)
    values = _constants(model)
    for tensor in source.graph.initializer:
        if _is_small(tensor):
            graph.initializer.append(tensor)
        else:  # external: inference needs type and dimensions alone, and must not copy a gigabyte of weights
            hollow = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            hollow.data_location = onnx.TensorProto.EXTERNAL
            hollow.external_data.add(key="location", value="weights")
    for node in source.graph.node:
        if node.output and all(o in values for o in node.output if o):
            graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in node.output if o)
        else:
            graph.node.append(node)
    return skeleton


def _is_small(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location != onnx.TensorProto.EXTERNAL and int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL


def _constants(model: Model) -> dict[str, NDArray[np.generic]]:
    """The values of what small constants alone determine (inference itself reads plain `Constant` nodes)."""
    graph = model.proto.graph
    known = {t.name for t in graph.initializer if _is_small(t)}
    chain: list[onnx.NodeProto] = []
    for node in graph.node:
        standard = node.domain in ("", "ai.onnx") and node.op_type not in _NOT_EVALUATED
        if standard and all(i in known for i in node.input if i) and not any(subgraphs(node)):
            chain.append(node)
            known.update(node.output)
    if all(node.op_type == "Constant" for node in chain):
        return {}
    from onnx.reference import ReferenceEvaluator

    read = {i for node in chain for i in node.input}
    wanted = [o for node in chain if node.op_type != "Constant" for o in node.output if o]
    program = onnx.helper.make_model(
        onnx.helper.make_graph(
            chain,
            "constants",
            [],
            [onnx.helper.make_tensor_value_info(o, onnx.TensorProto.UNDEFINED, None) for o in wanted],
            [t for t in graph.initializer if t.name in read],
        ),
        opset_imports=list(model.proto.opset_import),
    )
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = ReferenceEvaluator(program).run(None, {})
    except Exception:  # noqa: BLE001  # an operator that the reference lacks: shapes are then less precise, not wrong
        return {}
    found = {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}
    return {name: value for name, value in found.items() if value.size <= _SMALL and value.dtype.kind in "biuf"}


def _infer(skeleton: onnx.ModelProto) -> onnx.GraphProto:
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # noqa: BLE001  # inference raises many types on declared shapes that lie; what is declared remains
        return skeleton.graph
