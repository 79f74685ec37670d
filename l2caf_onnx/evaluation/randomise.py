"""The sanity check: a map must change when what the tail has learnt is destroyed.

Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018): weights are randomised in a cascade, from the top
layer down to S1, and the map of the same class is made again. What the two have in common came from the activation.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.randomise import permuted, weight_layers

from .classes import targets_of
from .contest import Contest, heatmap
from .data import Data
from .games import Tell
from .record import Row
from .scores import spearman

_POINTS = 64  # along a side at most: neighbouring pixels of a map that was scaled up tell the same

Maps = dict[tuple[int, str], NDArray[np.float32]]  # (sample, method) -> the map


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomise:
    """The game's settings.

    The score is Spearman's rank correlation of the map with that of the randomised model: of all layers behind S1
    ("rank_correlation"), and of the top one alone ("rank_correlation_top"). A map that becomes blank has nothing in
    common with what it was; where it was blank before, there is nothing to tell, and no score.

    Attributes:
        count: Randomisations, each with a seed of its own.
    """

    count: int = 5

    name = "randomise"
    sharpens = False

    def __post_init__(self) -> None:
        """Raises InputError: no randomisation."""
        if self.count < 1:
            raise InputError(f"There cannot be {self.count} randomisations.", how="Ask for one at least.")

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return asdict(self)

    def refuse(self, contest: Contest, data: Data) -> None:
        """Raises InputError: no breakpoint has weights behind it."""
        if not any(weight_layers(contest.model, at, contest.to) for at in contest.at):
            raise InputError(
                "No breakpoint has stored weights behind it.", how="Break earlier, or leave this game out."
            )

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """The rank correlations of every sample, method and randomisation."""
        rows: list[Row] = []
        turns = len(contest.at) * self.count
        for place, at in enumerate(contest.at):
            layers = weight_layers(contest.model, at, contest.to)
            if not layers:
                contest.note(f"No weights are stored behind {at!r}: nothing to randomise there.")
                continue
            stages = {"rank_correlation": [n for layer in layers for n in layer]}
            if len(layers) > 1:
                stages["rank_correlation_top"] = list(layers[0])
            targets: dict[int, int | None] = {}
            before = _maps(contest, data, at, targets)
            for turn in range(self.count):
                found: dict[str, Maps] = {}
                for score, names in stages.items():
                    changed = permuted(contest.model, names, contest.seed + turn)
                    found[score] = _maps(contest, data, at, targets, changed)
                for number, method in before:
                    own = before[number, method]
                    after = {score: maps[number, method] for score, maps in found.items()}
                    rows.append(
                        Row(
                            game=self.name,
                            at=at,
                            method=method,
                            photo=data.names[number],
                            target=targets[number],
                            item=f"{data.names[number]} randomisation {turn}",
                            scores={s: spearman(own, shown) if own.any() else np.nan for s, shown in after.items()},
                            failed=not own.any() or not after["rank_correlation"].any(),
                        )
                    )
                gc.collect()  # a converted tail holds cycles, and its weights would wait for the collector's turn
                tell(f"randomisation {turn + 1} at {at}", (place * self.count + turn + 1) / turns)
        return tuple(rows)


def _maps(contest: Contest, data: Data, at: str, targets: dict[int, int | None], model: Model | None = None) -> Maps:
    """Every sample's map by every method at one breakpoint, about the classes in `targets`, filled in at first."""
    found: Maps = {}
    for numbers, read, feeds in data.batches(contest.size(data.read(0).feeds)):
        if numbers[0] not in targets:
            own = targets_of(contest, feeds)
            targets.update(zip(numbers, own if own is not None else [None] * len(numbers), strict=True))
        asked = [t for n in numbers if (t := targets[n]) is not None]
        answers = contest.answers(feeds, asked or None, model=model, at=[at], lenient=model is not None)
        for (_, method), answered in answers.items():
            for k, number in enumerate(numbers):
                found[number, method] = _thinned(heatmap(answered[k], data.sides(read[k])))
    return found


def _thinned(shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every so-manieth pixel, so that a side has _POINTS at most."""
    steps = tuple(_steps(shown.shape))
    return np.ascontiguousarray(shown[steps])


def _steps(shape: tuple[int, ...]) -> Iterator[slice]:
    for side in shape:
        step = -(-side // _POINTS)
        yield slice(step // 2, None, step)
