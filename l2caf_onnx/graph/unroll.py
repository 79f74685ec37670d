"""Control flow whose course is known taken apart: the branch of an If, the iterations of a Loop or Scan, one by one.

What steers it (a condition, a trip count, a length) is constant at the sizes of the inputs, or hangs on inputs that are
held; its value is handed in, for this room runs nothing. A Loop whose condition is computed is peeled, an iteration a
round, until it is false.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .cut import from_ir, to_ir
from .model import Model
from .paths import reaching
from .sequences import OPERATORS, Sequences
from .static import decided_with, static_at_given_sizes
from .surgeon import Surgeon

Arrays = Mapping[str, NDArray[Any]]

_PEELED = "#l2caf_peeled_"
LIMIT = 20_000  # nodes: a graph that grows beyond stays as it was


def steering(model: Model, held: Collection[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """What must be known to take the model's control flow apart by one round.

    Args:
        model: Any.
        held: Inputs whose values stay as they are.

    Returns:
        Tensors whose value is wanted, tensors whose shape is wanted, and which of `held` the former hang on.
    """
    static = decided_with(model, held)
    values: list[str] = []
    shapes: list[str] = []
    for node in model.proto.graph.node:
        if node.op_type in ("If", "Loop"):
            wanted = [n for n in node.input[: 1 if node.op_type == "If" else 2] if n]
            if all(n in static for n in wanted):
                values += wanted
        elif node.op_type == "Scan":
            shapes += [n for n in node.input if n]
        elif node.op_type == "SplitToSequence":
            shapes.append(node.input[0])
    hanging = [v for v in values if v not in static_at_given_sizes(model)]
    fixed = reaching(model, hanging).intersection(held) if hanging else frozenset()
    return tuple(dict.fromkeys(values)), tuple(dict.fromkeys(shapes)), fixed


def has_control_flow(model: Model) -> bool:
    """Whether anything in it could be taken apart."""
    kinds = {n.op_type for n in model.proto.graph.node if n.domain in ("", "ai.onnx")}
    return bool(kinds & {"If", "Loop", "Scan", *OPERATORS})


def unrolled(model: Model, values: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Model | None:
    """`model` with its control flow taken apart by one round; None where nothing more can be.

    Args:
        model: Any.
        values: Of the tensors in `steering(model)[0]`.
        shapes: Of the tensors in `steering(model)[1]`.
    """
    whole = to_ir(model)
    changed = _Unroller(whole.graph, values, shapes).round()
    changed = Sequences(whole.graph, values, shapes).lower() or changed
    if not changed or len(whole.graph) > LIMIT:
        return None
    whole.graph.sort()
    return from_ir(whole, model, model.name)


class _Unroller(Surgeon):
    """One round over a graph."""

    def round(self) -> bool:
        """Take apart what can be; whether anything was."""
        changed = False
        for node in list(self.graph):
            if node.domain not in ("", "ai.onnx") or node.graph is None:
                continue
            if node.op_type == "If":
                changed |= self._branch(node)
            elif node.op_type == "Loop":
                changed |= self._loop(node)
            elif node.op_type == "Scan":
                changed |= self._scan(node)
        return changed

    def _inline(self, before: ir.Node, body: ir.Graph, given: Sequence[ir.Value | None]) -> list[ir.Value]:
        """A copy of `body`, fed with `given`, in front of `before`; its outputs."""
        self.count += 1
        copy = body.clone(allow_outer_scope_values=True)
        for inner, outer in zip(copy.inputs, given, strict=True):
            if outer is not None:
                ir.convenience.replace_all_uses_with(inner, outer, replace_graph_outputs=True)
        outputs = list(copy.outputs)
        copy.outputs.clear()
        for value in list(copy.initializers.values()):
            del copy.initializers[str(value.name)]
            name = self.name(str(value.name))
            if not isinstance(value.const_value, ir.ExternalTensor) and value.const_value is not None:
                # A tensor of its own: one read from a protobuf shares its name with it, and the model must not change.
                value.const_value = ir.tensor(value.const_value.numpy(), name=name)
            value.name = name
            self.graph.register_initializer(value)
        for node in list(copy):
            copy.remove(node)
            for value in node.outputs:
                if value.name:
                    value.name = self.name(str(value.name))
            if node.name:
                node.name = f"{node.name}/l2caf_{self.count}"
            self.graph.insert_before(before, node)
        return outputs

    # The three

    def _branch(self, node: ir.Node) -> bool:
        condition = self.known(node.inputs[0])
        if condition is None:
            return False
        body = node.attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"].as_graph()
        self.replace(node, self._inline(node, body, []))
        return True

    def _loop(self, node: ir.Node) -> bool:
        count, start = self.known(node.inputs[0]), self.known(node.inputs[1] if len(node.inputs) > 1 else None)
        lacks = [k for k in (0, 1) if len(node.inputs) > k and node.inputs[k] is not None]
        if any((count, start)[k] is None for k in lacks):
            return False
        body = node.attributes["body"].as_graph()
        trips = int(count.reshape(-1)[0]) if count is not None else 2**62
        going = start is None or bool(start.reshape(-1)[0])
        carried = list(node.inputs[2:])
        if trips <= 0 or not going:
            return self._finished(node, carried)
        known = self._keeps_going(body)
        if known and trips * len(body) + len(self.graph) > LIMIT:
            return False
        pieces: list[list[ir.Value]] = []
        condition = node.inputs[1] if len(node.inputs) > 1 else None
        first, state = self._first(node), carried
        for k in range(trips if known else 1):
            number = self.constant(np.array(first + k, np.int64), f"{node.outputs[0].name}/iteration")
            if condition is None:
                condition = self.constant(np.array(True), f"{node.outputs[0].name}/condition")
            condition, *made = self._inline(node, body, [number, condition, *state])
            state, pieces = [*made[: len(carried)]], [*pieces, made[len(carried) :]]
        ended = [v for v in state if v is not None]  # all of them: every iteration makes its own
        scanned = [[self.unsqueezed(node, v) for v in column] for column in zip(*pieces, strict=True)]
        if known:
            self.replace(node, [*ended, *(self.add(node, "Concat", s, axis=0) for s in scanned)])
            return True
        rest = ir.Node(
            "", "Loop", [self.constant(np.array(trips - 1, np.int64), "trips"), condition, *ended],
            attributes=[ir.AttrGraph("body", body.clone(allow_outer_scope_values=True))],
            num_outputs=len(node.outputs), name=f"{str(node.name).partition(_PEELED)[0]}{_PEELED}{first + 1}",
        )  # fmt: skip
        for value, old in zip(rest.outputs, node.outputs, strict=True):
            value.name = self.name(str(old.name).partition("/l2caf_")[0])
        self.graph.insert_before(node, rest)
        n = len(ended)
        joined = [self.add(node, "Concat", [*s, r], axis=0) for s, r in zip(scanned, rest.outputs[n:], strict=True)]
        self.replace(node, [*rest.outputs[:n], *joined])
        return True

    def _first(self, node: ir.Node) -> int:
        """How many iterations a peeled Loop has behind it: its name says."""
        _, _, number = str(node.name).partition(_PEELED)
        return int(number or 0)

    def _finished(self, node: ir.Node, carried: Sequence[ir.Value | None]) -> bool:
        """A Loop that does not run (again): what it would have collected is taken from what was collected before."""
        if any(v is None for v in carried):
            return False
        rest = node.outputs[len(carried) :]
        for value in rest:
            users = [u.node for u in value.uses()]
            if any(u.op_type != "Concat" or len(u.inputs) < 2 or not self._first(node) for u in users):
                return False
        for value in rest:
            for user in [u.node for u in value.uses()]:
                without = self.add(user, "Concat", [v for v in user.inputs if v is not value], axis=0)
                old = user.outputs[0]
                ir.convenience.replace_all_uses_with(old, without, replace_graph_outputs=True)
                self.graph.remove(user, safe=True)
        for old, new in zip(node.outputs, carried, strict=False):
            assert new is not None
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        return True

    def _keeps_going(self, body: ir.Graph) -> bool:
        """Whether the condition that the body gives is always true, or the one that it got."""
        value: ir.Value | None = body.outputs[0]
        while value is not None and (producer := value.producer()) is not None and producer.op_type == "Identity":
            value = producer.inputs[0]
        if value is None:
            return False
        producer = value.producer()
        if producer is not None and producer.op_type == "Constant":
            return bool(np.all(producer.attributes["value"].as_tensor().numpy()))
        return value is body.inputs[1] or (value.const_value is not None and bool(np.all(value.const_value.numpy())))

    def _scan(self, node: ir.Node) -> bool:
        body = node.attributes["body"].as_graph()
        scanned = node.attributes["num_scan_inputs"].as_int()
        version = self.graph.opset_imports.get("") or 9
        inputs = list(node.inputs)
        if version < 9 or any(v is None or str(v.name) not in self.shapes for v in inputs[len(inputs) - scanned :]):
            return False
        state, over = [v for v in inputs[: len(inputs) - scanned] if v is not None], inputs[len(inputs) - scanned :]
        collected = len(body.outputs) - len(state)
        listed = {
            name: (node.attributes[name].as_ints() if name in node.attributes else [0] * size)
            for name, size in (
                ("scan_input_axes", scanned), ("scan_input_directions", scanned),
                ("scan_output_axes", collected), ("scan_output_directions", collected),
            )
        }  # fmt: skip
        shapes = [self.shapes[str(v.name)] for v in over if v is not None]
        axes = [a % len(s) for a, s in zip(listed["scan_input_axes"], shapes, strict=True)]
        length = shapes[0][axes[0]]
        if length == 0 or length * len(body) + len(self.graph) > LIMIT:
            return False
        pieces: list[list[ir.Value]] = []
        for k in range(length):
            slices = []
            for value, axis, back in zip(over, axes, listed["scan_input_directions"], strict=True):
                index = self.constant(np.array(length - 1 - k if back else k, np.int64), "index")
                slices.append(self.add(node, "Gather", [value, index], axis=axis))
            made = self._inline(node, body, [*state, *slices])
            state, pieces = made[: len(state)], [*pieces, made[len(state) :]]
        results = []
        for column, axis, back in zip(
            zip(*pieces, strict=True), listed["scan_output_axes"], listed["scan_output_directions"], strict=True
        ):
            parts = [self.unsqueezed(node, v, axis) for v in (reversed(column) if back else column)]
            results.append(self.add(node, "Concat", parts, axis=axis))
        self.replace(node, [*state, *results])
        return True
