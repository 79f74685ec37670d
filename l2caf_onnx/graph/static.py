"""Which tensors do not depend on the values that flow through the graph: constants, and what shapes alone decide.

Exporters put shape arithmetic everywhere (Shape, Gather, Concat, Reshape). Such chains are no data: they do not count
as crossing a cut, and at given sizes they are constants.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from .model import Model
from .nodes import subgraphs

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_SHAPE_READERS = {"Shape", "Size"}
# The output's shape depends on the data itself.
_SHAPED_BY_DATA = {"NonZero", "Compress", "Unique", "NonMaxSuppression", "StringSplit", "If", "Loop", "Scan"}
# The output's shape depends on the values of the inputs from this index on.
_SHAPED_BY_INPUTS = {
    "Reshape": 1, "Expand": 1, "Tile": 1, "Resize": 1, "Upsample": 1, "Pad": 1, "Slice": 1, "TopK": 1, "OneHot": 1,
    "Squeeze": 1, "Unsqueeze": 1, "Split": 1, "ConstantOfShape": 0, "Range": 0, "CenterCropPad": 1, "AffineGrid": 1,
    "Col2Im": 1, "MaxUnpool": 2, "DFT": 1, "STFT": 1, "HannWindow": 0, "HammingWindow": 0, "BlackmanWindow": 0,
    "ReduceSum": 1, "ReduceMean": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceL1": 1, "ReduceL2": 1,
    "ReduceLogSum": 1, "ReduceLogSumExp": 1, "ReduceSumSquare": 1,
}  # fmt: skip


def constants(model: Model) -> frozenset[str]:
    """Tensors that stored values alone decide."""
    return model.cache.get("constants", lambda: _decided(model, frozenset()))


def from_shapes_of_inputs(model: Model) -> frozenset[str]:
    """Tensors that stored values and the *shapes* of graph inputs decide; constants included."""
    inputs = frozenset(i.name for i in model.inputs)
    return model.cache.get("from_shapes_of_inputs", lambda: _decided(model, inputs))


def static_at_given_sizes(model: Model) -> frozenset[str]:
    """Tensors that are constant once the sizes of the inputs are given; constants included."""
    return model.cache.get("static_at_given_sizes", lambda: _decided(model, None))


def decided_with(model: Model, held: Collection[str]) -> frozenset[str]:
    """Tensors that are constant once the sizes of the inputs, and the values of the inputs `held`, are given."""
    return _decided(model, None, held) if held else static_at_given_sizes(model)


def _decided(model: Model, sized: frozenset[str] | None, held: Collection[str] = ()) -> frozenset[str]:
    """Tensors decided by stored values, inputs `held`, and shapes of `sized` (None: of all that has a decided one)."""
    values = {*model.stored, *held}
    shapes = set(sized) if sized is not None else values | {i.name for i in model.inputs}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        outputs = [o for o in node.output if o]
        reader = node.op_type in _SHAPE_READERS
        if (
            all(r in values or (reader and r in shapes) for r in reads)
            and node.op_type not in _RANDOM
            and not any(subgraphs(node))
        ):
            values.update(outputs)
        if sized is None and _shape_decided(node, reads, values, shapes):
            shapes.update(outputs)
    return frozenset(values)


def _shape_decided(node: onnx.NodeProto, reads: tuple[str, ...], values: set[str], shapes: set[str]) -> bool:
    if all(o in values for o in node.output if o):
        return True
    if node.op_type in _SHAPED_BY_DATA or any(subgraphs(node)):
        return False
    start = _SHAPED_BY_INPUTS.get(node.op_type, len(node.input))
    return all(r in shapes for r in reads) and all(i in values for i in list(node.input)[start:] if i)
