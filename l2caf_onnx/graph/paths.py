"""What depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

from .model import Model


def reaching(model: Model, targets: Iterable[str]) -> frozenset[str]:
    """The tensors that `targets` depend on, themselves included."""
    found: set[str] = set(targets)
    for index in range(len(model.proto.graph.node) - 1, -1, -1):
        if any(o in found for o in model.proto.graph.node[index].output):
            found.update(model.reads[index])
    return frozenset(found)


def reached(model: Model, source: str) -> frozenset[str]:
    """The tensors that depend on `source`, itself included."""
    found = {source}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        if any(r in found for r in reads):
            found.update(o for o in node.output if o)
    return frozenset(found)


def leads(model: Model, source: str, targets: Iterable[str], *, avoiding: Callable[[onnx.NodeProto], bool]) -> bool:
    """Whether some path from `source` to one of `targets` meets no node for which `avoiding` holds."""
    found = {source}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        if any(r in found for r in reads) and not avoiding(node):
            found.update(o for o in node.output if o)
    return any(t in found for t in targets)
