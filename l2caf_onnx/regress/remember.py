"""What a baseline keeps of its model, so that the class of a later change can be told without the model's file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.errors import L2cafError
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.records import Change

from .change import change_of
from .identity import identity
from .sketch import values_at

_PLACES = 32  # of a weight
_SMALL = 64  # numbers of a weight that says nothing
_ALIKE = 0.98  # correlation of the same weight
_MOST = 0.5  # of the weights: so many must be alike


def model_facts(model: Model, folder: Path) -> dict[str, Any]:
    """Name, digest, and where its file is as seen from the baseline's folder; None where it was no file."""
    path = None
    if model.path is not None:
        try:
            path = Path(os.path.relpath(model.path.resolve(), folder.resolve())).as_posix()
        except ValueError:  # another drive
            path = model.path.resolve().as_posix()
    return {**identity(model), "path": path}


def surroundings(model: Model, name: str) -> str:
    """What makes a tensor and what reads it: a name that is used for something else tells by these."""
    readers = sorted(model.proto.graph.node[k].op_type for k in model.consumers.get(name, ()))
    return f"{model.op_of(name)} > {', '.join(readers)}"


def weights_of(model: Model) -> dict[str, NDArray[np.float32]]:
    """Of each large weight a few values, by name."""
    folder = str(model.base_dir) if model.base_dir is not None else ""
    found = {}
    for name, tensor in model.initialisers.items():
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and len(tensor.dims) >= 2:
            values = onnx.numpy_helper.to_array(tensor, folder)
            if values.size >= _SMALL:
                found[name] = values_at(values.reshape(1, -1), _PLACES)[0]
    return found


def reference_of(manifest: Mapping[str, Any], folder: Path) -> Model | None:
    """The model of the baseline, if its file is still there and still the same."""
    path = manifest["model"]["path"]
    if path is None or not (folder / path).is_file():
        return None
    try:
        found = load(folder / path)
    except L2cafError:
        return None
    return found if identity(found)["sha256"] == manifest["model"]["sha256"] else None


def class_of(
    manifest: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], reference: Model | None, model: Model
) -> tuple[Change, str]:
    """The class of the change from a baseline's model, and what tells it: the graphs, or what was kept of the one."""
    if identity(model)["sha256"] == manifest["model"]["sha256"]:
        return "identical", "It is the model that the baseline was made of."
    if reference is not None:
        return change_of(reference, model)
    change, why = change_of(_nothing(), model)
    if change == "identical":
        change, why = "float32", "Both compute in float32."
    own = weights_of(model)
    both = [name for name in own if name in weights and own[name].shape == weights[name].shape]
    alike = sum(_alike(own[name], weights[name]) for name in both)
    if change == "float32" and both and alike < _MOST * len(both):
        return "retrained", f"Of {len(both)} weights of the same name, {len(both) - alike} differ wholly."
    return change, f"{why} (The baseline's model is not where it was: told by what was kept of it.)"


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    a, b = (v.astype(np.float64) - v.mean() for v in (one, other))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return size == 0 or float(a @ b) / size >= _ALIKE


def _nothing() -> Model:
    """A model without weights: against it the types alone tell."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", [value], [made])
    return Model(onnx.helper.make_model(graph))
