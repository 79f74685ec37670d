"""The cut: head and tail of a model at a named tensor, and what crosses beside it.

The tail is what depends on S1 and leads to S2. Everything else that it reads crosses the cut: tensors of the head (the
bypass), graph inputs, and constants or shape arithmetic, which the tail simply repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from l2caf_onnx.errors import CutError, InputError, TensorNotFoundError, UnsupportedModelError
from l2caf_onnx.records import TensorInfo, write_atomic

from .breakpoints import check_breakpoint
from .model import NO_TENSORS, Model
from .paths import reached, reaching
from .shapes import tensors
from .static import from_shapes_of_inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A model in two: `head` makes `at` and `bypass`; `tail` reads them (and graph inputs) and makes `to`."""

    head: Model
    tail: Model
    at: str
    to: tuple[str, ...]
    bypass: tuple[str, ...]


def cut(model: Model, at: str, to: str | Sequence[str] | None = None, *, layout: str | None = None) -> Cut:
    """Cut `model` at the breakpoint `at`.

    Args:
        model: What to cut.
        at: S1, the tensor that a filter can multiply.
        to: S2, one name or several; None: all graph outputs that depend on S1.
        layout: Of `at`, where the graph does not tell that it has cells.

    Returns:
        The head (outputs: `at`, then the bypass), the tail (inputs: `at`, the bypass, the graph inputs that it needs).

    Raises:
        TensorNotFoundError: no such tensor.
        CutError: `at` is no breakpoint, or a `to` does not depend on it.
    """
    targets = resolve_to(model, at, to, layout)
    return model.cache.get(("cut", at, targets), lambda: _cut(model, at, targets))


def resolve_to(model: Model, at: str, to: str | Iterable[str] | None, layout: str | None = None) -> tuple[str, ...]:
    """The names of S2, checked to be downstream of `at` (for errors see `cut`)."""
    check_breakpoint(model, at, layout)
    downstream = reached(model, at)
    if to is None:
        targets = tuple(o.name for o in model.outputs if o.name in downstream)
        if not targets:
            raise CutError(
                f"No output of the model depends on {at!r}.",
                where=f"Model {model.name!r}.",
                how="Choose another tensor.",
            )
        return targets
    targets = tuple(dict.fromkeys([to] if isinstance(to, str) else to))
    if not targets:
        raise InputError("No tensor to watch was named.", where="`to` is empty.", how="Name one, or leave it out.")
    for name in targets:
        try:
            model.require(name)
        except TensorNotFoundError as e:
            raise TensorNotFoundError(
                name, sorted(downstream), where=f"Looked downstream of {at!r} in {model.name!r}."
            ) from e
        if name not in downstream:
            raise CutError(
                f"{name!r} does not depend on {at!r}: nothing that a filter does there can arrive.",
                where=f"Model {model.name!r}.",
                how="Watch a tensor after the breakpoint, or break earlier.",
            )
    return targets


def _cut(model: Model, at: str, to: tuple[str, ...]) -> Cut:
    bypass, needed = _crossing(model, at, to)
    sources = [i.name for i in model.inputs]
    head = extract(model, sources, (at, *bypass), name=f"head of {model.name}")
    tail = extract(model, (at, *bypass, *needed), to, name=f"tail of {model.name}")
    return Cut(head=head, tail=tail, at=at, to=to, bypass=bypass)


def _crossing(model: Model, at: str, to: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(bypass, graph inputs) that the tail reads beside `at`, in topological order."""
    downstream, live = reached(model, at), reaching(model, list(to))
    free, sources = from_shapes_of_inputs(model), {i.name for i in model.inputs}
    crossing: set[str] = set()
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        if any(o in live and o in downstream and o != at for o in node.output):
            crossing.update(r for r in reads if r not in downstream)
    repeated = reaching(model, [name for name in crossing if name in free])
    bypass = tuple(n for n in model.names if n in crossing and n not in free and n not in sources)
    needed = tuple(i.name for i in model.inputs if i.name != at and (i.name in crossing or i.name in repeated))
    return bypass, needed


def extract(model: Model, inputs: Iterable[str], outputs: Iterable[str], *, name: str | None = None) -> Model:
    """The part of `model` that makes `outputs` from `inputs` (any top-level tensors that bound it), as a Model.

    Raises:
        UnsupportedModelError: the type of an input cannot be told from the file.
    """
    sources, targets = tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs))
    whole = model.cache.get("ir", lambda: to_ir(model))  # `extract` clones: the shared view stays as it is
    infos = tensors(model)
    graph = ir.convenience.extract(whole.graph, sources, targets)
    for value in (*graph.inputs, *graph.outputs):
        _declare(value, infos.get(str(value.name)))
    for value in graph.inputs:
        if value.type is None:
            raise UnsupportedModelError(
                f"The type of {value.name!r}, which crosses the cut, cannot be told from the file.",
                where=f"Model {model.name!r}.",
                how="Run onnx.shape_inference on it, or cut elsewhere.",
            )
    part = ir.Model(graph, ir_version=whole.ir_version, producer_name="l2caf_onnx", functions=())
    return from_ir(part, model, name or model.name)


def _declare(value: ir.Value, info: TensorInfo | None) -> None:
    """Give an input or output the type and shape that are known of it; a file that lacks them is refused elsewhere."""
    if info is None:
        return
    if value.type is None and info.dtype == "str":
        value.type = ir.TensorType(ir.DataType.STRING)
    elif value.type is None and info.dtype not in ("?", *NO_TENSORS):
        value.type = ir.TensorType(ir.DataType.from_numpy(numpy_type(info.dtype)))
    if value.type is not None and info.shape is not None:  # what the file declares may be vaguer, or a lie
        value.shape = ir.Shape([d if isinstance(d, int) else (None if d == "?" else d) for d in info.shape])


def to_ir(model: Model) -> ir.Model:
    """A fresh onnx_ir view of `model`; external data stays on disk.

    Raises:
        UnsupportedModelError: onnx_ir cannot read it.
    """
    try:
        whole = ir.from_proto(model.proto)
    except (ir.serde.SerdeError, NotImplementedError) as e:  # the latter where it has no form for a type, as sequences'
        raise _unreadable(model, e) from e
    if model.base_dir is not None:
        ir.external_data.set_base_dir(whole.graph, model.base_dir)
    return whole


def from_ir(part: ir.Model, origin: Model, name: str) -> Model:
    """A Model from onnx_ir; `origin` says where its external data lie."""
    try:
        proto = ir.to_proto(part)
    except ir.serde.SerdeError as e:
        raise _unreadable(origin, e) from e
    if not proto.graph.name:
        proto.graph.name = "graph"
    base_dir = origin.base_dir
    return Model(proto, base_dir=base_dir, name=name)


def _unreadable(model: Model, error: Exception) -> UnsupportedModelError:
    cause = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    return UnsupportedModelError(
        f"The graph cannot be rewritten: {cause}.",
        where=f"Model {model.name!r}.",
        how="onnx.checker tells what is wrong with it.",
    )


def save(model: Model, path: Path) -> None:
    """Write `model` as a `.onnx` file; external data is copied beside it, a tensor at a time."""
    whole = to_ir(model)
    if model.has_external_data:
        for node in ir.traversal.RecursiveGraphIterator(whole.graph):
            for attribute in node.attributes.values():  # `ir.save` moves initialisers alone
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(attribute.value.numpy()))
        ir.save(whole, str(path), external_data=f"{path.name}.data")
    else:
        data = model.proto.SerializeToString()

        def write(stream: IO[bytes]) -> None:
            stream.write(data)

        write_atomic(path, write)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The numpy type of that name, of those too that numpy itself has not."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype, dtype))
