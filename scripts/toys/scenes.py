"""Scenes whose right answer is known: digits of scikit-learn pasted on clutter, with the box of each.

The toy networks are trained on these scenes and judged on those with other glyphs: every fifth of `load_digits` is held
out, in the digits and in the clutter that is made of pieces of digits. A scene keeps its parts apart, so that it can be
drawn without one of its digits. Nothing here needs torch. The same seed gives the same scenes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

Array = NDArray[np.float32]
Split = Literal["train", "held-out"]
Kind = Literal["cnn", "vit", "embedding", "detector"]  # the toys that see scenes; "recurrent" sees clips

SIDE, CLIP_SIDE, FRAMES = 64, 48, 8
SIZES = (15.0, 20.0)  # pixels that the 8 x 8 of a glyph become
INK = 0.2  # alpha from which a pixel belongs to the digit's box


class Box(NamedTuple):
    """Where a digit is, in pixels; x1 and y1 are the first that lie outside."""

    label: int
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, slots=True)
class Digit:
    """A glyph as it is pasted: `alpha` (h, w) at column x and row y, in a grey of `ink`."""

    label: int
    glyph: int  # its index in load_digits
    x: int
    y: int
    alpha: Array
    ink: float

    @property
    def box(self) -> Box:
        rows, columns = (np.flatnonzero((self.alpha > INK).any(axis)) for axis in (1, 0))
        x0, y0 = self.x + int(columns[0]), self.y + int(rows[0])
        return Box(self.label, x0, y0, self.x + int(columns[-1]) + 1, self.y + int(rows[-1]) + 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """Digits on clutter: `canvas` and `noise` (H, W) lie behind and over them."""

    canvas: Array
    noise: Array
    digits: tuple[Digit, ...]

    @property
    def image(self) -> Array:
        """(1, H, W) in [0, 1], in steps of 1/255, so that a PNG holds it exactly."""
        drawn = self.canvas.copy()
        for digit in self.digits:
            paste(drawn, digit.alpha, digit.x, digit.y, digit.ink)
        steps = np.round(np.clip(drawn + self.noise, 0, 1) * 255)
        return np.asarray(steps[None] / 255, np.float32)

    @property
    def label(self) -> int:
        """The class of the first digit: the answer where there is only one, the doubled one of `two_of_a_class`."""
        return self.digits[0].label

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes present, each once, ascending."""
        return tuple(sorted({d.label for d in self.digits}))

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(d.box for d in self.digits)

    def without(self, index: int) -> Scene:
        """The same scene without one of its digits: what is then different is that digit."""
        return Scene(self.canvas, self.noise, self.digits[:index] + self.digits[index + 1 :])


@dataclass(frozen=True, slots=True)
class Clip:
    """One digit that moves over clutter that does not, more visible in some frames than in others."""

    frames: tuple[Scene, ...]

    @property
    def clip(self) -> Array:
        """(T, 1, H, W) in [0, 1]."""
        return np.stack([f.image for f in self.frames])

    @property
    def digits(self) -> tuple[Digit, ...]:
        """The digit as it is in the first frame."""
        return self.frames[0].digits

    @property
    def label(self) -> int:
        return self.frames[0].label

    @property
    def labels(self) -> tuple[int, ...]:
        return self.frames[0].labels

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The digit's box in each frame."""
        return tuple(f.boxes[0] for f in self.frames)


def held_out(kind: Kind, count: int, seed: int, *, two_of_a_class: bool = False) -> list[Scene]:
    """Scenes of glyphs that no toy was trained on.

    Args:
        kind: which toy they are for.
        count: how many.
        seed: another gives other scenes.
        two_of_a_class: two digits of one class, which come first, and one of another.
    """
    return _scenes(np.random.default_rng([1, seed]), "held-out", kind, count, two_of_a_class=two_of_a_class)


def held_out_clips(count: int, seed: int) -> list[Clip]:
    """Clips of glyphs that no toy was trained on."""
    rng = np.random.default_rng([1, seed])
    return [draw_clip(rng, "held-out") for _ in range(count)]


def training(kind: Kind, count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes to train on; a third of the classifiers' hold two digits of one class."""
    doubled = round(count / 3) if kind in ("cnn", "vit") else 0
    scenes = _scenes(rng, "train", kind, count - doubled)
    return scenes + _scenes(rng, "train", kind, doubled, two_of_a_class=True)


def training_clips(count: int, rng: np.random.Generator) -> list[Clip]:
    return [draw_clip(rng, "train") for _ in range(count)]


def _scenes(
    rng: np.random.Generator, split: Split, kind: Kind, count: int, *, two_of_a_class: bool = False
) -> list[Scene]:
    return [draw_scene(rng, split, _classes(rng, kind, two_of_a_class)) for _ in range(count)]


def _classes(rng: np.random.Generator, kind: Kind, two_of_a_class: bool) -> Sequence[int]:
    if two_of_a_class:
        first, other = rng.choice(10, 2, replace=False).tolist()
        return first, first, other
    if kind == "embedding":
        return [int(rng.integers(10))]
    if kind == "detector":
        return [int(c) for c in rng.integers(10, size=rng.integers(1, 4))]
    return [int(c) for c in rng.choice(10, rng.integers(2, 4), replace=False)]


def draw_scene(rng: np.random.Generator, split: Split, classes: Sequence[int], side: int = SIDE) -> Scene:
    """A scene with a digit of each of `classes`, at random places that do not overlap."""
    glyphs = [int(rng.choice(indices(split)[c])) for c in classes]
    alphas = [_render(rng, g) for g in glyphs]
    places = _places(rng, [len(a) for a in alphas], side)
    frames = [(x, y, len(a)) for (x, y), a in zip(places, alphas, strict=True)]
    digits = tuple(
        Digit(c, g, x, y, a, rng.uniform(0.65, 1))
        for c, g, (x, y), a in zip(classes, glyphs, places, alphas, strict=True)
    )
    return Scene(_clutter(rng, split, side, frames), _noise(rng, side), digits)


def draw_clip(rng: np.random.Generator, split: Split) -> Clip:
    """A clip of one digit that moves along a line, turned back at the borders, and fades and returns."""
    label = int(rng.integers(10))
    glyph = int(rng.choice(indices(split)[label]))
    alpha = _render(rng, glyph)
    room = CLIP_SIDE - len(alpha)
    speed, heading = rng.uniform(1.5, 4), rng.uniform(0, 2 * math.pi)
    times = np.arange(FRAMES)
    x, y = (
        _bounce(rng.uniform(0, room) + times * speed * turn, room) for turn in (math.cos(heading), math.sin(heading))
    )
    # Kept off the whole path there would be hardly any clutter: off the beginning, the middle and the end is enough.
    frames = [(x[t], y[t], len(alpha)) for t in (0, FRAMES // 2, FRAMES - 1)]
    canvas = _clutter(rng, split, CLIP_SIDE, frames)
    inks = rng.uniform(0.45, 1, FRAMES)
    return Clip(
        tuple(
            Scene(canvas, _noise(rng, CLIP_SIDE), (Digit(label, glyph, x[t], y[t], alpha, float(inks[t])),))
            for t in range(FRAMES)
        )
    )


def _bounce(positions: NDArray[np.floating[Any]], room: float) -> list[int]:
    """Positions folded into 0 to `room`, as a ball between two walls."""
    return [round(v) for v in np.abs((positions + room) % (2 * room) - room).tolist()]


@cache
def indices(split: Split) -> tuple[NDArray[np.int64], ...]:
    """For each class, its glyphs of the split."""
    _, labels = _digits()
    held = np.arange(len(labels)) % 5 == 0
    return tuple(np.flatnonzero((labels == c) & (held == (split == "held-out"))) for c in range(10))


@cache
def _digits() -> tuple[Array, NDArray[np.int64]]:
    """All glyphs, (1797, 8, 8) in [0, 1], and their classes."""
    data = load_digits()
    return np.asarray(data.images / 16, np.float32), np.asarray(data.target, np.int64)


def _render(rng: np.random.Generator, glyph: int) -> Array:
    """The glyph at a random size and angle: how much ink is where, a square."""
    size, angle = rng.uniform(*SIZES), math.radians(rng.uniform(-12, 12))
    out = math.ceil(size * 1.1)
    padded = np.zeros((12, 12), np.float32)  # resampling must find paper around the glyph
    padded[2:10, 2:10] = _digits()[0][glyph]
    cos, sin = math.cos(angle) * 8 / size, math.sin(angle) * 8 / size
    centre = out / 2
    turn = (cos, sin, 6 - (cos + sin) * centre, -sin, cos, 6 - (cos - sin) * centre)
    drawn = Image.fromarray(padded).transform((out, out), Image.Transform.AFFINE, turn, Image.Resampling.BICUBIC)
    return np.asarray(np.clip(np.asarray(drawn), 0, 1), np.float32)


def _places(rng: np.random.Generator, sizes: Sequence[int], side: int) -> list[tuple[int, int]]:
    """Columns and rows where squares of these sizes do not overlap."""
    while True:
        taken: list[tuple[int, int, int]] = []
        for size in sizes:
            x, y = (int(v) for v in rng.integers(0, side - size + 1, 2))
            if any(_overlap((x, y, size), other) for other in taken):
                break
            taken.append((x, y, size))
        else:
            return [(x, y) for x, y, _ in taken]


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return all(a[i] < b[i] + b[2] and b[i] < a[i] + a[2] for i in (0, 1))


def _clutter(rng: np.random.Generator, split: Split, side: int, digits: Sequence[tuple[int, int, int]]) -> Array:
    """What lies behind: smooth light, faint strokes, and pieces of digits as bright as digits, but not beneath one."""
    coarse = Image.fromarray(rng.uniform(0, 0.3, (4, 4)).astype(np.float32))
    canvas = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
    for _ in range(rng.integers(2, 6)):
        paste(canvas, _stroke(rng, side), 0, 0, rng.uniform(0.2, 0.5))
    for n in range(rng.integers(4, 9)):
        glyph = int(rng.choice(indices(split)[rng.integers(10)]))
        piece = _scrambled(rng, _render(rng, glyph)) if n % 3 == 0 else _crop(rng, _render(rng, glyph))
        x, y = (int(v) for v in rng.integers(0, side - len(piece) + 1, 2))
        if not any(_overlap((x, y, len(piece)), d) for d in digits):
            paste(canvas, piece, x, y, rng.uniform(0.5, 1))
    return canvas


def paste(canvas: Array, alpha: Array, x: int, y: int, ink: float) -> None:
    """Draw on the canvas: grey `ink`, as opaque as alpha says."""
    under = canvas[y : y + alpha.shape[0], x : x + alpha.shape[1]]
    under += alpha * (ink - under)


def _stroke(rng: np.random.Generator, side: int) -> Array:
    """A line or an arc, smooth at its edges."""
    drawn = Image.new("L", (2 * side, 2 * side))
    points = [float(v) for v in rng.uniform(0, 2 * side, 4)]
    width = int(rng.integers(2, 5))
    if rng.random() < 0.5:
        ImageDraw.Draw(drawn).line(points, 255, width)
    else:
        (x0, x1), (y0, y1) = sorted(points[:2]), sorted(points[2:])
        start = float(rng.uniform(0, 360))
        ImageDraw.Draw(drawn).arc((x0, y0, x1, y1), start, start + float(rng.uniform(60, 180)), 255, width)
    return np.asarray(drawn.reduce(2), np.float32) / np.float32(255)


def _scrambled(rng: np.random.Generator, alpha: Array) -> Array:
    """The quarters of a digit in another order, each turned by a right angle: its ink, but no digit."""
    half = len(alpha) // 2
    quarters = [alpha[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    shift = int(rng.integers(1, 4))
    moved = [np.rot90(quarters[(i + shift) % 4], rng.choice((1, 3))) for i in range(4)]
    return np.asarray(np.block([moved[:2], moved[2:]]), np.float32)


def _crop(rng: np.random.Generator, alpha: Array) -> Array:
    """A piece of a digit, a square of 6 to 8 pixels."""
    size = int(rng.integers(6, 9))
    x, y = (int(v) for v in rng.integers(0, len(alpha) - size + 1, 2))
    return alpha[y : y + size, x : x + size]


def _noise(rng: np.random.Generator, side: int) -> Array:
    return np.asarray(rng.normal(0, rng.uniform(0.01, 0.05), (side, side)), np.float32)


def write_scenes(scenes: Iterable[Scene], folder: Path) -> None:
    """Each scene as a PNG, and `boxes.csv` with a row for each digit: file, label, x0, y0, x1, y1."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("file", *Box._fields))
        for number, scene in enumerate(scenes):
            name = f"scene-{number:04}.png"
            Image.fromarray(np.round(scene.image[0] * 255).astype(np.uint8)).save(folder / name)
            table.writerows((name, *box) for box in scene.boxes)
