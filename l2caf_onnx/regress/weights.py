"""Layers of an int8 candidate judged by their weights alone.

What a layer's inputs lose by being narrowed is several times what its weights lose by being rounded, and would hide a
layer whose weights are rounded too coarsely. So the widened forms of its inputs are fed too, as the reference has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from l2caf_onnx.records import Aligned

from .feeding import as_candidate, remade
from .local import Errors, errors_of
from .probe import Arrays, Probe, Real
from .session import Session
from .steps import Steps, steps_of
from .twins import noise, tolerances

_KEPT = 0.2  # relative error up to which a quantiser passes a tensor on; beyond, it does the work of an activation


def by_weights(held: Session, numbers: list[int]) -> dict[str, tuple[Errors, float]]:
    """For each of the reference's tensors that a layer makes, whose inputs are narrowed before: (errors, tolerance)."""
    wide = _widened(held.candidate, held.alignment)
    steps = held.steps
    if not wide or not any(s.weights and s.inputs for s in steps.values()):
        return {}
    judged: list[Aligned] = []
    rows: list[Errors] = []
    for own, feeds, others in held.inputs.pieces(held.size, numbers):
        ours = held.reference.values(feeds, [a.reference for a in held.alignment])
        fed = _fed(held, ours, others)
        if not rows:
            wide = {name: source for name, source in wide.items() if _passes(held.candidate, name, fed[source])}
            sharper = steps_of(held.candidate, held.alignment, wide)
            judged = [a for a in held.alignment if not steps[a.reference].alone and sharper[a.reference].alone]
            if not judged:
                return {}
        given = {a.candidate: fed[a.candidate] for a in held.alignment} | {n: fed[s] for n, s in wide.items()}
        made = remade(held.candidate, given, others, [a.candidate for a in judged])
        rows.append(errors_of(held.reference, judged, ours, made, len(own)))
    allowed = _allowed(held)
    errors = np.concatenate(rows, axis=1)
    return {a.reference: (e, allowed[a.reference]) for a, e in zip(judged, errors, strict=True)}


def _widened(candidate: Probe, pairs: Sequence[Aligned]) -> dict[str, str]:
    """{what a DequantizeLinear gives: what was narrowed}, an aligned tensor or an input, of those without a pair."""
    model = candidate.model
    taken = {p.candidate for p in pairs}
    known = taken | {i.name for i in model.inputs}
    found = {}
    for name in candidate.names:
        narrow = model.proto.graph.node[model.producers[name]]
        if name in taken or narrow.op_type != "DequantizeLinear" or narrow.input[0] not in model.producers:
            continue
        maker = model.proto.graph.node[model.producers[narrow.input[0]]]
        if maker.op_type == "QuantizeLinear" and maker.input[0] in known:
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


def _allowed(held: Session) -> dict[str, float]:
    names = [a.reference for a in held.alignment]
    steps = dict.fromkeys(names, Steps(weights=True))
    numbers = held.noisy
    key = ("noise of weights", tuple(names), held.grain, held.digest(numbers))
    kept: dict[str, float] = held.reference.model.cache.get(key, dict)
    if not kept:
        pieces = ((len(part), feeds) for part, feeds, _ in held.inputs.pieces(held.size, numbers))
        kept.update(noise(held.reference, names, pieces, "int8", steps, None, held.grain))
    return tolerances(kept, "int8", steps)
