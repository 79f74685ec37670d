"""Which axes of a tensor are batch, channel and space: one letter an axis, found from the operators around it.

Convolutions and pools want NC and space behind; matrix products and layer norms want C last; Transpose carries letters
along; element-wise operators keep them. What remains unknown takes the usual letters of its rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from l2caf_onnx.errors import InputError
from l2caf_onnx.records import TensorInfo

from .model import Model
from .shapes import tensors

_SPACE = {1: "L", 2: "HW", 3: "DHW"}
_DEFAULT = {0: "", 1: "C", 2: "NC", 3: "NTC", 4: "NCHW", 5: "NCDHW"}

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


@dataclass(frozen=True, slots=True)
class Axes:
    """Positions of a tensor's axes: `batch` (None: it has none), `channel` (what a filter shares), `spatial`."""

    batch: int | None
    channel: tuple[int, ...]
    spatial: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return (self.batch is not None) + len(self.channel) + len(self.spatial)

    def placement(self, filter_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(permutation, shape) that make a filter (N, *spatial) broadcast over the tensor: permute, then reshape.

        Where the tensor has no batch axis, N must be 1.
        """
        places = [self.batch if self.batch is not None else -1, *self.spatial]
        order = tuple(sorted(range(len(places)), key=places.__getitem__))
        shape = [1] * self.rank
        for size, place in zip(filter_shape, places, strict=True):
            if place >= 0:
                shape[place] = size
        return order, tuple(shape)


def axes(layout: str) -> Axes:
    """Read a layout's letters: N is batch, C channel (G and K too, if there are more), all others spatial."""
    batch = layout.find("N")
    channel = tuple(i for i, letter in enumerate(layout) if letter in "CGK")
    spatial = tuple(i for i, letter in enumerate(layout) if letter not in "NCGK")
    return Axes(batch if batch >= 0 else None, channel, spatial)


def check_layout(layout: str, rank: int, tensor: str) -> str:
    """`layout` in capitals, if it fits a tensor of that rank.

    Raises:
        InputError: a letter too many, too few or twice, or no spatial axis.
    """
    letters = layout.upper()
    if len(letters) != rank or len(set(letters)) != rank or not letters.isalpha() or not axes(letters).spatial:
        raise InputError(
            f"The layout {layout!r} does not fit: it needs {rank} different letters, one an axis, one of them spatial.",
            where=f"Tensor {tensor!r} of rank {rank}.",
            how=f"For instance {_DEFAULT.get(rank, 'NCHW')!r}: N batch, C channel, the others spatial.",
        )
    return letters


def layouts(model: Model, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The layout of every tensor whose rank is known; `given` ones are taken as they are, and spread to neighbours."""
    if given:
        return _layouts(model, given)
    return model.cache.get("layouts", lambda: _layouts(model, {}))


def _layouts(model: Model, given: Mapping[str, str]) -> dict[str, str]:
    infos = tensors(model)
    rank = {name: len(info.shape) for name, info in infos.items() if info.shape is not None}
    found: dict[str, str] = dict(given)

    def settle(name: str, layout: str | None) -> None:
        if layout is not None and name not in found and rank.get(name) == len(layout):
            found[name] = layout

    nodes = model.proto.graph.node
    for node in nodes:  # what operators demand comes before what spreads from neighbours
        if node.op_type in _CHANNELS_SECOND and node.input:
            for name in (node.input[0], node.output[0]):
                settle(name, _channels_second(rank.get(name, 0)))
        elif node.op_type in _CHANNELS_LAST and _over_the_last_axis(node, rank.get(node.input[0], 0)):
            for name in (node.input[0], node.output[0]):
                settle(name, {3: "NTC", 4: "NHWC"}.get(rank.get(name, 0)))

    def spread() -> None:
        for _ in range(2):
            for node in nodes:
                for source, target in _links(node):
                    settle(target, _carried(node, found.get(source), forward=True))
            for node in reversed(nodes):
                for source, target in _links(node):
                    settle(source, _carried(node, found.get(target), forward=False))

    spread()
    for info in model.inputs:
        settle(info.name, _guess(info))
    spread()
    for name, r in rank.items():
        settle(name, _DEFAULT.get(r))
    return found


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
    """NHWC for an input that has the shape of pictures with their colours last, as TensorFlow feeds them."""
    shape = info.shape or ()
    if len(shape) != 4 or shape[3] not in (1, 3) or shape[1] in (1, 3):
        return None
    return "NHWC" if all(isinstance(side, str) or side >= 8 for side in shape[1:3]) else None
