"""All faults of a model, one after the other, each planted where the network has a place for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import onnx

from . import half, inputs, int8, norms, structure, weights
from .fault import Base, Fault
from .graphs import PLACES
from .subjects import WITH_SWISH, Subject

FAMILIES = (
    "channels swapped",
    "wrong mean and std",
    "wrong resize mode",
    "padding of the other side",
    "kernel flipped",
    "kernel transposed",
    "channels permuted",
    "weights noised",
    "weights of another checkpoint",
    "bias dropped",
    "batch-norm epsilon",
    "batch-norm statistics",
    "ReLU6 for ReLU",
    "HardSwish for Swish",
    "residual dropped",
    "Softmax over the wrong axis",
    "int8 scale too small",
    "int8 per tensor for per channel",
    "4-bit weights",
    "fp16 overflow",
)
ALSO = {"ReLU for ReLU6": "ReLU6 for ReLU"}  # the same confusion, of a network that has the other


class Sound:
    """The sound models that faults are planted in, each made once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @cached_property
    def int8(self) -> onnx.ModelProto:
        """By onnxruntime's quantiser."""
        return int8.quantised(self.subject)

    @cached_property
    def float16(self) -> onnx.ModelProto:
        """By onnxruntime's converter."""
        return half.half(self.subject.proto)

    def of(self, base: Base) -> onnx.ModelProto:
        """The one of that class."""
        return {"float32": lambda: self.subject.proto, "float16": lambda: self.float16, "int8": lambda: self.int8}[
            base
        ]()


def faults(sound: Sound) -> Iterator[Fault]:
    """Every fault of a model."""
    subject = sound.subject
    proto = subject.proto
    if subject.name == WITH_SWISH:
        yield from structure.hardened(proto)
        return
    yield from inputs.mistaken(subject)
    yield from structure.padded(proto)
    yield from weights.flipped(proto)
    yield from weights.transposed(proto)
    yield from weights.permuted(proto)
    yield from weights.noised(proto)
    yield from weights.another(proto, subject.donor)
    yield from weights.biasless(proto)
    yield from norms.epsilon(proto)
    yield from norms.statistics(proto)
    yield from structure.activated(proto)
    yield from structure.hardened(proto)
    yield from structure.shortcut(proto)
    yield from structure.softmaxed(proto)
    yield from int8.clipped(sound.int8)
    yield from int8.per_tensor(sound.int8, int8.folded(subject))
    yield from int8.four_bits(sound.int8, int8.folded(subject))
    yield from half.overflowing(sound.float16, proto, subject.feeds)


def absent(planted: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Of each family the places where a model has none, given families and places of those it has."""
    have = {(ALSO.get(family, family), place) for family, place in planted}
    missing: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        if (family, "input") not in have:
            places = tuple(p for p in PLACES if (family, p) not in have)
            if places:
                missing[family] = places
    return missing
