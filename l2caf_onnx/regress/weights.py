"""Layers of an int8 candidate judged by their weights alone.

What a layer's inputs lose by being narrowed is several times what its weights lose by being rounded, and would hide a
layer whose weights are rounded too coarsely. So the widened forms of its inputs are fed too, as the reference has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from l2caf_onnx.records import Aligned

from .feeding import as_candidate, remade
from .local import Errors, errors_of, typical
from .probe import Arrays, Probe, Real
from .session import Session
from .steps import Steps, steps_of
from .twins import ONE_SCALE, rounded, tolerances

_KEPT = 0.2  # relative error up to which a quantiser passes a tensor on; beyond, it does the work of an activation


def by_weights(held: Session, numbers: list[int]) -> dict[str, tuple[Errors, float]]:
    """For each of the reference's tensors that a layer makes with rounded weights: (errors, tolerance).

    Left out are those on whose way more is rounded than weights and what the layer reads. The tolerance comes of the
    same samples, of a twin whose weights are rounded as most of the candidate's are.
    """
    steps = held.steps
    if not any(s.weights for s in steps.values()):
        return {}
    wide = _widened(held.candidate, held.alignment)
    twin = rounded(held.reference.model, "int8", held.grain)
    judged: list[Aligned] = []
    found: list[Errors] = []
    usual: list[Errors] = []
    for own, feeds, others in held.inputs.pieces(held.size, numbers):
        ours = held.reference.values(feeds, [a.reference for a in held.alignment])
        fed = _fed(held, ours, others)
        if not found:
            wide = {name: source for name, source in wide.items() if _passes(held.candidate, name, fed[source])}
            sharper = steps_of(held.candidate, held.alignment, wide)
            judged = [a for a in held.alignment if sharper[a.reference].alone]
            if not judged:
                return {}
        given = {a.candidate: fed[a.candidate] for a in held.alignment} | {n: fed[s] for n, s in wide.items()}
        made = remade(held.candidate, given, others, [a.candidate for a in judged])
        found.append(errors_of(held.reference, judged, ours, made, len(own)))
        itself = [replace(a, candidate=a.reference, order=None, scale=1.0) for a in judged]
        made = remade(held.reference, ours, feeds, [a.reference for a in judged], twin)
        usual.append(errors_of(held.reference, itself, ours, made, len(own)))
    errors, noise = np.concatenate(found, axis=1), np.concatenate(usual, axis=1)
    times = 1.0 if held.grain.each else ONE_SCALE
    lost = {a.reference: times * typical(e, "int8") for a, e in zip(judged, noise, strict=True)}
    allowed = tolerances(lost, "int8", dict.fromkeys(lost, Steps(weights=True)))
    return {a.reference: (e, allowed[a.reference]) for a, e in zip(judged, errors, strict=True)}


def _widened(candidate: Probe, pairs: Sequence[Aligned]) -> dict[str, str]:
    """{what a DequantizeLinear gives: what was narrowed}, of those without a pair: the narrow tensor where that has one
    (where a quantiser clips in the place of a Relu, that is the Relu's), else an aligned tensor or an input.
    """
    model = candidate.model
    taken = {p.candidate for p in pairs}
    known = taken | {i.name for i in model.inputs}
    found = {}
    for name in candidate.names:
        narrow = model.proto.graph.node[model.producers[name]]
        if name in taken or narrow.op_type != "DequantizeLinear" or narrow.input[0] not in model.producers:
            continue
        maker = model.proto.graph.node[model.producers[narrow.input[0]]]
        if narrow.input[0] in taken:
            found[name] = narrow.input[0]
        elif maker.op_type == "QuantizeLinear" and maker.input[0] in known:
            found[name] = maker.input[0]
    return found


def _fed(held: Session, ours: Mapping[str, Real], others: Arrays) -> dict[str, Real]:
    """The candidate's aligned tensors as the reference has them, and its inputs."""
    shapes = {n: v.shape for n, v in held.candidate.values(others, [a.candidate for a in held.alignment]).items()}
    fed = {a.candidate: as_candidate(a, ours[a.reference], shapes[a.candidate]) for a in held.alignment}
    return {**{n: v for n, v in others.items() if v.dtype == np.float32}, **fed}


def _passes(candidate: Probe, name: str, value: Real) -> bool:
    narrow = candidate.model.proto.graph.node[candidate.model.producers[name]].input[0]
    after = candidate.real(narrow, candidate.stored(narrow, value))
    return bool(np.linalg.norm(after - value) <= _KEPT * np.linalg.norm(value))
