"""Every metric of two observations: outputs, attention, tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.records import Subject

from .metrics import METRICS, Metric, metrics_of
from .observation import Observation

Key = tuple[Subject, str, str]
"""Subject, name, metric."""
Values = NDArray[np.float64]

_OF_CLASSES = ("top1", "top5", "kl")
_OF_SAMPLES = ("error", "snr", "cosine")  # what a few hundred places tell of a whole tensor


def measured(reference: Observation, candidate: Observation) -> dict[Key, Values]:
    """(N,) for each metric of each output, breakpoint and tensor that both have."""
    found: dict[Key, Values] = {}
    for name in reference.outputs:
        if name in candidate.outputs:
            found |= {("output", name, m): v for m, v in _of_output(reference, candidate, name).items()}
    for name, ours in reference.filters.items():
        if name in candidate.filters and candidate.filters[name].shape == ours.shape:
            for metric in metrics_of("attention"):
                found["attention", name, metric.name] = metric(ours, candidate.filters[name])
    for name, ours in reference.tensors.items():
        if name in candidate.tensors and candidate.tensors[name].shape == ours.shape:
            for key in _OF_SAMPLES:
                found["tensor", name, key] = METRICS[key](ours, candidate.tensors[name])
    return found


def _of_output(reference: Observation, candidate: Observation, name: str) -> Mapping[str, Values]:
    kind, theirs = reference.kinds[name], candidate.kinds[name]
    whole = reference.sizes[name] == candidate.sizes[name]
    ours, other = reference.outputs[name], candidate.outputs[name]
    width = max(ours.shape[1], other.shape[1])
    ours, other = (np.pad(v, ((0, 0), (0, width - v.shape[1])), constant_values=np.nan) for v in (ours, other))
    sampled = bool((reference.sizes[name] > ours.shape[1]).any())
    found: dict[str, Values] = {}
    for metric in metrics_of("output"):
        if metric.name == "differs" and kind != "integers":
            continue
        if metric.name in _OF_CLASSES and (kind != "classes" or theirs != "classes" or sampled):
            continue
        values = metric(ours, other)
        found[metric.name] = np.where(whole, values, _worst(metric))
    return found


def _worst(metric: Metric) -> float:
    return np.inf if metric.above else -np.inf
