"""Small questions about one node: what to call it, what it reads, which graphs and weights it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx


def label(node: onnx.NodeProto) -> str:
    """What to call a node in a message: its name, else its first output."""
    return node.name or next((o for o in node.output if o), "") or node.op_type


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute; `default` where the node does not have it."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds as attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from walk(inner)


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph itself and all graphs inside it."""
    yield graph
    for node in walk(graph):
        yield from subgraphs(node)


def stored_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """All tensors stored in a graph and in the graphs inside it, named: initialisers, and attributes by their node."""
    for inner in graphs_in(graph):
        yield from ((tensor.name, tensor) for tensor in inner.initializer)
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield label(node), attribute.t
                yield from ((label(node), tensor) for tensor in attribute.tensors)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's values lie in a file of their own."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def node_reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """The tensors that a node reads from its own graph: its inputs, and what its subgraphs capture."""
    names = [i for i in node.input if i]
    for graph in subgraphs(node):
        names += captured(graph)
    return tuple(dict.fromkeys(names))


def captured(graph: onnx.GraphProto) -> list[str]:
    """Names that a subgraph reads and does not define."""
    own = (
        {v.name for v in graph.input} | {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    )
    names = [name for node in graph.node for name in node_reads(node)] + [v.name for v in graph.output]
    return [name for name in dict.fromkeys(names) if name not in own]
