"""Samples and batches: feeds cut into what is explained at once, and that into what the model takes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.shapes import tensors

Arrays = dict[str, NDArray[Any]]

_LARGEST_BATCH = 32
_OF_FREE_MEMORY = 0.25  # the tail in torch, its gradient's tape and onnxruntime's copy are to fit
_COPIES = 6  # of all activations: forward, tape, gradient, in torch; filtered and plain in onnxruntime; the recorded
_FREE_IF_UNKNOWN = 2**31


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that are explained together.

    Attributes:
        samples: Which of all, as a slice.
        pieces: Their feeds, in parts that the model takes at once.
    """

    samples: slice
    pieces: tuple[Arrays, ...]


def batches(
    model: Model, feeds: Mapping[str, Any], batch_size: int | None, *, pooled: bool = True
) -> tuple[int, Iterator[Batch]]:
    """How many samples there are, and the feeds in batches.

    Args:
        model: Whose inputs they are; a fixed batch decides the size of the pieces.
        feeds: Arrays by input name, samples along the batch axis (the second of TNC).
        batch_size: Samples in a batch; None: as free memory allows.
        pooled: Whether several pieces of a model of fixed batch may be one batch.

    Raises:
        InputError: NaN, no sample, or what the model does not take.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"The batch size {batch_size!r} cannot be used.", how="Give a whole number from 1.")
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    for name, array in arrays.items():
        refuse_nan(name, array, "the input")
    axis = {
        i.name: batch_axis(model, i.name)
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
    along = {i.name: axis[i.name] for i in batched}
    size = min(total, batch_size or (at_once(model, arrays, total) if total > 1 else 1))
    if fixed is not None and (fixed <= 0 or total % fixed):
        fixed = total  # the model refuses it, by name
    return total, _batches(model, arrays, along, total, size, fixed, pooled)


def _batches(
    model: Model,
    arrays: Arrays,
    along: Mapping[str, int],
    total: int,
    size: int,
    fixed: int | None,
    pooled: bool,
) -> Iterator[Batch]:
    if fixed is not None:
        size = max(size // fixed, 1) * fixed if pooled else fixed
    for start in range(0, total, size):
        stop = min(start + size, total)
        pieces = tuple(
            runtime.check_feeds(model, cut_out(arrays, along, slice(k, min(k + (fixed or size), stop))))
            for k in range(start, stop, fixed or size)
        )
        yield Batch(slice(start, stop), pieces)


def cut_out(arrays: Mapping[str, NDArray[Any]], along: Mapping[str, int], piece: slice) -> Arrays:
    """The samples `piece` of every array that has an axis of samples, `along`; the others as they are."""
    return {n: a[(*[slice(None)] * along[n], piece)] if n in along else a for n, a in arrays.items()}


def batch_axis(model: Model, name: str) -> int:
    """Where an input holds its samples; -1 where it has no such axis."""
    return layouts(model).get(name, "").find("N")


def at_once(model: Model, arrays: Mapping[str, NDArray[Any]], total: int) -> int:
    """How many of `total` samples fit into a quarter of the free memory, by the sizes that the graph declares."""
    sample = sum(a.nbytes for a in arrays.values()) / total
    for info in tensors(model).values():
        if info.name not in arrays and info.shape and all(isinstance(s, int) for s in info.shape[1:]):
            sample += 4 * prod(s for s in info.shape[1:] if isinstance(s, int))
    return int(min(max(_OF_FREE_MEMORY * _free_memory() / (_COPIES * sample), 1), _LARGEST_BATCH))


def _free_memory() -> int:
    """Bytes, as Linux tells them."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return _FREE_IF_UNKNOWN


def refuse_nan(name: str, array: NDArray[Any], what: str) -> None:
    """Raise InputError where a floating-point array holds NaN, and say where first."""
    if array.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore"):
        clean = not np.isnan(array.min(initial=0))  # a minimum is NaN where one element is, and takes no memory
    if not clean:
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
        axis = batch_axis(model, name)
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
