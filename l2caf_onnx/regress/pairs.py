"""Pairs of tensors on their way to an alignment: which are taken, which may be, and what values say for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from l2caf_onnx.errors import InputError
from l2caf_onnx.records import Aligned

from .feeding import Order, as_candidate, as_reference, remade, reordered
from .prints import likeness, sheets
from .probe import Arrays, Probe, Real

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_NAME, _OPERATOR, _DEPTH, _TURNED = 1.5, 0.3, 1.0, 0.05  # powers of ten of evidence; the depth is that of a network


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair that values speak for."""

    score: float
    reference: str
    candidate: str
    order: Order
    scale: float


def apart(ours: Real, theirs: Real) -> float:
    """||theirs - ours|| / ||ours||; infinite where it cannot be told."""
    with np.errstate(all="ignore"):
        off = np.linalg.norm(theirs.reshape(-1).astype(np.float64) - ours.reshape(-1))
        found = float(off / np.linalg.norm(ours.astype(np.float64))) if off != 0 else 0.0
    return found if np.isfinite(found) else float("inf")


class Pairs:
    """Pairs on their way.

    Attributes:
        reference: The one model.
        candidate: The other.
        ours: The reference's values.
        theirs: The candidate's, of its own run.
        taken: The pairs so far, by the reference's name.
        counterpart: {candidate's tensor or input: reference's}.
    """

    def __init__(
        self,
        reference: Probe,
        candidate: Probe,
        ours: Mapping[str, Real],
        theirs: Mapping[str, Real],
        candidate_feeds: Arrays,
    ) -> None:
        self.reference, self.candidate, self.ours, self.theirs = reference, candidate, ours, theirs
        self.candidate_feeds = candidate_feeds
        self.taken: dict[str, Aligned] = {}
        self.counterpart: dict[str, str] = {}  # candidate's -> reference's, graph inputs too
        names = [i.name for i in reference.model.inputs]
        for k, info in enumerate(candidate.model.inputs):
            if info.name in names or k < len(names):
                self.counterpart[info.name] = info.name if info.name in names else names[k]

    def give(self, name: str, other: str) -> None:
        """Take a pair from the user."""
        if self.ours[name].size != self.theirs[other].size:
            raise InputError(
                f"{name!r} has the shape {self.ours[name].shape}, {other!r} {self.theirs[other].shape}.",
                where="The alignment that was given.",
                how="Name two tensors of the same content.",
            )
        best = max(self.choices({name: self.ours[name]}, {other: self.theirs[other]}, 0.0), key=lambda c: c.score)
        self.take(name, other, "given", best.order, best.scale)

    def take(self, name: str, other: str, how: str, order: Order, scale: float) -> None:
        """Make a pair of these, told by `how`."""
        one = sheets({name: self.ours[name]}, turned=False)[self.ours[name].size]
        seen = sheets({other: reordered(self.theirs[other], order)}, turned=False)[self.ours[name].size]
        alike = likeness(one, seen)
        self.taken[name] = Aligned(
            reference=name, candidate=other, how=how, order=order, scale=scale,
            confidence=max(float(alike.correlation[0, 0]), 0.0),
        )  # fmt: skip
        self.counterpart[other] = name

    def may(self, name: str, other: str) -> bool:
        """Whether both are free, and what is aligned lies on the same sides of both."""
        if name in self.taken or other in self.counterpart or self.carries_another(name, other):
            return False
        before, before_other = self.reference.before, self.candidate.before
        return not any(
            (p.reference in before[name] and other in before_other[p.candidate])
            or (name in before[p.reference] and p.candidate in before_other[other])
            for p in self.taken.values()
        )

    def choices(self, ours: Mapping[str, Real], theirs: Mapping[str, Real], least: float) -> Iterator[Choice]:
        """The pairs of these that values speak for with so many powers of ten."""
        one, other = sheets(ours, turned=False), sheets(theirs, turned=True)
        for size in one.keys() & other.keys():
            alike = likeness(one[size], other[size])
            for i, k in zip(*np.nonzero(alike.evidence >= least), strict=True):
                name, its, order = one[size].names[i], other[size].names[k], other[size].orders[k]
                score = float(alike.evidence[i, k]) + self._bonus(name, its) - _TURNED * (order is not None)
                yield Choice(score, name, its, order, float(alike.scale[i, k]))

    def errors(self, left: frozenset[str]) -> dict[str, float]:
        """Of what the candidate makes of the reference's values, those of `left` not fed; none of `left`."""
        made = remade(self.candidate, self.fed(left), self.candidate_feeds)
        pairs = [p for p in self.taken.values() if p.candidate not in left]
        return {p.candidate: apart(self.ours[p.reference], as_reference(p, made[p.candidate])) for p in pairs}

    def fed(self, left: frozenset[str] = frozenset()) -> dict[str, Real]:
        """The reference's values of all that is aligned but for `left`, as the candidate has them."""
        return {
            p.candidate: as_candidate(p, self.ours[p.reference], self.theirs[p.candidate].shape)
            for p in self.taken.values()
            if p.candidate not in left
        }

    def carries_another(self, name: str, other: str) -> bool:
        """Whether `other` is the counterpart of another, quantised or brought back, and no nearer to `name`."""
        for beside in self._carried(other):
            own = self.counterpart.get(beside)
            if own is None or own not in self.ours or own == name or self.ours[own].size != self.theirs[other].size:
                continue
            if apart(self.ours[own], self.theirs[other]) < apart(self.ours[name], self.theirs[other]):
                return True
        return False

    def _carried(self, name: str) -> list[str]:
        """The other forms of a tensor of the candidate, before and behind what quantises it and brings it back."""
        model, found = self.candidate.model, [name]
        nodes = model.proto.graph.node
        for tensor in found:  # grows on the way
            makers = [nodes[model.producers[tensor]]] if tensor in model.producers else []
            readers = [nodes[i] for i in model.consumers.get(tensor, ())]
            near = [n.input[0] for n in makers if n.op_type in QUANTISERS]
            near += [n.output[0] for n in readers if n.op_type in QUANTISERS and n.input[0] == tensor]
            found += [n for n in near if n not in found]
        return found[1:]

    def _bonus(self, name: str, other: str) -> float:
        same = self.reference.model.op_of(name) == self.candidate.model.op_of(other)
        away = abs(self.reference.depth[name] - self.candidate.depth[other])
        return _NAME * (name == other) + _OPERATOR * same - _DEPTH * away
