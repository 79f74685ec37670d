"""The filtered tail in onnxruntime, on the activations recorded of one batch: what every answer is measured by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx import runtime
from l2caf_onnx.errors import CutError, L2cafError
from l2caf_onnx.graph.insert import FILTER_INPUT, broadcastable

from .batches import refuse_nan
from .stop import Stop

Arrays = dict[str, NDArray[Any]]
Held = dict[str, Any]
"""Arrays, or tensors on a GPU, where onnxruntime left them."""

_AT_ONCE = 16  # runs of one sample that are made one batch, where the graph allows


class Opened:
    """T(A f) by onnxruntime for any filter f (N, *spatial).

    Attributes:
        stop: The breakpoint.
        held: The tail's inputs but for the filter.
        samples: N.
        spatial: The filter's other axes.
        cells: How many values a filter has for each sample.
    """

    def __init__(self, feeds: Arrays, recorded: Held, stop: Stop, providers: Sequence[str] | None, name: str) -> None:
        self.stop, self.providers = stop, providers
        self.held = {n: recorded[n] for n in stop.held_names}
        for held, array in self.held.items():
            if held not in feeds and (not isinstance(array, Tensor) or bool(torch.isnan(array).any())):
                refuse_nan(held, on_host(array), "an activation")
        activation = recorded[stop.at]
        axis = stop.batch[stop.at]
        self.samples = activation.shape[axis] if axis >= 0 else 1
        self.spatial = tuple(int(s) for s in stop.axes.cells(activation.shape))
        self.cells = math.prod(self.spatial)
        if self.cells < 2:
            raise CutError(
                f"Here this tensor has one spatial cell (shape {activation.shape}): there is nothing to choose among.",
                where=f"Tensor {stop.at!r} of model {name!r}.",
                how="Break earlier, or feed a larger input.",
            )
        self._declared = {i.name: i.shape for i in stop.opened.inputs}
        self._normal: Arrays | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a filter: (N, *spatial)."""
        return (self.samples, *self.spatial)

    def ones(self) -> NDArray[np.float32]:
        """The filter that changes nothing."""
        return np.ones(self.shape, np.float32)

    def fed(self, f: NDArray[np.float32]) -> Held:
        """The tail's inputs with that filter."""
        return {**self.held, FILTER_INPUT: broadcastable(f, self.stop.axes)}

    def normal(self) -> Arrays:
        """What the tail gives unfiltered, under the names of S2; run once."""
        if self._normal is None:
            self._normal = self.outputs(self.ones())
        return self._normal

    def outputs(self, f: NDArray[np.float32]) -> Arrays:
        """What the tail gives, under the names of S2."""
        unit = self.unit
        if unit is None or unit == self.samples:
            return self._run(self.fed(f))
        pieces = [self._run(self.example(slice(k, k + unit), f)) for k in range(0, self.samples, unit)]
        axis = {name: max(self.stop.batch[name], 0) for name in pieces[0]}
        return {k: np.concatenate([p[k] for p in pieces], axis=axis[k]) if v.ndim else v for k, v in pieces[0].items()}

    @property
    def unit(self) -> int | None:
        """Samples that the tail takes at once, where the file says so; None where it leaves it open."""
        axis, shape = self.stop.batch[self.stop.at], self._declared[self.stop.at]
        size = shape[axis] if axis >= 0 and shape is not None else None
        return size if isinstance(size, int) else None

    def example(self, piece: slice, f: NDArray[np.float32]) -> Held:
        """The tail's inputs for some of the samples."""
        held: Held = {}
        for name, array in self.held.items():
            axis = self.sample_axis(name)
            held[name] = array if axis is None else array[(*[slice(None)] * axis, piece)]
        return {**held, FILTER_INPUT: broadcastable(f[piece], self.stop.axes)}

    def sample_axis(self, name: str) -> int | None:
        """The axis of the samples in a held array; None where it has none."""
        axis, array = self.stop.batch[name], self.held[name]
        return axis if 0 <= axis < array.ndim and array.shape[axis] == self.samples else None

    def _run(self, fed: Held) -> Arrays:
        if any(isinstance(v, Tensor) for v in fed.values()):
            bound = runtime.run_bound(self.stop.opened, fed, device="cpu", providers=self.providers)
            outputs = {name: value.numpy() for name, value in bound.items()}
        else:
            outputs = runtime.run(self.stop.opened, fed, providers=self.providers, check=False)
        return {name: outputs[own] for name, own in zip(self.stop.cut.to, self.stop.own_names, strict=True)}

    def by_sample(self, outputs: Mapping[str, Tensor], samples: int | None = None) -> dict[str, Tensor]:
        """Outputs with the batch in front, where their layout says that it is elsewhere (TNC of recurrent nets)."""
        count, batch = samples or self.samples, self.stop.batch
        return {
            k: v.movedim(batch[k], 0) if batch[k] > 0 and v.ndim > batch[k] and v.shape[batch[k]] == count else v
            for k, v in outputs.items()
        }

    def rows_of(self, outputs: Arrays) -> NDArray[np.float64]:
        """All floating outputs as one row a sample (NaN and infinities, that stay, as 0)."""
        rows = [
            np.nan_to_num(v.double().numpy(), posinf=0, neginf=0).reshape(
                self.samples if v.ndim and v.shape[0] == self.samples else 1, -1
            )
            for v in self.by_sample(tensors_of(outputs)).values()
            if v.is_floating_point()
        ]
        rows = [np.broadcast_to(r, (self.samples, r.shape[1])) for r in rows]
        return np.concatenate(rows, axis=1) if rows else np.zeros((self.samples, 0))

    # Several filters a sample, in one batch where the graph allows.

    @property
    def _verdict(self) -> list[bool | None]:
        """Whether the graph takes filters together, in a list: it is found once for all activations of these shapes."""
        shapes = tuple(tuple(array.shape) for array in self.held.values())
        known: dict[Any, list[bool | None]] = self.stop.opened.cache.get("together", dict)
        return known.setdefault((shapes, self.spatial), [None])

    @property
    def _together(self) -> bool | None:
        return self._verdict[0]

    def many(self, values: NDArray[np.float32]) -> list[Arrays]:
        """The outputs for each of the filters (K, N, *spatial)."""
        if self._together is None and len(values) > 1:
            self._verdict[0] = self._agrees_together(values[:2])
        step = max(_AT_ONCE // self.samples, 1) if self._together else 1
        found: list[Arrays] = []
        for k in range(0, len(values), step):
            part = values[k : k + step]
            outputs = self._several(part)
            found += [self._piece(outputs, j) for j in range(len(part))] if len(part) > 1 else [outputs]
        return found

    def among_others(self, f: NDArray[np.float32]) -> Arrays:
        """What the tail gives for `f` when it is run as for `many`, in one batch with another filter."""
        return self._piece(self._several(np.stack([f, self.ones()])), 0) if self._together else self.outputs(f)

    def _piece(self, outputs: Arrays, position: int) -> Arrays:
        """The outputs of one of the filters that were run together."""
        own = slice(position * self.samples, (position + 1) * self.samples)
        return {k: v[(*[slice(None)] * max(self.stop.batch[k], 0), own)] if v.ndim else v for k, v in outputs.items()}

    def _several(self, values: NDArray[np.float32]) -> Arrays:
        """The outputs for filters (k, N, *spatial), the k batches one after the other."""
        count = len(values)
        if count == 1:
            return self.outputs(values[0])
        held: Held = {}
        for name, array in self.held.items():
            axis, shape = self.sample_axis(name), self._declared[name]
            if axis is None or shape is None or not isinstance(shape[axis], str):
                held[name] = array
                continue
            held[name] = joined([array] * count, axis)
        together = values.reshape(count * self.samples, *self.spatial)
        return self._run({**held, FILTER_INPUT: broadcastable(together, self.stop.axes)})

    def _agrees_together(self, values: NDArray[np.float32]) -> bool:
        """Whether one batch of two gives what two batches give: a batch may be baked into the graph."""
        if self.stop.batch[self.stop.at] < 0 or self.unit is not None:
            return False
        alone = [self.outputs(v) for v in values]
        try:
            joint = self._several(values)
            both = [self._piece(joint, k) for k in range(2)]
        except (L2cafError, ValueError):
            return False
        pairs = [(a[k], b[k]) for a, b in zip(alone, both, strict=True) for k in a if a[k].dtype.kind == "f"]
        return all(
            x.shape == y.shape and bool(np.abs(x - y).max(initial=0) <= 1e-5 * np.abs(x).max(initial=0))
            for x, y in pairs
        )


def joined(arrays: Sequence[Any], axis: int) -> Any:
    """Arrays, or tensors, one after the other along an axis."""
    return torch.cat(list(arrays), dim=axis) if isinstance(arrays[0], Tensor) else np.concatenate(arrays, axis=axis)


def on_host(array: Any) -> NDArray[Any]:
    """An array, or a tensor wherever it is, as an array."""
    return array.cpu().numpy() if isinstance(array, Tensor) else array


def tensors_of(outputs: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors that own their memory."""
    return {k: torch.from_numpy(np.array(v)) for k, v in outputs.items()}


def named(indices: NDArray[np.intp], total: int) -> str:
    """Samples as a message names them."""
    if total == 1:
        return "the only sample"
    return f"sample{'s' if len(indices) > 1 else ''} {', '.join(str(i) for i in indices[:8])} of {total}"
