"""Which axes of a tensor are batch, channel and space: one letter an axis, and for tokens the grid that they form.

Found by following every axis from the inputs on (`trace`), from the letters that operators demand (`letters`). A layout
is written "NCHW"; of tokens, "NTC" means with the grid that was found, "NTC[1+14x14]" with this one (one class token
before it), "NTC[]" with none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from l2caf_onnx.errors import InputError

from .atoms import grid_of, kind, size_of
from .letters import USUAL, around
from .model import Model
from .shapes import tensors
from .tokens import Grid, parse_grid
from .trace import Trace

LARGEST_SIDE = 512  # of a grid; beyond, it comes of the numbers that stand for open sizes


@dataclass(frozen=True, slots=True)
class Placement:
    """How a filter (N, *spatial) is made to broadcast over its tensor: reshape to `flat`, pad the last axis with ones
    by `kept`, permute by `order`, reshape to `shape`.
    """

    flat: tuple[int, ...]
    kept: tuple[int, int]
    order: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """Positions of a tensor's axes: `batch` (None: it has none), `channel` (what a filter shares), `spatial`.

    `grid` is what the one spatial axis runs through, where its cells are the tokens of a grid.
    """

    batch: int | None
    channel: tuple[int, ...]
    spatial: tuple[int, ...]
    grid: Grid | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return (self.batch is not None) + len(self.channel) + len(self.spatial)

    def cells(self, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """The spatial shape of a filter for a tensor of that shape.

        Raises:
            InputError: the tensor has another number of tokens than the grid.
        """
        sizes = tuple(shape[a] for a in self.spatial)
        if self.grid is None:
            return sizes
        if isinstance(sizes[0], int) and sizes[0] != self.grid.tokens:
            raise InputError(
                f"The grid {self.grid} has {self.grid.tokens} tokens; the tensor has {sizes[0]}.",
                where=f"A tensor of shape {shape}.",
                how="Give a layout with another grid, such as NTC[1+14x14], or NTC[] for none.",
            )
        return self.grid.sizes

    def placement(self, filter_shape: tuple[int, ...]) -> Placement:
        """The way of a filter (N, *spatial) into the tensor. Where that has no batch axis, N must be 1.

        Tokens before and after a grid are multiplied by 1.
        """
        flat, kept = filter_shape, (0, 0)
        if self.grid is not None:
            flat, kept = (filter_shape[0], prod(filter_shape[1:])), (self.grid.prefix, self.grid.suffix)
        places = [self.batch if self.batch is not None else -1, *self.spatial]
        order = tuple(sorted(range(len(places)), key=places.__getitem__))
        shape = [1] * self.rank
        for size, place in zip((*flat[:-1], flat[-1] + sum(kept)), places, strict=True):
            if place >= 0:
                shape[place] = size
        return Placement(flat, kept, order, tuple(shape))


def axes(layout: str) -> Axes:
    """Read a layout: N is batch, C channel (G and K too, if there are more), all others spatial; a grid in brackets."""
    letters, _, brackets = layout.partition("[")
    batch = letters.find("N")
    channel = tuple(i for i, letter in enumerate(letters) if letter in "CGK")
    spatial = tuple(i for i, letter in enumerate(letters) if letter not in "NCGK")
    return Axes(batch if batch >= 0 else None, channel, spatial, parse_grid(brackets.removesuffix("]"), layout))


def letters_in(layout: str) -> str:
    """A layout without its grid."""
    return layout.partition("[")[0]


def check_layout(layout: str, rank: int, tensor: str) -> str:
    """`layout` with its letters in capitals, if it fits a tensor of that rank.

    Raises:
        InputError: a letter too many, too few or twice, no spatial axis, or a grid that cannot be.
    """
    where = f"Tensor {tensor!r} of rank {rank}."
    parts = re.fullmatch(r"([^\[\]]*)(\[[^\[\]]*\])?", layout.replace(" ", ""))
    letters, brackets = (parts[1].upper(), (parts[2] or "").lower()) if parts else ("", "")
    if len(letters) != rank or len(set(letters)) != rank or not letters.isalpha() or not axes(letters).spatial:
        raise InputError(
            f"The layout {layout!r} does not fit: it needs {rank} different letters, one an axis, one of them spatial.",
            where=where,
            how=f"For instance {USUAL.get(rank, 'NCHW')!r}: N batch, C channel, the others spatial.",
        )
    if brackets and len(axes(letters).spatial) != 1:
        raise InputError(
            f"The layout {layout!r} gives a grid, but its letters have {len(axes(letters).spatial)} spatial axes.",
            where=where,
            how="A grid is of the tokens on one axis: NTC[14x14].",
        )
    parse_grid(brackets[1:-1], layout)
    return letters + brackets


def layouts(model: Model, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The letters of every tensor whose axes are known; `given` ones are taken as they are, and spread to neighbours.

    Left out are tensors of unknown rank, and those where one axis holds both samples and places, such as windows.
    """
    return _found(model, given, {})[0]


def grids(model: Model, fed: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Grid]:
    """The grid of every tensor of tokens that has one; `fed` are the inputs' shapes, which decide it if left open."""
    return _found(model, None, fed or {})[1]


def layout_of(
    model: Model, name: str, layout: str | None = None, fed: Mapping[str, tuple[int, ...]] | None = None
) -> str:
    """The layout of a tensor with the grid that was found, or the one that the user gives for it.

    Raises:
        InputError: the layout given does not fit the tensor.
        KeyError: none is given, and none was found.
    """
    shape = tensors(model)[name].shape or ()
    letters = layouts(model)[name] if layout is None else check_layout(layout, len(shape), name)
    if "[" not in letters:
        own, found = _found(model, None, fed or {})
        same = name in found and axes(letters).spatial == axes(own.get(name, "")).spatial
        letters += f"[{found[name]}]" if same else ""
    axes(letters).cells(shape)  # it fits
    return letters


def _found(
    model: Model, given: Mapping[str, str] | None, fed: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], dict[str, Grid]]:
    if given:
        return _follow(model, {name: letters_in(layout) for name, layout in given.items()}, fed)
    if any(isinstance(d, str) for i in model.inputs if i.name in fed for d in (i.shape or ())[1:]):
        return model.cache.get(("layouts", *sorted(fed.items())), lambda: _follow(model, {}, fed))
    return model.cache.get("layouts", lambda: _follow(model, {}, {}))


def _follow(
    model: Model, given: Mapping[str, str], fed: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], dict[str, Grid]]:
    trace = Trace(model, *around(model, given), given, fed)
    found: dict[str, Grid] = {}
    waiting: dict[str, int] = {}
    for name, letters in trace.letters.items():
        spatial = axes(letters).spatial
        if len(spatial) == 1 and name in trace.axes:
            axis = trace.axes[name][spatial[0]]
            grid = grid_of(axis)
            if grid is not None and max(grid.sizes) <= LARGEST_SIDE:
                found[name] = grid
            elif grid is None and letters[spatial[0]] == "T" and kind(axis) == "T":
                waiting[name] = size_of(axis)
    known: dict[int, set[Grid]] = {}
    for grid in found.values():
        known.setdefault(grid.tokens, set()).add(grid)
    for name, tokens in waiting.items():  # behind an operator that is not understood: as many tokens, the same grid
        if len(known.get(tokens, ())) == 1:
            found[name] = next(iter(known[tokens]))
    return trace.letters, found
