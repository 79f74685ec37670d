"""Which tensor of the candidate does the work of which tensor of the reference.

Names are evidence, not proof: a name may be reused for something else, and a re-export, a fusion or a quantiser gives
new ones. What decides is how well the values on the same inputs explain each other. Behind a fault, where they do not,
the graph does: what is made of aligned tensors by the same operator is the same. And what is aligned is then fed with
the reference's values, so that what lies behind is seen again as if there were no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from l2caf_onnx.errors import InputError, TensorNotFoundError
from l2caf_onnx.graph.segments import reads_of
from l2caf_onnx.records import Aligned

from .feeding import Order, as_candidate, as_reference, remade, reordered
from .prints import likeness, sheets
from .probe import Arrays, Probe, Real

__all__ = ["align", "reordered"]

_STRONG, _WEAK = 2.0, 0.3  # powers of ten of evidence: a tenth of the size unexplained; correlation 0.7
_NAME, _OPERATOR, _DEPTH, _TURNED = 1.5, 0.3, 1.0, 0.05  # in the same measure; the depth is that of a whole network
_TRUSTED = 0.5  # of the pairs that values tell: so many have the same name where names mean something
_ROUNDS = 12
_FUSED = 6  # operators that one may stand for
_WRONG, _GOOD = 1e-3, 0.2  # a relative error that is looked at; what is left of it where it is made good
_NEARER = 0.5  # of an error: another pair explains the values better
_CARRIERS = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout")


def align(
    reference: Probe, candidate: Probe, feeds: Arrays, candidate_feeds: Arrays, given: Mapping[str, str] | None = None
) -> tuple[Aligned, ...]:
    """The pairs, in the reference's topological order; graph inputs are not among them.

    Args:
        reference: The one model.
        candidate: The other.
        feeds: A few samples for the reference, as many as both take at once.
        candidate_feeds: The same samples for the candidate.
        given: Pairs {reference: candidate} that the user knows; they win.

    Raises:
        TensorNotFoundError: a name in `given` that its model has not.
        InputError: two given pairs share a tensor, or the tensors of one differ in size.
    """
    pairs = dict(given or {})
    _check(reference, candidate, pairs)
    found = _Alignment(
        reference, candidate, reference.values(feeds, reference.names),
        candidate.values(candidate_feeds, candidate.names), candidate_feeds,
    )  # fmt: skip
    for name, other in pairs.items():
        found.give(name, other)
    found.by_values(found.theirs, _STRONG)
    for turn in range(_ROUNDS):
        known = len(found.pairs)
        found.by_graph()
        found.by_values(found.seen_again(), _STRONG)
        if len(found.pairs) == known and (turn == _ROUNDS - 1 or not found.by_values(found.theirs, _WEAK, most=1)):
            break
    found.outputs()
    found.drop_what_is_made_good()
    found.look_again()
    return found.settled()


def _check(reference: Probe, candidate: Probe, pairs: Mapping[str, str]) -> None:
    for probe, names in ((reference, pairs.keys()), (candidate, pairs.values())):
        for name in names:
            if name not in probe.names:
                raise TensorNotFoundError(
                    name, probe.names, where=f"Model {probe.model.name!r}, the alignment that was given."
                )
    if len(set(pairs.values())) < len(pairs):
        raise InputError("Two tensors were aligned with the same one.", how="Give each its own.")


@dataclass(frozen=True, slots=True)
class _Choice:
    """A pair that values speak for."""

    score: float
    reference: str
    candidate: str
    order: Order
    scale: float


def _apart(ours: Real, theirs: Real) -> float:
    """||theirs - ours|| / ||ours||; infinite where it cannot be told."""
    with np.errstate(all="ignore"):
        off = np.linalg.norm(theirs.reshape(-1).astype(np.float64) - ours.reshape(-1))
        found = float(off / np.linalg.norm(ours.astype(np.float64))) if off != 0 else 0.0
    return found if np.isfinite(found) else float("inf")


class _Alignment:
    """Pairs on their way."""

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
        self.pairs: dict[str, Aligned] = {}
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
        best = max(self._choices({name: self.ours[name]}, {other: self.theirs[other]}, 0.0), key=lambda c: c.score)
        self._take(name, other, "given", best.order, best.scale)

    def by_values(self, theirs: Mapping[str, Real], least: float, most: int | None = None) -> bool:
        """Take the pairs with at least so much evidence, the best first; whether there were any."""
        ours = {n: v for n, v in self.ours.items() if n not in self.pairs}
        free = {n: v for n, v in theirs.items() if n not in self.counterpart}
        taken = 0
        for choice in sorted(self._choices(ours, free, least), key=lambda c: -c.score):
            if self._may(choice.reference, choice.candidate):
                how = "name" if choice.reference == choice.candidate else "activations"
                self._take(choice.reference, choice.candidate, how, choice.order, choice.scale)
                taken += 1
                if taken == most:
                    break
        return taken > 0

    def by_graph(self) -> None:
        """Take what the same operator makes of aligned tensors, and what has the same name and operator, in order."""
        trusted = self._names_are_trusted()
        for node in self.candidate.model.proto.graph.node:
            for place, name in enumerate(node.output):
                if name not in self.theirs or name in self.counterpart:
                    continue
                other, how = self._by_position(name, place), "position"
                if trusted and self._by_name(name):
                    other, how = name, "name"
                if other is not None:
                    self._take(other, name, how, self._order(other, name), 1.0)

    def seen_again(self) -> dict[str, Real]:
        """What the candidate makes, fed with the reference's values of all that is aligned."""
        left = [n for n in self.theirs if n not in self.counterpart]
        if not left or len(self.pairs) == len(self.ours):
            return {}
        fed = {
            p.candidate: as_candidate(p, self.ours[p.reference], self.theirs[p.candidate].shape)
            for p in self.pairs.values()
        }
        return remade(self.candidate, fed, self.candidate_feeds, left)

    def outputs(self) -> None:
        """Take what the models return, in its order: whatever is wrong before, there it is seen."""
        for one, other in zip(self.reference.model.outputs, self.candidate.model.outputs, strict=False):
            name, its = one.name, other.name
            fits = name in self.ours and its in self.theirs and self.ours[name].size == self.theirs[its].size
            if fits and self._may(name, its):
                self._take(name, its, "position", self._order(name, its), 1.0)

    def drop_what_is_made_good(self) -> None:
        """Give up pairs that are none: fed with the reference's values the candidate goes wrong at them and behind
        them, and left to itself it comes out right.

        A fault is the other way round: what lies behind it goes wrong if it is left to itself.
        """
        wrong = {n: e for n, e in self._errors(frozenset()).items() if e > _WRONG}
        model = self.candidate.model
        known = frozenset(p.candidate for p in self.pairs.values())
        within = {n: reads_of(model, [n], known)[0] for n in wrong}
        doubted = frozenset(
            p.candidate for p in self.pairs.values()
            if p.how != "given" and p.candidate in wrong and any(p.candidate in read for read in within.values())
        )  # fmt: skip
        if not doubted:
            return
        again = self._errors(doubted)
        held = known - doubted
        behind = {n: reads_of(model, [n], held)[1] for n in held}
        for name in doubted:
            ends = [n for n in held if model.producers[name] in behind[n]]
            if any(n in wrong for n in ends) and all(again[n] <= max(_GOOD * wrong.get(n, 0.0), _WRONG) for n in ends):
                del self.pairs[self.counterpart.pop(name)]

    def look_again(self) -> None:
        """Mend pairs that were taken while the candidate's values had drifted: now it is fed with the reference's.

        Where an activation was left out because a narrow range does its work, what is narrowed is the counterpart; and
        where another of the reference's tensors is far nearer, that is.
        """
        doubted = [n for n, e in self._errors(frozenset()).items() if e > _WRONG]
        if not doubted:
            return
        fed = {
            p.candidate: as_candidate(p, self.ours[p.reference], self.theirs[p.candidate].shape)
            for p in self.pairs.values()
        }
        for other, made in remade(self.candidate, fed, self.candidate_feeds, doubted).items():
            pair = self.pairs[self.counterpart[other]]
            if pair.how == "given" or pair.scale != 1.0:
                continue
            error = _apart(self.ours[pair.reference], as_reference(pair, made))
            narrow = self._narrowed(other)
            if narrow is not None:
                passed = self.candidate.real(narrow[0], self.candidate.stored(narrow[0], made))
                if _apart(self.ours[pair.reference], as_reference(pair, passed)) < _NEARER * error:
                    self._replace(pair, pair.reference, narrow[-1])
                    continue
            free = [
                n for n in self.reference.names
                if n not in self.pairs and self.ours[n].shape == self.ours[pair.reference].shape
            ]  # fmt: skip
            near = min(free, key=lambda n: _apart(self.ours[n], as_reference(pair, made)), default=None)
            if near is not None and _apart(self.ours[near], as_reference(pair, made)) < _NEARER * error:
                self._replace(pair, near, other)

    def _narrowed(self, name: str) -> list[str] | None:
        """What a tensor becomes where all that reads it is one QuantizeLinear: the integers, and these brought back."""
        model, found = self.candidate.model, [name]
        for op in ("QuantizeLinear", "DequantizeLinear"):
            nodes = [model.proto.graph.node[i] for i in model.consumers.get(found[-1], ())]
            if len(nodes) != 1 or nodes[0].op_type != op or nodes[0].output[0] not in self.theirs:
                break
            found.append(nodes[0].output[0])
        free = len(found) > 1 and not any(n in self.counterpart for n in found[1:])
        return found[1:] if free else None

    def _replace(self, pair: Aligned, name: str, other: str) -> None:
        """Put a pair of these in the place of one, if they may be one."""
        del self.pairs[pair.reference], self.counterpart[pair.candidate]
        if self._may(name, other):
            self._take(name, other, "activations", pair.order, 1.0)
        else:
            self.pairs[pair.reference], self.counterpart[pair.candidate] = pair, pair.reference

    def _errors(self, left: frozenset[str]) -> dict[str, float]:
        """Of what the candidate makes of the reference's values, those of `left` not fed; none of `left`."""
        pairs = [p for p in self.pairs.values() if p.candidate not in left]
        fed = {p.candidate: as_candidate(p, self.ours[p.reference], self.theirs[p.candidate].shape) for p in pairs}
        made = remade(self.candidate, fed, self.candidate_feeds)
        return {p.candidate: _apart(self.ours[p.reference], as_reference(p, made[p.candidate])) for p in pairs}

    def settled(self) -> tuple[Aligned, ...]:
        """The pairs in order; a scale is believed where what follows is the same again without one."""
        self._point_to_integers()
        ordered = [self.pairs[name] for name in self.reference.names if name in self.pairs]
        for k, pair in enumerate(ordered):
            if pair.scale != 1.0 and not self._made_good(pair):
                ordered[k] = Aligned(
                    reference=pair.reference, candidate=pair.candidate, how=pair.how, order=pair.order, scale=1.0,
                    confidence=pair.confidence,
                )  # fmt: skip
        return tuple(ordered)

    def _point_to_integers(self) -> None:
        """Where integers are read as such, and in floats beside, the integers are the counterpart: what reads them
        reads what is fed.
        """
        model = self.candidate.model
        for name, pair in self.pairs.items():
            node = model.proto.graph.node[model.producers[pair.candidate]]
            source = node.input[0]
            if node.op_type != "DequantizeLinear" or pair.how == "given" or source not in self.theirs:
                continue
            if source not in self.counterpart and len(model.consumers[source]) > 1:
                del self.counterpart[pair.candidate]
                self.counterpart[source] = name
                self.pairs[name] = replace(pair, candidate=source)

    def _choices(self, ours: Mapping[str, Real], theirs: Mapping[str, Real], least: float) -> Iterator[_Choice]:
        one, other = sheets(ours, turned=False), sheets(theirs, turned=True)
        for size in one.keys() & other.keys():
            alike = likeness(one[size], other[size])
            for i, k in zip(*np.nonzero(alike.evidence >= least), strict=True):
                name, its, order = one[size].names[i], other[size].names[k], other[size].orders[k]
                score = float(alike.evidence[i, k]) + self._bonus(name, its) - _TURNED * (order is not None)
                yield _Choice(score, name, its, order, float(alike.scale[i, k]))

    def _bonus(self, name: str, other: str) -> float:
        same = self.reference.model.op_of(name) == self.candidate.model.op_of(other)
        apart = abs(self.reference.depth[name] - self.candidate.depth[other])
        return _NAME * (name == other) + _OPERATOR * same - _DEPTH * apart

    def _may(self, name: str, other: str) -> bool:
        """Whether both are free, and what is aligned lies on the same sides of both."""
        if name in self.pairs or other in self.counterpart or self._carries_another(name, other):
            return False
        before, before_other = self.reference.before, self.candidate.before
        return not any(
            (p.reference in before[name] and other in before_other[p.candidate])
            or (name in before[p.reference] and p.candidate in before_other[other])
            for p in self.pairs.values()
        )

    def _carries_another(self, name: str, other: str) -> bool:
        """Whether `other` is the counterpart of another, quantised or brought back, and no nearer to `name`."""
        model = self.candidate.model
        nodes = [model.producers[other], *model.consumers.get(other, ())]
        for node in (model.proto.graph.node[i] for i in nodes):
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            beside = node.output[0] if node.output[0] != other else node.input[0]
            own = self.counterpart.get(beside)
            if own is None or own not in self.ours or own == name or self.ours[own].size != self.theirs[other].size:
                continue
            if _apart(self.ours[own], self.theirs[other]) < _apart(self.ours[name], self.theirs[other]):
                return True
        return False

    def _take(self, name: str, other: str, how: str, order: Order, scale: float) -> None:
        one = sheets({name: self.ours[name]}, turned=False)[self.ours[name].size]
        seen = sheets({other: reordered(self.theirs[other], order)}, turned=False)[self.ours[name].size]
        alike = likeness(one, seen)
        self.pairs[name] = Aligned(
            reference=name, candidate=other, how=how, order=order, scale=scale,
            confidence=max(float(alike.correlation[0, 0]), 0.0),
        )  # fmt: skip
        self.counterpart[other] = name

    def _names_are_trusted(self) -> bool:
        told = [p for p in self.pairs.values() if p.how in ("name", "activations") and p.candidate in self.ours]
        return sum(p.reference == p.candidate for p in told) >= _TRUSTED * len(told)

    def _by_name(self, name: str) -> bool:
        return (
            name in self.ours
            and self.ours[name].size == self.theirs[name].size
            and (self.reference.model.op_of(name) == self.candidate.model.op_of(name) or self._made_of_the_same(name))
            and self._may(name, name)
        )

    def _made_of_the_same(self, name: str) -> bool:
        """Whether both are made of counterparts alone: then one operator stands in the place of the other's, or of
        several that were fused.
        """
        made_of = self._roots(self.candidate, name, self.counterpart)
        wanted = {self.counterpart.get(r, "") for r in made_of}
        found, waiting = set[str](), [name]
        told = any(p.reference == p.candidate and p.how == "name" for p in self.pairs.values())
        for _ in range(_FUSED if told else 1):  # names that nothing speaks for are no evidence of so much
            if not waiting:
                return found == wanted
            roots = self._roots(self.reference, waiting.pop(), list(wanted))
            found |= wanted & {*roots}
            beyond = {*roots} - wanted
            if not roots or any(r in self.pairs or r not in self.ours for r in beyond):
                return False
            waiting += beyond
        return not waiting and found == wanted

    def _by_position(self, name: str, place: int) -> str | None:
        """The reference's tensor that the same operator makes of the counterparts of what `name` is made of."""
        model, other = self.candidate.model, self.reference.model
        made_of = self._roots(self.candidate, name, self.counterpart)
        if not made_of or any(r not in self.counterpart for r in made_of):
            return None
        wanted = [self.counterpart[r] for r in made_of]
        fitting = []
        for index in {i for w in wanted for i in self._readers(w)}:
            node = other.proto.graph.node[index]
            if node.op_type != model.op_of(name) or place >= len(node.output):
                continue
            made = node.output[place]
            if (
                made in self.ours
                and self.ours[made].size == self.theirs[name].size
                and sorted(self._roots(self.reference, made, wanted)) == sorted(wanted)
                and self._may(made, name)
            ):
                fitting.append(made)
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        choices = self._choices({n: self.ours[n] for n in fitting}, {name: self.theirs[name]}, 0.0)
        return max(choices, key=lambda c: c.score).reference

    def _roots(self, probe: Probe, name: str, known: Mapping[str, str] | list[str]) -> list[str]:
        """What the maker of a tensor reads of the data, seen through operators that only carry."""
        found = []
        for read in probe.model.reads[probe.model.producers[name]]:
            while read not in known and probe.model.op_of(read) in _CARRIERS and read in probe.before:
                read = probe.model.proto.graph.node[probe.model.producers[read]].input[0]
            if read in known or read in probe.before:
                found.append(read)
        return found

    def _readers(self, name: str) -> Iterator[int]:
        """The reference's nodes that read a tensor, through carriers too."""
        for index in self.reference.model.consumers.get(name, ()):
            yield index
            node = self.reference.model.proto.graph.node[index]
            if node.op_type in _CARRIERS:
                yield from self._readers(node.output[0])

    def _order(self, name: str, other: str) -> Order:
        """How the axes of a pair that values do not tell lie: as they are where the shapes agree."""
        if self.ours[name].shape == self.theirs[other].shape:
            return None
        return max(
            self._choices({name: self.ours[name]}, {other: self.theirs[other]}, 0.0), key=lambda c: c.score
        ).order

    def _made_good(self, pair: Aligned) -> bool:
        later = [
            p for p in self.pairs.values()
            if p.scale == 1.0 and p.candidate != pair.candidate and pair.reference in self.reference.before[p.reference]
        ]  # fmt: skip
        behind = {p.reference: self.ours[p.reference] for p in later}
        seen = {p.candidate: self.theirs[p.candidate] for p in later}
        told = {(c.reference, c.candidate) for c in self._choices(behind, seen, _STRONG) if c.scale == 1.0}
        return any((p.reference, p.candidate) in told for p in later)
