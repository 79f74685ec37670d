"""The outputs of two models on all inputs, matched: by name, else by position, layouts turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.explain.batches import batches
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Score

from .given import Both, stacked_of
from .metrics import metrics_of
from .probe import Arrays
from .thresholds import Thresholds, score

AT_ONCE = 32
OF_CLASSES = ("top1", "top5", "kl")  # metrics of one vector of class scores an input


@dataclass(frozen=True, slots=True)
class Matched:
    """One output of both, a row for each input: (N, ...) float64."""

    name: str
    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]


def outputs_of(
    data: Data, *, level: runtime.Level = "disable", numbers: Sequence[int] | None = None,
    providers: Sequence[str] | None = None,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """The real outputs of a model on its inputs, the samples in front."""
    wanted = list(range(len(data))) if numbers is None else list(numbers)
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, len(wanted), AT_ONCE):
        read = [data.read(k).feeds for k in wanted[start : start + AT_ONCE]]
        alike = all({k: v.shape for k, v in r.items()} == {k: v.shape for k, v in read[0].items()} for r in read)
        numbers_of = [wanted[start : start + AT_ONCE]] if alike else [[k] for k in wanted[start : start + AT_ONCE]]
        for part in numbers_of:
            for name, value in _run(data.model, stacked_of(data, part), len(part), level, providers).items():
                parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items() if _stacks(values)}


def matched(both: Both, *, level: runtime.Level = "disable", providers: Sequence[str] | None = None) -> list[Matched]:
    """The outputs of both models, pair by pair.

    Raises:
        InputError: they have no output in common, by name, position and size.
    """
    ours = outputs_of(both.reference, level=level, providers=providers)
    theirs = outputs_of(both.candidate, level=level, providers=providers)
    found = []
    by_position = dict(zip(ours, theirs, strict=False)) if len(ours) == len(theirs) else {}
    for name, x in ours.items():
        y = theirs.get(name)
        if y is None and name in by_position:
            y = theirs[by_position[name]]
        if y is None or y.size != x.size:
            continue
        found.append(Matched(name, x, _turned(x, y)))
    if not found:
        raise InputError(
            "The two models have no output in common.",
            where=f"Outputs of the reference: {', '.join(ours)}; of the candidate: {', '.join(theirs)}.",
            how="Compare models that answer the same question.",
        )
    return found


def scores(pair: Matched, thresholds: Sequence[Thresholds]) -> list[Score]:
    """Every metric of an output."""
    return [
        score("output", pair.name, m.name, m(pair.reference, pair.candidate), thresholds)
        for m in metrics_of("output")
        if m.name not in OF_CLASSES or sum(s > 1 for s in pair.reference.shape[1:]) == 1
    ]


def _run(
    model: Model, feeds: Arrays, count: int, level: runtime.Level, providers: Sequence[str] | None
) -> dict[str, NDArray[np.float64]]:
    letters = layouts(model)
    found: dict[str, list[NDArray[np.float64]]] = {}
    for batch in batches(model, feeds, count)[1]:
        for piece in batch.pieces:
            for name, value in runtime.run(model, piece, level=level, providers=providers).items():
                if value.dtype.kind not in "fiu":
                    continue
                axis = max(letters.get(name, "N").find("N"), 0)
                real = np.asarray(value, np.float64)
                found.setdefault(name, []).append(np.moveaxis(real, axis, 0) if real.ndim else real[None])
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: v if len(v) == count else v[None] for name, v in joined.items() if len(v) == count or count == 1}


def _stacks(values: Sequence[NDArray[np.float64]]) -> bool:
    return len({v.shape[1:] for v in values}) == 1


def _turned(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """y with the axes in the order in which it fits x, the best of those that do."""
    if x.shape == y.shape:
        return y
    fits = [y.transpose(t) for t in ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1)) if len(t) == y.ndim]
    fits = [f for f in fits if f.shape == x.shape]
    if not fits:
        return y.reshape(x.shape)
    return min(fits, key=lambda f: float(np.abs(np.nan_to_num(f - x)).sum()))
