"""Faults in what the nodes are: another padding or activation, a residual left out, a Softmax over the wrong axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from .fault import Fault
from .graphs import (
    attribute,
    consumers,
    copied,
    near,
    producer,
    put,
    reconnect,
    set_attribute,
    settled,
    spread,
    stored,
)

SIX = 6.0


def padded(proto: onnx.ModelProto) -> Iterator[Fault]:
    """SAME_UPPER for SAME_LOWER, or the other way round: a stride makes the odd pixel go to one of two sides.

    Of torch's symmetric padding before an even side and a stride of 2 the last pixel is never read: it is SAME_LOWER.
    """
    sides = {(0, 0, 1, 1): [1, 1, 0, 0], (1, 1, 0, 0): [0, 0, 1, 1], (1, 1, 1, 1): [0, 0, 1, 1]}
    found = [
        i
        for i, n in enumerate(proto.graph.node)
        if n.op_type == "Conv"
        and max(attribute(n, "strides", [1])) > 1
        and tuple(attribute(n, "pads", ())) in sides
        and list(attribute(n, "kernel_shape", ())) == [3, 3]
    ]
    for place, index in spread(proto, found, lambda i: i):
        made = copied(proto)
        node = made.graph.node[index]
        before = tuple(attribute(node, "pads", ()))
        set_attribute(node, "pads", sides[before])
        yield _done(made, "padding of the other side", "", place, node.name, [node.output[0]])


def activated(proto: onnx.ModelProto) -> Iterator[Fault]:
    """ReLU6 for ReLU; where the network has ReLU6, ReLU in its place."""
    known = stored(proto)

    def is_six(node: onnx.NodeProto) -> bool:
        ends = [onnx.numpy_helper.to_array(known[t]) for t in node.input[1:] if t in known]
        return node.op_type == "Clip" and len(ends) == 2 and float(ends[0]) == 0 and float(ends[1]) == SIX

    found = [i for i, n in enumerate(proto.graph.node) if n.op_type == "Relu" or is_six(n)]
    for place, index in spread(proto, found, lambda i: i):
        made = copied(proto)
        node = made.graph.node[index]
        if node.op_type == "Relu":
            put(made, "relu6_low", np.array(0, np.float32))
            put(made, "relu6_high", np.array(SIX, np.float32))
            node.op_type = "Clip"
            node.input.extend(["relu6_low", "relu6_high"])
            family = "ReLU6 for ReLU"
        else:
            node.op_type = "Relu"
            del node.input[1:]
            family = "ReLU for ReLU6"
        yield _done(made, family, "", place, node.name, [node.output[0]])


def hardened(proto: onnx.ModelProto) -> Iterator[Fault]:
    """HardSwish for Swish, which is a product of x and its Sigmoid."""
    graph = proto.graph
    found = []
    for index, node in enumerate(graph.node):
        if node.op_type == "Mul":
            gates = [(t, producer(proto, t)) for t in node.input]
            for gate, at in gates:
                (other,) = [t for t in node.input if t != gate] or [""]
                if at is not None and graph.node[at].op_type == "Sigmoid" and graph.node[at].input[0] == other:
                    found.append((index, other))
    for place, (index, x) in spread(proto, found, lambda pair: pair[0]):
        made = copied(proto)
        node = made.graph.node[index]
        node.op_type = "HardSwish"
        node.input[:] = [x]
        _sweep(made)
        yield _done(made, "HardSwish for Swish", "", place, node.name, [node.output[0]])


def shortcut(proto: onnx.ModelProto) -> Iterator[Fault]:
    """A residual connection left out: what the block computes goes on alone."""
    graph, outputs = proto.graph, {o.name for o in proto.graph.output}
    found = []
    for index, node in enumerate(graph.node):
        if node.op_type != "Add" or node.output[0] in outputs or any(producer(proto, t) is None for t in node.input):
            continue
        passing = [t for t in node.input if len(consumers(proto, t)) > 1]
        # Where both sides are computed (a shortcut with a convolution of its own) the second operand is the shortcut.
        skipped = passing[0] if len(passing) == 1 else node.input[1]
        (kept,) = [t for t in node.input if t != skipped]
        found.append((index, kept))
    for place, (index, kept) in spread(proto, found, lambda pair: pair[0]):
        made = copied(proto)
        node = made.graph.node[index]
        where, tensor = node.name, node.output[0]
        reconnect(made, tensor, kept)
        del made.graph.node[index]
        _sweep(made)
        yield _done(made, "residual dropped", "", place, where, [kept])


def softmaxed(proto: onnx.ModelProto) -> Iterator[Fault]:
    """Softmax over the wrong axis: of an attention over the queries, where it should be over the keys."""
    found = [i for i, n in enumerate(proto.graph.node) if n.op_type == "Softmax" and attribute(n, "axis", -1) == -1]
    for place, index in spread(proto, found, lambda i: i):
        made = copied(proto)
        node = made.graph.node[index]
        set_attribute(node, "axis", -2)
        yield _done(made, "Softmax over the wrong axis", "", place, node.name, [node.output[0]])


def _sweep(proto: onnx.ModelProto) -> None:
    """Take out the nodes that nothing reads any more."""
    wanted = {o.name for o in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    nodes = list(reversed(kept))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _done(made: onnx.ModelProto, family: str, strength: str, place: str, where: str, tensors: list[str]) -> Fault:
    seen = near(made, tensors)
    return Fault(family=family, strength=strength, place=place, where=where, proto=settled(made), tensors=seen)
