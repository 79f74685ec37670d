"""The files of results: a `.npz` beside a `manifest.json`, each written under a temporary name, the manifest last.

So a folder with a manifest is whole. No pickle is read or written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError

SCHEMA_VERSION = 1


def write_atomic(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`; on any failure nothing is left.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".l2caf-", suffix=".part")
    except OSError as e:
        raise InputError(
            f"The folder cannot be written to: {e.strerror}.",
            where=f"Folder {str(path.parent)!r}.",
            how="Choose another one.",
        ) from e
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private; a result is an ordinary file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed `.npz` of `arrays`, atomically."""
    write_atomic(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **dict(arrays)))


def save_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest` with the schema version as JSON, atomically. Call it last: it says that all is there."""
    document = {"schema_version": SCHEMA_VERSION, **manifest}
    text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    write_atomic(path, write)


def load_manifest(path: Path) -> dict[str, Any]:
    """Read what `save_manifest` wrote.

    Raises:
        InputError: missing, not JSON, or of another schema version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"The manifest cannot be read: {e.strerror}.", where=f"File {str(path)!r}.") from e
    except ValueError as e:
        raise InputError("The manifest is not valid JSON.", where=f"File {str(path)!r}.", how="Make it anew.") from e
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"The manifest has schema version {version!r}; this program reads {SCHEMA_VERSION}.",
            where=f"File {str(path)!r}.",
            how="Make it anew with this version.",
        )
    return dict(document)


def plain(value: Any) -> Any:
    """`value` as JSON-ready types; NaN and infinities, which JSON has not, become their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value
