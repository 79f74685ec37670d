"""Other projects' methods, in child processes with the Python of .venv-peers."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.peers.setup import PYTHON, ROOT

from .table import Row


class PeerError(Exception):
    """A child could not be run."""


def peers(model: Path, feeds: Mapping[str, NDArray[Any]], repeats: int, *, slow: bool = True) -> Iterator[Row]:
    """Rows of Grad-CAM in torch and, where `slow`, of RISE (a minute).

    Raises:
        PeerError: .venv-peers is not there, or a child failed.
    """
    if not PYTHON.exists():
        raise PeerError(".venv-peers is not there: run `python -m scripts.peers.setup`.")
    (array,) = feeds.values()
    with tempfile.TemporaryDirectory(prefix="l2caf-") as folder:
        path = Path(folder) / "input.npy"
        np.save(path, array)
        for module, times in {"gradcam": repeats, **({"rise": 1} if slow else {})}.items():
            for row in child(f"scripts.peers.{module}", model, path, times)["rows"]:
                yield Row(
                    place="last conv, 7x7" if module == "gradcam" else "input", images=row["images"],
                    question=row["question"], solver=row["name"], first=row["first"], ratio=row["ratio"],
                    ms=row["ms"] / row["images"], ratios=tuple(row["ratios"]),
                )  # fmt: skip


def child(module: str, model: Path, array: Path, repeats: int) -> dict[str, Any]:
    command = [str(PYTHON), "-m", module, "--model", str(model), "--input", str(array), "--repeats", str(repeats)]
    own = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}  # l2caf_onnx sets it: peers run as they are
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{module} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
