"""Twins: the reference, changed as harmlessly as a candidate of that class may be, for what is noise on these inputs.

How far a tensor may move without a fault hangs on the model, the tensor and the input; so it is measured on a twin: for
float32 activations off by a rounding or two, for float16 weights and activations rounded to it, for int8 weights
rounded to 8 bits a channel and activations to 8 bits a tensor, between the extremes that they have here. What is
measured on a few samples gets a factor for those that were not seen and for other ways of doing the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.nodes import attribute
from l2caf_onnx.graph.segments import with_weights
from l2caf_onnx.records import Change

from .feeding import remade
from .local import relative
from .probe import Arrays, Probe, Real
from .steps import EIGHT_BITS, Grain, Steps


@dataclass(frozen=True, slots=True)
class Measure:
    """How the noise of a class becomes the tolerance of a tensor: `factor` times it, and at least `floor`."""

    factor: float
    floor: float
    twin: str


MEASURES: dict[Change, Measure] = {
    "identical": Measure(30.0, 1e-4, "the reference with activations off by 1e-6"),
    "float32": Measure(30.0, 1e-4, "the reference with activations off by 1e-6"),
    "float16": Measure(4.0, 2e-3, "the reference with weights and activations rounded to float16"),
    "int8": Measure(
        2.5,
        2e-3,
        "the reference with weights rounded as most layers of the candidate are, activations to 8 bits a tensor, "
        "where the candidate rounds them",
    ),
}
"""Chosen by hand; of int8 on models that the fault bench does not use (small-vit, small-swin, small-crnn, rapidocr's
classifier, as onnxruntime quantises them): sound ones reach 0.3 to 0.4 of the tolerance in the median tensor, and 0.5
to 0.9 in the worst."""

WEIGHTS_ALONE = 1.2
"""The factor where nothing but weights is rounded, which is known to the last bit: sound ones have 0.99 to 1.01 of that
noise; others may round them in another way."""

ONE_SCALE = 2.0
"""What one scale for all channels may cost, times what a scale for each costs, where most layers have one. So a model
that bears it is let pass (a small residual network: 1.4 to 2.1 times), and one that does not is not."""

_JITTER = 1e-6
_OFF_GRID = 0.01  # of its range, by which that of an input is wider
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_SHARES = ("Softmax", "Sigmoid", "HardSigmoid")  # kernels in integers give steps of 1/256, whatever the values

Ranges = Mapping[str, tuple[float, float]]


def noise(
    reference: Probe,
    names: Sequence[str],
    pieces: Iterable[tuple[int, Arrays]],
    change: Change,
    steps: Mapping[str, Steps] | None = None,
    ranges: Ranges | None = None,
    grain: Grain = EIGHT_BITS,
) -> dict[str, float]:
    """For each tensor the largest local error that the class's twin has there, over the samples of all pieces.

    Args:
        reference: The model.
        names: Its tensors.
        pieces: (samples, feeds) of the reference.
        change: The class; "retrained" has no twin, and infinite noise.
        steps: Of int8, what the candidate rounds on the way to each tensor: what it does not is not rounded in the twin
            either, and where it rounds nothing, the twin of float32 tells.
        ranges: Of int8, the least and the largest value that tensors and inputs are made for; None: those of the piece.
        grain: Of int8, how fine the candidate's layers hold their weights.
    """
    found = dict.fromkeys(names, 0.0)
    if change == "retrained":
        return dict.fromkeys(names, np.inf)
    for count, feeds in pieces:
        values = reference.values(feeds, names)
        if change == "int8":
            errors = _stepwise(reference, values, feeds, count, steps or {}, ranges or {}, grain)
        else:
            errors = _all_rounded(reference, values, feeds, count, change)
        for name, own in errors.items():
            found[name] = max(found[name], own)
    return found


def _all_rounded(
    reference: Probe, values: Mapping[str, Real], feeds: Arrays, count: int, change: Change
) -> dict[str, float]:
    """All that the class rounds, rounded."""
    made = _remade(reference, values, feeds, change, rounded(reference.model, change), {})
    if change == "float16":
        made = {name: _rounded(value, change, 0) for name, value in made.items()}
    return {name: _worst(reference, name, value, made[name], count) for name, value in values.items()}


def _stepwise(
    reference: Probe,
    values: Mapping[str, Real],
    feeds: Arrays,
    count: int,
    steps: Mapping[str, Steps],
    ranges: Ranges,
    grain: Grain,
) -> dict[str, float]:
    """Each rounding by itself, and the sum of squares of those that the candidate has there."""
    everything = Steps(weights=True, inputs=True, output=True)
    own = {name: steps.get(name, everything) for name in values}
    weights = remade(reference, values, feeds, None, rounded(reference.model, "int8", grain))
    narrowed = any(s.inputs for s in own.values())
    inputs = _remade(reference, values, feeds, "int8", reference.model, ranges) if narrowed else values
    floats = _all_rounded(reference, values, feeds, count, "float32") if any(s.none for s in own.values()) else {}
    found = {}
    for name, value in values.items():
        if own[name].none:
            found[name] = floats[name]
            continue
        parts = [
            (own[name].weights * (1.0 if grain.each else ONE_SCALE), weights[name]),
            (float(own[name].inputs), inputs[name]),
            (float(own[name].output), _rounded(value, "int8", 0, ranges.get(name))),
        ]  # fmt: skip
        there = [times * _worst(reference, name, value, made, count) for times, made in parts if times]
        found[name] = float(np.linalg.norm(there))
    return found


def _remade(
    reference: Probe, values: Mapping[str, Real], feeds: Arrays, change: Change, model: Model, ranges: Ranges
) -> dict[str, Real]:
    """What a model makes of rounded tensors."""
    fed = {name: _rounded(value, change, k, ranges.get(name)) for k, (name, value) in enumerate(values.items())}
    outside = {n: _rounded(v, change, -1, ranges.get(n)) if v.dtype == np.float32 else v for n, v in feeds.items()}
    return remade(reference, fed, outside, None, model)


def _worst(reference: Probe, name: str, value: Real, made: Real, count: int) -> float:
    own, other = (reference.by_sample(name, v, count) for v in (value, made))
    return float(relative(own, other, count).max())


def tolerances(
    noise: Mapping[str, float], change: Change, steps: Mapping[str, Steps] | None = None
) -> dict[str, float]:
    """What a local error may be, for the noise of each tensor; `steps` as in `noise`."""
    if change == "retrained":
        return dict.fromkeys(noise, np.inf)
    floats = {name for name, own in (steps or {}).items() if own.none} if change == "int8" else set()
    known = {name for name, own in (steps or {}).items() if own.alone} if change == "int8" else set()
    found = {}
    for name, value in noise.items():
        measure = MEASURES["float32" if name in floats else change]
        found[name] = max((WEIGHTS_ALONE if name in known else measure.factor) * value, measure.floor)
    return found


def rounded(model: Model, change: Change, grain: Grain = EIGHT_BITS) -> Model:
    """The model with its weights rounded as harmlessly as the class allows; to int8 with that grain."""
    if change == "float16":
        return model.cache.get(("twin", change), lambda: _half(model))
    if change == "int8":
        return model.cache.get(("twin", change, grain), lambda: _eight_bits(model, grain))
    return model


def ranges_of(reference: Probe, names: Sequence[str], pieces: Iterable[Arrays]) -> Ranges:
    """The least and the largest value, 0 among them, of tensors and inputs; what a quantiser would calibrate for.

    Of operators whose outputs lie between 0 and 1 by their definition, these. Those of inputs are a little wider: the
    numbers of a picture of eight bits lie on a grid themselves, which is not the candidate's.
    """
    found = {n: (0.0, 1.0) if reference.model.op_of(n) in _SHARES else (0.0, 0.0) for n in names}
    for feeds in pieces:
        floats = {n: v for n, v in feeds.items() if v.dtype == np.float32}
        for name, value in {**reference.values(feeds, names), **floats}.items():
            low, high = found.get(name, (0.0, 0.0))
            found[name] = float(value.min(initial=low)), float(value.max(initial=high))
    for name in (i.name for i in reference.model.inputs if i.name in found):
        low, high = found[name]
        found[name] = low, high + _OFF_GRID * (high - low)
    return found


def _rounded(values: Real, change: Change, seed: int, ends: tuple[float, float] | None = None) -> Real:
    if change == "float16":
        with np.errstate(over="ignore"):
            return np.asarray(values.astype(np.float16), np.float32)
    if change == "int8":
        return _to_bits(values, *(ends or (float(values.min(initial=0.0)), float(values.max(initial=0.0)))))
    jitter = np.random.default_rng([seed + 1, values.size]).uniform(-_JITTER, _JITTER, values.shape)
    return np.asarray(values * (1 + jitter), np.float32)


def _to_bits(values: Real, low: float, high: float) -> Real:
    """Rounded to 256 steps between `low` and `high`."""
    step = (high - low) / 255
    if not np.isfinite(step) or step <= 0:
        return values
    return np.asarray(np.clip(np.rint((values - low) / step), 0, 255) * step + low, np.float32)


def _stored(model: Model, name: str) -> NDArray[np.float32] | None:
    tensor = model.initialisers.get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    folder = str(model.base_dir) if model.base_dir is not None else ""
    return np.array(onnx.numpy_helper.to_array(tensor, folder))


def _half(model: Model) -> Model:
    found = {}
    for name in model.initialisers:
        values = _stored(model, name)
        if values is not None and values.ndim >= 1:
            with np.errstate(over="ignore"):
                half = values.astype(np.float16).astype(np.float32)
            found[name] = np.where(np.isfinite(half), half, values).astype(np.float32)
    return with_weights(model, found, name=f"{model.name}, weights in float16")


def _eight_bits(model: Model, grain: Grain) -> Model:
    found: dict[str, Real] = {}
    for node in model.proto.graph.node:
        if node.op_type in _ELEMENTWISE:
            whole = ((name, _stored(model, name)) for name in node.input)
            found |= {n: _in_steps(v, tuple(range(v.ndim)), 127) for n, v in whole if v is not None and v.size > 1}
        axis = _channel_axis(node)
        if axis is None or len(node.input) < 2:
            continue
        values = _stored(model, node.input[1])
        if values is not None and values.ndim > 1:
            along = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
            found[node.input[1]] = _in_steps(values, along, grain.most)
    return with_weights(model, found, name=f"{model.name}, weights in 8 bits")


def _in_steps(values: Real, axes: tuple[int, ...], most: int) -> Real:
    """Rounded to so many steps on each side of 0, with one scale along those axes."""
    step = np.abs(values).max(axis=axes, keepdims=True) / most
    step = np.where(step > 0, step, 1)
    return (np.rint(values / step) * step).astype(np.float32)


def _channel_axis(node: onnx.NodeProto) -> int | None:
    """The axis of a node's weight along which its output channels run; None for operators that are not quantised."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return -1 if node.op_type == "MatMul" else None
