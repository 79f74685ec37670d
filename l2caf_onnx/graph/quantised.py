"""Which integer tensors stand for real numbers: those whose scale and zero point the graph gives."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx

from .model import Model
from .shapes import tensors

# Operator -> positions of its output's scale and zero point among its inputs.
_OUTPUT_SCALE = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearConcat": (0, 1),
}
# Operator -> positions of its quantised inputs; scale and zero point follow each.
_INPUTS = {
    "DequantizeLinear": (0,),
    **dict.fromkeys(["QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm"], (0, 3)),
    **dict.fromkeys(["QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"], (0,)),
    **dict.fromkeys(["QLinearAveragePool", "QLinearGlobalAveragePool"], (0,)),
    "QLinearConcat": tuple(range(2, 3000, 3)),
}
_KEEPS_SCALE = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "Relu"}


@dataclass(frozen=True, slots=True)
class Scale:
    """Names of the tensors that hold scale and zero point ("" where there is none), and the axis they run along."""

    scale: str
    zero_point: str
    axis: int


def storable(model: Model, dtype: str) -> bool:
    """Whether QuantizeLinear of the model's opset can write that type."""
    opset = model.opset() or 0
    return opset >= 10 and (
        dtype in ("int8", "uint8") or (opset >= 21 and dtype in ("int16", "uint16", "int4", "uint4"))
    )


def scale_of(model: Model, name: str) -> Scale | None:
    """The scale of a quantised tensor; None where the graph does not give one.

    Those who read it are asked first: a tail has them too, but not what made the tensor.
    """
    return _by_readers(model, name) or _by_maker(model, name)


def _by_readers(model: Model, name: str) -> Scale | None:
    nodes = [model.proto.graph.node[i] for i in model.consumers.get(name, ())]
    for node in nodes:
        for position in _INPUTS.get(node.op_type, ()):
            if position < len(node.input) and node.input[position] == name:
                return _scale(node, position + 1, position + 2)
    for node in nodes:
        if node.op_type in _KEEPS_SCALE and node.input[0] == name:
            found = _by_readers(model, node.output[0])
            if found is not None and _is_single(model, found.scale):
                return found
    return None


def _by_maker(model: Model, name: str) -> Scale | None:
    if name not in model.producers:
        return None
    node = model.proto.graph.node[model.producers[name]]
    if node.op_type in _OUTPUT_SCALE:
        return _scale(node, *_OUTPUT_SCALE[node.op_type])
    if node.op_type in _KEEPS_SCALE and node.input:
        found = _by_maker(model, node.input[0])
        if found is not None and _is_single(model, found.scale):
            return found
    return None


def _scale(node: onnx.NodeProto, scale: int, zero_point: int) -> Scale | None:
    attributes = {a.name: int(a.i) for a in node.attribute}
    if attributes.get("block_size") or len(node.input) <= scale or not node.input[scale]:
        return None  # in blocks along an axis: the filtered tensor cannot be quantised alike
    zero = node.input[zero_point] if len(node.input) > zero_point else ""
    axis = attributes.get("axis", 1) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else 1
    return Scale(node.input[scale], zero, axis)


def _is_single(model: Model, name: str) -> bool:
    """Whether that scale is one number for the whole tensor: only then do moved axes not matter."""
    if name in model.initialisers:
        return bool(prod(model.initialisers[name].dims) == 1)
    info = tensors(model).get(name)
    return info is not None and info.shape is not None and all(d == 1 for d in info.shape)
