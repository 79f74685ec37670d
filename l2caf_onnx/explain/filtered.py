"""The filtered tail in torch: T(A f), differentiable, for any filters of any samples of a batch.

The tail is converted once, for one sample. Several run at once as the module itself allows (a graph whose batch is
open), else by `torch.func.vmap`, else one after the other: whichever gives what single runs give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from l2caf_onnx.agreement import RTOL
from l2caf_onnx.errors import ParityError, UnsupportedModelError
from l2caf_onnx.graph.insert import FILTER_INPUT
from l2caf_onnx.tail import TorchTail, to_torch

from .opened import Opened, on_host

Outputs = dict[str, Tensor]
Way = Literal["together", "vmap", "loop"]

ONE_BY_ONE = "The tail runs sample by sample: it holds an operator that neither takes a batch nor can be mapped."


class Filtered:
    """T(A f) of one batch in torch.

    Attributes:
        onnx: The same in onnxruntime.
        tail: The module, made for `unit` samples.
        unit: 1, or the whole batch where samples cannot be told apart.
    """

    def __init__(self, onnx: Opened, device: torch.device, providers: Sequence[str] | None) -> None:
        self.onnx, self.stop, self.device = onnx, onnx.stop, device
        self.unit = 1 if onnx.samples == 1 or _separable(onnx) else onnx.samples
        tail = None
        if self.unit < onnx.samples:
            try:
                tail = self._converted(slice(0, 1), providers)
            except (UnsupportedModelError, ParityError):
                self.unit = onnx.samples  # one sample alone is not what this graph expects
        self.tail: TorchTail = tail or self._converted(None, providers)
        if device.type != "cpu":
            self.tail = self.tail.to(device)
        self.reads = tuple(n for n in onnx.held if n in self.tail.reads)
        self._known: list[Way | None] = self.stop.opened.cache.get("way", lambda: [None])
        self._axes = {n: onnx.sample_axis(n) for n in self.reads}

    @cached_property
    def held(self) -> dict[str, Tensor]:
        """What the tail reads but for the filter, by name."""
        return {n: as_tensor(self.onnx.held[n]).to(self.device) for n in self.reads}

    def _converted(self, piece: slice | None, providers: Sequence[str] | None) -> TorchTail:
        """As `to_torch`, for a piece of the batch or all of it; looked up without a glance at the values, where these
        do not steer the tail.
        """
        onnx = self.onnx
        shapes = [list(array.shape) for array in onnx.held.values()]
        for name, shape in zip(onnx.held, shapes, strict=True):
            if piece is not None and (axis := onnx.sample_axis(name)) is not None:
                shape[axis] = 1
        key = ("tail", tuple(map(tuple, shapes)), onnx.spatial, tuple(providers or ()))
        kept: list[TorchTail] = self.stop.opened.cache.get(key, list)
        if kept:
            return kept[0]
        example = onnx.example(piece, onnx.ones()) if piece is not None else onnx.fed(onnx.ones())
        fed = {name: on_host(value) for name, value in example.items()}
        tail = to_torch(self.stop.opened, fed, held=self.stop.held_names, providers=providers)
        if not tail.fixed:
            kept.append(tail)
        return tail

    def __call__(self, f: Tensor, samples: Tensor | None = None, at: Tensor | None = None) -> Outputs:
        """The outputs, batch first, under the names of S2, for filters (k, *spatial).

        Args:
            f: The filters.
            samples: (k,) int64, the sample that each filter is for; None: all, in their order.
            at: What is at S1 in the place of each sample's own, a row for each filter, in the layout of S1.
        """
        k = len(f)
        if at is not None:
            return self._replaced(f, self._numbers(f, samples), at)
        if samples is not None and k == self.onnx.samples and bool((samples == torch.arange(k)).all()):
            samples = None
        if self.unit > 1:
            return self._padded(f, samples)
        if k == 1:
            return self._together(f, samples)
        return _WAYS[self._known[0] or self._way(f, samples)](self, f, samples)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how it ran."""
        return (ONE_BY_ONE,) if self._known[0] == "loop" else ()

    def _way(self, f: Tensor, samples: Tensor | None) -> Way:
        """The quickest way that gives for the first and the last filter what they give alone."""
        chosen: Way = "loop"
        with torch.no_grad():
            ends = [0, len(f) - 1]
            alone = [self._together(f[e : e + 1], self._numbers(f, samples)[e : e + 1]) for e in ends]
            for way in ("together", "vmap"):
                try:
                    both = _WAYS[way](self, f, samples)
                except Exception:  # noqa: BLE001  # modules raise anything where a batch does not fit; a slower way is left
                    continue
                if all(_same(a, {n: v[e : e + 1] for n, v in both.items()}) for a, e in zip(alone, ends, strict=True)):
                    chosen = way
                    break
        self._known[0] = chosen
        return chosen

    def _numbers(self, f: Tensor, samples: Tensor | None) -> Tensor:
        if samples is None:
            samples = torch.arange(len(f))
        return samples.to(self.device)

    def _placed(self, f: Tensor) -> Tensor:
        """Filters (k, *spatial) as they multiply S1, tokens around a grid by 1."""
        way = self.stop.axes.placement(tuple(f.shape))
        flat = f.reshape(way.flat)
        if any(way.kept):
            flat = torch.nn.functional.pad(flat, way.kept, value=1.0)
        return flat.permute(way.order).reshape(way.shape)

    def _named(self, outputs: Outputs, count: int) -> Outputs:
        found = {name: outputs[own] for name, own in zip(self.stop.cut.to, self.stop.own_names, strict=True)}
        return self.onnx.by_sample(found, count)

    def _replaced(self, f: Tensor, samples: Tensor, at: Tensor) -> Outputs:
        """With other activations at S1: as a batch where filters may be one, else one after the other."""
        axis = self.stop.batch[self.stop.at]
        batched = axis >= 0 and self.unit == 1  # a clip whose frames are the batch is one sample, and stays alone
        if batched and (len(f) == 1 or (self._known[0] or self._way(f, samples)) == "together"):
            return self._together(f, samples, at)
        whole = self.held[self.stop.at]
        runs = []
        for k, n in enumerate(samples.tolist()):
            own = at.select(axis, k).unsqueeze(axis) if axis >= 0 else at[k]
            if self.unit == 1:
                runs.append(self._together(f[k : k + 1], samples[k : k + 1], own))
                continue
            places = [whole.narrow(axis, 0, n), own, whole.narrow(axis, n + 1, self.onnx.samples - n - 1)]
            ones = torch.ones(self.onnx.shape, device=self.device)
            found = self._together(ones, None, torch.cat(places, axis) if axis >= 0 else own)
            runs.append({name: v[n : n + 1] for name, v in found.items()})
        return {name: torch.cat([r[name] if r[name].ndim else r[name][None] for r in runs]) for name in runs[0]}

    def _together(self, f: Tensor, samples: Tensor | None, at: Tensor | None = None) -> Outputs:
        """All in one run of the module, as a batch."""
        held = {}
        for name, value in self.held.items():
            axis = self._axes[name]
            if name == self.stop.at and at is not None:
                held[name] = at.to(value.dtype)
                continue
            if axis is None or samples is None:
                held[name] = value
            elif value.shape[axis] == 1:
                held[name] = value.expand([len(f) if a == axis else s for a, s in enumerate(value.shape)])
            else:
                held[name] = value.index_select(axis, samples.to(self.device))
        return self._named(self.tail({**held, FILTER_INPUT: self._placed(f)}), len(f))

    def _mapped(self, f: Tensor, samples: Tensor | None) -> Outputs:
        """By vmap over the module for one sample."""
        numbers = self._numbers(f, samples)
        given, places = [f], [0]
        for name, value in self.held.items():
            axis = self._axes[name]
            own = value if axis is None else value.index_select(axis, numbers).movedim(axis, 0).unsqueeze(axis + 1)
            given.append(own)
            places.append(0 if axis is not None else -1)

        def one(filter: Tensor, *held: Tensor) -> Outputs:
            fed = dict(zip(self.held, held, strict=True))
            outputs: Outputs = self.tail({**fed, FILTER_INPUT: self._placed(filter[None])})
            return outputs

        in_dims = tuple(p if p >= 0 else None for p in places)
        outputs = torch.func.vmap(one, in_dims=in_dims)(*given)
        found = {name: outputs[own] for name, own in zip(self.stop.cut.to, self.stop.own_names, strict=True)}
        return {name: self._without_batch(name, value) for name, value in found.items()}

    def _without_batch(self, name: str, mapped: Tensor) -> Tensor:
        """A mapped output without the batch of one that each sample has inside."""
        axis = self.stop.batch[name] + 1
        return mapped.squeeze(axis) if 0 < axis < mapped.ndim and mapped.shape[axis] == 1 else mapped

    def _looped(self, f: Tensor, samples: Tensor | None) -> Outputs:
        """One sample after the other."""
        numbers = self._numbers(f, samples)
        runs = [self._together(f[k : k + 1], numbers[k : k + 1]) for k in range(len(f))]
        return {name: torch.cat([r[name] if r[name].ndim else r[name][None] for r in runs]) for name in runs[0]}

    def _padded(self, f: Tensor, samples: Tensor | None) -> Outputs:
        """In whole batches, whose other places hold the filter that changes nothing."""
        if samples is None:
            return self._together(f, None)
        numbers = samples.tolist()
        found: list[dict[str, Tensor] | None] = [None] * len(numbers)
        waiting = list(range(len(numbers)))
        while waiting:
            round_: dict[int, int] = {}
            for k in waiting:
                round_.setdefault(numbers[k], k)
            ones = torch.ones_like(f[:1])
            full = torch.cat([f[round_[n]][None] if n in round_ else ones for n in range(self.onnx.samples)])
            outputs = self._together(full, None)
            for n, k in round_.items():
                found[k] = {name: v[n] for name, v in outputs.items()}
            waiting = [k for k in waiting if k not in round_.values()]
        rows = [r for r in found if r is not None]
        return {name: torch.stack([r[name] for r in rows]) for name in rows[0]}


_WAYS: dict[Way, Callable[[Filtered, Tensor, Tensor | None], Outputs]] = {
    "together": Filtered._together,
    "vmap": Filtered._mapped,
    "loop": Filtered._looped,
}


def _separable(onnx: Opened) -> bool:
    """Whether each sample can be run alone: it has a place in S1 and the file lets a batch be 1; not quantised ones,
    which are judged as a whole.
    """
    return onnx.stop.batch[onnx.stop.at] >= 0 and onnx.unit in (None, 1) and not onnx.stop.integers


def _same(alone: Outputs, together: Outputs) -> bool:
    return all(
        a.shape == together[n].shape
        and bool(((a - together[n]).abs().amax() if a.numel() else torch.zeros(())) <= _tolerance(a))
        for n, a in alone.items()
        if a.is_floating_point()
    ) and all(a.shape == together[n].shape for n, a in alone.items())


def _tolerance(a: Tensor) -> float:
    return RTOL.get(str(a.dtype).removeprefix("torch."), 0.0) * float(a.abs().amax() if a.numel() else 0.0)


def as_tensor(array: Any) -> Tensor:
    """An array as a tensor, in place where it may be; a tensor as it is."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else np.array(array))
