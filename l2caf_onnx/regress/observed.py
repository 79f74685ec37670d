"""A model on all of its inputs, read a batch ahead of where it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.explain.batches import cut_out, stacked
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.inputs import Sample

from .observation import Observation, joined
from .observe import Observer
from .probe import Arrays

AT_ONCE = 10
"""Inputs in a batch, where memory allows: fewer leave a core waiting, more leave the caches."""

Told = Callable[[float], None]
Pictures = list[NDArray[np.uint8] | None]


def observed(
    observer: Observer,
    data: Data,
    targets: Sequence[int] | str | None,
    *,
    batch_size: int | None = None,
    numbers: Sequence[int] | None = None,
    like: Observation | None = None,
    pictures: Pictures | None = None,
    told: Told | None = None,
) -> Observation:
    """What is seen of a model on its inputs, read a batch at a time.

    Args:
        observer: The model, and what is looked at.
        data: Its inputs.
        targets: As of `see`.
        batch_size: Inputs at once.
        numbers: Which inputs; None: all.
        like: What was seen of the reference: where the model has no attention on an input (its activations are not
            finite, its tail is dead), the filter is NaN in that shape. None: that is an error.
        pictures: Is filled with what the model saw of each input.
        told: Called with the part that is done.
    """
    found: list[Observation] = []
    done = 0
    wanted = range(len(data)) if numbers is None else numbers
    for feeds in pieces(data, wanted, batch_size or AT_ONCE, pictures):
        count = observer.count(feeds)
        own = (
            list(targets[done : done + count])
            if isinstance(targets, Sequence) and not isinstance(targets, str)
            else targets
        )
        try:
            found.append(observer.see(feeds, own, batch_size=batch_size))
        except (InputError, SolverError):
            if like is None or not observer.watch.at:
                raise
            found.append(_one_by_one(observer, feeds, own, like))
        done += count
        if told is not None:
            told(done / len(wanted))
    return joined(found)


def _one_by_one(observer: Observer, feeds: Arrays, targets: Any, like: Observation) -> Observation:
    """Each input by itself, without a map where it has none."""
    letters = layouts(observer.model)
    along = {n: axis for n in feeds if (axis := letters.get(n, "").find("N")) >= 0}
    bare = Observer(
        observer.model, replace(observer.watch, at={}), level=observer.level, threads=observer.threads,
        providers=observer.providers, device=observer.device,
    )  # fmt: skip
    found = []
    for k in range(observer.count(feeds)):
        own = cut_out(feeds, along, slice(k, k + 1))
        asked = [targets[k]] if isinstance(targets, list) else targets
        try:
            found.append(observer.see(own, asked))
        except (InputError, SolverError) as e:
            seen = bare.see(own, asked)
            filters = {n: np.full((1, *like.filters[n].shape[1:]), np.nan, np.float32) for n in observer.watch.at}
            maps = {n: np.zeros((1, *like.maps[n].shape[1:]), np.float32) for n in observer.watch.at}
            note = f"Some inputs have no attention to tell: {e.what}"
            found.append(replace(seen, filters=filters, maps=maps, notes=(note,)))
    return joined(found)


def pieces(data: Data, numbers: Sequence[int], batch: int, pictures: Pictures | None = None) -> Iterator[Arrays]:
    """The feeds of these inputs in batches of one shape; `pictures` is filled with what the model saw."""
    waiting: list[Arrays] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for sample in _ahead(data, numbers):
        own = {name: array.shape for name, array in sample.feeds.items()}
        if waiting and (own != shapes or len(waiting) == batch):
            yield stacked(data.model, waiting)
            waiting = []
        waiting.append(sample.feeds)
        shapes = own
        if pictures is not None:
            pictures.append(None if sample.image is None else np.asarray(sample.image.convert("RGB")))
    yield stacked(data.model, waiting)


def _ahead(data: Data, numbers: Sequence[int]) -> Iterator[Sample]:
    """The samples, read while the model runs on those before."""
    with ThreadPoolExecutor(1) as reader:
        coming: deque[Future[Sample]] = deque()
        for number in numbers:
            coming.append(reader.submit(data.read, number))
            if len(coming) > 2 * AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
