"""The hands of those who take graphs apart: constants and nodes put in, values put in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Surgeon:
    """Works on one graph, of which some values and shapes are known."""

    def __init__(self, graph: ir.Graph, values: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.graph, self.values, self.shapes = graph, values, shapes
        self.count = 0
        self.taken = {str(v.name) for n in ir.traversal.RecursiveGraphIterator(graph) for v in n.outputs}
        self.taken |= {str(v.name) for v in graph.inputs} | set(graph.initializers)

    def name(self, stem: str) -> str:
        name = f"{stem}/l2caf_{self.count}"
        while name in self.taken:
            self.count += 1
            name = f"{stem}/l2caf_{self.count}"
        self.taken.add(name)
        return name

    def constant(self, array: NDArray[Any], stem: str) -> ir.Value:
        name = self.name(stem)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def add(self, before: ir.Node, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes)
        node.outputs[0].name = self.name(f"{before.outputs[0].name}/{op}")
        node.name = str(node.outputs[0].name)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """`values` for the outputs of `node`, which goes; a graph output keeps its name."""
        for old, new in zip(node.outputs, values, strict=True):
            if any(v is old for v in self.graph.outputs):
                name = str(old.name)
                own = self.add(node, "Identity", [new])
                old.name = self.name(name)
                own.name, own.type, own.shape = name, old.type, old.shape
                new = own
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def known(self, value: ir.Value | None) -> NDArray[Any] | None:
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.numpy()
        return self.values.get(str(value.name))

    def unsqueezed(self, node: ir.Node, value: ir.Value, axis: int = 0) -> ir.Value:
        return self.reshaping(node, "Unsqueeze", value, axis)

    def reshaping(self, node: ir.Node, op: str, value: ir.Value, axis: int) -> ir.Value:
        """Squeeze or Unsqueeze by one axis, as the opset wants it."""
        if (self.graph.opset_imports.get("") or 13) >= 13:
            return self.add(node, op, [value, self.constant(np.array([axis], np.int64), "axes")])
        return self.add(node, op, [value], axes=[axis])
