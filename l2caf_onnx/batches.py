"""Samples and batches: feeds cut into what the model takes at once, records joined and split again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Attention, Parity

Arrays = dict[str, NDArray[Any]]
Classes = int | tuple[int, ...] | str | None

_LARGEST_BATCH = 16


def batches(
    model: Model, feeds: Mapping[str, Any], target: Classes, batch_size: int | None
) -> Iterator[tuple[Arrays, tuple[int, ...] | str | None]]:
    """The feeds in pieces that the model takes at once, each with its targets.

    Args:
        model: Whose inputs they are; a fixed batch decides the size of the pieces.
        feeds: Arrays by input name, samples along the batch axis (the second of TNC).
        target: None, "top1", one class for all samples or one a sample.
        batch_size: Samples in a piece, where the model leaves it open.

    Raises:
        InputError: NaN, no sample, a wrong number of targets, or what the model does not take.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"The batch size {batch_size!r} cannot be used.", how="Give a whole number from 1.")
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    for name, array in arrays.items():
        refuse_nan(name, array, "the input")
    axis = {
        i.name: _batch_axis(model, i.name)
        for i in model.inputs
        if i.name in arrays and i.shape and arrays[i.name].ndim == len(i.shape)
    }
    batched = [i for i in model.inputs if axis.get(i.name, -1) >= 0]
    total = arrays[batched[0].name].shape[axis[batched[0].name]] if batched else 1
    batched = [i for i in batched if arrays[i.name].shape[axis[i.name]] == total]
    declared = [i.shape[axis[i.name]] for i in batched if i.shape]
    fixed = next((size for size in declared if isinstance(size, int)), None)
    if total == 0:
        raise InputError("The batch is empty.", where=f"Input {batched[0].name!r}.", how="Feed one sample at least.")
    step = min(total, batch_size or _LARGEST_BATCH)
    if fixed is not None:
        step = fixed if fixed > 0 and total % fixed == 0 else total  # else the model refuses, by name
    if isinstance(target, int):
        target = (target,)
    if isinstance(target, tuple) and len(target) not in (1, total):
        raise InputError(
            f"There are {len(target)} targets for {total} samples.", where="`target`.", how="Give one, or one a sample."
        )
    for start in range(0, total, step):
        piece = slice(start, start + step)
        cuts = {i.name: (*[slice(None)] * axis[i.name], piece) for i in batched}
        part = {n: a[cuts[n]] if n in cuts else a for n, a in arrays.items()}
        own = target[piece] if isinstance(target, tuple) and len(target) > 1 else target
        yield runtime.check_feeds(model, part), own


def _batch_axis(model: Model, name: str) -> int:
    """Where an input holds its samples; -1 where it has no such axis."""
    return layouts(model).get(name, "").find("N")


def refuse_nan(name: str, array: NDArray[Any], what: str) -> None:
    """Raise InputError where a floating-point array holds NaN, and say where first."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        at = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
        raise InputError(
            f"There is NaN in {what} {name!r}.",
            where=f"First at {at}.",
            how="Look at the preprocessing, and at the head.",
        )


def stacked(model: Model, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Feeds of several samples as one batch: inputs with a batch axis are concatenated, others must be equal.

    Raises:
        InputError: an input without a batch axis differs among the samples.
    """
    if len(feeds) == 1:
        return dict(feeds[0])
    joined: Arrays = {}
    for name, array in feeds[0].items():
        axis = _batch_axis(model, name)
        if axis >= 0:
            joined[name] = np.concatenate([f[name] for f in feeds], axis=axis)
        elif all(np.array_equal(f[name], array) for f in feeds):
            joined[name] = array
        else:
            raise InputError(
                f"The input {name!r} differs among the samples but has no batch axis.",
                how="Give one sample at a time (--batch-size 1).",
            )
    return joined


def split(found: Attention, count: int) -> tuple[Attention, ...]:
    """An Attention of `count` samples as one for each."""
    if count == 1:
        return (found,)
    return tuple(
        replace(
            found,
            filter=found.filter[i : i + 1],
            heatmap=found.heatmap[i : i + 1],
            loss=found.loss[i : i + 1],
            evaluations=found.evaluations[i : i + 1],
            radius=found.radius[i : i + 1],
            target=None if found.target is None else found.target[i : i + 1],
            stop_reason=found.stop_reason[i : i + 1],
        )
        for i in range(count)
    )


def joined(parts: Sequence[Attention]) -> Attention:
    """The batches of one question as one record."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return replace(
        first,
        filter=np.concatenate([p.filter for p in parts]),
        heatmap=np.concatenate([p.heatmap for p in parts]),
        loss=np.concatenate([p.loss for p in parts]),
        evaluations=np.concatenate([p.evaluations for p in parts]),
        radius=np.concatenate([p.radius for p in parts]),
        target=None if first.target is None else tuple(t for p in parts for t in p.target or ()),
        stop_reason=tuple(s for p in parts for s in p.stop_reason),
        parity=_worst_or_none([p.parity for p in parts]),
        deployed=_worst_or_none([p.deployed for p in parts]),
        proof=worst_of([p.proof for p in parts]),
        notes=tuple(dict.fromkeys(n for p in parts for n in p.notes)),
    )


def _worst_or_none(found: Sequence[Parity | None]) -> Parity | None:
    """None where some part has none."""
    there = [p for p in found if p is not None]
    return worst_of(there) if len(there) == len(found) else None


def worst_of(found: Sequence[Parity]) -> Parity:
    """The parity to report for several: not ok before ok, then the largest difference relative to its tolerance."""
    return max(found, key=lambda p: (not p.ok, p.max_rel / p.rtol if p.rtol else p.max_rel))
