"""The inputs of a baseline: where they are and what they were, so that a check finds the same, or says what changed.

Files are remembered by place and digest, and read again; arrays that a program handed over by digest alone, and are
asked for again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Data, Given, collect
from l2caf_onnx.explain.batches import batch_axis, cut_out
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.inputs import Part, PendingSample, Row, find_samples
from l2caf_onnx.preprocess import PRESETS, Source, stated_by
from l2caf_onnx.records import TensorInfo
from l2caf_onnx.stored import Stored

from .given import adapted, samples

Entry = Mapping[str, Any]


def described(data: Data, folder: Path) -> list[dict[str, Any]]:
    """Each input: its name, its digest, and its files as seen from `folder`."""
    known: dict[Path, str] = {}
    found = []
    for number, name in enumerate(data.names):
        files = [_file(part, folder, known) for part in data.parts(number)]
        digest = _of_files(files) if files else _of_arrays(data.read(number).feeds)
        found.append({"name": name, "sha256": digest, "files": files})
    return found


def signature(data: Data) -> list[dict[str, Any]]:
    """What the inputs are to the model: names, where the samples are, and the shape of the first."""
    first = data.read(0).feeds
    return [
        {"name": i.name, "axis": batch_axis(data.model, i.name), "shape": list(first[i.name].shape)}
        for i in data.model.inputs
        if i.name in first
    ]


def stated(preprocess: Source | None) -> Any:
    """How pictures become numbers, so that it can be read again without the file that said so."""
    if preprocess is None or (isinstance(preprocess, str) and preprocess in PRESETS):
        return preprocess
    return {key: list(v) if isinstance(v, tuple) else v for key, v in stated_by(preprocess).items()}


def recalled(
    manifest: Mapping[str, Any], folder: Path, model: Model, inputs: Given | None, preprocess: Source | None
) -> Data:
    """The inputs of a baseline as samples of `model`, in the baseline's order.

    Args:
        manifest: Of the baseline.
        folder: Where it is.
        model: What is checked.
        inputs: The same inputs again, where they were arrays or files that are elsewhere now.
        preprocess: How pictures become numbers for this model; None: as in the baseline.

    Raises:
        InputError: inputs are missing, or are not what they were; the model takes them in another size.
    """
    entries: list[Entry] = manifest["inputs"]
    how = manifest["preprocess"] if preprocess is None else preprocess
    if isinstance(inputs, Mapping):
        data = _arrays_again(manifest, model, inputs)
    elif inputs is not None:
        data = _among(collect(model, inputs, how), entries)
    elif entries[0]["files"]:
        data = _files_again(manifest, folder, model, how)
    else:
        what = "The baseline's inputs were arrays, which it does not hold."
        raise InputError(what, where=f"Folder {str(folder)!r}.", how="Give them again (`inputs`, or --input FILE.npz).")
    _refuse_other_size(manifest, data)
    return data


def _file(part: Part, folder: Path, known: dict[Path, str]) -> dict[str, Any]:
    tensor, place, settings = part
    source = place.source if isinstance(place, Row) else place
    path = source.path if isinstance(source, Stored) else source
    if path not in known:
        known[path] = _digest(path)
    found: dict[str, Any] = {"input": tensor.name, "path": _seen_from(path, folder), "sha256": known[path]}
    if isinstance(source, Stored):
        found |= {"stored": source.name, "number": source.number}
    if isinstance(place, Row):
        found |= {"row": place.number, "axis": place.axis}
    if settings is not None:
        found["picture"] = True
    return found


def _seen_from(path: Path, folder: Path) -> str:
    """Relative to the baseline, so that both may move together; absolute where there is no way."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise InputError(f"The input cannot be read: {e.strerror}.", where=f"File {str(path)!r}.") from e


def _of_files(files: Sequence[Entry]) -> str:
    text = "".join(f"{f['sha256']} {f.get('number')} {f.get('row')}\n" for f in files)
    return hashlib.sha256(text.encode()).hexdigest()


def _of_arrays(feeds: Mapping[str, NDArray[Any]]) -> str:
    total = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _arrays_again(manifest: Mapping[str, Any], model: Model, inputs: Mapping[str, Any]) -> Data:
    arrays = {name: np.asarray(a) for name, a in inputs.items()}
    along = {s["name"]: s["axis"] for s in manifest["signature"] if s["axis"] >= 0 and s["name"] in arrays}
    entries = manifest["inputs"]
    for number, entry in enumerate(entries):
        own = cut_out(arrays, along, slice(number, number + 1))
        if _of_arrays(own) != entry["sha256"]:
            raise InputError(
                f"Input {number} ({entry['name']!r}) is not what it was when the baseline was made.",
                where="The arrays that were given.",
                how="Give the same arrays, in the same order, or make the baseline anew.",
            )
    if any(arrays[n].shape[a] != len(entries) for n, a in along.items()):
        raise InputError(
            f"The baseline has {len(entries)} inputs.", where="More arrays were given.", how="Give the same."
        )
    return samples(model, adapted([s["name"] for s in manifest["signature"]], model, arrays), None)


def _among(data: Data, entries: Sequence[Entry]) -> Data:
    """Of samples found elsewhere those of the baseline, by their digests."""
    known: dict[Path, str] = {}
    here: dict[str, int] = {}
    for number in range(len(data)):
        files = [_file(part, Path(), known) for part in data.parts(number)]
        here.setdefault(_of_files(files), number)
    missing = [e["name"] for e in entries if e["sha256"] not in here]
    if missing:
        raise _absent(missing, len(entries), "None of the files given is what it was")
    chosen = [here[e["sha256"]] for e in entries]
    return Data(data.model, [PendingSample(data.names[k], data.parts(k)) for k in chosen])


def _absent(missing: Sequence[str], total: int, why: str) -> InputError:
    return InputError(
        f"{len(missing)} of the baseline's {total} inputs are missing, or changed since it was made.",
        where=f"{why}: {', '.join(map(repr, missing[:3]))}.",
        how="Bring them back (or say with --input where they are), or make the baseline anew.",
    )


def _files_again(manifest: Mapping[str, Any], folder: Path, model: Model, how: Source | None) -> Data:
    theirs = {i.name: i for i in model.inputs}
    order = dict(zip([s["name"] for s in manifest["signature"]], model.inputs, strict=False))
    known: dict[Path, str] = {}
    missing = [e["name"] for e in manifest["inputs"] if not all(_is_there(f, folder, known) for f in e["files"])]
    if missing:
        raise _absent(missing, len(manifest["inputs"]), "At the place where they were")
    files = [f for e in manifest["inputs"] for f in e["files"]]
    renamed = any(f["input"] not in theirs for f in files)
    if renamed and not any("picture" in f for f in files):  # arrays are stored under the names of the baseline's inputs
        return _under_other_names(manifest, folder, model)
    letters = layouts(model)
    found = []
    for entry in manifest["inputs"]:
        parts: list[Part] = []
        for file in entry["files"]:
            tensor = theirs.get(file["input"]) or order.get(file["input"])
            if tensor is None:
                raise InputError(
                    f"The model has no input for the baseline's {file['input']!r}.",
                    where=f"Its inputs: {', '.join(theirs)}.",
                    how="Make a baseline of it.",
                )
            parts.append(_part(file, folder / file["path"], tensor, letters, how))
        found.append(PendingSample(entry["name"], tuple(parts)))
    return Data(model, found)


def _is_there(file: Entry, folder: Path, known: dict[Path, str]) -> bool:
    """Whether a file is where it was, and what it was."""
    path = folder / file["path"]
    if path not in known:
        known[path] = _digest(path) if path.is_file() else ""
    return bool(known[path] == file["sha256"])


def _under_other_names(manifest: Mapping[str, Any], folder: Path, model: Model) -> Data:
    """Stored arrays, for a model that calls its inputs otherwise."""
    names = [s["name"] for s in manifest["signature"]]
    plain = {name: TensorInfo(name, "?", None) for name in names}
    rows = []
    for entry in manifest["inputs"]:
        parts = tuple(_part(f, folder / f["path"], plain[f["input"]], {}, None) for f in entry["files"])
        rows.append(PendingSample(entry["name"], parts).read().feeds)
    along = {s["name"]: s["axis"] for s in manifest["signature"]}
    arrays = {n: np.concatenate([r[n] for r in rows], along[n]) if along[n] >= 0 else rows[0][n] for n in names}
    return samples(model, adapted(names, model, arrays), None)


def _part(file: Entry, path: Path, tensor: TensorInfo, letters: Mapping[str, str], how: Source | None) -> Part:
    if "picture" not in file:
        source = Stored(path, file["stored"], file["number"]) if "stored" in file else path
        return tensor, Row(source, file["row"], file["axis"]) if "row" in file else source, None
    return find_samples([f"{tensor.name}={path}"], [tensor], letters, how)[0].parts[0]


def _refuse_other_size(manifest: Mapping[str, Any], data: Data) -> None:
    """Raise InputError where the model takes its inputs in another size: its answers are no counterpart."""
    feeds = list(data.read(0).feeds.values())
    for was, array in zip(manifest["signature"], feeds, strict=False):
        if sorted(was["shape"]) != sorted(array.shape):
            raise InputError(
                f"The model takes inputs of another size: {tuple(array.shape)}, the baseline's were "
                f"{tuple(was['shape'])}.",
                where=f"Input {was['name']!r}.",
                how="Check a model of the same input size, or make a baseline of this one.",
            )
