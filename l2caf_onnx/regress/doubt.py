"""Pairs looked at once more, when all that is aligned can be fed with the reference's values: dropped, mended, settled.

While pairs are taken the candidate's own values have drifted, by a fault or by rounding, and mislead.
"""

from __future__ import annotations

from dataclasses import replace

from l2caf_onnx.graph.segments import reads_of
from l2caf_onnx.records import Aligned

from .feeding import as_reference, remade
from .pairs import QUANTISERS, Pairs, apart

_WRONG, _GOOD = 1e-3, 0.2  # a relative error that is looked at; what is left of it where it is made good
_NEARER = 0.5  # of an error: another pair explains the values better
_STRONG = 2.0  # powers of ten of evidence


def drop_what_is_made_good(pairs: Pairs) -> None:
    """Give up pairs that are none: fed with the reference's values the candidate goes wrong at them and behind
    them, and left to itself it comes out right.

    A fault is the other way round: what lies behind it goes wrong if it is left to itself.
    """
    wrong = {n: e for n, e in pairs.errors(frozenset()).items() if e > _WRONG}
    model = pairs.candidate.model
    known = frozenset(p.candidate for p in pairs.taken.values())
    within = {n: reads_of(model, [n], known)[0] for n in wrong}
    doubted = frozenset(
        p.candidate for p in pairs.taken.values()
        if p.how != "given" and p.candidate in wrong and any(p.candidate in read for read in within.values())
    )  # fmt: skip
    if not doubted:
        return
    again = pairs.errors(doubted)
    held = known - doubted
    behind = {n: reads_of(model, [n], held)[1] for n in held}
    for name in doubted:
        ends = [n for n in held if model.producers[name] in behind[n]]
        if any(n in wrong for n in ends) and all(again[n] <= max(_GOOD * wrong.get(n, 0.0), _WRONG) for n in ends):
            del pairs.taken[pairs.counterpart.pop(name)]


def drop_what_is_another_carried(pairs: Pairs) -> None:
    """Give up pairs whose candidate turned out to be another's counterpart, quantised or brought back."""
    for pair in list(pairs.taken.values()):
        if pair.how != "given" and pairs.carries_another(pair.reference, pair.candidate):
            del pairs.taken[pairs.counterpart.pop(pair.candidate)]


def look_again(pairs: Pairs) -> None:
    """Mend pairs that were taken while the candidate's values had drifted: now it is fed with the reference's.

    Where an activation was left out because a narrow range does its work, what is narrowed is the counterpart; and
    where another of the reference's tensors is far nearer, that is.
    """
    doubted = [n for n, e in pairs.errors(frozenset()).items() if e > _WRONG]
    if not doubted:
        return
    for other, made in remade(pairs.candidate, pairs.fed(), pairs.candidate_feeds, doubted).items():
        pair = pairs.taken[pairs.counterpart[other]]
        if pair.how == "given" or pair.scale != 1.0:
            continue
        error = apart(pairs.ours[pair.reference], as_reference(pair, made))
        narrow = _narrowed(pairs, other)
        if narrow is not None:
            passed = pairs.candidate.real(narrow[0], pairs.candidate.stored(narrow[0], made))
            if apart(pairs.ours[pair.reference], as_reference(pair, passed)) < _NEARER * error:
                _replace(pairs, pair, pair.reference, narrow[-1])
                continue
        free = [
            n for n in pairs.reference.names
            if n not in pairs.taken and pairs.ours[n].shape == pairs.ours[pair.reference].shape
        ]  # fmt: skip
        near = min(free, key=lambda n: apart(pairs.ours[n], as_reference(pair, made)), default=None)
        if near is not None and apart(pairs.ours[near], as_reference(pair, made)) < _NEARER * error:
            _replace(pairs, pair, near, other)


def settled(pairs: Pairs) -> tuple[Aligned, ...]:
    """The pairs in order; a scale is believed where what follows is the same again without one."""
    _point_to_integers(pairs)
    ordered = [pairs.taken[name] for name in pairs.reference.names if name in pairs.taken]
    for k, pair in enumerate(ordered):
        if pair.scale != 1.0 and not _made_good(pairs, pair):
            ordered[k] = Aligned(
                reference=pair.reference, candidate=pair.candidate, how=pair.how, order=pair.order, scale=1.0,
                confidence=pair.confidence,
            )  # fmt: skip
    return tuple(ordered)


def _point_to_integers(pairs: Pairs) -> None:
    """Where integers are read as such, and in floats beside, the integers are the counterpart: what reads them
    reads what is fed.
    """
    model = pairs.candidate.model
    for name, pair in pairs.taken.items():
        node = model.proto.graph.node[model.producers[pair.candidate]]
        source = node.input[0]
        if node.op_type != "DequantizeLinear" or pair.how == "given" or source not in pairs.theirs:
            continue
        if source not in pairs.counterpart and len(model.consumers[source]) > 1:
            del pairs.counterpart[pair.candidate]
            pairs.counterpart[source] = name
            pairs.taken[name] = replace(pair, candidate=source)


def _narrowed(pairs: Pairs, name: str) -> list[str] | None:
    """What a tensor becomes where all that reads it is one QuantizeLinear: the integers, and these brought back."""
    model, found = pairs.candidate.model, [name]
    for op in QUANTISERS:
        nodes = [model.proto.graph.node[i] for i in model.consumers.get(found[-1], ())]
        if len(nodes) != 1 or nodes[0].op_type != op or nodes[0].output[0] not in pairs.theirs:
            break
        found.append(nodes[0].output[0])
    free = len(found) > 1 and not any(n in pairs.counterpart for n in found[1:])
    return found[1:] if free else None


def _replace(pairs: Pairs, pair: Aligned, name: str, other: str) -> None:
    """Put a pair of these in the place of one, if they may be one."""
    del pairs.taken[pair.reference], pairs.counterpart[pair.candidate]
    if pairs.may(name, other):
        pairs.take(name, other, "activations", pair.order, 1.0)
    else:
        pairs.taken[pair.reference], pairs.counterpart[pair.candidate] = pair, pair.reference


def _made_good(pairs: Pairs, pair: Aligned) -> bool:
    later = [
        p for p in pairs.taken.values()
        if p.scale == 1.0 and p.candidate != pair.candidate and pair.reference in pairs.reference.before[p.reference]
    ]  # fmt: skip
    behind = {p.reference: pairs.ours[p.reference] for p in later}
    seen = {p.candidate: pairs.theirs[p.candidate] for p in later}
    told = {(c.reference, c.candidate) for c in pairs.choices(behind, seen, _STRONG) if c.scale == 1.0}
    return any((p.reference, p.candidate) in told for p in later)
