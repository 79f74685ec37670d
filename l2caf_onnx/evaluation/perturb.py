"""Insertion and deletion, average drop and increase: does the class's probability follow the pixels that a map marks?

Only forward runs of the model as it is, by onnxruntime: whatever made the map, it is judged by the network itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.batches import stacked
from l2caf_onnx.graph.layout import axes, layouts
from l2caf_onnx.inputs import Sample

from .classes import Classifier, classifier, targets_of
from .contest import Contest, heatmap
from .data import Data
from .games import Tell
from .record import Row

_BLUR = 1 / 20  # of a side: the standard deviation of the blur that insertion starts from
_ATONCE = 33  # changed inputs that are in memory together


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturb:
    """The game's settings.

    Insertion: from the blurred input, pixels come back, the hottest first. Deletion: they are replaced by the mean of
    their channel. The score is the area under the class's probability (softmax) over the part of the pixels that are
    changed (Petsiuk, Das & Saenko, "RISE", BMVC 2018). The difference of the two is the third score.

    Drop: max(0, p - o) / p, increase: o > p, with p the probability of the class for the input and o for the input with
    each pixel mixed with the mean of its channel by the map (Chattopadhay et al., "Grad-CAM++", WACV 2018).

    Attributes:
        steps: In how many equal parts the pixels are changed.
    """

    steps: int = 32

    name = "perturb"
    sharpens = False

    def __post_init__(self) -> None:
        """Raises InputError: no step."""
        if self.steps < 1:
            raise InputError(f"There cannot be {self.steps} steps.", how="Ask for one at least.")

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return asdict(self)

    def refuse(self, contest: Contest, data: Data) -> None:
        """Raises InputError: the outputs are no class scores."""
        if not contest.class_specific:
            raise InputError(
                "Insertion and deletion need the probability of a class.",
                where=f"Model {contest.model.name!r}.",
                how="Name by `to` the output that holds class scores.",
            )

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """The areas, their difference, drop and increase."""
        judge = classifier(contest)
        rows: list[Row] = []
        for numbers, read, feeds in data.batches(contest.size(data.read(0).feeds)):
            targets = targets_of(contest, feeds) or []
            answers = contest.answers(feeds, targets)
            for k, sample in enumerate(read):
                trial = Trial(contest, data, sample, targets[k], judge, seed=contest.seed + numbers[k])
                for (at, name), answered in answers.items():
                    shown = heatmap(answered[k], data.sides(sample))
                    rows.append(
                        Row(
                            game=self.name,
                            at=at,
                            method=name,
                            item=sample.name,
                            photo=sample.name,
                            target=targets[k],
                            scores=trial.scores(shown, self.steps),
                            failed=not shown.any(),
                        )
                    )
                tell(sample.name, (numbers[k] + 1) / len(data))
        return tuple(rows)


class Trial:
    """One sample, and what becomes of its class when pixels change."""

    def __init__(
        self, contest: Contest, data: Data, sample: Sample, target: int, judge: Classifier, *, seed: int
    ) -> None:
        self.model, self.sample, self.target, self.judge = contest.model, sample, target, judge
        self.input = data.seen(sample)
        self.places = axes(layouts(contest.model).get(self.input, "")).spatial
        self.whole = sample.feeds[self.input]
        self.blank = np.broadcast_to(self.whole.mean(self.places, keepdims=True), self.whole.shape)
        self.blurred = blur(self.whole, self.places)
        self.rng = np.random.default_rng(seed)
        (self.before,) = self.probabilities([self.whole])

    def probabilities(self, inputs: Sequence[NDArray[Any]]) -> list[float]:
        """Of the class, for each input."""
        found: list[float] = []
        for start in range(0, len(inputs), _ATONCE):
            some = [
                {**self.sample.feeds, self.input: v.astype(self.whole.dtype)} for v in inputs[start : start + _ATONCE]
            ]
            found += [float(p) for p in self.judge.probabilities(stacked(self.model, some))[:, self.target]]
        return found

    def scores(self, shown: NDArray[np.float32], steps: int) -> dict[str, float]:
        """All scores of a map over the sides of the input."""
        order = hottest_first(shown, self.rng)
        insertion = area(self._curve(order, self.blurred, self.whole, steps))
        deletion = area(self._curve(order, self.whole, self.blank, steps))
        weight = self._over(shown.astype(np.float64))
        (kept,) = self.probabilities([self.whole * weight + self.blank * (1 - weight)])
        return {
            "insertion": insertion,
            "deletion": deletion,
            "insertion_minus_deletion": insertion - deletion,
            "drop": max(0.0, self.before - kept) / max(self.before, np.finfo(float).tiny),
            "increase": float(kept > self.before),
        }

    def _curve(self, order: NDArray[np.int64], start: NDArray[Any], end: NDArray[Any], steps: int) -> list[float]:
        """The class's probability while the pixels of `start` become those of `end`, in `order`."""
        found: list[float] = []
        inputs: list[NDArray[Any]] = []
        sides = tuple(self.whole.shape[k] for k in self.places)
        for step in range(steps + 1):
            changed = np.zeros(order.size, dtype=bool)
            changed[order[: round(order.size * step / steps)]] = True
            inputs.append(np.where(self._over(changed.reshape(sides)), end, start))
            if len(inputs) == _ATONCE or step == steps:
                found += self.probabilities(inputs)
                inputs = []
        return found

    def _over(self, values: NDArray[Any]) -> NDArray[Any]:
        """A map as an array that the input can be multiplied with."""
        return values.reshape([n if k in self.places else 1 for k, n in enumerate(self.whole.shape)])


def hottest_first(shown: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.int64]:
    """The pixels of a map, flat, from the hottest on; equal ones in random order, so that no corner is preferred."""
    values = shown.ravel()
    found: NDArray[np.int64] = np.lexsort((rng.permutation(values.size), -values))
    return found


def area(curve: Sequence[float]) -> float:
    """Under a curve over [0, 1] with equal steps, by trapezia."""
    values = np.asarray(curve, dtype=np.float64)
    return float((values[1:] + values[:-1]).mean() / 2)


def blur(values: NDArray[Any], places: Sequence[int]) -> NDArray[np.float64]:
    """`values` blurred along the axes `places` by a Gaussian of a twentieth of each side."""
    found = np.asarray(values, dtype=np.float64)
    for axis in places:
        side = found.shape[axis]
        reach = max(1, min(round(3 * _BLUR * side), side - 1))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(_BLUR * side, 1e-9)) ** 2)
        kernel /= kernel.sum()
        if side == 1:
            continue
        wide = np.pad(found, [(reach, reach) if k == axis else (0, 0) for k in range(found.ndim)], mode="reflect")
        total = np.zeros_like(found)
        for k, weight in enumerate(kernel):
            total += weight * np.take(wide, range(k, k + side), axis=axis)
        found = total
    return found
