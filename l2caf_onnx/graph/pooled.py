"""Whether the cells of S1 are merely pooled: the shape of nearly every classifier's end, in which a matrix is cheap.

Where the filtered tensor goes into one mean or sum over all cells and nowhere else (Zhou et al., "Learning Deep
Features for Discriminative Localization", CVPR 2016), cell c's share of the pooled tensor is the activation there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from .insert import FILTER_INPUT
from .layout import Axes
from .model import Model
from .nodes import attribute

_THROUGH = ("Identity", "Dropout")
_POOLS = {"GlobalAveragePool": True, "ReduceMean": True, "ReduceSum": False}


@dataclass(frozen=True, slots=True)
class Pooled:
    """The pooled tensor.

    Attributes:
        tensor: Its name.
        mean: Whether it is the mean over the cells, not the sum.
        keeps: Whether the cells' axes stay, with size 1.
    """

    tensor: str
    mean: bool
    keeps: bool


def pooled(opened: Model, places: Axes) -> Pooled | None:
    """Where the tail `opened` (of `open_filter`), of an S1 with those axes, pools its cells; None where it does not."""
    grid = places.grid
    if places.batch is None or (grid is not None and grid.prefix + grid.suffix):
        return None
    node = _only_consumer(opened, FILTER_INPUT)
    if node is None or node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
        return None
    node = _only_consumer(opened, node.output[0])
    while node is not None and node.op_type in _THROUGH:
        node = _only_consumer(opened, node.output[0])
    if node is None or node.op_type not in _POOLS or node.domain not in ("", "ai.onnx"):
        return None
    if tuple(sorted(_axes_of(opened, node, places.rank))) != places.spatial:
        return None
    keeps = node.op_type == "GlobalAveragePool" or bool(attribute(node, "keepdims", 1))
    return Pooled(node.output[0], _POOLS[node.op_type], keeps)


def _only_consumer(model: Model, name: str) -> onnx.NodeProto | None:
    found = model.consumers.get(name, ())
    if len(found) != 1 or any(o.name == name for o in model.outputs):
        return None
    node = model.proto.graph.node[found[0]]
    return node if sum(i == name for i in node.input) == 1 else None


def _axes_of(model: Model, node: onnx.NodeProto, rank: int) -> list[int]:
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1] in model.initialisers:
        axes = onnx.numpy_helper.to_array(model.initialisers[node.input[1]]).ravel().tolist()
    if axes is None:
        return []
    return [int(a) % rank for a in axes]
