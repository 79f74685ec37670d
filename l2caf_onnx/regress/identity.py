"""Which model it was: its name and a digest of its content."""

from __future__ import annotations

import hashlib

from l2caf_onnx.graph.model import Model


def identity(model: Model) -> dict[str, str]:
    """Name and sha256 of the graph with all that is stored in it (external data by their place alone)."""
    digest = model.cache.get("sha256", lambda: _digest(model))
    return {"name": model.name, "sha256": digest}


def _digest(model: Model) -> str:
    return hashlib.sha256(model.proto.SerializeToString(deterministic=True)).hexdigest()
