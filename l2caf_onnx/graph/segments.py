"""A part of a graph as a model of its own, with any tensors fed from outside: protobuf in, protobuf out.

Unlike a cut, a tensor may be fed *and* made here: what reads it is given the fed values, while what makes it is still
an output. So every node of a model can be run on another model's activations, all in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .model import Model
from .nodes import subgraphs

FED = "/l2caf_fed"
"""What is put behind the name of a tensor that is fed."""


def reads_of(model: Model, ends: Iterable[str], fed: frozenset[str]) -> tuple[frozenset[str], frozenset[int]]:
    """The tensors of `fed` and the graph inputs that `ends` are made of, and the nodes between."""
    inputs = {i.name for i in model.inputs}
    read: set[str] = set()
    nodes: set[int] = set()
    waiting = [model.producers[e] for e in ends if e in model.producers]
    while waiting:
        index = waiting.pop()
        if index in nodes:
            continue
        nodes.add(index)
        for name in model.reads[index]:
            if name in fed or name in inputs:
                read.add(name)
            elif name in model.producers:
                waiting.append(model.producers[name])
    return frozenset(read), frozenset(nodes)


def segment(model: Model, ends: Sequence[str], fed: Mapping[str, NDArray[Any]]) -> Model:
    """The model that makes `ends` of the tensors `fed`.

    Args:
        model: The whole.
        ends: Its outputs, by the names that they have in the whole.
        fed: For each tensor that is to be fed an array of its type and rank; the model's input for it is called as the
            tensor with `FED` behind. Only those that are needed become inputs; graph inputs must be among them.
    """
    read, nodes = reads_of(model, ends, frozenset(fed))
    graph = onnx.GraphProto(name="segment")
    stored: set[str] = set()
    for index in sorted(nodes):
        node = graph.node.add()
        node.CopyFrom(model.proto.graph.node[index])
        stored |= {r for r in model.reads[index] if r in model.initialisers}
        _rename(node, read)
    graph.initializer.extend(model.initialisers[name] for name in sorted(stored))
    for name in sorted(read):
        array = np.asarray(fed[name])
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name + FED, kind, [None] * array.ndim))
    graph.output.extend(onnx.ValueInfoProto(name=end) for end in dict.fromkeys(ends))
    proto = onnx.helper.make_model(
        graph, opset_imports=list(model.proto.opset_import), ir_version=model.proto.ir_version
    )
    return Model(proto, base_dir=model.base_dir, name=model.name)


def observed(model: Model, names: Sequence[str]) -> Model:
    """The whole model with the tensors `names` as its only outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    known = {v.name: v for v in (*model.proto.graph.output, *model.proto.graph.value_info)}
    del proto.graph.output[:]
    proto.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return Model(proto, base_dir=model.base_dir, name=model.name)


def with_weights(model: Model, values: Mapping[str, NDArray[Any]], *, name: str) -> Model:
    """`model` with other values in the stored tensors named."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return Model(proto, base_dir=model.base_dir, name=name)


def _rename(node: onnx.NodeProto, names: frozenset[str]) -> None:
    """Let a node, and the graphs inside it, read the fed tensors."""
    for k, name in enumerate(node.input):
        if name in names:
            node.input[k] = name + FED
    for inner in subgraphs(node):
        own = {v.name for v in inner.input} | {o for n in inner.node for o in n.output}
        for deeper in inner.node:
            _rename(deeper, frozenset(names - own))
        for output in inner.output:
            if output.name in names - own:
                output.name += FED
