"""Which tensor of the candidate does the work of which tensor of the reference.

Names are evidence, not proof: a name may be reused for something else, and a re-export, a fusion or a quantiser gives
new ones. What decides is how well the values on the same inputs explain each other. Behind a fault, where they do not,
the graph does: what is made of aligned tensors by the same operator is the same. And what is aligned is then fed with
the reference's values, so that what lies behind is seen again as if there were no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l2caf_onnx.errors import InputError, TensorNotFoundError
from l2caf_onnx.records import Aligned

from .doubt import drop_what_is_another_carried, drop_what_is_made_good, look_again, settled
from .feeding import Order, remade, reordered
from .pairs import Pairs
from .probe import Arrays, Probe, Real

__all__ = ["align", "reordered"]

_STRONG, _WEAK = 2.0, 0.3  # powers of ten of evidence: a tenth of the size unexplained; correlation 0.7
_TRUSTED = 0.5  # of the pairs that values tell: so many have the same name where names mean something
_ROUNDS = 12
_FUSED = 6  # operators that one may stand for
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
        known = len(found.taken)
        found.by_graph()
        found.by_values(found.seen_again(), _STRONG)
        drop_what_is_another_carried(found)
        if len(found.taken) == known and (turn == _ROUNDS - 1 or not found.by_values(found.theirs, _WEAK, most=1)):
            break
    found.outputs()
    drop_what_is_made_good(found)
    look_again(found)
    return settled(found)


def _check(reference: Probe, candidate: Probe, pairs: Mapping[str, str]) -> None:
    for probe, names in ((reference, pairs.keys()), (candidate, pairs.values())):
        for name in names:
            if name not in probe.names:
                raise TensorNotFoundError(
                    name, probe.names, where=f"Model {probe.model.name!r}, the alignment that was given."
                )
    if len(set(pairs.values())) < len(pairs):
        raise InputError("Two tensors were aligned with the same one.", how="Give each its own.")


class _Alignment(Pairs):
    """Pairs found by values and by the graph."""

    def by_values(self, theirs: Mapping[str, Real], least: float, most: int | None = None) -> bool:
        """Take the pairs with at least so much evidence, the best first; whether there were any."""
        ours = {n: v for n, v in self.ours.items() if n not in self.taken}
        free = {n: v for n, v in theirs.items() if n not in self.counterpart}
        taken = 0
        for choice in sorted(self.choices(ours, free, least), key=lambda c: -c.score):
            if self.may(choice.reference, choice.candidate):
                how = "name" if choice.reference == choice.candidate else "activations"
                self.take(choice.reference, choice.candidate, how, choice.order, choice.scale)
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
                    self.take(other, name, how, self._order(other, name), 1.0)

    def seen_again(self) -> dict[str, Real]:
        """What the candidate makes, fed with the reference's values of all that is aligned."""
        left = [n for n in self.theirs if n not in self.counterpart]
        if not left or len(self.taken) == len(self.ours):
            return {}
        return remade(self.candidate, self.fed(), self.candidate_feeds, left)

    def outputs(self) -> None:
        """Take what the models return, in its order: whatever is wrong before, there it is seen."""
        for one, other in zip(self.reference.model.outputs, self.candidate.model.outputs, strict=False):
            name, its = one.name, other.name
            fits = name in self.ours and its in self.theirs and self.ours[name].size == self.theirs[its].size
            if fits and self.may(name, its):
                self.take(name, its, "position", self._order(name, its), 1.0)

    def _names_are_trusted(self) -> bool:
        told = [p for p in self.taken.values() if p.how in ("name", "activations") and p.candidate in self.ours]
        return sum(p.reference == p.candidate for p in told) >= _TRUSTED * len(told)

    def _by_name(self, name: str) -> bool:
        return (
            name in self.ours
            and self.ours[name].size == self.theirs[name].size
            and (self.reference.model.op_of(name) == self.candidate.model.op_of(name) or self._made_of_the_same(name))
            and self.may(name, name)
        )

    def _made_of_the_same(self, name: str) -> bool:
        """Whether both are made of counterparts alone: then one operator stands in the place of the other's, or of
        several that were fused.
        """
        made_of = self._roots(self.candidate, name, self.counterpart)
        wanted = {self.counterpart.get(r, "") for r in made_of}
        found, waiting = set[str](), [name]
        told = any(p.reference == p.candidate and p.how == "name" for p in self.taken.values())
        for _ in range(_FUSED if told else 1):  # names that nothing speaks for are no evidence of so much
            if not waiting:
                return found == wanted
            roots = self._roots(self.reference, waiting.pop(), list(wanted))
            found |= wanted & {*roots}
            beyond = {*roots} - wanted
            if not roots or any(r in self.taken or r not in self.ours for r in beyond):
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
                and self.may(made, name)
            ):
                fitting.append(made)
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        choices = self.choices({n: self.ours[n] for n in fitting}, {name: self.theirs[name]}, 0.0)
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
        return max(self.choices({name: self.ours[name]}, {other: self.theirs[other]}, 0.0), key=lambda c: c.score).order
