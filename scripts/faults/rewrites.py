"""Rewriting a model so that it stays the same function: what exporters, optimisers and tidy people do to a file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from .graphs import array, attribute, consumers, copied, in_order, put, reconnect, settled, stored

LARGE = 256  # elements from which a weight counts as such
Values = dict[str, NDArray[Any]]


def by_onnxruntime(proto: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """What onnxruntime writes at that level, "basic" or "extended"."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if level == "basic" else levels.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "written.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(options.optimized_model_filepath)
    used = {n.domain for n in made.graph.node}
    kept = [o for o in made.opset_import if o.domain in used or not o.domain]  # it lists every domain that it knows
    del made.opset_import[:]
    made.opset_import.extend(kept)
    return made


def by_onnxsim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxsim makes of it."""
    import onnxsim

    made, checked = onnxsim.simplify(copied(proto))
    if not checked:
        raise RuntimeError("onnxsim could not confirm its own result")
    return made  # type: ignore[no-any-return]


def by_onnxslim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxslim makes of it."""
    import onnxslim

    made: onnx.ModelProto = onnxslim.slim(copied(proto))
    return made


def of_opset(proto: onnx.ModelProto, steps: int) -> onnx.ModelProto:
    """Another version of the operators, by onnx's own converter; where that refuses, the next one on the way back."""
    version = next(o.version for o in proto.opset_import if not o.domain)
    sign = 1 if steps > 0 else -1
    for step in range(steps, 0, -sign):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = version_converter.convert_version(copied(proto), version + step)
            onnx.checker.check_model(made)
            return made
        except (RuntimeError, onnx.checker.ValidationError):
            continue
    raise RuntimeError(f"onnx's converter reaches no opset other than {version}")


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every node that reads only constants becomes a constant."""
    made = copied(proto)
    values: Values = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    outputs = {o.name for o in made.graph.output}
    kept = []
    for node in made.graph.node:
        known = all(t in values for t in node.input if t) and not set(node.output) & outputs
        if not known:
            kept.append(node)
            continue
        for name, value in zip(node.output, _evaluated(node, values, made), strict=True):
            values[name] = value
            put(made, name, value)
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return settled(made)


def unfolded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Stored tensors become Constant nodes, but for the large ones."""
    made = copied(proto)
    small = [t for t in made.graph.initializer if int(np.prod(t.dims)) < LARGE]
    nodes = [helper.make_node("Constant", [], [t.name], f"constant of {t.name}", value=t) for t in small]
    left = [t for t in made.graph.initializer if t not in small]
    nodes += list(made.graph.node)
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(left)
    made.graph.node.extend(nodes)
    return settled(made)


def without_norms(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Batch norms folded into the convolutions before them; all of them, or an error."""
    made = copied(folded(proto))
    for index in [i for i, n in enumerate(made.graph.node) if n.op_type == "BatchNormalization"][::-1]:
        norm = made.graph.node[index]
        conv = next(n for n in made.graph.node if norm.input[0] in n.output)
        if conv.op_type != "Conv" or len(consumers(made, norm.input[0])) != 1:
            raise RuntimeError(f"{norm.name}: no convolution of its own before it")
        gain, shift, mean, variance = (array(made, t).astype(np.float64) for t in norm.input[1:5])
        gain = gain / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = array(made, conv.input[1])
        bias = array(made, conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weight))
        put(made, f"{conv.input[1]}_folded", (weight * gain.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32))
        put(made, f"{conv.input[1]}_shift", ((bias - mean) * gain + shift).astype(np.float32))
        conv.input[:] = [conv.input[0], f"{conv.input[1]}_folded", f"{conv.input[1]}_shift"]
        conv.output[0] = norm.output[0]
        del made.graph.node[index]
    return settled(made)


def with_norms(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Folding undone: each convolution with a bias becomes one without and a batch norm that is drawn."""
    made, rng = copied(proto), np.random.default_rng(seed)
    for index in [i for i, n in enumerate(made.graph.node) if n.op_type == "Conv" and len(n.input) > 2][::-1]:
        conv = made.graph.node[index]
        weight, bias = array(made, conv.input[1]), array(made, conv.input[2])
        gain, variance = rng.uniform(0.5, 2, len(bias)), rng.uniform(0.5, 2, len(bias))
        mean = rng.standard_normal(len(bias))
        factor = gain / np.sqrt(variance + 1e-5)
        stem, output = conv.output[0], conv.output[0]
        parts = {"gain": gain, "shift": bias + mean * factor, "mean": mean, "variance": variance}
        for part, values in parts.items():
            put(made, f"{stem}_{part}", values.astype(np.float32))
        put(made, f"{stem}_weight", (weight / factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32))
        conv.input[:] = [conv.input[0], f"{stem}_weight"]
        conv.output[0] = f"{stem}_raw"
        inputs = [f"{stem}_raw", *(f"{stem}_{part}" for part in parts)]
        made.graph.node.insert(
            index + 1, helper.make_node("BatchNormalization", inputs, [output], f"{conv.name}_norm", epsilon=1e-5)
        )
    return settled(made)


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every tensor, node, input and output is called something else."""
    made = copied(proto)
    graph = made.graph
    every = [v.name for v in (*graph.input, *graph.initializer)] + [t for n in graph.node for t in n.output if t]
    names = {name: f"t{number}" for number, name in enumerate(dict.fromkeys(every))}
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names[value.name]
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(t, t) for t in tensors]
    return settled(made)


def shuffled(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The nodes in another order in which each still follows what it reads; weights in another order too."""
    made, rng = copied(proto), np.random.default_rng(seed)
    graph = made.graph
    given = [v.name for v in (*graph.input, *graph.initializer)]
    ordered = in_order(graph.node, given, lambda ready: int(rng.integers(len(ready))))
    weights = [graph.initializer[i] for i in rng.permutation(len(graph.initializer))]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(ordered)
    graph.initializer.extend(weights)
    return settled(made)


def of_batch(proto: onnx.ModelProto, size: int | None) -> onnx.ModelProto:
    """The batch axis fixed, or open (None)."""
    made = copied(proto)
    for value in (*made.graph.input, *made.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if size is None:
            dim.dim_param = "anything"
        else:
            dim.dim_value = size
    return settled(made)


def half_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights stored as float16, with a Cast before their use."""
    made = copied(proto)
    casts = []
    for tensor in list(made.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < LARGE:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        made.graph.initializer.remove(tensor)
        put(made, f"{name}_half", values.astype(np.float16))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"widened {name}", to=TensorProto.FLOAT))
    for cast in reversed(casts):
        made.graph.node.insert(0, cast)
    return settled(made)


def channels_last(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The picture is given as NHWC, and a Transpose turns it."""
    made = copied(proto)
    (given,) = made.graph.input
    inner, dims = f"{given.name}_nchw", given.type.tensor_type.shape.dim
    reconnect(made, given.name, inner)
    turn = helper.make_node("Transpose", [given.name], [inner], "to_nchw", perm=[0, 3, 1, 2])
    made.graph.node.insert(0, turn)
    order = [onnx.TensorShapeProto.Dimension.FromString(dims[i].SerializeToString()) for i in (0, 2, 3, 1)]
    del dims[:]
    dims.extend(order)
    return settled(made)


def spelled_otherwise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Other operators for the same function: Gemm as MatMul and Add, GlobalAveragePool as ReduceMean, Clip as Min and
    Max.
    """
    made, known = copied(proto), stored(proto)
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.op_type == "Gemm" and attribute(node, "transB", 0) and node.input[1] in known and len(node.input) == 3:
            put(made, f"{node.input[1]}_turned", array(made, node.input[1]).T)
            product = f"{node.output[0]}_product"
            nodes.append(helper.make_node("MatMul", [node.input[0], f"{node.input[1]}_turned"], [product], node.name))
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}_bias"))
        elif node.op_type == "GlobalAveragePool":
            mean = helper.make_node("ReduceMean", [node.input[0]], [node.output[0]], node.name, axes=[2, 3], keepdims=1)
            nodes.append(mean)
        elif node.op_type == "Clip" and all(node.input) and len(node.input) == 3:
            low = f"{node.output[0]}_low"
            nodes.append(helper.make_node("Max", [node.input[0], node.input[1]], [low], f"{node.name}_max"))
            nodes.append(helper.make_node("Min", [low, node.input[2]], [node.output[0]], f"{node.name}_min"))
        else:
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return settled(made)


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes without names, no documentation, no metadata, nothing said of shapes within."""
    made = copied(proto)
    made.graph.doc_string, made.doc_string, made.producer_name = "", "", ""
    del made.metadata_props[:]
    for node in made.graph.node:
        node.name, node.doc_string = "", ""
    return settled(made)


def _evaluated(node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], proto: onnx.ModelProto) -> list[NDArray[Any]]:
    """The outputs of a node whose inputs are known."""
    inputs = [t for t in node.input if t]
    infos = [helper.make_tensor_value_info(t, helper.np_dtype_to_tensor_dtype(values[t].dtype), None) for t in inputs]
    outputs = [helper.make_empty_tensor_value_info(t) for t in node.output]
    graph = helper.make_graph([node], "one", infos, outputs)
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return list(ReferenceEvaluator(model).run(None, {t: values[t] for t in inputs}))
