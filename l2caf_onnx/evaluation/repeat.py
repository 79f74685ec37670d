"""Repeatability: the filter must not hang on what does not matter: the random start, threads, onnxruntime's
optimisations, the last bit of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.attention import attend_many
from l2caf_onnx.errors import L2cafError
from l2caf_onnx.explain.joining import split
from l2caf_onnx.explain.stop import stop_at
from l2caf_onnx.explain.threads import one_thread
from l2caf_onnx.inputs import Sample
from l2caf_onnx.records import Attention

from .classes import targets_of
from .contest import Answers, Contest, samples
from .data import Data
from .games import Tell
from .record import Row
from .scores import cosine

Variants = dict[str, list[NDArray[np.float32] | None]]  # score -> a filter for each sample
_LEVELS: tuple[runtime.Level, ...] = ("disable", "basic")  # float32 heads run at "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The game's settings.

    The score is the cosine between a sample's filter and the filter found when one thing is changed, and the worst of
    them ("worst"). "seed": of the random start. "threads": torch with one thread. "level": the head run by onnxruntime
    without optimisations, and with basic ones. "noise": uniform, of at most `noise` / 255 of the range of a pixel. What
    the network itself makes of that noise is told beside it, and not counted: "activation", the same cosine of S1.

    Attributes:
        noise: In steps of a picture of 8 bits.
    """

    noise: float = 1

    name = "repeat"
    sharpens = False

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return asdict(self)

    def refuse(self, contest: Contest, data: Data) -> None:
        """It suits all."""

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """The cosines of every sample and method."""
        rows: list[Row] = []
        for numbers, read, feeds in data.batches(contest.size(data.read(0).feeds)):
            targets = targets_of(contest, feeds)
            before = contest.answers(feeds, targets)
            shaken = {**feeds, **self._shaken(contest, data, numbers, read, feeds)}
            changed: dict[str, Answers] = {
                "seed": contest.answers(feeds, targets, seed=contest.seed + 1),
                "noise": contest.answers(shaken, targets),
            }
            with one_thread():
                changed["threads"] = contest.answers(feeds, targets)
            for level in _LEVELS:
                changed[f"level {level}"] = _at_level(contest, feeds, targets, level)
            itself = {at: _of_activation(contest, at, feeds, shaken) for at in contest.at}
            for (at, method), answered in before.items():
                for k, answer in enumerate(answered):
                    if answer is None:
                        continue
                    others = {name: found.get((at, method)) for name, found in changed.items()}
                    cosines = {
                        name: 0.0 if own[k] is None else _alike(answer, own[k])
                        for name, own in others.items()
                        if own is not None
                    }
                    levels = [cosines.pop(name) for name in list(cosines) if name.startswith("level ")]
                    if levels:
                        cosines["level"] = min(levels)
                    rows.append(
                        Row(
                            game=self.name,
                            at=at,
                            method=method,
                            item=read[k].name,
                            photo=read[k].name,
                            target=None if targets is None else targets[k],
                            scores={"worst": min(cosines.values()), **cosines, "activation": itself[at][k]},
                        )
                    )
            tell(read[-1].name, (numbers[-1] + 1) / len(data))
        return tuple(rows)

    def _shaken(
        self, contest: Contest, data: Data, numbers: range, read: list[Sample], feeds: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """The floating inputs with noise: of a picture by its preprocessing, else by the range of the sample."""
        rng = np.random.default_rng(contest.seed)
        found = {}
        for name, array in feeds.items():
            if array.dtype.kind != "f":
                continue
            picture = data.picture(numbers[0])
            if picture is not None and picture[0].name == name:
                settings = picture[2]
                span = np.abs((settings.range[1] - settings.range[0]) / np.array(settings.std))
                channels = array.shape[settings.layout.index("C")]
                span = span if channels == len(span) else span.mean(keepdims=True)
                size: Any = span.reshape((1, -1, 1, 1) if settings.layout == "NCHW" else (1, 1, 1, -1))
            else:
                size = float(array.max() - array.min())
            noise = rng.uniform(-1, 1, array.shape) * size * (self.noise / 255)
            found[name] = (array + noise).astype(array.dtype)
        return found


def _of_activation(
    contest: Contest, at: str, feeds: dict[str, NDArray[Any]], shaken: dict[str, NDArray[Any]]
) -> list[float]:
    """The cosine of what is at S1 for the two feeds, of each sample."""
    stop = stop_at(contest.model, at, contest.to, fed={k: np.shape(v) for k, v in feeds.items()})
    axis, count = stop.batch[at], samples(contest.model, feeds)
    one, other = (
        np.moveaxis(v, axis, 0) if axis >= 0 else v[None]
        for f in (feeds, shaken)
        for v in (f[at] if at in f else runtime.run(stop.cut.head, f, providers=contest.providers)[at],)
    )
    if len(one) != count:
        return [cosine(one, other)] * count
    return [cosine(a, b) for a, b in zip(one, other, strict=True)]


def _alike(one: Attention, other: Attention | None) -> float:
    return 0.0 if other is None else cosine(one.filter, other.filter)


def _at_level(
    contest: Contest, feeds: dict[str, NDArray[Any]], targets: list[int] | None, level: runtime.Level
) -> Answers:
    """The answers where the head is run at that level: the tail is a model of its own, broken at its input.

    A tail that cannot be asked by itself is left out, and that is noted.
    """
    return dict(_by_tail(contest, feeds, targets, level))


def _by_tail(
    contest: Contest, feeds: dict[str, NDArray[Any]], targets: list[int] | None, level: runtime.Level
) -> Iterator[tuple[tuple[str, str], list[Attention | None]]]:
    for at in contest.at:
        fed = {k: np.shape(v) for k, v in feeds.items()}
        stop = stop_at(contest.model, at, contest.to, logits=contest.class_specific, fed=fed)
        tail = stop.cut.tail
        count = samples(contest.model, feeds)
        recorded = {**feeds, **runtime.run(stop.cut.head, feeds, level=level, providers=contest.providers)}
        given = {i.name: recorded[i.name] for i in tail.inputs}
        for own in contest.contenders:
            try:
                query = own.query(at, stop.cut.to, targets, layout=stop.layout, scored=contest.class_specific)
                (found,) = attend_many(tail, given, [query], device=contest.device, seed=contest.seed)
                yield (at, own.name), list(split(found, count))
            except L2cafError as error:
                contest.note(f"{own.name} at {at!r}: not compared among onnxruntime's levels. {error.what}")
