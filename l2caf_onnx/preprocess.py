"""How a picture becomes numbers: the presets that most models were trained with, and TOML for the others.

A model with the wrong preprocessing answers without complaint; so none is ever guessed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import InputError

Frame = tuple[int, int]  # height, width
Source = str | Mapping[str, object]  # a preset's name, a TOML file, or the table that such a file would hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How a picture becomes an array: resize, crop, map pixels to `range`, subtract `mean`, divide by `std`.

    Attributes:
        size: What the picture is scaled to just cover (bicubic, proportions kept), None: not resized.
        crop: What is cut from the centre; None: all.
        layout: "NCHW" or "NHWC"; channel_order: "RGB" or "BGR".
        mean, std: One a channel in `channel_order`; a model of one channel takes the mean of the three.
        range: What the pixel values 0 and 255 become before `mean` and `std`.
    """

    name: str
    size: Frame | None = None
    crop: Frame | None = None
    layout: str = "NCHW"
    channel_order: str = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    range: tuple[float, float] = (0.0, 1.0)


PRESETS: Mapping[str, Preprocess] = {
    "imagenet": Preprocess(name="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Preprocess(name="tf", range=(-1.0, 1.0)),
    "lite": Preprocess(name="lite", mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0), range=(0.0, 255.0)),
    "unit": Preprocess(name="unit"),
    "raw": Preprocess(name="raw", range=(0.0, 255.0)),
}
_TRAINED_ON_224 = ("imagenet", "tf", "lite")  # where the model takes any size; the others then keep the picture's
_SETTINGS = (
    'size and crop (pixels, or [height, width]), layout ("NCHW" or "NHWC"), channel_order ("RGB" or "BGR"), mean and '
    "std (a number, or three in channel_order), range (two numbers: what pixels 0 and 255 become)"
)


def preprocess_from(source: Source, *, size: Frame | None, layout: str) -> Preprocess:
    """A preset, TOML file or table, made concrete for an input of `size` (None where it takes any) and `layout`.

    Every key of a TOML file may be left out: `crop` is then the input's size, `size` is crop * 256 / 224, the rest as
    in preset `unit`. Its `layout` wins over the argument.

    Raises:
        InputError: no such preset or file, an unknown key, a value of the wrong kind, or `crop` larger than `size`.
    """
    stated = stated_by(source)
    name = source if isinstance(source, str) else "table"
    start = PRESETS.get(name, Preprocess(name=name))
    crop: Frame | None = stated.get("crop") or size or ((224, 224) if name in _TRAINED_ON_224 else None)
    around = (round(crop[0] * 256 / 224), round(crop[1] * 256 / 224)) if crop else None
    cover: Frame | None = stated.get("size") or around
    if crop and cover and (crop != (size or crop) or crop[0] > cover[0] or crop[1] > cover[1]):
        what = f"A crop of {crop} does not suit size {cover}{f' or the input, which takes {size}' if size else ''}."
        raise InputError(what, where=f"Preprocessing {name!r} (height, width).", how="Leave out `crop`, or both.")
    return replace(start, **{"layout": layout, **stated, "crop": crop, "size": cover})


def stated_by(source: Source) -> dict[str, Any]:
    """The settings that a TOML file or a table states, checked, as fields of Preprocess; a preset states none.

    Raises:
        InputError: see `preprocess_from`.
    """
    if not isinstance(source, str):
        return _checked(source, "The table of the manifest.")
    return {} if source in PRESETS else _checked(_read_toml(source), f"File {source!r}.")


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        what = f"There is no preset {path!r}, nor a TOML file that can be read ({reason_of(e)})."
        raise InputError(what, how=f"The presets are {', '.join(PRESETS)}.") from e
    except ValueError as e:
        raise InputError(f"The file is not valid TOML: {reason_of(e)}.", where=f"File {path!r}.") from e


def _checked(stated: Mapping[str, object], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in stated.items():
        if (made := _setting(key, value)) is None:
            what = f"The setting {key} = {value!r} cannot be used."
            raise InputError(what, where=where, how=f"Settings are {_SETTINGS}.")
        found[key] = made
    return found


def _setting(key: str, value: object) -> object:
    """A TOML value as the field `key` of Preprocess; None where it cannot be."""
    if key in ("layout", "channel_order"):
        return value if value in (("NCHW", "NHWC") if key == "layout" else ("RGB", "BGR")) else None
    count = {"size": 2, "crop": 2, "range": 2, "mean": 3, "std": 3}.get(key)
    numbers: list[Any] = value if isinstance(value, list) else [value] * (count or 0)
    if len(numbers) != count or not all(type(n) in (int, float) and abs(n) < 1e5 for n in numbers):
        return None
    if key in ("size", "crop"):
        return tuple(numbers) if all(type(n) is int and n > 0 for n in numbers) else None
    wrong = 0 in numbers if key == "std" else key == "range" and numbers[0] == numbers[1]
    return None if wrong else tuple(map(float, numbers))


def reason_of(error: BaseException) -> str:
    """What went wrong, in its own words, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
