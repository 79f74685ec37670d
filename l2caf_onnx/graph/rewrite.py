"""Rewriting a graph for those who read it: constants baked in, names made plain, outputs opened.

Converters to torch trip over what exporters write: weights behind Identity nodes, names that collide or are no
identifiers, an output that is one of several of its node. A graph in the form made here has none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .cut import from_ir, to_ir
from .model import Model


@dataclass(frozen=True, slots=True)
class Plain:
    """A model in the form that converters take, and what its tensors and inputs were called before.

    Attributes:
        model: The rewritten model: its inputs are those that are read, in the order of `inputs`.
        inputs: Their former names.
        outputs: Former names of the outputs, in order.
        former: New tensor name -> former name.
        nodes: New node name -> (former label, operator, opset).
    """

    model: Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    former: Mapping[str, str]
    nodes: Mapping[str, tuple[str, str, int | None]]


def bake(model: Model, values: Mapping[str, NDArray[Any]], sizes: Mapping[str, tuple[int, ...]]) -> Model:
    """`model` at the given input sizes, with `values` as stored constants, and all that is unused gone."""
    whole = to_ir(model)
    graph = whole.graph
    known = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    for name, array in values.items():
        old = known[name]
        old.name = f"{name}/l2caf_unbaked"  # the constant takes the name: it may be an output
        new = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(new)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    for value in graph.inputs:
        if value.name in sizes:
            value.shape = ir.Shape(sizes[str(value.name)])
    for value in graph.outputs:
        value.shape = None  # declared for every size; what is inferred from the actual sizes is exact
    for node in graph:
        for value in node.outputs:
            value.shape = None
    RemoveUnusedNodesPass()(whole)
    return from_ir(whole, model, model.name)


def plain(model: Model) -> Plain:
    """`model` in the form that converters take (see the module's docstring)."""
    own_proto = onnx.ModelProto()
    own_proto.CopyFrom(model.proto)  # onnx_ir renames a stored tensor in the protobuf that it was read from
    whole = to_ir(Model(own_proto, base_dir=model.base_dir))
    graph = whole.graph
    outputs = tuple(str(v.name) for v in graph.outputs)
    for node in [n for n in graph if n.op_type == "Identity" and n.domain == ""]:
        source = node.inputs[0]
        if source is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
            graph.remove(node, safe=True)
    for k, value in enumerate(list(graph.outputs)):
        own = ir.node("Identity", [value])
        own.outputs[0].type = value.type
        graph.append(own)
        graph.outputs[k] = own.outputs[0]
    for value in [v for v in graph.inputs if not v.uses()]:
        graph.inputs.remove(value)
    inputs = tuple(str(v.name) for v in graph.inputs)
    former: dict[str, str] = {}
    nodes: dict[str, tuple[str, str, int | None]] = {}

    def call(value: ir.Value, name: str) -> None:
        former[name] = str(value.name)
        value.name = name

    inner = list(graph.subgraphs())
    stored = [(str(v.name), v) for g in (graph, *inner) for v in g.initializers.values()]
    for k, (_, value) in enumerate(stored):  # out of the way first: a new name must not meet a former one
        value.name = f"l2caf/{k}"
    for k, (old, value) in enumerate(stored):
        value.name, former[f"w{k}"] = f"w{k}", old
    for k, value in enumerate(graph.inputs):
        call(value, f"x{k}")
    for k, subgraph in enumerate(inner):
        for j, value in enumerate(subgraph.inputs):
            call(value, f"s{k}_{j}")
    for k, node in enumerate(ir.traversal.RecursiveGraphIterator(graph)):
        label = node.name or str(node.outputs[0].name)
        node.name = f"n{k}_{node.op_type}"
        nodes[node.name] = (label, node.op_type, model.opset(node.domain))
        for j, value in enumerate(node.outputs):
            if value.name:
                call(value, f"t{k}_{j}")
    rewritten = from_ir(whole, model, model.name)
    return Plain(model=rewritten, inputs=inputs, outputs=outputs, former=former, nodes=nodes)


def with_outputs(model: Model, names: tuple[str, ...]) -> Model:
    """`model` returning the top-level tensors `names` instead of its outputs."""
    whole = to_ir(model)
    known = ir.convenience.create_value_mapping(whole.graph, include_subgraphs=False)
    whole.graph.outputs.clear()
    whole.graph.outputs.extend(known[name] for name in names)
    return from_ir(whole, model, model.name)


def single_node(model: Model, index: int, arrays: Mapping[str, NDArray[Any]]) -> Model:
    """The node at `index` alone, as a model: what it reads is stored where `model` stores it, and fed otherwise.

    `arrays` gives the values (and so the types and shapes) of the tensors that are fed.
    """
    node = model.proto.graph.node[index]
    reads = model.reads[index]
    fed = [r for r in reads if r not in model.stored]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [
            onnx.helper.make_tensor_value_info(
                r, onnx.helper.np_dtype_to_tensor_dtype(arrays[r].dtype), np.shape(arrays[r])
            )
            for r in fed
        ],
        [onnx.ValueInfoProto(name=o) for o in node.output if o],
        [model.initialisers[r] for r in reads if r in model.initialisers],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=list(model.proto.opset_import), ir_version=model.proto.ir_version
    )
    return Model(proto, base_dir=model.base_dir, name=model.name)
