"""What a game is: it plays a contest on data, and gives the scores of every map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .contest import Contest
from .data import Data
from .record import Row

Tell = Callable[[str, float], None]
"""Called with what was done last and the part of the game that is done, in [0, 1]."""


class Game(Protocol):
    """Its settings are its fields."""

    @property
    def name(self) -> str:
        """As `evaluate(games=...)` takes it."""
        ...

    @property
    def sharpens(self) -> bool:
        """Whether it sums energy, for which an exponent is to be chosen."""
        ...

    def describe(self) -> dict[str, Any]:
        """Its settings, JSON-ready."""
        ...

    def refuse(self, contest: Contest, data: Data) -> None:
        """Before any game is played: what can be told at once of data and model that do not suit.

        Raises:
            InputError: they do not.
        """
        ...

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """The scores of every contender at every breakpoint on `data`.

        Raises:
            InputError: the data or the model do not suit the game.
        """
        ...
