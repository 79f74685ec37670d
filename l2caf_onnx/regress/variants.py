"""Harmless variations of a reference, each a model that runs from end to end: what they differ by is noise.

How far a harmless change of a class moves the outputs of *this* model on *these* inputs nobody can guess; but it can be
tried. Float32: onnxruntime's optimisation levels, one thread, weights off in the last place (what folding does), and
for attention inputs off by half a grey level and another seed. Float16: weights and tensors rounded to it. Int8:
weights of eight bits, a scale for each channel, and tensors of eight bits between the extremes that they have here, or
the extremes without the outermost values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.rounding import halved, quantised
from l2caf_onnx.graph.segments import with_weights
from l2caf_onnx.graph.shapes import tensors
from l2caf_onnx.records import Change

from .probe import Arrays, Probe
from .twins import rounded

_PLACES = 2.0**-22  # of a float32: about two units in the last place
_GREY = 1 / 255 / 2
_OUTERMOST = 1e-5  # share of values at each end that a percentile calibration leaves out
_SEEN = 3  # batches that the ranges of tensors are taken from
_JOINED = ("Relu", "Clip", "BatchNormalization")  # computed together with what comes before, and rounded behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One harmless variation.

    Attributes:
        name: In a sentence.
        model: What runs.
        level: At which of onnxruntime's levels; None: as the reference.
        threads: How many; None: as the reference.
        jitter: What inputs are off by, as a part of their range.
        seed: Added to that of the question.
        attention: Whether it says something of attention alone.
    """

    name: str
    model: Model
    level: runtime.Level | None = None
    threads: int | None = None
    jitter: float = 0.0
    seed: int = 0
    attention: bool = False

    def feeds(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The inputs as this variation is given them."""
        if not self.jitter:
            return dict(feeds)
        rng = np.random.default_rng(0)
        found = {}
        for name, array in feeds.items():
            if array.dtype.kind != "f" or not array.size:
                found[name] = array
                continue
            size = self.jitter * float(np.ptp(array))
            found[name] = (array + rng.uniform(-size, size, array.shape)).astype(array.dtype)
        return found


def variants(model: Model, change: Change, pieces: Iterable[Arrays], *, attention: bool) -> tuple[Variant, ...]:
    """The variations of a class; none of "retrained", of which no measure is known.

    Args:
        model: The reference.
        change: The class.
        pieces: Some inputs in batches, for the ranges of its tensors.
        attention: Whether attention is compared.
    """
    if change in ("float32", "identical"):
        made = _of_float32(model)
        if attention:
            made.append(
                Variant(
                    name="inputs off by half a grey level, another seed", model=model, jitter=_GREY, seed=1,
                    attention=True,
                )
            )  # fmt: skip
        return tuple(made)
    if change == "float16":
        return _of_float16(model)
    return _of_int8(model, pieces) if change == "int8" else ()


def _of_float32(model: Model) -> list[Variant]:
    levels: tuple[runtime.Level, ...] = ("disable", "basic", "extended")
    found = [Variant(name=f"onnxruntime's optimisations at {level!r}", model=model, level=level) for level in levels]
    found.append(Variant(name="one thread", model=model, threads=1))
    found.append(
        Variant(name="weights off in the last place", model=model.cache.get(("jittered",), lambda: _off(model)))
    )
    return found


def _off(model: Model) -> Model:
    rng = np.random.default_rng(0)
    found = {}
    for name, values in _weights(model).items():
        found[name] = (values * (1 + rng.uniform(-_PLACES, _PLACES, values.shape))).astype(np.float32)
    return with_weights(model, found, name=f"{model.name}, weights off in the last place")


def _weights(model: Model) -> dict[str, NDArray[Any]]:
    import onnx

    folder = str(model.base_dir) if model.base_dir is not None else ""
    stored = {n: t for n, t in model.initialisers.items() if t.data_type == onnx.TensorProto.FLOAT}
    return {n: onnx.numpy_helper.to_array(t, folder) for n, t in stored.items() if len(t.dims)}


def _of_float16(model: Model) -> tuple[Variant, ...]:
    half = rounded(model, "float16")

    def passed() -> Model:
        kinds = tensors(half)
        return halved(half, [n for n in Probe(half).names if kinds[n].dtype == "float32"])

    return (
        Variant(name="weights rounded to float16", model=half),
        Variant(
            name="weights and tensors rounded to float16", model=model.cache.get(("twin", "half"), passed),
            level="disable",
        ),
    )  # fmt: skip


def _of_int8(model: Model, pieces: Iterable[Arrays]) -> tuple[Variant, ...]:
    weights = rounded(model, "int8")
    probe = Probe(model)
    names = _narrowed(model, probe)
    ends: dict[str, list[tuple[float, ...]]] = {n: [] for n in names}
    for feeds in islice(pieces, _SEEN):
        for name, values in probe.values(feeds, names).items():
            ends[name].append(_ends(values))
    found = []
    for name, low, high in (
        ("eight bits between the extremes of these inputs", 0, 3),
        ("eight bits between the extremes but for the outermost", 1, 2),
    ):
        ranges = {n: (min(e[low] for e in own), max(e[high] for e in own)) for n, own in ends.items() if own}
        made = quantised(weights, ranges)
        if made is not None:
            found.append(Variant(name=name, model=made, level="disable"))  # others give the weights one scale
    return tuple(found) or (Variant(name="weights of eight bits", model=weights),)


def _narrowed(model: Model, probe: Probe) -> list[str]:
    """Graph inputs and the tensors that a quantiser rounds: not those that an activation or a norm follows at once."""
    kinds = tensors(model)
    nodes = model.proto.graph.node
    found = []
    for name in (*(i.name for i in model.inputs), *probe.names):
        readers = model.consumers.get(name, ())
        if kinds[name].dtype != "float32" or (len(readers) == 1 and nodes[readers[0]].op_type in _JOINED):
            continue
        found.append(name)
    return found


def _ends(values: NDArray[np.float32]) -> tuple[float, ...]:
    """(least, that but for the outermost, largest but for the outermost, largest)."""
    flat = values.reshape(-1)
    if not flat.size:
        return (0.0, 0.0, 0.0, 0.0)
    count = int(_OUTERMOST * flat.size)
    if not count:
        low, high = float(flat.min()), float(flat.max())
        return (low, low, high, high)
    ordered = np.partition(flat, (0, count, flat.size - 1 - count, flat.size - 1))
    return tuple(float(ordered[k]) for k in (0, count, flat.size - 1 - count, flat.size - 1))
