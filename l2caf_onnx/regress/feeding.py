"""A candidate fed with the reference's activations: every aligned tensor is given, and made anew of what is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from l2caf_onnx import runtime
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.segments import FED, segment
from l2caf_onnx.records import Aligned

from .probe import Arrays, Probe, Real, chunks

MOST = 2**27  # bytes of activations that one run hands over

Order = tuple[int, ...] | None


def reordered(values: Real, order: Order, shape: tuple[int, ...] | None = None) -> Real:
    """The candidate's values with their axes in the reference's order, and in its shape where that is given."""
    turned = values if order is None else values.transpose(order)
    return turned if shape is None or turned.shape == shape else turned.reshape(shape)


def turned_back(values: Real, order: Order, shape: tuple[int, ...]) -> Real:
    """The reference's values as the candidate has them, in its `shape`."""
    if order is None:
        return values.reshape(shape)
    turned = tuple(shape[k] for k in order)
    return values.reshape(turned).transpose(sorted(range(len(order)), key=order.__getitem__))


def as_reference(pair: Aligned, values: Real, shape: tuple[int, ...] | None = None) -> Real:
    """The candidate's values of a pair as the reference would have them."""
    turned = reordered(values, pair.order, shape)
    return turned if pair.scale == 1.0 else (turned * pair.scale).astype(turned.dtype)


def as_candidate(pair: Aligned, values: Real, shape: tuple[int, ...]) -> Real:
    """The reference's values of a pair as the candidate would have them."""
    turned = turned_back(values, pair.order, shape)
    return turned if pair.scale == 1.0 else (turned / pair.scale).astype(turned.dtype)


def remade(
    probe: Probe,
    fed: Mapping[str, Real],
    feeds: Arrays,
    ends: Iterable[str] | None = None,
    model: Model | None = None,
) -> dict[str, Real]:
    """What the nodes of a model make of the tensors that are fed.

    Args:
        probe: Whose tensors they are.
        fed: Real values of the tensors that are fed.
        feeds: Of the graph inputs.
        ends: What is made; None: all that is fed.
        model: The same graph with other weights.
    """
    own = model or probe.model
    stored: Arrays = {**feeds, **{name: probe.stored(name, values) for name, values in fed.items()}}
    mean = sum(stored[name].nbytes for name in fed) // max(len(fed), 1)
    wanted = list(fed) if ends is None else list(ends)
    sizes = {name: stored[name].nbytes if name in fed else mean for name in wanted}
    found: dict[str, Real] = {}
    for part in chunks(wanted, sizes, MOST):
        found |= _piece(probe, own, part, tuple(fed), stored)
    return found


def _piece(probe: Probe, own: Model, ends: Sequence[str], fed: tuple[str, ...], stored: Arrays) -> dict[str, Real]:
    key = ("segment", tuple(ends), tuple((n, stored[n].ndim) for n in fed))
    piece = own.cache.get(key, partial(segment, own, ends, stored))
    given = {i.name: stored[i.name.removesuffix(FED)] for i in piece.inputs}
    return {n: probe.real(n, v) for n, v in runtime.run(piece, given, providers=probe.providers).items()}
