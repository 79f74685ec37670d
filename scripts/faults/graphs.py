"""Looking at a protobuf and editing it: what planting a fault needs, and no more.

Everything here works on a copy that the caller made: a fault is one small edit of a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

PLACES = ("first", "middle", "last")
UNCOUNTED = ("Constant", "QuantizeLinear", "DequantizeLinear", "Cast", "Identity")
LAYERS = ("Conv", "Gemm", "MatMul")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A node with weights of its own.

    Attributes:
        index: Of the node in the graph.
        op_type: "Conv", "Gemm" or "MatMul".
        weight: The stored tensor's name.
        bias: The stored tensor's name; None where the node has none, nor an Add of one behind it.
        added: The index of that Add; None where the bias is the node's own.
        channels: The axis of the weight that the output's channels lie along.
    """

    index: int
    op_type: str
    weight: str
    bias: str | None
    added: int | None
    channels: int


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, to be changed."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    return result


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initialisers by name."""
    return {t.name: t for t in proto.graph.initializer}


def array(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    """What an initialiser holds."""
    return numpy_helper.to_array(stored(proto)[name])


def put(proto: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Give an initialiser other values, or add it."""
    made = numpy_helper.from_array(np.array(values, order="C"), name)
    old = stored(proto).get(name)
    if old is None:
        proto.graph.initializer.append(made)
    else:
        old.CopyFrom(made)


def own(proto: onnx.ModelProto, node: int, position: int) -> str:
    """The name of a node's stored input, which is given a copy of its own where other nodes share it."""
    name: str = proto.graph.node[node].input[position]
    if sum(list(n.input).count(name) for n in proto.graph.node) == 1:
        return name
    put(proto, f"{name}#{node}", array(proto, name))
    proto.graph.node[node].input[position] = f"{name}#{node}"
    return f"{name}#{node}"


def producer(proto: onnx.ModelProto, tensor: str) -> int | None:
    """The index of the node that makes a tensor; None of inputs and stored tensors."""
    return next((i for i, n in enumerate(proto.graph.node) if tensor in n.output), None)


def consumers(proto: onnx.ModelProto, tensor: str) -> list[int]:
    """The indices of the nodes that read a tensor."""
    return [i for i, n in enumerate(proto.graph.node) if tensor in n.input]


def reconnect(proto: onnx.ModelProto, tensor: str, other: str, but: Iterable[int] = ()) -> None:
    """Let all who read a tensor read another."""
    kept = set(but)
    for index in consumers(proto, tensor):
        if index not in kept:
            inputs = proto.graph.node[index].input
            inputs[:] = [other if t == tensor else t for t in inputs]


def near(proto: onnx.ModelProto, tensors: Iterable[str]) -> tuple[str, ...]:
    """The tensors, and what the nodes that read them make: where a fault in the former may be seen first."""
    named = list(dict.fromkeys(tensors))
    after = [o for t in named for i in consumers(proto, t) for o in proto.graph.node[i].output if o]
    return tuple(dict.fromkeys([*named, *after]))


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Set an attribute, or drop it (None)."""
    for old in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(old)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))


def layers(proto: onnx.ModelProto) -> list[Layer]:
    """The layers with weights, in the graph's order."""
    graph, known = proto.graph, stored(proto)
    found = []
    for index, node in enumerate(graph.node):
        if node.op_type not in LAYERS or node.input[1] not in known or len(known[node.input[1]].dims) < 2:
            continue
        bias, added = (node.input[2] if len(node.input) > 2 and node.input[2] in known else None), None
        after = consumers(proto, node.output[0])
        if bias is None and len(after) == 1 and graph.node[after[0]].op_type == "Add":
            others = [t for t in graph.node[after[0]].input if t in known and len(known[t].dims) == 1]
            bias, added = (others[0], after[0]) if others else (None, None)
        channels = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        layer = Layer(
            index=index, op_type=node.op_type, weight=node.input[1], bias=bias, added=added, channels=channels
        )
        found.append(layer)
    return found


def places(proto: onnx.ModelProto) -> list[str]:
    """For each node the third of the network in which it lies; nodes that only prepare constants or number formats do
    not count, wherever the exporter put them.
    """
    counted = [n.op_type not in UNCOUNTED for n in proto.graph.node]
    before = np.cumsum([0, *counted[:-1]])
    return [PLACES[min(3 * int(b) // max(sum(counted), 1), 2)] for b in before]


def spread(proto: onnx.ModelProto, items: Sequence[T], index_of: Callable[[T], int]) -> Iterator[tuple[str, T]]:
    """Of each third of the network the middle one of the items that lie there; none where none does."""
    where = places(proto)
    for place in PLACES:
        here = [i for i in items if where[index_of(i)] == place]
        if here:
            yield place, here[len(here) // 2]


def in_order(
    nodes: Iterable[onnx.NodeProto], given: Iterable[str], choose: Callable[[list[onnx.NodeProto]], int]
) -> list[onnx.NodeProto]:
    """The nodes, each behind what it reads; of those that could be next, the one that `choose` gives the index of."""
    left, known, ordered = list(nodes), {*given, ""}, []
    while left:
        ready = [n for n in left if known.issuperset(n.input)]
        if not ready:
            raise ValueError(f"{left[0].name or left[0].output[0]!r} reads what nothing makes.")
        chosen = ready[choose(ready)]
        ordered.append(chosen)
        known |= set(chosen.output)
        left = [n for n in left if n is not chosen]
    return ordered


def settled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without stored tensors that nothing reads, its nodes in order, and without what was known of shapes,
    which may be stale.
    """
    graph = proto.graph
    ordered = in_order(graph.node, [v.name for v in (*graph.input, *graph.initializer)], lambda ready: 0)
    del graph.node[:]
    graph.node.extend(ordered)
    read = {t for n in graph.node for t in n.input} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    onnx.checker.check_model(proto)
    return proto
