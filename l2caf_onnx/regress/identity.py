"""Which model it was: its name and a digest of all that it computes with."""

from __future__ import annotations

import hashlib

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.nodes import is_external, stored_tensors


def identity(model: Model) -> dict[str, str]:
    """Name and sha256 of the graph and of all that is stored for it, external files too."""
    return {"name": model.name, "sha256": model.cache.get("sha256", lambda: _digest(model))}


def _digest(model: Model) -> str:
    total = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
    if model.base_dir is not None:
        held = [t for _, t in stored_tensors(model.proto.graph) if is_external(t)]
        for name in sorted({e.value for t in held for e in t.external_data if e.key == "location"}):
            with (model.base_dir / name).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
