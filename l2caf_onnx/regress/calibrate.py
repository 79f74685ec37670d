"""The noise floor of outputs and attention on a model and its inputs, from variations that must not count.

Outputs: onnxruntime's levels of optimisation. Attention: another seed, and input noise that nobody sees (a part in 255
of the range of each input). The class's twins (see `twins`) give the floor of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.records import Change

from .attention import attention_of
from .given import stacked_of
from .metrics import metrics_of
from .outputs import outputs_of
from .thresholds import Thresholds, widened
from .twins import rounded

SAMPLES = 6  # on which the floor is measured
FACTOR = 4.0  # how far beyond the worst harmless variation of these a line is drawn
NOISE = 1 / 255


def calibrated(
    bundle: Thresholds,
    data: Data,
    at: Sequence[str],
    options: Mapping[str, Any],
    change: Change,
    *,
    targets: Sequence[int] | None = None,
    providers: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The bundled thresholds, widened where the noise on these inputs asks for it.

    Args:
        bundle: Of the class of change.
        data: The reference's inputs.
        at: Breakpoints whose attention is compared.
        options: Of the attention.
        change: The class; of "float16" and "int8" the reference with rounded weights is a variation too.
        targets: A class for each input.
        providers: onnxruntime's.
        seed: Of every random choice.
    """
    numbers = list(range(min(SAMPLES, len(data))))
    few = Data(data.model, arrays=stacked_of(data, numbers)) if _alike(data, numbers) else None
    if few is None:
        return dict(bundle)
    classes = None if targets is None else [targets[k] for k in numbers]
    floors = _outputs(few, change, providers)
    found = widened(bundle, floors, FACTOR, "Harmless variations of the reference on these inputs were")
    attention = _attention(few, at, options, classes, change, providers, seed)
    return widened(found, attention, FACTOR, "Harmless variations of the reference on these inputs were")


def _outputs(data: Data, change: Change, providers: Sequence[str] | None) -> dict[str, float]:
    """The worst of each output metric over onnxruntime's levels (and rounded weights)."""
    plain = outputs_of(data, providers=providers)
    others = [outputs_of(data, level=level, providers=providers) for level in get_args(runtime.Level)[1:]]
    if change in ("float16", "int8"):
        twin = Data(rounded(data.model, change), arrays=stacked_of(data, list(range(len(data)))))
        others.append(outputs_of(twin, providers=providers))
    floors: dict[str, float] = {}
    for name, x in plain.items():
        for y in (o[name] for o in others if name in o and o[name].shape == x.shape):
            for metric in metrics_of("output"):
                _note(floors, f"output.{metric.name}@{name}", metric(x, y), metric.above)
    return floors


def _attention(
    data: Data, at: Sequence[str], options: Mapping[str, Any], targets: Sequence[int] | None, change: Change,
    providers: Sequence[str] | None, seed: int,
) -> dict[str, float]:  # fmt: skip
    """The worst of each attention metric over another seed and unseen input noise (and rounded weights)."""
    if not at:
        return {}
    common: dict[str, Any] = {"targets": targets, "providers": providers}
    feeds = stacked_of(data, list(range(len(data))))
    plain = attention_of(data, at, options, seed=seed, **common)
    shaken = {n: _shaken(v, seed) for n, v in feeds.items()}
    variants = [
        attention_of(data, at, options, seed=seed + 1, **common),
        attention_of(Data(data.model, arrays=shaken), at, options, seed=seed, **common),
    ]
    if change in ("float16", "int8"):
        variants.append(attention_of(Data(rounded(data.model, change), arrays=feeds), at, options, seed=seed, **common))
    floors: dict[str, float] = {}
    for name in at:
        for variant in variants:
            for metric in metrics_of("attention"):
                values = metric(plain[name].filters, variant[name].filters)
                _note(floors, f"attention.{metric.name}@{name}", values, metric.above)
    return floors


def _note(floors: dict[str, float], key: str, values: NDArray[np.float64], above: bool) -> None:
    said = values[np.isfinite(values)]
    if said.size:
        worst = float(said.max() if above else said.min())
        floors[key] = (max if above else min)(floors.get(key, worst), worst)


def _shaken(array: NDArray[Any], seed: int) -> NDArray[Any]:
    """An input with noise that nobody sees; other than floating numbers stay."""
    if array.dtype.kind != "f" or not array.size:
        return array
    width = float(array.max() - array.min()) * NOISE
    noise = np.random.default_rng(seed).uniform(-width, width, array.shape)
    return (array + noise).astype(array.dtype)


def _alike(data: Data, numbers: Sequence[int]) -> bool:
    shapes = [{n: v.shape for n, v in data.read(k).feeds.items()} for k in numbers]
    return all(s == shapes[0] for s in shapes)
