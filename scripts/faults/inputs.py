"""Faults in the preprocessing: the model is the reference itself, what it is given is not what it was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from .fault import Fault
from .subjects import Subject


def mistaken(subject: Subject) -> Iterator[Fault]:
    """The same pictures by another preprocessing."""
    names = tuple(i.name for i in subject.proto.graph.input)
    for family, strength, options in subject.wrong:
        yield Fault(
            family=family, strength=strength, place="input", where="preprocessing", proto=subject.proto, tensors=names,
            feeds=subject.prepare(subject.pictures, **options),
        )  # fmt: skip
