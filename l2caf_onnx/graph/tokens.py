"""Tokens that stand for the cells of a grid, as in a vision transformer: where on the axis they lie.

Class and register tokens, before and after them, stand for no place: a filter leaves them alone (multiplies by 1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from l2caf_onnx.errors import InputError

_FORM = re.compile(r"(?:(\d+)\+)?(\d+(?:x\d+){1,2})(?:\+(\d+))?")


@dataclass(frozen=True, slots=True)
class Grid:
    """A token axis: `prefix` kept tokens, then a grid of `sizes` row by row, then `suffix` kept tokens."""

    sizes: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0

    @property
    def tokens(self) -> int:
        """Length of the axis."""
        return self.prefix + prod(self.sizes) + self.suffix

    def __str__(self) -> str:
        """As it is written in a layout's brackets: "14x14", "1+14x14", "14x14+4"."""
        before = f"{self.prefix}+" if self.prefix else ""
        after = f"+{self.suffix}" if self.suffix else ""
        return before + "x".join(map(str, self.sizes)) + after

    def describe(self) -> str:
        """In words, for a note: "14 x 14 grid of tokens, 1 class or register token kept out of the map"."""
        kept = self.prefix + self.suffix
        words = f"{' x '.join(map(str, self.sizes))} grid of tokens"
        if kept:
            words += f", {kept} class or register token{'s' if kept > 1 else ''} kept out of the map"
        return words


def parse_grid(text: str, layout: str) -> Grid | None:
    """What stands in the brackets of a layout: "" is no grid, "1+14x14+2" one token, the grid, two tokens.

    Raises:
        InputError: it is written otherwise, or the grid has no cells.
    """
    if not text:
        return None
    found = _FORM.fullmatch(text)
    sizes = tuple(int(s) for s in found[2].split("x")) if found else ()
    if not found or not all(sizes):
        raise InputError(
            f"The grid in the layout {layout!r} cannot be read.",
            how="Write NTC[14x14], NTC[1+14x14] (one class token before the grid), NTC[14x14+4] (four after), or NTC[] "
            "(no grid).",
        )
    return Grid(sizes, int(found[1] or 0), int(found[3] or 0))
