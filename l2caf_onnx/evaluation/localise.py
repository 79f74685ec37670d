"""Against boxes: the pointing game, localisation and energy, where annotators said what is where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.batches import stacked
from l2caf_onnx.inputs import Sample, read_image
from l2caf_onnx.preprocess import Preprocess

from . import scores
from .boxes import Marked, boxes_of, class_of
from .classes import classifier
from .components import components, overlap
from .contest import Contest, heatmap
from .data import Data
from .games import Tell
from .record import Row
from .scores import Box

IOU = (0.3, 0.5, 0.7)
THRESHOLDS = np.arange(0, 1, 0.02)
"""Of the map's maximum; Choe et al. take 1000, which moves their mean by less than its interval."""
_CAM = 0.2  # of the maximum: where the box of Zhou et al., "Learning Deep Features ..." (CVPR 2016) is drawn
_COVERED = 0.5  # of the maximum: what must be reached inside a box for it to be covered
_BOX = "max_box_acc"


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One question: a class in a sample, and its boxes in pixels of the input."""

    number: int
    label: str
    target: int | None
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """The game's settings.

    Attributes:
        annotations: By the sample's file name, or "sample 0" and so on, (label, box) of the upright picture, or of the
            input where arrays are given.
        classes: Class names by index, that the labels mean.
        tolerance: Of the pointing game, in pixels of the input.
    """

    annotations: Mapping[str, Sequence[Marked]] = field(repr=False)
    classes: Mapping[int, str] = field(default_factory=dict, repr=False)
    tolerance: float = 0

    name = "boxes"
    sharpens = True

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"annotated": len(self.annotations), "tolerance": self.tolerance}

    def refuse(self, contest: Contest, data: Data) -> None:
        """Raises InputError: no sample is annotated, or a label is no class."""
        known = [boxes_of(self.annotations, _file(data, k)) for k in range(len(data))]
        if not any(known):
            raise _nothing_seen(data, self.annotations)
        if contest.target is None and contest.asks_class:
            for label in {label for marked in known for label, _ in marked}:
                class_of(label, self.classes)

    def play(self, contest: Contest, data: Data, tell: Tell) -> tuple[Row, ...]:
        """Energy, top share and maximum in the boxes of a class; MaxBoxAccV2; Top-1 Loc where there are classes."""
        rows: list[Row] = []
        curves: list[NDArray[np.float64]] = []
        bare = 0
        size = contest.size(data.read(0).feeds)
        for numbers, read, feeds in data.batches(size):
            first = _first_classes(contest, feeds)
            asked = [self._asked(contest, data, n, s) for n, s in zip(numbers, read, strict=True)]
            bare += sum(not own for own in asked)
            for turn in range(max(map(len, asked))):
                some = [
                    (own[turn], s, k) for k, (own, s) in enumerate(zip(asked, read, strict=True)) if turn < len(own)
                ]
                if contest.target == "top1" and first is not None:
                    some = [(replace(a, target=first[k]), s, k) for a, s, k in some]
                targets = [a.target for a, _, _ in some if a.target is not None]
                answers = contest.answers(
                    stacked(contest.model, [s.feeds for _, s, _ in some]),
                    targets if len(targets) == len(some) else None,
                )
                for (at, name), answered in answers.items():
                    for (own, sample, k), answer in zip(some, answered, strict=True):
                        frame = _frame(data, own.number, sample)
                        shown = heatmap(answer, frame)
                        found, curve = _scored(shown, own.boxes, self.tolerance)
                        if first is not None and own.target is not None:
                            found["top1_loc"] = float(first[k] == own.target) * found["box_loc"]
                        if answer is not None:
                            found["evaluations"] = float(answer.evaluations[0])
                        rows.append(
                            Row(
                                game=self.name,
                                at=at,
                                method=name,
                                item=f"{sample.name} {own.label}".strip(),
                                photo=sample.name,
                                target=own.target,
                                scores=found,
                                failed=not shown.any(),
                            )
                        )
                        curves.append(curve)
            tell(data.names[numbers[-1]], (numbers[-1] + 1) / len(data))
        if not rows:
            raise _nothing_seen(data, self.annotations)
        if bare:
            contest.note(f"{bare} of {len(data)} samples have no box in what the model sees of them: left out.")
        return _at_best_thresholds(rows, np.array(curves))

    def _asked(self, contest: Contest, data: Data, number: int, sample: Sample) -> list[Asked]:
        frame, found = _frame(data, number, sample), data.picture(number)
        marked = boxes_of(self.annotations, _file(data, number))
        size = None if found is None or not marked else read_image(found[1]).size
        by_class: dict[tuple[str, int | None], list[Box]] = {}
        for label, box in marked:
            inside = clipped(box if size is None or found is None else placed(box, size, found[2]), frame)
            if inside is None:
                continue
            if contest.target is None and contest.asks_class:
                key: tuple[str, int | None] = (label, class_of(label, self.classes))
            else:  # the same question whatever the labels
                key = ("", contest.target if isinstance(contest.target, int) else None)
            by_class.setdefault(key, []).append(inside)
        return [Asked(number, label, target, tuple(own)) for (label, target), own in by_class.items()]


def _file(data: Data, number: int) -> str:
    """What annotations call a sample."""
    found = data.picture(number)
    return data.names[number] if found is None else str(found[1])


def _nothing_seen(data: Data, annotations: Mapping[str, Sequence[Marked]]) -> InputError:
    return InputError(
        "No sample has a box in what the model sees of it.",
        where=f"{len(data)} samples, {len(annotations)} annotated files.",
        how="The annotations must name the pictures' files.",
    )


def _first_classes(contest: Contest, feeds: dict[str, NDArray[Any]]) -> list[int] | None:
    """The model's own first class of each sample; None where its outputs are no class scores."""
    if not contest.class_specific:
        return None
    return [int(k) for k in classifier(contest).probabilities(feeds).argmax(1)]


def _frame(data: Data, number: int, sample: Sample) -> tuple[int, int]:
    """The height and width of the input."""
    if sample.image is not None:
        return (sample.image.height, sample.image.width)
    sides = data.sides(sample)
    if len(sides) != 2:
        raise InputError(
            "Boxes are about pictures; this input is none.",
            where=f"Sample {data.names[number]!r}.",
            how="Feed pictures.",
        )
    return (sides[0], sides[1])


def placed(box: Box, size: tuple[int, int], settings: Preprocess) -> Box:
    """A box of a picture of `size` (width, height) after `settings` scaled and cropped it, as `prepare` does."""
    width, height = size
    tall, wide = settings.size or (height, width)
    tall, wide = (tall, tall * width // height) if tall * width >= wide * height else (wide * height // width, wide)
    rows, columns = settings.crop or (tall, wide)
    top, left = round((tall - rows) / 2), round((wide - columns) / 2)
    x0, y0, x1, y1 = box
    across, down = wide / width, tall / height
    return x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top


def clipped(box: Box, frame: tuple[int, int]) -> Box | None:
    """The part of a box inside a frame (H, W); None where less than a pixel is left of it."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(frame[1])), min(box[3], float(frame[0]))
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


def region_of(boxes: Sequence[Box], frame: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) whose centres are in a box."""
    x, y = np.arange(frame[1]) + 0.5, np.arange(frame[0]) + 0.5
    region = np.zeros(frame, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        region |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return region


def _scored(
    shown: NDArray[np.float32], boxes: Sequence[Box], tolerance: float
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """The scores of a map, and the overlap of its best box at each threshold."""
    region = region_of(boxes, (shown.shape[0], shown.shape[1]))
    real = np.array(boxes)
    best = np.array(
        [overlap(found, real).max(initial=0) for found, _ in map(components, shown > THRESHOLDS[:, None, None])]
    )
    drawn, areas = components(shown > _CAM)
    largest = overlap(drawn[[int(areas.argmax())]], real).max() if len(areas) else 0.0
    found = {
        **{f"energy@{e}": scores.energy(shown, region, e) for e in scores.EXPONENTS},
        "top_share": scores.top_share(shown, region),
        "hit": scores.hit_box(shown, boxes, tolerance),
        "box_loc": float(largest >= 0.5),
    }
    if len(boxes) > 1:
        peaks = [shown[region_of([b], region.shape)].max(initial=0) for b in boxes]
        found["covered"] = float(min(peaks) >= _COVERED * shown.max() and shown.max() > 0)
    return found, best


def _at_best_thresholds(rows: Sequence[Row], curves: NDArray[np.float64]) -> tuple[Row, ...]:
    """Rows with MaxBoxAccV2 (Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020).

    For each overlap of .3, .5 and .7 a method may choose its threshold, the best for all samples together; all
    components count, not the largest alone. The score of a sample is the mean over the three of whether it then is a
    hit, so that the mean over the samples is MaxBoxAccV2.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for k, row in enumerate(rows):
        groups.setdefault((row.at, row.method), []).append(k)
    value = np.zeros(len(rows))
    for members in groups.values():
        for least in IOU:
            reached = curves[members] >= least
            value[members] += reached[:, int(reached.mean(0).argmax())] / len(IOU)
    return tuple(replace(r, scores={**r.scores, _BOX: float(v)}) for r, v in zip(rows, value, strict=True))
