"""A model whose tensors are rounded on the way, as half precision or eight bits would: protobuf in, protobuf out.

Nothing but the rounding changes: every tensor keeps its name, and holds what is left of it after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .model import Model
from .nodes import subgraphs

RAW = "/l2caf_raw"
"""What is put behind the name of a tensor before it is rounded."""
_LEAST_OPSET = 10  # has QuantizeLinear


def halved(model: Model, names: Iterable[str]) -> Model:
    """`model` with the float32 tensors `names` passed through float16."""
    proto = _copied(model)
    for name in names:
        narrow = f"{name}/l2caf_narrow"
        first = helper.make_node("Cast", [], [narrow], f"{narrow}/to", to=onnx.TensorProto.FLOAT16)
        last = helper.make_node("Cast", [narrow], [], f"{narrow}/from", to=onnx.TensorProto.FLOAT)
        _passed(proto, name, first, last)
    return _loaded(proto, model, "float16")


def quantised(model: Model, ranges: Mapping[str, tuple[float, float]]) -> Model | None:
    """`model` with tensors passed through 256 even steps between the ends given, 0 among them.

    None where its operators are too old to quantise.
    """
    if (model.opset() or 0) < _LEAST_OPSET:
        return None
    proto = _copied(model)
    for name, (low, high) in ranges.items():
        low, high = min(low, 0.0), max(high, 0.0)
        if not np.isfinite(high - low) or high - low < 1e-30:
            continue
        step = np.float32((high - low) / 255)
        zero = np.clip(np.rint(-low / step), 0, 255).astype(np.uint8)
        scale_name, zero_name, narrow = (f"{name}/l2caf_{part}" for part in ("scale", "zero", "narrow"))
        proto.graph.initializer.append(numpy_helper.from_array(np.array(step), scale_name))
        proto.graph.initializer.append(numpy_helper.from_array(np.array(zero), zero_name))
        first = helper.make_node("QuantizeLinear", [], [narrow], f"{narrow}/to")
        last = helper.make_node("DequantizeLinear", [narrow, scale_name, zero_name], [], f"{narrow}/from")
        _passed(proto, name, first, last, scale_name, zero_name)
    return _loaded(proto, model, "eight bits")


def _copied(model: Model) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    return proto


def _loaded(proto: onnx.ModelProto, model: Model, how: str) -> Model:
    return Model(proto, base_dir=model.base_dir, name=f"{model.name}, tensors in {how}")


def _passed(proto: onnx.ModelProto, name: str, first: onnx.NodeProto, last: onnx.NodeProto, *also: str) -> None:
    """Put two nodes between a tensor and all that read it; `first` reads it, and `also`, and `last` makes it anew."""
    place = next((k for k, n in enumerate(proto.graph.node) if name in n.output), None)
    raw, done = (name, f"{name}{RAW}") if place is None else (f"{name}{RAW}", name)
    first.input.extend([raw, *also])
    last.output.append(done)
    if place is None:  # a graph input keeps its name, and what reads it is told
        for node in proto.graph.node:
            _reading(node, name, done)
        place = -1
    else:
        outputs = proto.graph.node[place].output
        outputs[list(outputs).index(name)] = raw
    proto.graph.node.insert(place + 1, first)
    proto.graph.node.insert(place + 2, last)


def _reading(node: onnx.NodeProto, old: str, new: str) -> None:
    for k, name in enumerate(node.input):
        if name == old:
            node.input[k] = new
    for inner in subgraphs(node):
        for deeper in inner.node:
            _reading(deeper, old, new)
