"""Where things are, by annotators: COCO JSON, Pascal VOC XML, and CSV, read as what strangers wrote.

A VOC file with a document type is refused unread: entities are how a small XML file becomes a large one, or another.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from l2caf_onnx.errors import InputError, nearest
from l2caf_onnx.preprocess import reason_of

from .scores import Box

Marked = tuple[str, Box]  # label, box in pixels of the picture, upright
Annotations = Mapping[str, Sequence[Marked]]  # by file name
_COLUMNS = ("file", "label", "x0", "y0", "x1", "y1")
_LARGEST = 1e6  # pixels
_MOST_BYTES = 2**30


def read_boxes(paths: Sequence[str | Path] | str | Path) -> Annotations:
    """The boxes in annotation files, by the name of the picture; a folder stands for the `.xml` files in it.

    COCO: `bbox` is x, y, width, height from 0. VOC: `xmin` and so on are pixels from 1, the last one inside. CSV:
    file,label,x0,y0,x1,y1 from 0, the ends outside; a heading of these words is skipped.

    Raises:
        InputError: a file that cannot be read, with the line or the number of the annotation.
    """
    found: dict[str, list[Marked]] = {}
    for path in [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]:
        files = sorted(path.glob("*.xml")) if path.is_dir() else [path]
        if not files:
            raise InputError("The folder holds no .xml file.", where=f"Folder {str(path)!r}.", how="Name the file.")
        for file in files:
            for name, marked in _read(file):
                found.setdefault(name, []).append(marked)
    if not found:
        raise InputError("There is no box in the annotations.", where=f"{paths}.", how="Name other files.")
    return found


def _read(file: Path) -> Iterator[tuple[str, Marked]]:
    readers = {".json": _coco, ".xml": _voc, ".csv": _csv}
    where = f"File {str(file)!r}."
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InputError(f"{file.suffix!r} is no kind of annotation.", where=where, how=f"Give {', '.join(readers)}.")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError("The file has more than a gigabyte.", where=where, how="Cut it down.")
        data = file.read_bytes()
    except OSError as e:
        raise InputError(f"The boxes cannot be read: {reason_of(e)}.", where=where) from e
    yield from reader(data, str(file))


def _box(values: Sequence[Any], where: str) -> Box:
    """Four numbers, checked.

    Raises:
        InputError: not numbers, not finite, or no area.
    """
    try:
        x0, y0, x1, y1 = (float(v) for v in values)
    except (TypeError, ValueError) as e:
        raise InputError(f"These are not the four numbers of a box: {_short(values)}.", where=where) from e
    if not all(math.isfinite(v) and abs(v) <= _LARGEST for v in (x0, y0, x1, y1)) or x1 <= x0 or y1 <= y0:
        raise InputError(f"The box {(x0, y0, x1, y1)} (x0, y0, x1, y1) has no area, or is out of bounds.", where=where)
    return x0, y0, x1, y1


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _coco(data: bytes, file: str) -> Iterator[tuple[str, Marked]]:
    where = f"File {file!r}."
    how = 'COCO: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id", "bbox"}], "categories"}.'
    try:
        document = json.loads(data)
    except json.JSONDecodeError as e:
        raise InputError("The file is not valid JSON.", where=f"File {file!r}, line {e.lineno}.", how=how) from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"The file is not valid JSON: {reason_of(e)}.", where=where, how=how) from e
    parts: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise InputError(f"The file has no list {key!r} of objects.", where=where, how=how)
        parts[key] = part
    names = {_short(i.get("id")): i.get("file_name") for i in parts["images"]}
    kinds = {_short(c.get("id")): c.get("name") for c in parts["categories"]}
    for number, entry in enumerate(parts["annotations"]):
        own = f"File {file!r}, annotation {number}."
        name, kind = names.get(_short(entry.get("image_id"))), kinds.get(_short(entry.get("category_id")))
        if not isinstance(name, str) or not isinstance(kind, str):
            raise InputError("It names an image or a category that is not there.", where=own, how=how)
        corner = entry.get("bbox")
        if not isinstance(corner, list) or len(corner) != 4 or not all(type(v) in (int, float) for v in corner):
            raise InputError(f"Its bbox is not four numbers: {_short(corner)}.", where=own, how=how)
        x, y, wide, high = corner
        yield name, (kind, _box((x, y, x + wide, y + high), own))


def _voc(data: bytes, file: str) -> Iterator[tuple[str, Marked]]:
    where = f"File {file!r}."
    _refuse_doctype(data, file)
    root = ElementTree.fromstring(data)
    name = (root.findtext("filename") or "").strip()
    if root.tag != "annotation" or not name:
        raise InputError("This is no VOC annotation: <annotation> with a <filename>.", where=where)
    for number, entry in enumerate(root.iter("object")):
        own = f"File {file!r}, object {number}."
        kind = (entry.findtext("name") or "").strip()
        corners = [entry.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        if not kind or None in corners:
            raise InputError("The object has no <name>, or no <bndbox> of four numbers.", where=own)
        try:
            x0, y0, x1, y1 = (float(c or "") for c in corners)
        except ValueError as e:
            raise InputError(f"These are not the four numbers of a box: {_short(corners)}.", where=own) from e
        yield name, (kind, _box((x0 - 1, y0 - 1, x1, y1), own))


def _refuse_doctype(data: bytes, file: str) -> None:
    """Raise InputError where the XML is not well formed, or says what its entities are."""

    def refuse(*_: object) -> None:
        raise InputError(
            "The XML declares a document type, which may hold entities, and is not read.",
            where=f"File {file!r}, line {parser.CurrentLineNumber}.",
            how="Remove <!DOCTYPE ...>: a VOC annotation has none.",
        )

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as e:  # the latter two: unknown encodings
        line = getattr(e, "lineno", 1)
        raise InputError(
            f"The file is not valid XML: {reason_of(e)}.", where=f"File {file!r}, line {line}.", how="Write it anew."
        ) from e


def _csv(data: bytes, file: str) -> Iterator[tuple[str, Marked]]:
    how = f"A line for each box: {','.join(_COLUMNS)}."
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError("The file is not UTF-8 text.", where=f"File {file!r}.", how=how) from e
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as e:
            where = f"File {file!r}, line {reader.line_num}."
            raise InputError(f"The line cannot be read: {reason_of(e)}.", where=where, how=how) from e
        if row is None:
            return
        where = f"File {file!r}, line {reader.line_num}."
        fields = [f.strip() for f in row]
        if not any(fields) or (reader.line_num == 1 and tuple(f.lower() for f in fields) == _COLUMNS):
            continue
        if len(fields) != len(_COLUMNS) or not fields[0] or not fields[1]:
            raise InputError(f"The line has not the {len(_COLUMNS)} fields: {_short(row)}.", where=where, how=how)
        yield fields[0], (fields[1], _box(fields[2:], where))


# Of which sample, of which class


def boxes_of(annotations: Mapping[str, Sequence[Marked]], sample: str) -> list[Marked]:
    """The boxes of a sample: of the annotated file that its path ends with, or whose path ends with its.

    Raises:
        InputError: several annotated files could be meant.
    """
    own = _parts(sample)
    fitting = [name for name in annotations if _ends(own, _parts(name)) or _ends(_parts(name), own)]
    if sample in annotations:
        fitting = [sample]
    if len(fitting) > 1:
        raise InputError(
            f"The boxes of {' and '.join(map(repr, fitting[:2]))} could be those of {sample!r}.",
            how="Let the annotations name the pictures by longer paths.",
        )
    return list(annotations[fitting[0]]) if fitting else []


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _ends(whole: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return bool(end) and whole[-len(end) :] == end


def class_of(label: str, classes: Mapping[int, str]) -> int:
    """The class index that a label means: a name in `classes`, or one of the names between its commas, or an index.

    Raises:
        InputError: neither.
    """
    known: dict[str, int] = {}
    for index, name in classes.items():
        for part in (name, *name.split(",")):
            known.setdefault(part.strip().casefold(), index)
    if label.strip().casefold() in known:
        return known[label.strip().casefold()]
    if re.fullmatch(r"\d{1,9}", label.strip()):
        return int(label)
    near = nearest(label, known)
    raise InputError(
        f"The label {label!r} is no class of the model.",
        where="The boxes' labels.",
        how=f"Did you mean {' or '.join(map(repr, near))}?"
        if near
        else "Name the classes by --labels, or explain --target top1 whatever the labels.",
    )
