"""One run of a model, and all that is compared of it: outputs, tensors, and the attention at breakpoints.

The model is run once a batch: its outputs, the tensors that are watched and the activations from which attention is
solved all come from that run. A check so costs little more than the forward passes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError, SolverError
from l2caf_onnx.explain.batches import batches
from l2caf_onnx.explain.explanation import Explanation
from l2caf_onnx.explain.opened import joined as concatenated
from l2caf_onnx.explain.scene import Scene
from l2caf_onnx.explain.stop import Stop, has_quantised, stop_at
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Attention

from .feeding import reordered
from .observation import Floats, Observation, joined, kind_of, stacked_rows
from .probe import Probe
from .sketch import statistics, values_at
from .watch import Seen, Watch

Arrays = dict[str, NDArray[Any]]

OUTPUT_PLACES = 2048
"""Values of an output that are kept; where it has more, they are taken at seeded places."""
TENSOR_PLACES = 128
CPU = torch.device("cpu")


class Observer:
    """A model, and what is looked at in it; `see` runs it.

    Attributes:
        model: The model.
        watch: What is looked at.
        device: Where the torch tails run.
    """

    def __init__(
        self,
        model: Model,
        watch: Watch,
        *,
        level: runtime.Level | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.model, self.watch, self.providers, self.threads = model, watch, providers, threads
        self.device = device
        exact = uses_half(model) or has_quantised(model)
        self.level: runtime.Level = level or ("disable" if exact else "all")
        self.probe = Probe(model, providers)

    @cached_property
    def _letters(self) -> Mapping[str, str]:
        return layouts(self.model)

    def classes(self, outputs: Sequence[NDArray[Any]]) -> NDArray[np.int64] | None:
        """(N,): the class of the largest score, where the first output holds one score for each class."""
        first = outputs[0]
        if len(outputs) != 1 or kind_of(first) != "classes":
            return None
        return np.asarray(np.nan_to_num(first.reshape(len(first), -1), nan=-np.inf).argmax(1), np.int64)

    def see(
        self,
        feeds: Mapping[str, NDArray[Any]],
        targets: Sequence[int] | str | None = None,
        *,
        batch_size: int | None = None,
    ) -> Observation:
        """Run the model on N inputs.

        Args:
            feeds: Of its inputs.
            targets: N classes that attention is asked about; "top1": those of largest score; None: none.
            batch_size: Inputs at once.

        Raises:
            L2cafError: as `attend`.
        """
        fed = {name: np.shape(array) for name, array in feeds.items()}
        asked = targets if isinstance(targets, str) or targets is None else list(targets)
        stops = {name: self._stop(own, fed, asked is not None) for name, own in self.watch.at.items()}
        _, parts = batches(self.model, feeds, batch_size)
        found: list[Observation] = []
        done = 0
        with torch.inference_mode(False):
            for batch in parts:
                made = [self._run(piece, stops.values()) for piece in batch.pieces]
                for group in _groups(list(batch.pieces), made, list(stops.values())):
                    count = self.count(group.pieces[0]) * len(group.pieces)
                    own = asked[done : done + count] if isinstance(asked, list) else asked
                    done += count
                    found.append(self._seen(group, stops, own, count))
        return joined(found)

    def _stop(self, at: str, fed: Mapping[str, tuple[int, ...]], logits: bool) -> Stop:
        question = self.watch.question
        return stop_at(self.model, at, question.to, question.layout, logits=logits, fed=fed)

    def _run(self, piece: Arrays, stops: Any) -> Arrays:
        needed = [s.own for s in (*self.watch.outputs, *self.watch.tensors)]
        needed += [n for s in stops for n in (s.at, *s.cut.bypass, *s.cut.to)]
        wanted = tuple(dict.fromkeys(n for n in needed if n not in piece))
        inputs = [i.name for i in self.model.inputs]
        head = self.model.cache.get(("head", wanted), lambda: extract(self.model, inputs, wanted))
        given = {i.name: piece[i.name] for i in head.inputs}
        return {
            **piece,
            **runtime.run(head, given, level=self.level, threads=self.threads, providers=self.providers),
        }

    def count(self, piece: Mapping[str, NDArray[Any]]) -> int:
        """How many inputs there are in feeds."""
        axes = {n: self._letters.get(n, "").find("N") for n in piece}
        return next((piece[n].shape[a] for n, a in axes.items() if a >= 0), 1)

    def _seen(self, group: _Group, stops: Mapping[str, Stop], asked: Any, count: int) -> Observation:
        outputs = {seen.name: self._by_sample(seen, group.made, count) for seen in self.watch.outputs}
        if asked == "top1":
            classes = self.classes(list(outputs.values()))
            asked = None if classes is None else classes.tolist()
        tensors, numbers = {}, {}
        for seen in self.watch.tensors:
            rows = self._rows(seen, group.made, count)
            tensors[seen.name], numbers[seen.name] = values_at(rows, TENSOR_PLACES), statistics(rows)
        answers = {name: self._attention(group, stop, asked, name in self.watch.affine) for name, stop in stops.items()}
        flat = {name: o.reshape(count, -1) for name, o in outputs.items()}
        return Observation(
            outputs={name: values_at(f, OUTPUT_PLACES) for name, f in flat.items()},
            sizes={name: np.full(count, f.shape[1]) for name, f in flat.items()},
            kinds={name: kind_of(o) for name, o in outputs.items()},
            tensors=tensors,
            statistics=numbers,
            filters={n: a.filter for n, a in answers.items()},
            maps={n: a.heatmap for n, a in answers.items()},
            targets=None if asked is None else np.asarray(asked, np.int64),
            notes=tuple(dict.fromkeys(n for a in answers.values() for n in a.notes)),
        )

    def _rows(self, seen: Seen, held: list[Arrays], count: int) -> Floats:
        parts = []
        for own in held:
            values = reordered(self.probe.real(seen.own, own[seen.own]), seen.order)
            axis = 0 if seen.order is not None else max(self._letters.get(seen.own, "N").find("N"), 0)
            samples = count // len(held)
            if values.ndim > axis and values.shape[axis] == samples:
                values = np.moveaxis(values, axis, 0) if axis else values
                parts.append(values.reshape(samples, -1))
            elif values.ndim and values.shape[0] and values.shape[0] % samples == 0:
                parts.append(values.reshape(samples, -1))  # windows or heads stand beside the samples
            else:
                parts.append(np.broadcast_to(values.reshape(1, -1), (samples, values.size)))
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return rows if seen.scale == 1 else rows * np.float32(seen.scale)

    def _by_sample(self, seen: Seen, held: list[Arrays], count: int) -> NDArray[Any]:
        """An output, samples first."""
        samples, name = count // len(held), seen.own
        axis = 0 if seen.order is not None else max(self._letters.get(name, "N").find("N"), 0)
        parts = []
        for own in held:
            value = own[name] if seen.order is None else own[name].transpose(seen.order)
            if value.ndim > axis and value.shape[axis] == samples:
                parts.append(np.moveaxis(value, axis, 0))
            elif samples == 1:
                parts.append(value[None])
            else:
                raise InputError(
                    f"The output {name!r} of shape {value.shape} has no axis of {samples} samples.",
                    where=f"Model {self.model.name!r}.",
                    how="Take one input at a time (batch size 1).",
                )
        return parts[0] if len(parts) == 1 else _padded([p.reshape(len(p), -1) for p in parts], parts)

    def _attention(self, group: _Group, stop: Stop, asked: Any, affine: bool) -> Attention:
        scene = Scene(self.model, group.pieces, group.recorded, stop, self.device, self.providers)
        classes = None if asked is None else tuple(asked)
        found = Explanation(scene, self.watch.question.planned(asked, affine=affine), classes).attention()
        if not found.proof.ok:
            raise SolverError(
                "onnxruntime does not confirm the attention, so there is nothing to compare.",
                where=f"At {stop.at!r} of {self.model.name!r}.",
                how="Choose another breakpoint.",
            )
        return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Pieces of a batch whose attention is solved together.

    Attributes:
        pieces: Their feeds.
        made: What the model made of each.
        recorded: The same joined, as far as attention needs it.
    """

    pieces: list[Arrays]
    made: list[Arrays]
    recorded: Arrays


def _groups(pieces: list[Arrays], made: list[Arrays], stops: Sequence[Stop]) -> list[_Group]:
    """One group where no attention is asked, or where all that it needs can be joined; else one for each piece."""
    if len(pieces) == 1 or not stops:
        return [_Group(pieces, made, made[0])]
    axis = {n: a for s in stops for n, a in s.batch.items() if n in made[0]}
    sizes = {made[0][s.at].shape[s.batch[s.at]] if s.batch[s.at] >= 0 else 0 for s in stops}
    if len(sizes) == 1 and all(0 <= a < made[0][n].ndim and made[0][n].shape[a] == min(sizes) for n, a in axis.items()):
        return [_Group(pieces, made, {n: concatenated([m[n] for m in made], a) for n, a in axis.items()})]
    return [_Group([piece], [part], part) for piece, part in zip(pieces, made, strict=True)]


def _padded(flat: list[NDArray[Any]], parts: list[NDArray[Any]]) -> NDArray[Any]:
    if len({p.shape[1:] for p in parts}) == 1:
        return np.concatenate(parts)
    return stacked_rows([np.asarray(f, np.float32) for f in flat])
