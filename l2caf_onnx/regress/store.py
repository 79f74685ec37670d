"""A baseline on disk: parts of a few inputs each as `.npz`, and a `manifest.json` that names them with their digests.

The parts are written first, each under a name that holds its digest; the manifest, in one rename, makes them the
baseline. So an interrupted run leaves what it did to go on from, an update replaces the old state at once or not at
all, and a file that was changed or cut short is noticed. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import filters
from l2caf_onnx.errors import InputError
from l2caf_onnx.records import load_manifest, plain, save_arrays, save_manifest

from .observation import Observation, joined

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
_SHOWN = 32  # of a stored heatmap, the longest side
_MANY = 4096  # cells of a filter that is stored in bytes
_TOP = 5
_BYTES = 255
_HOW = "Make it anew with `l2caf-onnx baseline`."
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def digest_of(data: bytes) -> str:
    """sha256."""
    return hashlib.sha256(data).hexdigest()


# Parts


def write_part(folder: Path, start: int, seen: Observation, digests: Sequence[str]) -> str:
    """Write what was seen of the inputs from `start` on, whose digests are given; the file's name."""
    arrays: dict[str, NDArray[Any]] = {"inputs": np.array(digests, "U64")}
    if seen.targets is not None:
        arrays["targets"] = seen.targets
    for k, (name, values) in enumerate(seen.outputs.items()):
        arrays[f"output/{k}/values"], arrays[f"output/{k}/size"] = values, seen.sizes[name]
        if values.shape[1] > _TOP:
            ranked = np.nan_to_num(values, nan=-np.inf)
            arrays[f"output/{k}/top"] = np.argsort(-ranked, axis=1, kind="stable")[:, :_TOP].astype(np.int32)
    for k, (name, values) in enumerate(seen.tensors.items()):
        arrays[f"tensor/{k}/values"], arrays[f"tensor/{k}/statistics"] = values, seen.statistics[name]
    for k, (name, values) in enumerate(seen.filters.items()):
        arrays |= {f"attention/{k}/{key}": v for key, v in _packed(values).items()}
        arrays[f"attention/{k}/heatmap"] = _thumbnails(values, seen.maps[name].shape[1:])
    return write_named(folder, f"part-{start:06d}", arrays)


def write_named(folder: Path, stem: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write arrays to a file whose name ends in its digest, so that no state overwrites another; the name."""
    temporary = folder / f"{stem}.npz"
    save_arrays(temporary, arrays)
    final = folder / f"{stem}-{digest_of(temporary.read_bytes())[:12]}.npz"
    temporary.replace(final)
    return final.name


def read_part(path: Path, manifest: Mapping[str, Any]) -> tuple[Observation, list[str]]:
    """What `write_part` wrote, and the digests of its inputs.

    Raises:
        InputError: the file is missing, damaged, or not what the manifest says.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        digests = [str(d) for d in arrays["inputs"]]
        return _observation(arrays, manifest, len(digests)), digests
    except _DAMAGED as e:
        raise InputError("A part of the baseline is missing or damaged.", where=f"File {str(path)!r}.", how=_HOW) from e


def _observation(arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any], count: int) -> Observation:
    outputs = {o["name"]: f"output/{k}" for k, o in enumerate(manifest["outputs"])}
    tensors = {name: f"tensor/{k}" for k, name in enumerate(manifest["tensors"])}
    breaks = {b["name"]: (f"attention/{k}", tuple(b["map"])) for k, b in enumerate(manifest["at"])}
    unpacked = {name: _unpacked(arrays, key) for name, (key, _) in breaks.items()}
    return Observation(
        outputs={name: arrays[f"{key}/values"] for name, key in outputs.items()},
        sizes={name: arrays[f"{key}/size"] for name, key in outputs.items()},
        kinds={o["name"]: o["kind"] for o in manifest["outputs"]},
        tensors={name: arrays[f"{key}/values"] for name, key in tensors.items()},
        statistics={name: arrays[f"{key}/statistics"] for name, key in tensors.items()},
        filters=unpacked,
        maps={name: drawn(unpacked[name], size) for name, (_, size) in breaks.items()},
        targets=arrays.get("targets"),
    )


def _packed(values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Half precision, or bytes between the ends of each filter where it has many cells."""
    cells = int(np.prod(values.shape[1:]))
    if cells <= _MANY:
        return {"filter": values.astype(np.float16)}
    rows = values.reshape(len(values), -1)
    low, high = rows.min(1), rows.max(1)
    step = np.where(high > low, (high - low) / _BYTES, 1).astype(np.float32)
    coded = np.rint((rows - low[:, None]) / step[:, None]).astype(np.uint8)
    return {"filter": coded.reshape(values.shape), "low": low, "step": step}


def _unpacked(arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[np.float32]:
    coded = arrays[f"{key}/filter"].astype(np.float32)
    if f"{key}/step" not in arrays:
        return coded
    each = (-1, *[1] * (coded.ndim - 1))
    return np.asarray(coded * arrays[f"{key}/step"].reshape(each) + arrays[f"{key}/low"].reshape(each), np.float32)


def drawn(values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """The maps of filters: they follow from them."""
    return filters.heatmap(values, size, absolute=False)[0]


def _thumbnails(values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Heatmaps of at most 32 cells a side, in bytes, to be looked at without the program."""
    small = tuple(max(1, round(s * min(1, _SHOWN / max(size)))) for s in size)
    return np.asarray(np.rint(drawn(values, small) * _BYTES), np.uint8)


# The manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any], parts: Sequence[str], weights: str) -> None:
    """Make the parts named the baseline, with the file that tells of the weights; remove what was there before."""
    listed = [{"name": name, "sha256": digest_of((folder / name).read_bytes())} for name in (*parts, weights)]
    whole = plain({**manifest, "files": listed[:-1], "weights": listed[-1]})
    save_manifest(folder / MANIFEST, {**whole, "digest": _digest(whole)})
    (folder / UNFINISHED).unlink(missing_ok=True)
    for old in (*folder.glob("part-*.npz"), *folder.glob("weights-*.npz")):
        if old.name not in (*parts, weights):
            old.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a baseline, verified.

    Raises:
        InputError: there is none, it is of another schema version, or it was changed by hand.
    """
    where = f"Folder {str(folder)!r}."
    if not (folder / MANIFEST).is_file():
        if (folder / UNFINISHED).is_file():
            raise InputError(
                "The baseline was interrupted.", where=where, how="Run `l2caf-onnx baseline` again: it goes on."
            )
        raise InputError("There is no baseline.", where=where, how="Make one with `l2caf-onnx baseline`.")
    manifest = load_manifest(folder / MANIFEST)
    manifest.pop("schema_version", None)
    stated = manifest.pop("digest", None)
    if manifest.get("kind") != "baseline" or stated != _digest(manifest):
        what = "The manifest is not as the program wrote it: it was changed, or is of something else."
        raise InputError(what, where=f"File {str(folder / MANIFEST)!r}.", how=_HOW)
    return manifest


def read_baseline(folder: Path) -> tuple[dict[str, Any], Observation, dict[str, NDArray[Any]]]:
    """The manifest, what was seen of all inputs, and values of the model's weights by name.

    Raises:
        InputError: as `read_manifest`; a part is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    found = [read_part(_verified(folder, file), manifest)[0] for file in manifest["files"]]
    path = _verified(folder, manifest["weights"])
    with np.load(path, allow_pickle=False) as stored:  # its digest is right: it is what was written
        weights = {str(name): stored[f"weight/{k}"] for k, name in enumerate(stored["names"])}
    return manifest, joined(found), weights


def _verified(folder: Path, file: Mapping[str, str]) -> Path:
    path = folder / Path(file["name"]).name
    try:
        same = digest_of(path.read_bytes()) == file["sha256"]
    except OSError:
        same = False
    if not same:
        what = "A part of the baseline is missing, cut short or changed: its digest is another."
        raise InputError(what, where=f"File {str(path)!r}.", how=_HOW)
    return path


def size_of(folder: Path) -> int:
    """Bytes of all files of a baseline."""
    return sum(f.stat().st_size for f in (*folder.glob("*.npz"), folder / MANIFEST))


def _digest(manifest: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(plain(manifest), sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


# Going on


def begin(folder: Path, settings: Mapping[str, Any], *, force: bool) -> None:
    """Make the folder ready for a baseline of these settings; parts of an interrupted one of the same are kept.

    Raises:
        InputError: there is a baseline already, an interrupted one of other settings, or it is no folder to write to.
    """
    where = f"Folder {str(folder)!r}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"The folder cannot be made: {e.strerror}.", where=where, how="Choose another one.") from e
    if (folder / MANIFEST).exists() and not force:
        how = "Add --force to replace it, or `l2caf-onnx check --update` to see what changes first."
        raise InputError("There is a baseline already.", where=where, how=how)
    before = _unfinished(folder)
    if before is not None and before != plain(settings) and not force:
        how = "Add --force to begin anew, or give the settings that it was begun with."
        raise InputError("An interrupted baseline of other settings or inputs is there.", where=where, how=how)
    if before is None or before != plain(settings):
        save_manifest(folder / UNFINISHED, {"settings": settings})


def _unfinished(folder: Path) -> Any:
    try:
        return load_manifest(folder / UNFINISHED)["settings"]
    except (InputError, KeyError):
        return None


def kept_part(
    folder: Path, start: int, manifest: Mapping[str, Any], digests: Sequence[str]
) -> tuple[str, Observation] | None:
    """The part from `start` on of an interrupted run, if it is whole and of the same inputs."""
    for path in sorted(folder.glob(f"part-{start:06d}-*.npz")):
        try:
            seen, stored = read_part(path, manifest)
        except InputError:
            continue
        whole = path.stem.rsplit("-", 1)[-1] == digest_of(path.read_bytes())[:12]
        if whole and stored == list(digests):
            return path.name, seen
    return None
