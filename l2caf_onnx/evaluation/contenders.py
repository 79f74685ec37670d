"""Who plays: a method with its settings, in one word as the user writes it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from l2caf_onnx import objectives
from l2caf_onnx.errors import InputError, nearest
from l2caf_onnx.explain.query import Query
from l2caf_onnx.methods import METHODS

OURS = "l2caf"
NAMED: dict[str, dict[str, Any]] = {"default": {}, OURS: {}, "paper": {"preset": "paper"}, "unit": {"radius": "unit"}}
"""Variants of L2-CAF that have a name of their own."""
_OWN = ("at", "to", "target", "method", "reference")  # of Query: not a contender's to set
_FORM = 'Write a name, or settings: "l2caf:constraint=l2-nonneg,radius=0.5".'
CLASS = "{class}"
"""In a contender's `select`: the class that is asked about, as in "scores[:, :, {class}].max()" of a detector."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A named set of fields of Query, that are the same for every breakpoint and target."""

    name: str
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def by_class(self) -> bool:
        """Whether what it watches hangs on the class: all samples of a question must then be asked about the same."""
        return CLASS in str(dict(self.fields).get("select", ""))

    def query(
        self,
        at: str,
        to: Sequence[str] | None,
        target: Sequence[int] | None,
        *,
        layout: str | None = None,
        scored: bool = True,
    ) -> Query:
        """The question at a breakpoint; an objective that is about no class is not handed a target.

        Args:
            at: S1.
            to: S2.
            target: A class for each sample, or None.
            layout: Of S1, where the contender has none of its own.
            scored: Whether the outputs are class scores, of which a target may be asked.

        Raises:
            InputError: the class belongs into `select`, and there is none.
        """
        fields = {"layout": layout, **dict(self.fields)}
        if self.by_class:
            if target is None or len(set(target)) != 1:
                raise InputError(
                    f"{self.name!r} watches one class; asked about are {'none' if target is None else list(target)}.",
                    how="Play the game 'boxes', whose labels are classes, or give a class as target.",
                )
            fields["select"] = str(fields["select"]).replace(CLASS, str(target[0]))
        if fields.get("objective") is not None:
            objective = objectives.resolve(fields["objective"])
            if not (objective.class_specific or objective.may_have_target):
                target = None
        wanted = None if target is None or not scored or self.by_class else list(target)
        return Query(at=at, to=to, target=wanted, **fields)


def contenders(names: Sequence[str]) -> tuple[Contender, ...]:
    """Those that `names` tell, in order.

    Raises:
        InputError: none, one twice, or one that is not known.
    """
    if isinstance(names, str) or not names:
        raise InputError("There is no method to evaluate.", where="`methods`.", how="Name one at least: default.")
    found = tuple(contender(name) for name in names)
    if len({c.name for c in found}) < len(found):
        raise InputError("A method is named twice.", where=f"{', '.join(names)}.", how="Name each once.")
    return found


def contender(text: str) -> Contender:
    """`default`, `gradcam`, `l2caf:radius=0.5,objective=log-softmax`, ... as a Contender of that name.

    Raises:
        InputError: an unknown method or setting, or what is not of that form.
    """
    where = f"Method {text!r}."
    name, _, settings = text.strip().partition(":")
    if name not in NAMED and name not in METHODS:
        known = (*NAMED, *METHODS)
        near = nearest(name, known)
        how = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(known)}. {_FORM}"
        raise InputError(f"There is no method {name!r}.", where="`methods`.", how=how)
    fields: dict[str, Any] = dict(NAMED[name]) if name in NAMED else {"method": name}
    allowed = [f.name for f in dataclasses.fields(Query) if f.name not in _OWN]
    # A setting's value may hold commas of its own, inside brackets: select=boxes[0, 12, 4].
    for part in re.split(r",(?![^\[]*\])", settings) if settings else []:
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value:
            raise InputError(f"The setting {part!r} cannot be read.", where=where, how=_FORM)
        if key not in allowed:
            raise InputError(f"There is no setting {key!r}.", where=where, how=f"There are {', '.join(allowed)}.")
        fields[key] = _value(value)
    return Contender(text.strip(), tuple(fields.items()))


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
