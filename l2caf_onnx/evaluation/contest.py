"""The contest: every contender's map of the same samples at every breakpoint, whatever game is played with them.

A method that finds no map (a dead tail, a tail that has no torch form) does not end the contest: a blank map takes its
place, which scores as chance does, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.attention import attend_many
from l2caf_onnx.errors import InputError, L2cafError
from l2caf_onnx.explain.batches import at_once, batch_axis, cut_out
from l2caf_onnx.explain.joining import split
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Attention

from .contenders import Contender

Pair = tuple[str, str]  # breakpoint, contender
Answers = dict[Pair, list[Attention | None]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contest:
    """Who plays where.

    Attributes:
        model: The network.
        at: Breakpoints.
        to: S2; None: all outputs.
        contenders: The methods.
        target: What the user asks about: None (what the game knows, else "top1"), "top1", "none", or a class.
        class_specific: Whether the questions are about classes: the outputs are their scores, and nobody said "none".
        batch_size: Samples at once; None: as free memory allows.
        device: "cpu" or "cuda".
        providers: onnxruntime's.
        seed: Of every random choice.
        notes: What happened, once each, in order.
        alone: Pairs that failed once, and are asked by themselves from then on.
    """

    model: Model
    at: tuple[str, ...]
    to: tuple[str, ...] | None
    contenders: tuple[Contender, ...]
    target: int | str | None
    class_specific: bool
    batch_size: int | None
    device: str
    providers: tuple[str, ...] | None
    seed: int
    notes: dict[str, None]
    alone: set[Pair]

    @property
    def asks_class(self) -> bool:
        """Whether any question is about a class."""
        return self.target != "none" and (self.class_specific or any(c.by_class for c in self.contenders))

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every breakpoint with every contender."""
        return tuple((at, c.name) for at in self.at for c in self.contenders)

    def note(self, text: str) -> None:
        """Keep a sentence for the reader, once."""
        self.notes.setdefault(text)

    def size(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """How many samples like this one to explain at once."""
        return self.batch_size or at_once(self.model, dict(feeds), 1)

    def answers(
        self,
        feeds: Mapping[str, NDArray[Any]],
        targets: Sequence[int] | None,
        *,
        model: Model | None = None,
        at: Sequence[str] | None = None,
        seed: int | None = None,
        lenient: bool = False,
    ) -> Answers:
        """For every pair, one answer a sample: an Attention, or None where the method has no map of it.

        Args:
            feeds: N samples.
            targets: Their classes, or None.
            model: Another one than the contest's, of the same names.
            at: Only these breakpoints.
            seed: Another one than the contest's.
            lenient: Whether activations that cannot be explained (NaN) are a failure of the method, not of the input.

        Raises:
            InputError: a question that cannot be asked of this model.
        """
        count = samples(self.model, feeds)
        asked = {c.name: c for c in self.contenders}
        pairs = [p for p in self.pairs if at is None or p[0] in at]
        together = [p for p in pairs if p not in self.alone and not asked[p[1]].by_class]
        options: dict[str, Any] = {
            "batch_size": count if self.batch_size is None else self.batch_size,
            "device": self.device, "providers": self.providers, "seed": self.seed if seed is None else seed,
        }  # fmt: skip

        def ask(pairs: Sequence[Pair], fed: Mapping[str, Any], classes: Sequence[int] | None) -> list[Attention]:
            queries = [asked[name].query(at, self.to, classes, scored=self.class_specific) for at, name in pairs]
            return list(attend_many(model or self.model, fed, queries, **options))

        found: Answers = {}
        try:
            if together:
                answers = ask(together, feeds, targets)
                found = {p: list(split(a, count)) for p, a in zip(together, answers, strict=True)}
            own_class = [p for p in pairs if p not in self.alone and asked[p[1]].by_class]
            for numbers in _of_one_class(targets, count) if own_class else ():
                some = None if targets is None else [targets[k] for k in numbers]
                for p, a in zip(own_class, ask(own_class, taken(self.model, feeds, numbers), some), strict=True):
                    row = found.setdefault(p, [None] * count)
                    for k, answer in zip(numbers, split(a, len(numbers)), strict=True):
                        row[k] = answer
        except L2cafError as error:
            if isinstance(error, InputError) and not lenient:
                raise
            found = {p: row for p, row in found.items() if not asked[p[1]].by_class}
        for pair in pairs:
            if pair in found:
                continue
            parts: list[Attention | None] = []
            for k in range(count):
                own = None if targets is None else [targets[k]]
                try:
                    parts += ask([pair], sample(self.model, feeds, k), own)
                except L2cafError as error:
                    if isinstance(error, InputError) and not lenient:
                        raise
                    parts.append(None)
                    if model is None:
                        self.alone.add(pair)
                    self.note(f"{pair[1]} has no map at {pair[0]!r} of some sample: {error.what}")
            found[pair] = parts
        for (place, name), answered in found.items():
            if any(a is not None and a.proof is not None and not a.proof.ok for a in answered):
                self.note(f"{name} at {place!r}: onnxruntime does not confirm every filter.")
        return {pair: found[pair] for pair in pairs}


def samples(model: Model, feeds: Mapping[str, NDArray[Any]]) -> int:
    """How many samples there are in `feeds`."""
    return next((a.shape[k] for name, a in feeds.items() if (k := batch_axis(model, name)) >= 0), 1)


def sample(model: Model, feeds: Mapping[str, NDArray[Any]], number: int) -> dict[str, NDArray[Any]]:
    """One of the samples of `feeds`."""
    along = {name: axis for name in feeds if (axis := batch_axis(model, name)) >= 0}
    return cut_out(feeds, along, slice(number, number + 1))


def taken(model: Model, feeds: Mapping[str, NDArray[Any]], numbers: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Some of the samples of `feeds`."""
    axes = {name: batch_axis(model, name) for name in feeds}
    return {name: a if axes[name] < 0 else np.take(a, list(numbers), axes[name]) for name, a in feeds.items()}


def _of_one_class(targets: Sequence[int] | None, count: int) -> list[list[int]]:
    """The samples by their class."""
    if targets is None:
        return [list(range(count))]
    return [[k for k in range(count) if targets[k] == own] for own in dict.fromkeys(targets)]


def heatmap(answer: Attention | None, size: tuple[int, ...]) -> NDArray[np.float32]:
    """The map of an answer over the input of `size`; blank where there is none.

    Raises:
        InputError: the map is not of that size: the breakpoint's cells are not those of the input.
    """
    if answer is None:
        return np.zeros(size, np.float32)
    if answer.heatmap.shape[1:] != size:
        raise InputError(
            f"The map has the size {answer.heatmap.shape[1:]}, the input {size}.",
            where=f"Breakpoint {answer.at!r}.",
            how="Choose a breakpoint whose cells are places of the input.",
        )
    shown: NDArray[np.float32] = answer.heatmap[0]
    return shown
