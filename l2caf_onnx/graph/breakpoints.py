"""Where a model can be stopped: the tensors that a filter can multiply, and what crosses a cut there.

One sweep answers for all candidates at once: bit b of a tensor's mask says that it depends on candidate b.
"""

from __future__ import annotations

from math import prod

from l2caf_onnx.errors import CutError, UnsupportedModelError
from l2caf_onnx.records import Breakpoint, Shape, TensorInfo

from .affine import affine_among
from .layout import axes, check_layout, grids, layouts
from .model import Model
from .paths import reaching
from .quantised import scale_of, storable
from .shapes import tensors
from .static import from_shapes_of_inputs, static_at_given_sizes

FLOATS = ("float16", "bfloat16", "float32", "float64")


def breakpoints(model: Model) -> tuple[Breakpoint, ...]:
    """All breakpoints in topological order: float (or described quantised) tensors with two spatial cells or more.

    Left out: constants, tensors of unknown rank, and tensors that no output depends on.
    """
    return model.cache.get("breakpoints", lambda: _breakpoints(model))


def _breakpoints(model: Model) -> tuple[Breakpoint, ...]:
    infos, letters, fixed, found = tensors(model), layouts(model), static_at_given_sizes(model), grids(model)
    live = reaching(model, [o.name for o in model.outputs])
    names = [
        name
        for name in model.names
        if name in live
        and name not in fixed
        and name in letters
        and _multipliable(model, infos[name])
        and _has_cells(infos[name], letters[name])
    ]
    crossing, affine = _crossing(model, names, live), affine_among(model, names)
    return tuple(
        Breakpoint(
            name=name,
            op_type=model.op_of(name),
            shape=infos[name].shape or (),
            layout=letters[name],
            grid=str(found.get(name, "")),
            bypass=crossing[name],
            affine=name in affine and infos[name].dtype in FLOATS,  # else it is rounded even where nothing follows
            quantised=infos[name].dtype not in FLOATS,
        )
        for name in names
    )


def check_breakpoint(model: Model, name: str, layout: str | None = None) -> TensorInfo:
    """The type and shape of `name`, if a filter can multiply it; `layout` where it is not to be found from the graph.

    Raises:
        TensorNotFoundError: there is no such tensor.
        CutError: a constant, an integer tensor that no scale describes, or fewer than two spatial cells.
        UnsupportedModelError: its type or rank cannot be told from the file.
        InputError: the layout does not fit.
    """
    info = tensors(model)[model.require(name)]
    where = f"Tensor {name!r} ({model.op_of(name)}) of model {model.name!r}."
    how = "`l2caf-onnx inspect MODEL` lists the tensors where it can be stopped."
    if name in static_at_given_sizes(model):
        raise CutError("This tensor is a constant: no value of the input changes it.", where=where, how=how)
    if info.shape is None or info.dtype == "?":
        what = "The type and rank of this tensor cannot be told from the file."
        raise UnsupportedModelError(
            what, where=where, how="Run onnx.shape_inference on the model, or choose a neighbour."
        )
    if not _multipliable(model, info):
        what = (
            f"This tensor holds {info.dtype} values that no scale and zero point describe: a filter cannot multiply it."
        )
        raise CutError(what, where=where, how=how)
    letters = check_layout(layout, len(info.shape), name) if layout else layouts(model).get(name)
    if letters is None:
        what = f"Which axes of this tensor are space is not told by the graph (shape {_text(info.shape)})."
        raise CutError(what, where=where, how=f"Give its layout, or choose a neighbour. {how}")
    if not _has_cells(info, letters):
        what = f"This tensor has fewer than two spatial cells (shape {_text(info.shape)}): a filter has no choice."
        raise CutError(what, where=where, how=how)
    return info


def _crossing(model: Model, names: list[str], live: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """For each candidate, what its tail reads that does not depend on it: no constants, shapes or graph inputs."""
    free = from_shapes_of_inputs(model) | {i.name for i in model.inputs}
    bit = {name: 1 << b for b, name in enumerate(names)}
    depends = {i.name: bit.get(i.name, 0) for i in model.inputs}
    read_by: dict[str, int] = {}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        mask = 0
        for r in reads:
            mask |= depends.get(r, 0)
        for o in node.output:
            depends[o] = mask | bit.get(o, 0)
        if any(o in live for o in node.output):
            for r in reads:
                read_by[r] = read_by.get(r, 0) | mask
    found: dict[str, list[str]] = {name: [] for name in names}
    for name in model.producers:
        if name in free:
            continue
        bits = read_by.get(name, 0) & ~depends[name]
        while bits:
            low = bits & -bits
            found[names[low.bit_length() - 1]].append(name)
            bits ^= low
    return {name: tuple(crossing) for name, crossing in found.items()}


def _multipliable(model: Model, info: TensorInfo) -> bool:
    """Whether a filter can multiply it: floats, or integers that are quantised and can be quantised again."""
    return info.dtype in FLOATS or (storable(model, info.dtype) and scale_of(model, info.name) is not None)


def _has_cells(info: TensorInfo, layout: str) -> bool:
    """Whether it has two spatial cells or more, as far as the file tells."""
    shape = info.shape or ()
    sizes = [shape[a] for a in axes(layout).spatial]
    known = prod(s for s in sizes if isinstance(s, int))
    return known > 1 or (known == 1 and any(isinstance(s, str) for s in sizes))


def _text(shape: Shape) -> str:
    return "(" + ", ".join(str(d) for d in shape) + ")"
