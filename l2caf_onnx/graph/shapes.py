"""Types and shapes of every tensor, as far as the file tells, without its weights and without running it.

Exporters compute shapes by chains of small integer operators (PyTorch's static padding: Slice, Transpose, Reshape of a
constant). Inference stops there, so these chains are evaluated first, by ONNX's own reference implementation; and it
stops at onnxruntime's own operators, for which standard ones stand in.
"""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.records import TensorInfo

from .contrib import stand_in
from .model import Model, dtype_name, value_to_info
from .nodes import is_external, walk

_SMALL = 1024  # elements: what a chain of shapes handles, as opposed to weights
# What shape arithmetic is made of: nothing here is slow, or much larger than what it reads (but see `_fits`).
_ARITHMETIC = {
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten",
    "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual",
    "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum",
    "Reshape", "Round", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub",
    "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

_MOST_AXES, _ROUNDS = 8, 16

Values = dict[str, NDArray[Any]]


def tensors(model: Model) -> dict[str, TensorInfo]:
    """Name -> type and shape of each top-level tensor that the graph makes or is fed, as far as it can be inferred."""
    return model.cache.get("tensors", lambda: _tensors(model))


def _tensors(model: Model) -> dict[str, TensorInfo]:
    inferred = _infer(_skeleton(model))
    found = {i.name: i for i in model.inputs}
    known = {v.name: value_to_info(v) for v in (*inferred.value_info, *inferred.output)}
    for tensor in inferred.initializer:  # what stands for a constant node, too
        known[tensor.name] = TensorInfo(tensor.name, dtype_name(tensor.data_type), tuple(tensor.dims))
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
    imported = {o.domain for o in source.opset_import}
    for domain in sorted({n.domain for n in walk(source.graph)} - imported - {"", "ai.onnx"}):
        skeleton.opset_import.add(domain=domain, version=1)  # onnxruntime forgives that it is missing
    graph = skeleton.graph
    graph.name = source.graph.name or "graph"
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    graph.value_info.extend(source.graph.value_info)
    for tensor in source.graph.initializer:
        graph.initializer.append(tensor if _is_small(tensor) else _hollow(tensor, tensor.name))
    values, opset = _constants(model), model.opset() or 0
    for node in source.graph.node:
        stored = _stored(node)
        if stored is not None and not _is_small(stored):
            graph.initializer.append(_hollow(stored, node.output[0]))
        elif node.output and all(o in values for o in node.output if o):
            graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in node.output if o)
        else:
            graph.node.append(stand_in(node, opset) or node)
    return skeleton


def _is_small(tensor: onnx.TensorProto) -> bool:
    return not is_external(tensor) and prod(tensor.dims) <= _SMALL


def _hollow(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """`tensor` without its data: inference needs type and dimensions alone, and must not copy a gigabyte of weights."""
    hollow = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
    hollow.data_location = onnx.TensorProto.EXTERNAL
    hollow.external_data.add(key="location", value="weights")
    return hollow


def _stored(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor in a `Constant` node; None where it is no such node or holds its value otherwise."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _read(tensor: onnx.TensorProto, name: str) -> Values:
    """The values of a small tensor by name; none where it is not small, or damaged (onnxruntime will say so)."""
    try:
        return {name: onnx.numpy_helper.to_array(tensor)} if _is_small(tensor) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _constants(model: Model) -> Values:
    """The values of what small constants alone determine."""
    found: Values = {}
    for tensor in model.proto.graph.initializer:
        found |= _read(tensor, tensor.name)
    made: Values = {}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        if node.domain not in ("", "ai.onnx") or node.op_type not in _ARITHMETIC or any(r not in found for r in reads):
            continue
        stored = _stored(node)
        if stored is not None:
            values = _read(stored, node.output[0])
        else:
            values = _evaluated(node, {r: found[r] for r in reads}, model)
        small = {name: value for name, value in values.items() if value.size <= _SMALL and value.dtype.kind in "biuf"}
        found |= small
        made |= small
    return made


def _evaluated(node: onnx.NodeProto, values: Values, model: Model) -> Values:
    """The outputs of `node`; none where the reference lacks it or refuses: shapes are then less precise, not wrong."""
    if not _fits(node.op_type, [values[i] for i in node.input if i]):
        return {}
    from onnx.reference import ReferenceEvaluator

    def declared(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in names]

    outputs = [o for o in node.output if o]
    graph = onnx.helper.make_graph([node], "node", declared(list(values)), declared(outputs))
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = onnx.helper.make_model(graph, opset_imports=list(model.proto.opset_import))
            results = ReferenceEvaluator(program).run(None, values)
    except Exception:  # noqa: BLE001  # onnx's evaluator raises what its Python kernels do: no value is known
        return {}
    return {name: np.asarray(value) for name, value in zip(outputs, results, strict=True)}


def _fits(op_type: str, values: list[NDArray[Any]]) -> bool:
    """Whether the result of an operator whose output's size is among its inputs' values stays small."""
    try:
        if op_type in ("ConstantOfShape", "Expand"):
            return prod(int(v) for v in values[-1].ravel()) <= _SMALL
        if op_type == "Tile":
            return values[0].size * prod(int(v) for v in values[1].ravel()) <= _SMALL
        if op_type == "Range":
            start, limit, delta = (float(v) for v in values)
            return abs(limit - start) <= _SMALL * abs(delta)
    except (IndexError, TypeError, ValueError):
        return False
    return True


def _without_lies(skeleton: onnx.ModelProto) -> None:
    """Drop what is declared of tensors inside and of outputs, where inference from the inputs alone finds otherwise."""
    undeclared = onnx.ModelProto()
    undeclared.CopyFrom(skeleton)
    del undeclared.graph.value_info[:]
    for value in undeclared.graph.output:
        value.ClearField("type")
    try:
        inferred = onnx.shape_inference.infer_shapes(undeclared, data_prop=True).graph
    except Exception:  # noqa: BLE001  # onnx raises bare errors of many kinds, as in `_infer`; what is declared remains
        return
    found = {
        v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output) if v.type.HasField("tensor_type")
    }
    true = [v for v in skeleton.graph.value_info if _may_be(v.type.tensor_type, found.get(v.name))]
    del skeleton.graph.value_info[:]
    skeleton.graph.value_info.extend(true)
    for value in skeleton.graph.output:
        if not _may_be(value.type.tensor_type, found.get(value.name)):
            value.type.tensor_type.CopyFrom(found[value.name])


def _may_be(declared: onnx.TypeProto.Tensor, inferred: onnx.TypeProto.Tensor | None) -> bool:
    """Whether both can be said of one tensor."""
    if inferred is None:
        return True
    if inferred.elem_type and declared.elem_type and inferred.elem_type != declared.elem_type:
        return False
    if not (inferred.HasField("shape") and declared.HasField("shape")):
        return True
    ours, theirs = inferred.shape.dim, declared.shape.dim
    return len(ours) == len(theirs) and all(
        a.dim_value == b.dim_value
        for a, b in zip(ours, theirs, strict=True)
        if a.HasField("dim_value") and b.HasField("dim_value")
    )


def _infer(skeleton: onnx.ModelProto) -> onnx.GraphProto:
    """Inference, again while ranks come to light that it does not see."""
    _without_lies(skeleton)
    inferred = skeleton.graph
    for _ in range(_ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        except Exception:  # noqa: BLE001  # it raises many types on graphs that cannot be; what is declared remains
            return inferred
        added = _ranks(inferred)
        if not added:
            return inferred
        kept = [v for v in skeleton.graph.value_info if v.name not in added]
        del skeleton.graph.value_info[:]
        skeleton.graph.value_info.extend([*kept, *added.values()])
    return inferred


def _ranks(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """What is reshaped to unknown sizes, but to a known number of them: its rank, by name."""
    known = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    found: dict[str, onnx.ValueInfoProto] = {}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in known or node.output[0] not in known:
            continue
        made, sizes = known[node.output[0]], known[node.input[1]].shape.dim
        rank = sizes[0].dim_value if len(sizes) == 1 else 0
        if made.elem_type and not made.HasField("shape") and 0 < rank <= _MOST_AXES:
            unknown = [None] * rank
            found[node.output[0]] = onnx.helper.make_tensor_value_info(node.output[0], made.elem_type, unknown)
    return found
