"""The letters that operators demand of the tensors around them, spread to their neighbours: where tracing starts.

Convolutions and pools want NC and space behind, recurrent nets TNC; layer norms want C last; Transpose carries letters
along; element-wise operators keep them. What remains unknown takes the usual letters of its rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from l2caf_onnx.records import TensorInfo

from .model import Model
from .nodes import attribute
from .shapes import tensors

GUESSED, LIKELY, DEMANDED = 0, 1, 2
USUAL = {0: "", 1: "C", 2: "NC", 3: "NTC", 4: "NCHW", 5: "NCDHW"}

_SPACE = {1: "L", 2: "HW", 3: "DHW"}

_CHANNELS_SECOND = {
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "MaxPool", "AveragePool", "LpPool",
    "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "MaxUnpool", "DeformConv", "QLinearAveragePool",
    "QLinearGlobalAveragePool",
}  # fmt: skip
_CHANNELS_LAST = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"}
_KEEPS = {
    "Abs", "Add", "BiasGelu", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Concat", "CumSum", "DequantizeLinear", "Div",
    "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "LeakyRelu", "Log", "LogSoftmax", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Pad", "Pow", "PRelu",
    "QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuantizeLinear", "QuickGelu",
    "Reciprocal",
    "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Resize", "Round", "Selu", "Sigmoid", "Sign", "Slice",
    "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Upsample",
    "Where",
}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "RNN"}


def around(model: Model, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, int]]:
    """The layout of every tensor whose rank is known, and how sure that is; `given` ones are taken as they are."""
    infos = tensors(model)
    rank = {name: len(info.shape) for name, info in infos.items() if info.shape is not None}
    found: dict[str, str] = dict(given)
    firm = dict.fromkeys(given, DEMANDED)

    def settle(name: str, layout: str | None, how_firm: int) -> None:
        if layout is not None and name not in found and rank.get(name) == len(layout):
            found[name], firm[name] = layout, how_firm

    nodes = model.proto.graph.node

    def spread() -> None:
        for _ in range(2):
            for node in nodes:
                for source, target in _links(node):
                    settle(target, _carried(node, found.get(source), forward=True), firm.get(source, 0))
            for node in reversed(nodes):
                for source, target in _links(node):
                    settle(source, _carried(node, found.get(target), forward=False), firm.get(target, 0))

    for node in nodes:  # what operators demand comes before what spreads from neighbours
        if node.op_type in _CHANNELS_SECOND and node.input:
            for name in (node.input[0], node.output[0]):
                settle(name, _channels_second(rank.get(name, 0)), DEMANDED)
        elif node.op_type in _RECURRENT and node.input:
            batch_first = attribute(node, "layout", 0)
            settle(node.input[0], "NTC" if batch_first else "TNC", DEMANDED)
            outputs = ("NTGC", "NGC", "NGC") if batch_first else ("TGNC", "GNC", "GNC")
            for name, layout in zip(node.output, outputs, strict=False):
                settle(name, layout, DEMANDED)
    for node in nodes:
        if node.op_type in _CHANNELS_LAST and _over_the_last_axis(node, rank.get(node.input[0], 0)):
            for name in (node.input[0], node.output[0]):
                settle(name, {3: "NTC", 4: "NHWC"}.get(rank.get(name, 0)), LIKELY)
    spread()
    for info in model.inputs:
        settle(info.name, _guess(info), GUESSED)
    spread()
    for name, r in rank.items():
        settle(name, USUAL.get(r), GUESSED)
    return found, firm


def _links(node: onnx.NodeProto) -> list[tuple[str, str]]:
    """Pairs (input, output) of a node between which letters carry over."""
    if node.op_type == "Transpose":
        return [(node.input[0], node.output[0])]
    if node.op_type in ("MatMul", "FusedMatMul"):
        return [(node.input[0], node.output[0])]
    if node.op_type not in _KEEPS:
        return []
    return [(i, o) for i in node.input if i for o in node.output if o]


def _carried(node: onnx.NodeProto, layout: str | None, *, forward: bool) -> str | None:
    if layout is None:
        return None
    if node.op_type in ("MatMul", "FusedMatMul"):
        return layout if layout.endswith("C") else None
    if node.op_type != "Transpose":
        return layout
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(layout)))[::-1])
    if sorted(perm) != list(range(len(layout))):
        return None
    if forward:
        return "".join(layout[p] for p in perm)
    back = [""] * len(layout)
    for position, p in enumerate(perm):
        back[p] = layout[position]
    return "".join(back)


def _channels_second(rank: int) -> str | None:
    return f"NC{_SPACE[rank - 2]}" if rank - 2 in _SPACE else None


def _over_the_last_axis(node: onnx.NodeProto, rank: int) -> bool:
    return next((a.i for a in node.attribute if a.name == "axis"), -1) in (-1, rank - 1)


def _guess(info: TensorInfo) -> str | None:
    """NHWC for an input that has the shape of pictures with their colours last; NT for one of indices, as of words."""
    shape = info.shape or ()
    if len(shape) == 2 and info.dtype in ("int32", "int64", "uint8") and (isinstance(shape[1], str) or shape[1] > 1):
        return "NT"
    if len(shape) != 4 or shape[3] not in (1, 3) or shape[1] in (1, 3):
        return None
    return "NHWC" if all(isinstance(side, str) or side >= 8 for side in shape[1:3]) else None
