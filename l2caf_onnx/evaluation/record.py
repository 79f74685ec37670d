"""What an evaluation found, frozen: every score of every sample, the means with their intervals, who is ahead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LESS_IS_BETTER = frozenset({"deletion", "drop", "rank_correlation", "rank_correlation_top"})
NEITHER = frozenset({"evaluations"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The scores of one map.

    Attributes:
        game: Which one.
        at: The breakpoint.
        method: The contender's name.
        item: What was explained, the same for all contenders: a grid, a photo, a class in it.
        photo: What the bootstrap draws: the photo behind it.
        target: The class, if any.
        scores: By name; "energy@2" is the energy at exponent 2.
        failed: Whether the map is blank: the method found none there, and is scored as one that prefers nothing.
    """

    game: str
    at: str
    method: str
    item: str
    photo: str
    target: int | None
    scores: Mapping[str, float]
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The mean of one score of one contender at one breakpoint.

    Attributes:
        game: Which one.
        at: The breakpoint.
        method: The contender's name.
        score: Its name.
        exponent: Of the energy: the one that was best on the choosing half; None for scores without.
        mean: Over all items.
        low: Lower end of the 95% interval of the bootstrap over photos; NaN where there is but one photo.
        high: Upper end.
        least: Of all items.
        most: Of all items.
        items: How many maps were scored.
        photos: How many photos are behind them.
        failed: How many of the maps are blank.
    """

    game: str
    at: str
    method: str
    score: str
    exponent: int | None
    mean: float
    low: float
    high: float
    least: float
    most: float
    items: int
    photos: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The reference's score minus that of another contender on the same items, each at its own exponent.

    Attributes:
        game: Which one.
        at: The breakpoint.
        method: The other contender.
        reference: The one it is compared with.
        score: The score's name.
        mean: Of reference minus method, over the items that both have.
        low: Lower end of its paired 95% interval.
        high: Upper end.
        verdict: Of the reference: "better", "worse", or "equal", where the interval holds 0 and so cannot tell, or the
            two differ by less than 0.0005.
    """

    game: str
    at: str
    method: str
    reference: str
    score: str
    mean: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """How faithful the maps of several methods are, by games with a known answer.

    Attributes:
        rows: Every score of every map, of the reporting half.
        summaries: Means and intervals.
        differences: The reference against each other contender.
        games: Those that were played.
        methods: The contenders.
        at: The breakpoints, as given.
        reference: The contender that the others are compared with.
        chosen: Whether exponents were chosen on a choosing half; else they are 1.
        settings: Of the games.
        seed: Of every random choice.
        notes: Sentences that a reader should know.
    """

    rows: tuple[Row, ...]
    summaries: tuple[Summary, ...]
    differences: tuple[Difference, ...]
    games: tuple[str, ...]
    methods: tuple[str, ...]
    at: tuple[str, ...]
    reference: str
    chosen: bool
    settings: Mapping[str, Any]
    seed: int = 0
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """All of it as JSON-ready values; a number that is not there (NaN) is None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def find(self, game: str, at: str, method: str, score: str) -> Summary:
        """The summary of that score.

        Raises:
            KeyError: there is none.
        """
        for s in self.summaries:
            if (s.game, s.at, s.method, s.score) == (game, at, method, score):
                return s
        raise KeyError((game, at, method, score))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
