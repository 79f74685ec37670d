"""The filter in the `.onnx` itself: S1 multiplied by f, as a constant (to deploy and prove) or as an input (to solve).

The filtered model is an ordinary `.onnx`, independent of any converter. A quantised S1 is dequantised, multiplied and
quantised alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l2caf_onnx.errors import CutError, InputError
from l2caf_onnx.records import TensorInfo

from .breakpoints import FLOATS, check_breakpoint
from .cut import from_ir, numpy_type, to_ir
from .layout import Axes, axes, layout_of
from .model import Model, dtype_name
from .nodes import graphs_in, walk
from .quantised import scale_of
from .shapes import tensors

FILTER_INPUT = "l2caf_filter"


def insert_filter(model: Model, at: str, filter: NDArray[Any], *, layout: str | None = None) -> Model:
    """`model` with the tensor `at` multiplied by `filter`, shared by all channels.

    Args:
        model: The whole model, or a tail that has `at` as input.
        at: S1. Where it is a graph output, the filtered tensor keeps the output's name.
        filter: (*spatial) for every sample alike, or (N, *spatial) with N = 1 or the batch. Of tokens that form a
            grid, (H, W) or (N, H, W): class and register tokens are multiplied by 1.
        layout: The axes of `at`, one letter each, and the grid of tokens, as in NTC[1+14x14]; None: found from the
            graph.

    Raises:
        TensorNotFoundError, CutError: `at` is no breakpoint.
        InputError: the filter does not fit the tensor, or is not finite.
    """
    letters, where = _checked(model, at, layout)
    places = axes(letters)
    values = np.asarray(filter, dtype=np.float32)
    shape = tensors(model)[at].shape or ()
    wanted = places.cells(shape)
    if values.ndim == len(wanted):
        values = values[None]
    batch = shape[places.batch] if places.batch is not None else 1
    fits = values.ndim == 1 + len(wanted) and all(
        isinstance(w, str) or w == have for w, have in zip(wanted, values.shape[1:], strict=True)
    )
    if not fits or (values.shape[0] != 1 and isinstance(batch, int) and values.shape[0] != batch):
        raise InputError(
            f"The filter has shape {np.shape(filter)}; {wanted} is needed, or that with the batch in front.",
            where=f"{where[:-1]}, layout {letters}.",
            how="One value a spatial cell; a grid of tokens is said by layout='NTC[1+14x14]'.",
        )
    if not np.isfinite(values).all():
        raise InputError("The filter holds NaN or infinity.", where=where, how="Find out where it comes from.")
    graph_model = to_ir(model)
    name = _fresh("l2caf_filter_values", model)
    value = ir.Value(name=name, const_value=ir.tensor(broadcastable(values, places), name=name))
    graph_model.graph.register_initializer(value)
    _multiply(graph_model.graph, model, at, value)
    return from_ir(graph_model, model, f"{model.name} filtered at {at!r}")


def open_filter(model: Model, at: str, *, layout: str) -> Model:
    """`model` with a further float32 input `FILTER_INPUT` that multiplies `at`: one graph for every filter.

    Raises: as `insert_filter`.
    """
    check_breakpoint(model, at, layout)
    if FILTER_INPUT in _taken(model):
        raise InputError(
            f"The model has a tensor {FILTER_INPUT!r} already.",
            where=f"Model {model.name!r}.",
            how="Break in the model as it was before a filter became an input of it.",
        )
    graph_model = to_ir(model)
    places = axes(layout_of(model, at, layout))
    dims = ["l2caf_n" if a == places.batch else f"l2caf_{a}" if a in places.spatial else 1 for a in range(places.rank)]
    value = ir.Value(name=FILTER_INPUT, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims))
    graph_model.graph.inputs.append(value)
    _multiply(graph_model.graph, model, at, value)
    return from_ir(graph_model, model, model.name)


def broadcastable(filter: NDArray[np.float32], places: Axes) -> NDArray[np.float32]:
    """(N, *spatial) -> an array that broadcasts over a tensor with those axes; ones at tokens around a grid."""
    way = places.placement(filter.shape)
    flat = filter.reshape(way.flat)
    if any(way.kept):
        flat = np.pad(flat, [(0, 0)] * (len(way.flat) - 1) + [way.kept], constant_values=1)
    return np.ascontiguousarray(flat.transpose(way.order).reshape(way.shape))


def _checked(model: Model, at: str, layout: str | None) -> tuple[str, str]:
    check_breakpoint(model, at, layout)
    where = f"Tensor {at!r} of model {model.name!r}."
    if any(o.name == at for o in model.outputs) and any(i.name == at for i in model.inputs):
        raise CutError(
            "This tensor is both an input and an output of the model.", where=where, how="Choose another tensor."
        )
    return layout_of(model, at, layout), where


def _multiply(graph: ir.Graph, model: Model, at: str, filter: ir.Value) -> None:
    """Put `at` times `filter` wherever `at` was read."""
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    source = values[at]
    info = tensors(model)[at]
    scale = None if info.dtype in FLOATS else scale_of(model, at)
    nodes: list[ir.Node] = []

    def step(op: str, inputs: list[ir.Value | None], attributes: dict[str, int] | None = None) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes or {}, name=_fresh(f"l2caf_{op}", model))
        node.outputs[0].name = _fresh(f"l2caf_{op}_out", model)
        nodes.append(node)
        return node.outputs[0]

    def as_type(value: ir.Value, dtype: str) -> ir.Value:
        return value if dtype == "float32" else step("Cast", [value], {"to": int(ir.DataType[_ir_name(dtype)])})

    if scale is not None:
        axis = {"axis": scale.axis} if (model.opset() or 0) >= 13 else {}
        step_size = _info(model, scale.scale)
        zero = values[scale.zero_point] if scale.zero_point else None
        if zero is None and info.dtype != "uint8":  # without one, QuantizeLinear writes uint8
            zero = _zero_point(graph, model, step_size, info.dtype)
        parts = [values[scale.scale], zero] if zero is not None else [values[scale.scale]]
        product = step("DequantizeLinear", [source, *parts], axis)
        reader = nodes[0]
        product = step("Mul", [product, as_type(filter, step_size.dtype)])
        product = step("QuantizeLinear", [product, *parts], axis)
    else:
        product = step("Mul", [source, as_type(filter, info.dtype)])
        reader = nodes[-1]
    product.type, product.shape = source.type, source.shape

    is_output = any(value is source for value in graph.outputs)
    ir.convenience.replace_all_uses_with(source, product, replace_graph_outputs=is_output)
    reader.replace_input_with(0, source)
    if is_output and not source.is_graph_input():
        source.name, product.name = _fresh("l2caf_unfiltered", model), at
    producer = source.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    elif len(graph) > 0:
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)
    if scale is not None:
        graph.sort()  # the scale may be defined after the tensor


def _ir_name(dtype: str) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())


def _info(model: Model, name: str) -> TensorInfo:
    """Type and shape of a top-level tensor, made or stored."""
    stored = model.initialisers.get(name)
    if stored is None:
        return tensors(model)[name]
    return TensorInfo(name, dtype_name(stored.data_type), tuple(stored.dims))


def _zero_point(graph: ir.Graph, model: Model, like: TensorInfo, dtype: str) -> ir.Value:
    """A stored zero point of 0 beside the scale `like`."""
    sizes = [d for d in like.shape or () if isinstance(d, int)]
    name = _fresh("l2caf_zero_point", model)
    value = ir.Value(name=name, const_value=ir.tensor(np.zeros(sizes, numpy_type(dtype)), name=name))
    graph.register_initializer(value)
    return value


def _taken(model: Model) -> set[str]:
    """All names of tensors and nodes, those inside subgraphs too."""
    names = {v.name for g in graphs_in(model.proto.graph) for v in (*g.input, *g.initializer)}
    for node in walk(model.proto.graph):
        names |= {node.name, *node.output}
    return names


def _fresh(stem: str, model: Model) -> str:
    taken, name, count = _taken(model), stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name
