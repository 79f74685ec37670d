"""What is measured: which questions, where, by which solver, of how many pictures at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.inputs import find_samples

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL = MODELS / "efficientnet-lite0.onnx"

LAST_CONV = "/_swish_1/Clip_output_0"  # 7x7, the tail is affine
BLOCK_10 = "/_blocks.10/Add_output_0"  # 14x14, five blocks of the network behind it
PLACES = {"last conv, 7x7": LAST_CONV, "block 10, 14x14": BLOCK_10}

DEFAULT = "defaults"
QUESTIONS: dict[str, dict[str, str]] = {
    "outputs, unit": {"objective": "outputs", "radius": "unit"},
    "target, unit": {"objective": "target", "target": "top1", "radius": "unit"},
    "paper-class, unit": {"objective": "paper-class", "target": "top1", "radius": "unit"},
    DEFAULT: {},
    f"{DEFAULT}, target": {"target": "top1"},
}
SLOW = ("sgd", "adam")  # the authors' two loops, 1000 steps
BATCHES = (1, 16)


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        place: What the tensor is called in the table.
        at: The tensor.
        images: Pictures at once.
        question: What is asked, as in the table.
        solver: "sgd", "adam", "lbfgs", "exact" or "auto".
        asked: The same as arguments of `attend`.
    """

    place: str
    at: str
    images: int
    question: str
    solver: str
    asked: Mapping[str, str] = field(repr=False)

    @property
    def words(self) -> set[str]:
        """Of its name."""
        return set(f"{self.place} {self.images} {self.question} {self.solver}".replace(",", "").split())

    @property
    def slow(self) -> bool:
        return self.solver in SLOW


def cases(only: Sequence[str] = (), *, slow: bool = True) -> Iterator[Case]:
    """All cases whose name has all words of one of `only`."""
    for place, at in PLACES.items():
        for images in BATCHES:
            for question, asked in QUESTIONS.items():
                for solver in _solvers(at, images, question):
                    case = Case(place, at, images, question, solver, {**asked, "solver": solver})
                    wanted = not only or any(set(o.split()) <= case.words for o in only)
                    if wanted and (slow or not case.slow):
                        yield case


def _solvers(at: str, images: int, question: str) -> tuple[str, ...]:
    if question.startswith(DEFAULT):
        return ("auto",)
    ours = ("lbfgs", "exact") if at == LAST_CONV else ("lbfgs",)
    return (*SLOW, *ours) if images == 1 else ours  # 16 pictures by a thousand steps: minutes a run


def pictures(count: int, *, first: str = "chelsea.png") -> dict[str, NDArray[np.float32]]:
    """Feeds of so many different pictures: the photos, then mirrored, then shifted around; `first` comes first."""
    model = caf.load(MODEL)
    photos = sorted((p for p in (MODELS / "photos").iterdir() if p.is_file()), key=lambda p: (p.name != first, p.name))
    samples = find_samples([str(p) for p in photos[:count]], model.inputs, layouts(model), "lite")
    (name,) = (i.name for i in model.inputs)
    photo = np.concatenate([sample.read().feeds[name] for sample in samples])
    return {name: np.concatenate([varied(photo, i) for i in range(count)])}


def varied(photo: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    """(photos, 3, H, W) -> (1, 3, H, W): the picture of that number; the first ones are the photos themselves."""
    turn, which = divmod(index, len(photo))
    picture = photo[which : which + 1, :, :, :: -1 if turn % 2 else 1]
    return np.ascontiguousarray(np.roll(picture, 16 * (turn // 2), axis=-1))
