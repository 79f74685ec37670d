"""What is evaluated on: photos found on disk and read one at a time, or arrays that a program hands over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.batches import batch_axis, cut_out, stacked
from l2caf_onnx.graph.layout import axes, layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.inputs import Part, PendingSample, Sample, find_samples
from l2caf_onnx.preprocess import Preprocess, Source
from l2caf_onnx.records import TensorInfo
from l2caf_onnx.runtime import check_feeds

Arrays = dict[str, NDArray[Any]]
Pictured = tuple[TensorInfo, Path, Preprocess]
Given = str | Path | Sequence[str | Path] | Mapping[str, NDArray[Any]]


class Data:
    """Samples of a model, by number; what is on disk is read when it is asked for.

    Attributes:
        model: Whose inputs they are.
        names: Of the samples: paths as given, or "sample 0", "sample 1", ... of arrays.
    """

    def __init__(self, model: Model, pending: Sequence[PendingSample] = (), arrays: Arrays | None = None) -> None:
        self.model, self._pending, self._arrays = model, tuple(pending), arrays
        self._along: dict[str, int] = {}
        if arrays is None:
            self.names = tuple(p.name for p in self._pending)
            return
        self._along = {name: axis for name in arrays if (axis := batch_axis(model, name)) >= 0}
        counts = {arrays[name].shape[axis] for name, axis in self._along.items()}
        if len(counts) > 1 or 0 in counts:
            raise InputError(f"The arrays hold {sorted(counts)} samples.", how="Feed as many to each input, and one.")
        self.names = tuple(f"sample {k}" for k in range(counts.pop() if counts else 1))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> Sample:
        """One sample, its feeds with a batch axis of 1."""
        if self._arrays is not None:
            piece = slice(number, number + 1)
            return Sample(self.names[number], cut_out(self._arrays, self._along, piece), None)
        return self._pending[number].read()

    def parts(self, number: int) -> tuple[Part, ...]:
        """The files of a sample, each with its input; none of arrays."""
        return self._pending[number].parts if self._arrays is None else ()

    def picture(self, number: int) -> Pictured | None:
        """The first picture of a sample: the input that it is for, its file, how it becomes numbers."""
        parts = self.parts(number)
        return next(((t, path, how) for t, path, how in parts if isinstance(path, Path) and how is not None), None)

    def only_picture(self, number: int) -> Pictured | None:
        """The same of a sample that is one picture and nothing else."""
        return self.picture(number) if self._arrays is None and len(self._pending[number].parts) == 1 else None

    def seen(self, sample: Sample) -> str:
        """The input that maps are drawn over: the first with two axes of places, or with any."""
        found = layouts(self.model)
        spatial = {n: len(axes(found.get(n, "")).spatial) for n in sample.feeds}
        return max(spatial, key=lambda n: (spatial[n] == 2, spatial[n] > 0))

    def sides(self, sample: Sample) -> tuple[int, ...]:
        """The sizes of its axes of places."""
        name = self.seen(sample)
        return tuple(sample.feeds[name].shape[k] for k in axes(layouts(self.model).get(name, "")).spatial)

    def batches(self, size: int) -> Iterator[tuple[range, list[Sample], Arrays]]:
        """(numbers, samples, their feeds stacked), at most `size` at once, fewer where the next differs in shape."""
        start, waiting = 0, list[Sample]()
        for number in range(len(self)):
            sample = self.read(number)
            if waiting and (len(waiting) == size or not _alike(waiting[0], sample)):
                yield range(start, number), waiting, stacked(self.model, [s.feeds for s in waiting])
                start, waiting = number, []
            waiting.append(sample)
        yield range(start, len(self)), waiting, stacked(self.model, [s.feeds for s in waiting])


def collect(model: Model, given: Given, preprocess: Source | None) -> Data:
    """`given` as samples of `model`: paths as on the command line, or {input name: array}.

    Raises:
        InputError: what `find_samples` or `check_feeds` refuses.
    """
    if isinstance(given, Mapping):
        return Data(model, arrays=check_feeds(model, {name: np.asarray(a) for name, a in given.items()}))
    paths = [given] if isinstance(given, (str, Path)) else list(given)
    return Data(model, find_samples([str(p) for p in paths], model.inputs, layouts(model), preprocess))


def _alike(one: Sample, other: Sample) -> bool:
    return {k: v.shape for k, v in one.feeds.items()} == {k: v.shape for k, v in other.feeds.items()}
