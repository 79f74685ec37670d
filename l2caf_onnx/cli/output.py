"""The output folder: claimed before the work, whole when its `manifest.json` is there, never half overwritten."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from l2caf_onnx.errors import InputError

MANIFEST = "manifest.json"


def claim(folder: Path, *, force: bool) -> Path:
    """Make `folder` and see that it can be written to; what it holds is kept unless `force`.

    Raises:
        InputError: it is a file, cannot be written to, or is not empty without `force`.
    """
    where = f"Folder {str(folder)!r}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError) as e:
        raise InputError("The output folder is a file.", where=where, how="Choose another one with -o.") from e
    except OSError as e:
        raise InputError(
            f"The output folder cannot be made: {e.strerror}.", where=where, how="Choose another one with -o."
        ) from e
    if filled and not force:
        raise InputError(
            "The output folder is not empty.",
            where=where,
            how="Add --force to overwrite, or choose another one with -o.",
        )
    probe = folder / ".l2caf-probe"
    try:
        probe.touch()
        probe.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)  # until all is written anew, nothing says that it is whole
    except OSError as e:
        raise InputError(
            f"The output folder cannot be written to: {e.strerror}.", where=where, how="Choose another one with -o."
        ) from e
    return folder


def unused(stem: str) -> Path:
    """`stem` in the current folder, or `stem-2`, `stem-3`, ...: the first that does not exist."""
    candidate, count = Path(stem), 1
    while candidate.exists():
        count += 1
        candidate = Path(f"{stem}-{count}")
    return candidate


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, Any]:
    """What computed the result."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in (
        "l2caf_onnx",
        "onnx",
        "onnxruntime-gpu",
        "onnxruntime",
        "torch",
        "onnx2torch",
        "onnx2pytorch",
        "numpy",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
