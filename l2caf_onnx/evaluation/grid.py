"""The grid pointing game: four photos of four classes in one picture; a faithful map of a class lies in its own cell.

Boehle, Fritz & Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications" (CVPR 2021). The
right answer is known by construction, no annotation is needed, and chance is 1 in 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.batches import stacked
from l2caf_onnx.inputs import prepare, read_image
from l2caf_onnx.preprocess import Preprocess
from l2caf_onnx.records import TensorInfo

from . import scores
from .classes import classifier
from .contest import Answers, Contest, heatmap
from .data import Data
from .games import Tell
from .record import Row

_UNKNOWN_SIDE = 224  # of a model that takes any size, where the preprocessing does not say one
_LEAST = 0.75  # of a photo's side that a crop keeps at least
_CELLS = 4
_READING = 0.1  # of the game: classifying the photos


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that the model recognises: its file, class and the probability of that."""

    path: Path
    target: int
    probability: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A photo's place in a grid: the part of its side that the crop keeps, where that lies (0 to 1), and the flip."""

    photo: Photo
    keep: float
    across: float
    down: float
    flip: bool


@dataclass(frozen=True, slots=True)
class Board:
    """One picture of four cells, row by row, and which of them are asked about."""

    number: int
    cells: tuple[Cell, ...]
    asked: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The game's settings.

    Attributes:
        count: Grids.
        choosing: Grids of the choosing half; None: as many.
        targets_per_grid: Cells asked about in each, 1 to 4.
        threshold: The least probability of its class at which a photo, whole, is taken.
    """

    count: int = 100
    choosing: int | None = None
    targets_per_grid: int = 1
    threshold: float = 0.3

    name = "grid"
    sharpens = True

    def __post_init__(self) -> None:
        """Raises InputError: a setting out of range."""
        if not (
            self.count >= 1
            and (self.choosing is None or self.choosing >= 1)
            and 1 <= self.targets_per_grid <= _CELLS
            and 0 <= self.threshold <= 1
        ):
            raise InputError(f"The grid game cannot be played with {self}.", how="Ask for a grid at least.")

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return asdict(self)

    def refuse(self, contest: Contest, data: Data) -> None:
        """Raises InputError: the samples are not pictures."""
        if any(data.only_picture(k) is None for k in range(len(data))):
            raise InputError(
                "The grid game is played with photos, one for each sample.",
                where=f"Model {contest.model.name!r}, data {data.names[0]!r}, ...",
                how="Give folders of photos, and a model whose only input is a picture.",
            )

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """The energy and the top share in the right cell, and whether the maximum is there."""
        photos = recognised(contest, data, self.threshold, lambda what, part: tell(what, part * _READING))
        boards = deal(photos, self.count, self.targets_per_grid, np.random.default_rng(contest.seed))
        found = data.only_picture(0)
        assert found is not None  # `refuse` has refused what is no picture
        tensor, _, settings = found
        size = settings.crop or (_UNKNOWN_SIDE, _UNKNOWN_SIDE)
        channels = (tensor.shape or ())[settings.layout.index("C")]
        painted = lru_cache(maxsize=128)(lambda path: reduced(read_image(path), size))
        rows: list[Row] = []
        atonce, waiting = 0, list[tuple[Board, dict[str, NDArray[Any]]]]()
        for board in boards:
            picture = paint(board, size, [painted(cell.photo.path) for cell in board.cells])
            feeds = normalised(picture, tensor, settings, channels=channels if isinstance(channels, int) else 3)
            waiting.append((board, feeds))
            atonce = atonce or contest.size(feeds)
            if len(waiting) == atonce or board is boards[-1]:
                rows += _scored(contest, waiting, size)
                tell(f"grid {board.number + 1}", _READING + (1 - _READING) * (board.number + 1) / len(boards))
                waiting = []
        return tuple(rows)


def recognised(contest: Contest, data: Data, threshold: float, tell: Tell) -> tuple[Photo, ...]:
    """The photos whose likeliest class has at least that probability.

    Raises:
        InputError: fewer than four classes are among them.
    """
    own, photos = classifier(contest), []
    for numbers, _, feeds in data.batches(8):
        for number, row in zip(numbers, own.probabilities(feeds), strict=True):
            found = data.only_picture(number)
            if found is not None and row.max() >= threshold:
                photos.append(Photo(found[1], int(row.argmax()), float(row.max())))
        tell(data.names[numbers[-1]], (numbers[-1] + 1) / len(data))
    classes = {p.target for p in photos}
    if len(classes) < _CELLS:
        raise InputError(
            f"A grid needs photos of {_CELLS} classes; {len(photos)} of {len(data)} photos are recognised with a "
            f"probability of {threshold:g} or more, as {len(classes)} classes.",
            how="Give more photos of other classes, or see that the preprocessing is the model's.",
        )
    return tuple(photos)


def deal(photos: Sequence[Photo], count: int, targets: int, rng: np.random.Generator) -> tuple[Board, ...]:
    """`count` grids: every photo leads about equally many, with three others of other classes, each its own.

    The leading photo's cell is asked about first, then others in the order of their cells.
    """
    order: list[int] = []
    boards = []
    for number in range(count):
        order = order or [int(k) for k in rng.permutation(len(photos))]
        chosen = [photos[order.pop()]]
        for k in rng.permutation(len(photos)):
            if len(chosen) < _CELLS and photos[k].target not in {p.target for p in chosen}:
                chosen.append(photos[k])
        places = [int(k) for k in rng.permutation(_CELLS)]
        cells: list[Cell | None] = [None] * _CELLS
        for photo, place in zip(chosen, places, strict=True):
            keep, across, down = rng.uniform(_LEAST, 1), rng.uniform(), rng.uniform()
            cells[place] = Cell(photo, float(keep), float(across), float(down), bool(rng.integers(2)))
        asked = (places[0], *sorted(places[1:])[: targets - 1])
        boards.append(Board(number, tuple(c for c in cells if c is not None), asked))
    return tuple(boards)


def frames(size: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    """The four cells of a picture of `size` (H, W), row by row, as (top, left, bottom, right)."""
    high, wide = size
    rows, columns = ((0, high // 2), (high // 2, high)), ((0, wide // 2), (wide // 2, wide))
    return tuple((top, left, bottom, right) for top, bottom in rows for left, right in columns)


def reduced(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A large photo made as small as its crops allow, so that many fit into memory."""
    factor = min(picture.height / (2 * size[0]), picture.width / (2 * size[1]))
    return picture.reduce(int(factor)) if factor >= 2 else picture


def paint(board: Board, size: tuple[int, int], pictures: Sequence[Image.Image]) -> Image.Image:
    """The RGB picture (H, W) = `size` of a grid, from the photos of its cells."""
    canvas = Image.new("RGB", (size[1], size[0]))
    for cell, picture, (top, left, bottom, right) in zip(board.cells, pictures, frames(size), strict=True):
        wide, high = right - left, bottom - top
        scale = cell.keep * min(picture.width / wide, picture.height / high)
        x, y = cell.across * (picture.width - wide * scale), cell.down * (picture.height - high * scale)
        box = (x, y, x + wide * scale, y + high * scale)
        part = picture.resize((wide, high), Image.Resampling.BICUBIC, box=box)
        canvas.paste(ImageOps.mirror(part) if cell.flip else part, (left, top))
    return canvas


def normalised(
    picture: Image.Image, tensor: TensorInfo, settings: Preprocess, *, channels: int
) -> dict[str, NDArray[Any]]:
    """A picture that has its size already, as the model's feed."""
    size = (picture.height, picture.width)
    array, _ = prepare(picture, replace(settings, size=size, crop=size), channels=channels, dtype=tensor.dtype)
    return {tensor.name: array}


def _scored(
    contest: Contest, waiting: Sequence[tuple[Board, dict[str, NDArray[Any]]]], size: tuple[int, int]
) -> Iterator[Row]:
    for turn in range(len(waiting[0][0].asked)):
        feeds = stacked(contest.model, [own for _, own in waiting])
        targets = [board.cells[board.asked[turn]].photo.target for board, _ in waiting]
        answers: Answers = contest.answers(feeds, targets)
        for k, (board, _) in enumerate(waiting):
            place = board.asked[turn]
            top, left, bottom, right = frames(size)[place]
            region = np.zeros(size, dtype=bool)
            region[top:bottom, left:right] = True
            for (at, name), answered in answers.items():
                answer = answered[k]
                shown = heatmap(answer, size)
                yield Row(
                    game=Grid.name,
                    at=at,
                    method=name,
                    item=f"grid {board.number} cell {place}",
                    photo=str(board.cells[place].photo.path),
                    target=targets[k],
                    scores={
                        **{f"energy@{e}": scores.energy(shown, region, e) for e in scores.EXPONENTS},
                        "top_share": scores.top_share(shown, region),
                        "hit": scores.hit(shown, region),
                        **({} if answer is None else {"evaluations": float(answer.evaluations[0])}),
                    },
                    failed=not shown.any(),
                )
