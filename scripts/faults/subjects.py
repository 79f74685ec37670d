"""The models that faults are planted in, and more than 200 inputs for each, none of which any of them was trained on.

EfficientNet-Lite0 sees seeded crops of the photos, each other one mirrored. The toys see held-out scenes, taken as
pictures of another size, so that there is a resize to be wrong about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from scripts.toys.scenes import SIDE, Scene, held_out

from .fault import Arrays

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ("efficientnet-lite0", "toy-cnn", "toy-vit", "toy-embedding")
WITH_SWISH = "toy-swish"  # for the one fault that the others have no place for
DONORS = {"toy-cnn": "toy-embedding", "toy-embedding": "toy-detector", "toy-detector": "toy-embedding"}
COUNT = 225  # of inputs: nine crops of each of 25 photos
CALIBRATING = 50  # inputs that the quantisers see; no others see them
SEED, CALIBRATION_SEED = 60, 61
SIDE_OF_PHOTOS, SIDE_OF_PICTURES = 224, 96
SMALLEST = 0.5  # of a photo's shorter side that a crop has
Pictures = list[Image.Image]
Outputs = Mapping[str, NDArray[Any]]
Bilinear, Bicubic, Nearest = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        name: Of its file, without the suffix.
        proto: The reference.
        pictures: What is to be seen, before preprocessing.
        calibration: Others, for quantisers.
        prepare: Pictures to feeds, as the model was trained; its options are what can be wrong.
        wrong: Family, strength and options of preprocessing that is wrong.
        donor: Another checkpoint with layers of the same names and shapes.
        labels: (N,), the class of what is on each picture; empty where it is not known.
    """

    name: str
    proto: onnx.ModelProto
    pictures: Pictures
    calibration: Pictures
    prepare: Callable[..., Arrays]
    wrong: tuple[tuple[str, str, Mapping[str, Any]], ...]
    donor: onnx.ModelProto | None = None
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def feeds(self) -> Arrays:
        """The N inputs."""
        return self.prepare(self.pictures)

    @cached_property
    def calibrating(self) -> Arrays:
        """Inputs for quantisers."""
        return self.prepare(self.calibration)


def subject(name: str, count: int = COUNT) -> Subject:
    """The model of that name; the one with Swish is trained where it is not there yet."""
    path = (MODELS / "zoo" if name == WITH_SWISH else MODELS) / f"{name}.onnx"
    if name == WITH_SWISH and not path.exists():
        from . import swish  # torch is for this alone

        swish.make(path)
    proto = onnx.load(path)
    if name.startswith("toy-"):
        donor = onnx.load(MODELS / f"{DONORS[name]}.onnx") if name in DONORS else None
        scenes, calibration = _scenes(name, count, SEED), _scenes(name, CALIBRATING, CALIBRATION_SEED)
        labels = np.array([s.label for s in scenes])
        return Subject(name, proto, _drawn(scenes), _drawn(calibration), grey, WRONG_GREY, donor, labels)
    return Subject(name, proto, crops(count, SEED), crops(CALIBRATING, CALIBRATION_SEED), coloured, WRONG_COLOURED)


def crops(count: int, seed: int) -> Pictures:
    """Square crops of the photos in turn, at random places and sizes, each other round mirrored."""
    paths = sorted(p for p in (MODELS / "photos").rglob("*") if p.suffix in (".jpg", ".png"))
    rng = np.random.default_rng(seed)
    made: Pictures = []
    for number in range(count):
        turn, which = divmod(number, len(paths))
        with Image.open(paths[which]) as opened:
            photo = opened.convert("RGB")
        side = int(min(photo.size) * rng.uniform(SMALLEST, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        cut = photo.crop((left, top, left + side, top + side))
        made.append(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn % 2 else cut)
    return made


def coloured(
    pictures: Pictures,
    *,
    mean: tuple[float, ...] = (127.0, 127.0, 127.0),
    std: tuple[float, ...] = (128.0, 128.0, 128.0),
    resample: Image.Resampling = Bicubic,
    order: str = "RGB",
) -> Arrays:
    """(N, 3, 224, 224) as EfficientNet-Lite0 takes them."""
    size = (SIDE_OF_PHOTOS, SIDE_OF_PHOTOS)
    pixels = np.stack([np.asarray(p.resize(size, resample), np.float64) for p in pictures])
    pixels = (pixels[..., ::-1] if order == "BGR" else pixels) - mean
    return {"image": np.ascontiguousarray((pixels / std).transpose(0, 3, 1, 2), np.float32)}


def grey(pictures: Pictures, *, mean: float = 0.0, std: float = 255.0, resample: Image.Resampling = Bilinear) -> Arrays:
    """(N, 1, 64, 64) as the toys take them."""
    pixels = np.stack([np.asarray(p.resize((SIDE, SIDE), resample), np.float64) for p in pictures])
    return {"image": np.ascontiguousarray(((pixels - mean) / std)[:, None], np.float32)}


WRONG_COLOURED: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("channels swapped", "BGR", {"order": "BGR"}),
    ("wrong mean and std", "127.5", {"mean": (127.5,) * 3, "std": (127.5,) * 3}),
    ("wrong mean and std", "0 to 1", {"mean": (0.0,) * 3, "std": (255.0,) * 3}),
    (
        "wrong mean and std",
        "ImageNet",
        {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    ),
    ("wrong resize mode", "bilinear", {"resample": Bilinear}),
    ("wrong resize mode", "nearest", {"resample": Nearest}),
)
WRONG_GREY: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("wrong mean and std", "by 256", {"std": 256.0}),
    ("wrong mean and std", "-1 to 1", {"mean": 127.5, "std": 127.5}),
    ("wrong resize mode", "bicubic", {"resample": Bicubic}),
    ("wrong resize mode", "nearest", {"resample": Nearest}),
)


def _scenes(name: str, count: int, seed: int) -> list[Scene]:
    """Held-out scenes; of classifiers those of one digit, as of two either is right."""
    return held_out("detector" if name == "toy-detector" else "embedding", count, seed)


def _drawn(scenes: list[Scene]) -> Pictures:
    """Scenes as pictures of 96 x 96."""
    size = (SIDE_OF_PICTURES, SIDE_OF_PICTURES)
    return [Image.fromarray(np.round(s.image[0] * 255).astype(np.uint8)).resize(size, Bicubic) for s in scenes]


def answers(subject: Subject, outputs: Outputs, reference: Outputs) -> NDArray[np.int64]:
    """(N,): what the model says to each input: the class; of an embedding the class whose mean (of what the reference
    makes of the same inputs) is nearest; of a detector the surest cell with its class.
    """
    if "embedding" in outputs:
        gallery = np.asarray(reference["embedding"], np.float64)
        means = np.stack([gallery[subject.labels == c].mean(0) for c in np.unique(subject.labels)])
        scores = np.asarray(outputs["embedding"], np.float64) @ means.T
    else:
        scores = np.asarray(outputs.get("scores", next(iter(outputs.values()))), np.float64)
    table = np.where(np.isnan(scores), -np.inf, scores).reshape(len(scores), -1)
    return np.asarray(table.argmax(1), np.int64)


def rows(feeds: Mapping[str, NDArray[Any]], size: int) -> Iterator[Arrays]:
    """The inputs in portions."""
    count = len(next(iter(feeds.values())))
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in feeds.items()}
