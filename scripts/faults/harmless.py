"""Changes of a model that are no faults: an alarm on any of these is a false one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat

from . import int8, rewrites
from .fault import Base
from .half import half
from .subjects import Subject

Make = Callable[[Subject, Path], onnx.ModelProto | Path]


@dataclass(frozen=True, slots=True)
class Harmless:
    """A change that leaves a model what it is.

    Attributes:
        kind: What is done.
        base: In which class of tolerance it lies.
        make: The changed model, or its file where it is more than one, in the folder given.
    """

    kind: str
    base: Base
    make: Make


def changes(subject: Subject) -> tuple[Harmless, ...]:
    """All changes of a model: none has no place."""
    norms = any(n.op_type == "BatchNormalization" for n in subject.proto.graph.node)
    rewritten: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "higher opset": partial(rewrites.of_opset, steps=4),
        "lower opset": partial(rewrites.of_opset, steps=-4),
        "constants folded": rewrites.folded,
        "constants as nodes": rewrites.unfolded,
        "batch norms folded": rewrites.without_norms if norms else _split_and_folded,
        "batch norms split off": rewrites.with_norms,
        "onnxsim": rewrites.by_onnxsim,
        "onnxslim": rewrites.by_onnxslim,
        "onnxruntime basic": partial(rewrites.by_onnxruntime, level="basic"),
        "onnxruntime extended": partial(rewrites.by_onnxruntime, level="extended"),
        "tensors renamed": rewrites.renamed,
        "nodes shuffled": rewrites.shuffled,
        "batch of 1": partial(rewrites.of_batch, size=1),
        "dynamic batch": partial(rewrites.of_batch, size=None),
        "NHWC input": rewrites.channels_last,
        "other operators": rewrites.spelled_otherwise,
        "names stripped": rewrites.stripped,
    }
    if norms:
        del rewritten["batch norms split off"]  # type: ignore[attr-defined]  # there are no biases to take them from
    float32 = [Harmless(kind, "float32", _of(change)) for kind, change in rewritten.items()]
    return (
        *float32,
        Harmless("external data", "float32", _external),
        Harmless("fp16 weights", "float16", _of(rewrites.half_weights)),
        Harmless("fp16", "float16", _of(half)),
        Harmless("int8", "int8", lambda s, _: int8.quantised(s)),
        Harmless("int8, percentile", "int8", lambda s, _: int8.quantised(s, CalibrationMethod.Percentile)),
        Harmless("int8, QOperator", "int8", lambda s, _: int8.quantised(s, form=QuantFormat.QOperator)),
    )


def _of(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Make:
    return lambda subject, folder: change(subject.proto)


def _split_and_folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Batch norms folded, of a model that has none left: they are split off first."""
    return rewrites.without_norms(rewrites.with_norms(proto))


def _external(subject: Subject, folder: Path) -> Path:
    """Weights in a file beside the model's."""
    made, path = onnx.ModelProto(), folder / "external.onnx"
    made.CopyFrom(subject.proto)
    onnx.save(made, path, save_as_external_data=True, location="external.bin", size_threshold=rewrites.LARGE)
    return path
