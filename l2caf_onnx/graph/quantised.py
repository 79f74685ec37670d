"""Which integer tensors stand for real numbers: those whose scale and zero point the graph gives."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Model

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
_KEEPS_SCALE = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "Relu"}


@dataclass(frozen=True, slots=True)
class Scale:
    """Names of the tensors that hold scale and zero point ("" where there is none), and the axis they run along."""

    scale: str
    zero_point: str
    axis: int


def scale_of(model: Model, name: str) -> Scale | None:
    """The scale of a quantised tensor; None where the graph does not give one."""
    for index in model.consumers.get(name, ()):
        node = model.proto.graph.node[index]
        if node.op_type == "DequantizeLinear" and node.input[0] == name:
            return Scale(node.input[1], node.input[2] if len(node.input) > 2 else "", _axis(node.attribute))
    if name not in model.producers:
        return None
    node = model.proto.graph.node[model.producers[name]]
    if node.op_type in _OUTPUT_SCALE:
        scale, zero = _OUTPUT_SCALE[node.op_type]
        zero_point = node.input[zero] if len(node.input) > zero else ""
        return Scale(node.input[scale], zero_point, _axis(node.attribute))
    if node.op_type in _KEEPS_SCALE and node.input:
        return scale_of(model, node.input[0])
    return None


def _axis(attributes: object) -> int:
    return next((int(a.i) for a in attributes if a.name == "axis"), 1)  # type: ignore[attr-defined]  # a protobuf container
