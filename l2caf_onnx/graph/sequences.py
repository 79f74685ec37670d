"""Sequences whose length is known, as the tensors in them: what exporters write where a loop collects its results."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from .surgeon import Surgeon

OPERATORS = frozenset({
    "SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength",
    "ConcatFromSequence", "SplitToSequence",
})  # fmt: skip


class Sequences(Surgeon):
    """One pass over a graph."""

    def lower(self) -> bool:
        """Sequences whose length is known, as the tensors in them; whether any was."""
        known: dict[ir.Value, list[ir.Value]] = {}
        changed = False
        for node in list(self.graph):
            if node.op_type not in (*OPERATORS, "Identity") or node.domain not in ("", "ai.onnx"):
                continue
            items = known.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
            position = self._position(node)
            if node.op_type == "SequenceEmpty":
                known[node.outputs[0]] = []
            elif node.op_type == "SequenceConstruct":
                known[node.outputs[0]] = [v for v in node.inputs if v is not None]
            elif node.op_type == "SplitToSequence":
                split = self._split(node)
                if split is not None:
                    known[node.outputs[0]] = split
            elif items is None or position is False:
                continue
            elif node.op_type == "Identity":
                known[node.outputs[0]] = items
            elif node.op_type == "SequenceInsert" and node.inputs[1] is not None:
                at = len(items) if position is None else int(position) % (len(items) + 1)
                known[node.outputs[0]] = [*items[:at], node.inputs[1], *items[at:]]
            elif node.op_type == "SequenceErase" and items:
                at = (-1 if position is None else int(position)) % len(items)
                known[node.outputs[0]] = [*items[:at], *items[at + 1 :]]
            elif node.op_type == "SequenceAt" and items and position is not None:
                self.replace(node, [items[int(position) % len(items)]])
                changed = True
            elif node.op_type == "SequenceLength":
                self.replace(node, [self.constant(np.array(len(items), np.int64), "length")])
                changed = True
            elif node.op_type == "ConcatFromSequence" and items:
                axis, new = node.attributes["axis"].as_int(), node.attributes.get("new_axis")
                parts = [self.unsqueezed(node, v, axis) for v in items] if new and new.as_int() else items
                self.replace(node, [self.add(node, "Concat", parts, axis=axis)])
                changed = True
        for value in reversed(known):  # those that nobody reads any more go, the last first
            maker = value.producer()
            if maker is not None and maker.op_type != "Identity" and not value.uses() and not value.is_graph_output():
                self.graph.remove(maker, safe=True)
        return changed

    def _position(self, node: ir.Node) -> int | bool | None:
        """The index that a sequence operator is given; None where it has none, False where it is not known."""
        place = {"SequenceAt": 1, "SequenceErase": 1, "SequenceInsert": 2}.get(node.op_type)
        if place is None or len(node.inputs) <= place or node.inputs[place] is None:
            return None
        value = self.known(node.inputs[place])
        return False if value is None else int(value.reshape(-1)[0])

    def _split(self, node: ir.Node) -> list[ir.Value] | None:
        """The parts of a tensor that is split into a sequence."""
        source = node.inputs[0]
        shape = self.shapes.get(str(source.name)) if source is not None else None
        sizes = self.known(node.inputs[1]) if len(node.inputs) > 1 else None
        if source is None or not shape or (len(node.inputs) > 1 and node.inputs[1] is not None and sizes is None):
            return None
        axis = node.attributes["axis"].as_int() % len(shape) if "axis" in node.attributes else 0
        keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        length = shape[axis]
        if sizes is None:
            indices = [self.constant(np.array([k] if keep else k, np.int64), "index") for k in range(length)]
        else:
            step = int(sizes) if sizes.ndim == 0 else 0
            lengths = [min(step, length - k) for k in range(0, length, step)] if step else [int(s) for s in sizes]
            ends = np.cumsum([0, *lengths])
            indices = [self.constant(np.arange(a, b, dtype=np.int64), "index") for a, b in pairwise(ends)]
        return [self.add(node, "Gather", [source, i], axis=axis) for i in indices]
