"""The output folder: claimed before the work, whole when its `manifest.json` is there, never half overwritten."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2caf_onnx.errors import InputError

MANIFEST = "manifest.json"


@contextmanager
def staged(folder: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write into, whose files appear in `folder` when all went well, the manifest last; else nothing does.

    Raises:
        InputError: `folder` is a file, cannot be written to, or is not empty without `force`.
    """
    where = f"Folder {str(folder)!r}."
    how = "Choose another one with -o."
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except (FileExistsError, NotADirectoryError) as e:
        raise InputError("The output folder is a file.", where=where, how=how) from e
    except OSError as e:
        raise InputError(f"The output folder cannot be made: {e.strerror}.", where=where, how=how) from e
    if filled and not force:
        raise InputError("The output folder is not empty.", where=where, how=f"Add --force to overwrite. {how}")
    try:
        stage = Path(tempfile.mkdtemp(dir=folder, prefix=".l2caf-"))
    except OSError as e:
        raise InputError(f"The output folder cannot be written to: {e.strerror}.", where=where, how=how) from e
    try:
        yield stage
        (folder / MANIFEST).unlink(missing_ok=True)  # while old and new files are mixed, nothing says that all is there
        for file in sorted(stage.iterdir(), key=lambda f: (f.name == MANIFEST, f.name)):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


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
    from importlib.metadata import PackageNotFoundError, version  # a twentieth of what --help costs

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
