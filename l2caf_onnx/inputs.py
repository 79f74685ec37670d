"""What a user has at hand (photos, folders, arrays) becomes the named arrays that a model takes.

Files are found first and read one at a time later, so that a folder of ten thousand photos costs no memory. The picture
that the model saw is kept beside its array: a heatmap drawn on any other picture would be off by the crop.
"""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .errors import InputError, nearest
from .preprocess import PRESETS, Preprocess, Source, preprocess_from, reason_of, stated_by
from .records import TensorInfo
from .stored import Stored, stored

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # no more: Pillow hands EPS to Ghostscript
# What Pillow, numpy and zipfile raise on damaged files, beside their own errors.
_OTHERS = (EOFError, SyntaxError, LookupError, TypeError, ArithmeticError, MemoryError, RuntimeError)
_DAMAGED = (OSError, ValueError, *_OTHERS, struct.error, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One sample, ready for the model.

    `name` is the paths as given; `feeds`, by input name, has pictures with a batch axis of 1, arrays as stored. `image`
    is what the model saw at its first input given a picture, RGB, cropped but not normalised; None where there is none.
    """

    name: str
    feeds: dict[str, NDArray[Any]]
    image: Image.Image | None


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of an array that holds several, along its batch axis."""

    source: Path | Stored
    number: int
    axis: int

    def __str__(self) -> str:
        return f"{self.source}[{self.number}]"


Part = tuple[TensorInfo, Path | Stored | Row, Preprocess | None]


@dataclass(frozen=True, slots=True)
class PendingSample:
    """A sample whose files are there but not read yet: for each input its file, and None where that is an array."""

    name: str
    parts: tuple[Part, ...]

    def read(self) -> Sample:
        """Read the files; an InputError where one is damaged, too large or of a kind that is not taken."""
        feeds: dict[str, NDArray[Any]] = {}
        image = None
        for tensor, path, settings in self.parts:
            if settings is None or not isinstance(path, Path):
                feeds[tensor.name] = _read(path, tensor.name)
            else:
                channels = _channels(tensor, settings.layout)
                array, seen = prepare(read_image(path), settings, channels=channels, dtype=tensor.dtype)
                feeds[tensor.name], image = array, image or seen
        return Sample(self.name, feeds, image)


def find_samples(
    specs: Sequence[str], inputs: Sequence[TensorInfo], layouts: Mapping[str, str], preprocess: Source | None
) -> tuple[PendingSample, ...]:
    """The samples that the INPUT arguments `specs` name, in order; no file is decoded yet.

    A spec is a path (picture, folder of pictures, `.npy`, `.npz` keyed by input names, what stored.py reads) or
    `NAME=PATH`. An array of several rows along the batch axis is as many samples, unless the model wants so many at
    once. Files for different inputs are zipped into samples; a single one for an input serves all samples. `layouts`
    are by input name, such as "NCHW"; inputs without one take no pictures. `preprocess` may be None where only arrays
    are given.

    Raises:
        InputError: a file is missing or does not suit the model, pictures have no `preprocess`, or counts disagree.
    """
    stated = stated_by(preprocess).get("layout") if preprocess else None
    layouts = {i.name: stated or layouts.get(i.name, "") for i in inputs}
    columns: dict[str, list[Part]] = {i.name: [] for i in inputs}
    for spec in specs:
        try:
            for part in _parts(spec, inputs, layouts, preprocess):
                columns[part[0].name] += _rows(part, layouts[part[0].name])
        except OSError as e:
            raise InputError(f"{spec!r} cannot be looked up: {reason_of(e)}.") from e
    total = max(map(len, columns.values()), default=0)
    if not total or any(len(parts) not in (1, total) for parts in columns.values()):
        text = ", ".join(f"{len(parts)} for {name!r}" for name, parts in columns.items())
        how = "Give each input (as NAME=PATH, or in an .npz) as many files, or one that serves all samples."
        raise InputError(f"These numbers of files do not make samples: {text or 'none'}.", where=_list(inputs), how=how)
    rows = [tuple(parts[i % len(parts)] for parts in columns.values()) for i in range(total)]
    return tuple(PendingSample(", ".join(dict.fromkeys(str(part[1]) for part in row)), row) for row in rows)


def read_image(path: Path) -> Image.Image:
    """The picture as RGB: upright by its EXIF, on white where transparent, 16 bits rounded to 8, first frame.

    Raises:
        InputError: not a picture, damaged, not of 8 or 16 bits, or (by its header alone) beyond Pillow's size limit.
    """
    where = f"File {str(path)!r}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                return _rgb(opened, where)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        what = f"The picture claims more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels and is not decoded."
        raise InputError(what, where=where, how="Make it smaller.") from e
    except _DAMAGED as e:
        how = f"Pictures that can be read are {', '.join(_FORMATS)}; arrays are .npy and .npz."
        raise InputError(f"The picture cannot be read: {reason_of(e)}.", where=where, how=how) from e


def prepare(
    picture: Image.Image, settings: Preprocess, *, channels: int = 3, dtype: str = "float32"
) -> tuple[NDArray[Any], Image.Image]:
    """The array (1, C, H, W) or (1, H, W, C) for the model, and the RGB picture (H, W) that it shows.

    Raises:
        InputError: the crop is larger than the picture, or the model takes bytes and `settings` give other numbers.
    """
    if dtype == "uint8" and settings != replace(settings, range=(0.0, 255.0), mean=(0.0,) * 3, std=(1.0,) * 3):
        what = f"The model takes bytes (uint8), preprocessing {settings.name!r} gives other numbers."
        raise InputError(what, how="Use raw, or a TOML file with range = [0, 255] and without mean and std.")
    seen = _fit(picture, settings)
    seen = seen.convert("L").convert("RGB") if channels == 1 else seen
    pixels = np.asarray(seen, dtype=np.float64)[..., :: -1 if settings.channel_order == "BGR" else 1][..., :channels]
    mean, std = (np.array(v) if channels == 3 else np.mean(v) for v in (settings.mean, settings.std))
    low, high = settings.range
    values = (low + pixels * ((high - low) / 255) - mean) / std
    values = values.transpose(2, 0, 1) if settings.layout == "NCHW" else values
    return np.ascontiguousarray(values[None], dtype=dtype), seen


def _fit(picture: Image.Image, settings: Preprocess) -> Image.Image:
    """Resize and crop, rounded as torchvision rounds; a panorama that would become a bomb on the way is refused."""
    width, height = picture.size
    tall, wide = settings.size or (height, width)
    tall, wide = (tall, tall * width // height) if tall * width >= wide * height else (wide * height // width, wide)
    rows, columns = settings.crop or (tall, wide)
    if rows > tall or columns > wide or tall * wide > (Image.MAX_IMAGE_PIXELS or tall * wide):
        what = f"A picture of {height, width} cannot be scaled to {tall, wide} and cropped to {rows, columns}."
        raise InputError(what, where="(Height, width.)", how="Give it in another shape, or larger.")
    top, left = round((tall - rows) / 2), round((wide - columns) / 2)
    full = picture.resize((wide, tall), Image.Resampling.BICUBIC)
    return full.crop((left, top, left + columns, top + rows))


def _rgb(opened: Image.Image, where: str) -> Image.Image:
    if opened.mode == "F" or (opened.mode == "I" and opened.format != "PNG"):
        raise InputError("Its pixels are neither bytes nor 16-bit integers.", where=where, how="Give it as .npy.")
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):
        wide = np.asarray(upright).astype(np.uint32)  # Pillow's own conversion clips at 255
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def _parts(
    spec: str, inputs: Sequence[TensorInfo], layouts: Mapping[str, str], preprocess: Source | None
) -> Iterator[Part]:
    """The files that one INPUT argument names, each with its input and, for a picture, the settings."""
    named, path = _split(spec, inputs)
    where, suffix = f"File {str(path)!r}; {_list(inputs)}", "" if path.is_dir() else path.suffix.lower()
    if not (path.is_dir() and any(_pictures(path))) and (others := stored(path, named, inputs)):
        yield from ((tensor, place, None) for tensor, place in others)
    elif suffix == ".npz":
        keys, known = _keys(path), {i.name: i for i in inputs}
        if named is not None or not keys or not set(keys) <= set(known):
            what = f"The .npz holds {', '.join(map(repr, keys)) or 'nothing'}; its keys must be the model's inputs."
            raise InputError(what, where=where, how="Save it with those keys, and give it without NAME=.")
        yield from ((known[key], path, None) for key in keys)
    elif suffix == ".npy":
        if named is None and len(inputs) != 1:
            raise InputError("Which input takes this array?", where=where, how="Write NAME=PATH.")
        yield named or inputs[0], path, None
    else:
        fit = [i for i in inputs if _channels(i, layouts[i.name])]
        if named not in fit if named else len(fit) != 1:
            names = ", ".join(repr(i.name) for i in fit) or "none"
            how = "Write NAME=PATH for a picture, and give other inputs an .npy or .npz."
            raise InputError(f"A picture is given; the inputs that take one: {names}.", where=where, how=how)
        tensor = named or fit[0]
        if preprocess is None:
            how = f"Add --preprocess {' | '.join(PRESETS)}, or a TOML file."
            raise InputError("It is not said how pictures become numbers.", where=where, how=how)
        sides = [(tensor.shape or ())[layouts[tensor.name].index(axis)] for axis in "HW"]
        tall, wide = (side if isinstance(side, int) and side > 0 else 0 for side in sides)
        size = (tall or wide, wide or tall) if tall or wide else None  # an unknown side is taken to be as the other
        settings = preprocess_from(preprocess, size=size, layout=layouts[tensor.name])
        yield from ((tensor, file, settings) for file in (_pictures_in(path) if path.is_dir() else [path]))


def _rows(part: Part, layout: str) -> list[Part]:
    """The samples in one array: as many as it has rows along N of `layout`, where the model takes one at a time."""
    tensor, source, settings = part
    axis = layout.find("N")
    if settings is not None or isinstance(source, Row) or axis < 0 or len(tensor.shape or ()) != len(layout):
        return [part]
    if tensor.shape is None or not (isinstance(tensor.shape[axis], str) or tensor.shape[axis] == 1):
        return [part]
    shape = source.shape(tensor.name) if isinstance(source, Stored) else _shape(source, tensor.name)
    if len(shape) != len(tensor.shape) or shape[axis] < 2:
        return [part]
    return [(tensor, Row(source, k, axis), None) for k in range(shape[axis])]


def _shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of an array by its header alone; () where it has none, which reading will tell better."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                return _header(stream)
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            return _header(member)
    except _DAMAGED:
        return ()


def _header(stream: IO[bytes]) -> tuple[int, ...]:
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return tuple(read(stream)[0])


def _split(spec: str, inputs: Sequence[TensorInfo]) -> tuple[TensorInfo | None, Path]:
    """The input that `NAME=PATH` names (None for a mere path) and its path, which exists; names may hold '=' too."""
    named, rest = None, spec
    if not os.path.exists(spec):  # noqa: PTH110  # Path.exists fails on a NAME=PATH too long to be a file's name
        named = max((i for i in inputs if spec.startswith(i.name + "=")), key=lambda i: len(i.name), default=None)
        rest = spec[len(named.name) + 1 :] if named else spec
    path = Path(rest)
    if rest and (path.is_file() or path.is_dir()):
        return named, path
    name, _, after = spec.partition("=")
    near = [f"{n}={after}" for n in nearest(name, (i.name for i in inputs))] if after and not named else []
    near += nearest(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ()
    how = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(f"There is no file or folder {rest!r}.", where=f"Folder {str(path.parent)!r}.", how=how)


def _pictures(folder: Path) -> Iterator[Path]:
    return (f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "." and f.is_file())


def _pictures_in(folder: Path) -> list[Path]:
    if files := sorted(_pictures(folder)):
        return files
    raise InputError(
        "The folder holds no picture.",
        where=f"Folder {str(folder)!r}.",
        how=f"Put pictures there: {' '.join(IMAGE_SUFFIXES)}.",
    )


def _keys(path: Path) -> list[str]:
    """The names of the arrays of an `.npz`, from its directory alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGED as e:
        raise InputError(f"The file is not an .npz: {reason_of(e)}.", where=f"File {str(path)!r}.") from e


def _read(source: Path | Stored | Row, name: str) -> NDArray[Any]:
    if isinstance(source, Stored):
        return source.read(name)
    if isinstance(source, Path):
        return _read_array(source, name)
    if isinstance(source.source, Path) and source.source.suffix.lower() == ".npy":
        whole = _read_array(source.source, name, lazily=True)
    else:
        whole = _kept(source.source, name, _changed(source.source))
    piece = slice(source.number, source.number + 1)
    return np.array(whole[(slice(None),) * source.axis + (piece,)])


@lru_cache(maxsize=2)
def _kept(source: Path | Stored, name: str, changed: int) -> NDArray[Any]:
    """An array that cannot be read in part, read once for the samples in it, as long as its file has not `changed`."""
    return _read(source, name)


def _changed(source: Path | Stored) -> int:
    return (source.path if isinstance(source, Stored) else source).stat().st_mtime_ns


def _read_array(path: Path, name: str, *, lazily: bool = False) -> NDArray[Any]:
    """The array of an `.npy`, or that called `name` of an `.npz`; no pickles."""
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if lazily else None)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                loaded = loaded[name]
        if not isinstance(loaded, np.ndarray):  # numpy gives bytes for what is no array
            raise ValueError("what it holds is not an array")
        return loaded
    except _DAMAGED as e:
        how = "Save numbers with numpy.save or numpy.savez; Python objects (pickles) are never loaded."
        raise InputError(f"The array cannot be read: {reason_of(e)}.", where=f"File {str(path)!r}.", how=how) from e


def _channels(tensor: TensorInfo, layout: str) -> int:
    """1 or 3 (a symbolic number is taken for 3); 0 where the input takes no pictures."""
    numbers, shape = ("float16", "float32", "float64", "uint8"), tensor.shape or ()
    if layout not in ("NCHW", "NHWC") or tensor.dtype not in numbers or len(shape) != 4:
        return 0
    channels = shape[layout.index("C")]
    return 3 if isinstance(channels, str) else channels if channels in (1, 3) else 0


def _list(inputs: Sequence[TensorInfo]) -> str:
    return "The model's inputs: " + ", ".join(f"{i.name!r} {i.dtype} {i.shape}" for i in inputs) + "."
