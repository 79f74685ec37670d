"""One breakpoint on one batch: what all questions about it share, each made when first asked for, and once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx import runtime
from l2caf_onnx.agreement import compare
from l2caf_onnx.errors import InputError, ParityError, SolverError
from l2caf_onnx.filters import Space
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.insert import insert_filter
from l2caf_onnx.graph.layout import axes, letters_in
from l2caf_onnx.graph.model import Model
from l2caf_onnx.objectives import Objective, class_scores
from l2caf_onnx.records import Parity

from .collapsed import Collapsed, collapsed
from .filtered import Filtered, Outputs
from .opened import Arrays, Held, Opened, joined, named, on_host, tensors_of
from .stop import Stop, has_quantised

DEAD = 1e-6  # of max|NT - T(0)|: what outputs may differ by, among filters of the constraint set, in a dead tail


class Scene:
    """One breakpoint on one batch.

    Attributes:
        model: The whole.
        pieces: The feeds, in parts that the model takes at once.
        stop: The breakpoint.
        onnx: The filtered tail in onnxruntime.
    """

    def __init__(
        self,
        model: Model,
        pieces: Sequence[Arrays],
        recorded: Held,
        stop: Stop,
        device: torch.device,
        providers: Sequence[str] | None,
    ) -> None:
        self.model, self.pieces, self.stop = model, pieces, stop
        self.device, self.providers = device, providers
        self.onnx = Opened(pieces[0], recorded, stop, providers, model.name)
        self._alive: set[Any] = set()
        self._arrived = {n: recorded[n] for n in stop.cut.to if n in recorded and n not in pieces[0]}

    @cached_property
    def filtered(self) -> Filtered:
        """The filtered tail in torch.

        Raises:
            UnsupportedModelError, ParityError: no converter makes one that agrees with onnxruntime.
        """
        return Filtered(self.onnx, self.device, self.providers)

    @cached_property
    def collapsed(self) -> Collapsed | None:
        """The same as a matrix, where it is affine in the filter; None where it is not."""
        return collapsed(self.filtered, self.arrived)

    @cached_property
    def normal(self) -> dict[str, Tensor]:
        """NT by onnxruntime, batch first."""
        return self.onnx.by_sample(tensors_of(self.onnx.normal()))

    @property
    def frames(self) -> bool:
        """Whether the first spatial axis counts frames of pictures, each of which has a filter of its own."""
        letters = letters_in(self.stop.layout)
        spatial = [letters[a] for a in self.stop.axes.spatial]
        return spatial[:1] == ["T"] and {"H", "W"} <= set(spatial)

    def reference(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        """What another input, one or one a sample, gives at S2 in onnxruntime, batch first.

        Raises:
            InputError: its outputs are not one row, or one a sample.
        """
        given = runtime.check_feeds(self.model, {k: np.asarray(v) for k, v in feeds.items()})
        values = tensors_of(runtime.run(self.stop.whole(self.model), given, providers=self.providers))
        batch, samples = self.stop.batch, self.onnx.samples
        found = {}
        for name, value in values.items():
            axis = batch[name]
            own = value.movedim(axis, 0) if axis >= 0 else value[None]
            if len(own) not in (1, samples):
                raise InputError(
                    f"The reference has {len(own)} samples; there are {samples}.", how="Give one, or one a sample."
                )
            found[name] = own.expand(samples, *own.shape[1:]).to(self.device)
        return found

    def top_class(self) -> tuple[int, ...]:
        """The class of largest score of each sample, unfiltered.

        Raises:
            InputError: S2 holds no class scores.
        """
        arrived = self.arrived
        if arrived is not None and len(arrived) == 1:
            ((name, plain),) = arrived.items()
            if plain.ndim == 2 and plain.size and plain.dtype.kind == "f" and self.stop.batch[name] == 0:
                return tuple(plain.argmax(1).tolist())  # torch would take longer than that
        outputs = self.normal if arrived is None else self.onnx.by_sample(tensors_of(arrived))
        scores = class_scores(outputs, samples=self.onnx.samples)
        return tuple(scores.argmax(1).tolist())

    @property
    def arrived(self) -> Arrays | None:
        """What the head's run gave at S2, under its names, where it was asked for that too."""
        known = len(self._arrived) == len(self.stop.cut.to)
        return {n: on_host(v) for n, v in self._arrived.items()} if known else None

    def losses(self, objective: Objective, target: Tensor | None, against: Outputs, f: NDArray[np.float32]) -> Tensor:
        """The objective at `f` by onnxruntime, against those outputs: (N,) float64."""
        filtered = self.onnx.by_sample(tensors_of(self.onnx.outputs(f)))
        wanted = target.cpu() if target is not None else None
        return objective.losses(filtered, against, samples=self.onnx.samples, target=wanted).double()

    def dead(self, space: Space, seed: int) -> NDArray[np.bool_]:
        """(N,) where the outputs are the same whatever cells the filter keeps."""
        key = (space.constraint, tuple(space.rho.tolist()), seed)
        if key in self._alive:
            return np.zeros(self.onnx.samples, bool)
        onnx = self.onnx
        filters = [*points(space, seed), np.zeros(onnx.shape, np.float32)]
        *outputs, nothing = (onnx.rows_of(o) for o in onnx.many(np.stack(filters)))
        whole = onnx.rows_of(onnx.normal())
        moved = np.ptp(np.stack(outputs), axis=0).max(axis=1, initial=0)
        found: NDArray[np.bool_] = moved <= DEAD * np.abs(whole - nothing).max(axis=1, initial=0)
        if not found.any():
            self._alive.add(key)
        return found

    def refuse_dead(self, space: Space, seed: int) -> None:
        """Raise SolverError where the outputs are the same whatever cells the filter keeps."""
        onnx, stop = self.onnx, self.stop
        dead = np.flatnonzero(self.dead(space, seed))
        grid = stop.axes.grid
        if dead.size:
            raise SolverError(
                f"The tail is dead at radius {float(space.rho[dead[0]]):g}: whatever cells the filter keeps, the "
                "output is the same.",
                where=f"Between {stop.at!r} and {', '.join(stop.cut.to)}, {named(dead, onnx.samples)}.",
                how="Perhaps only the class token is read from here on: break before the last attention."
                if grid and grid.prefix + grid.suffix
                else 'Filters that small leave only biases: try a larger radius (0.5, or "auto"), or break nearer the '
                "output.",
            )

    def refuse_unresponsive(
        self, responds: Tensor, objective: Objective, target: Tensor | None, against: Outputs, space: Space, seed: int
    ) -> None:
        """Where torch's gradient was zero throughout: the converter's fault if onnxruntime's moves, else the user's."""
        silent = np.flatnonzero(~responds.cpu().numpy())
        if not silent.size:
            return
        losses = np.stack([self.losses(objective, target, against, f).numpy() for f in points(space, seed)])
        moving = silent[np.ptp(losses, axis=0)[silent] > DEAD * np.abs(losses).max(axis=0)[silent]]
        where = f"Between {self.stop.at!r} and {', '.join(self.stop.cut.to)}"
        if moving.size:
            raise ParityError(
                f"The torch tail made by {self.filtered.tail.converter} has a zero gradient where onnxruntime's "
                "output moves.",
                where=f"{where}, {named(moving, self.onnx.samples)}.",
                how="Break at a later tensor, so that the operator without gradient is in the head, or let the solver "
                "blackbox do without.",
            )
        raise SolverError(
            "The loss does not respond to any filter: what is asked does not depend on it here.",
            where=f"{where}, {named(silent, self.onnx.samples)}.",
            how="Choose another target or objective, or a larger radius.",
        )

    def picture_size(self) -> tuple[int, ...]:
        """The spatial size of the input that the model saw; the filter's own where no input has as many axes."""
        known: dict[Any, tuple[int, ...]] = self.stop.opened.cache.get("pictures", dict)
        key = (self.onnx.spatial, *((name, array.shape) for name, array in self.pieces[0].items()))
        if key not in known:
            known[key] = self._picture_size()
        return known[key]

    def _picture_size(self) -> tuple[int, ...]:
        stop, spatial = self.stop, self.onnx.spatial
        if self.frames:
            return self._clip_size() or spatial
        own, found = letters_in(stop.layout), stop.axes
        tokens = {own[a] for a in found.spatial} & {"T", "S"} if found.grid is None and len(spatial) > 1 else set()
        for info in self.model.inputs:
            letters = stop.layouts.get(info.name, "")
            places = axes(letters).spatial
            if not tokens <= set(letters):  # query x key is no picture
                continue
            if len(places) == len(spatial) and info.name in stop.reached_from:
                return tuple(self.pieces[0][info.name].shape[a] for a in places)
        return spatial

    def _clip_size(self) -> tuple[int, ...] | None:
        """(T, H, W) of the clip that the model saw; its frames may stand on an axis that was taken for another."""
        for info in self.model.inputs:
            letters, shape = self.stop.layouts.get(info.name, ""), self.pieces[0][info.name].shape
            if info.name in self.stop.reached_from and {"H", "W"} <= set(letters):
                picture = [letters.index(letter) for letter in "HW"]
                if any(shape[a] == self.onnx.spatial[0] for a in range(len(shape)) if a not in picture):
                    return (self.onnx.spatial[0], *(shape[a] for a in picture))
        return None

    def whole(self, values: NDArray[np.float32], level: runtime.Level) -> Arrays:
        """What the whole filtered model gives in onnxruntime, under the names of S2."""
        to = self.stop.cut.to
        start, found = 0, []
        for feeds in self.pieces:
            count = self.onnx.samples // len(self.pieces)
            part = values[start : start + count]
            start += count
            filtered = insert_filter(self.stop.whole(self.model), self.stop.at, part, layout=self.stop.layout)
            outputs = runtime.run(filtered, feeds, level=level, providers=self.providers)
            found.append({name: outputs[o.name] for name, o in zip(to, filtered.outputs, strict=True)})
        if len(found) == 1:
            return found[0]
        return {n: np.concatenate([f[n] for f in found], axis=max(self.stop.batch[n], 0)) for n in to}

    def compared(self, reference: Arrays, found: Arrays, *, level: str = "disable") -> Parity:
        """The agreement of `found` with onnxruntime's `reference`."""
        provider = runtime.check_providers(self.providers)[0]
        return compare(reference, found, half=uses_half(self.model), provider=provider, level=level)


def points(space: Space, seed: int) -> list[NDArray[np.float32]]:
    """Three seeded filters of the space."""
    return [f.float().cpu().numpy() for f in space.points(seed)]


Group = tuple[Sequence[Arrays], Held]
"""Pieces of a batch, and all that the tails need of them, joined."""


def record(
    model: Model,
    pieces: Sequence[Arrays],
    stops: Sequence[Stop],
    providers: Sequence[str] | None,
    device: torch.device | None = None,
    watched: Sequence[Stop] = (),
) -> list[Group]:
    """All that the tails need, by one run of the head for each piece.

    Several pieces become one group where each tensor has an axis along which they can be joined. With a `device` the
    activations stay there, as tensors, where onnxruntime made them. What arrives at S2 of the stops `watched` comes
    from the same run where it costs no more than that: one piece, of float32.
    """
    needed = [n for s in stops for n in (s.at, *s.cut.bypass)]
    level: runtime.Level = "disable" if uses_half(model) or has_quantised(model) else "all"
    if level == "all" and len(pieces) == 1:
        needed += [n for s in watched for n in s.cut.to]
    wanted = tuple(dict.fromkeys(n for n in needed if n not in pieces[0]))
    if wanted:
        inputs = [i.name for i in model.inputs]
        head = model.cache.get(("head", wanted), lambda: extract(model, inputs, wanted))
    parts: list[Held] = []
    for piece in pieces:
        made: Held = {}
        if wanted and device is not None:
            bound = runtime.run_bound(head, piece, device=device.type, level=level, providers=providers)
            made = {name: torch.utils.dlpack.from_dlpack(value) for name, value in bound.items()}
        elif wanted:
            made = dict(runtime.run(head, piece, level=level, providers=providers, check=False))
        parts.append({**piece, **made})
    if len(parts) == 1:
        return [(pieces, parts[0])]
    axis = {n: a for s in stops for n, a in s.batch.items() if n in parts[0]}
    sizes = {parts[0][s.at].shape[s.batch[s.at]] if s.batch[s.at] >= 0 else 0 for s in stops}
    if len(sizes) == 1 and all(_divides(parts[0][n], a, min(sizes)) for n, a in axis.items()):
        return [(pieces, {n: joined([p[n] for p in parts], a) for n, a in axis.items()})]
    return [((piece,), part) for piece, part in zip(pieces, parts, strict=True)]


def _divides(array: Any, axis: int, samples: int) -> bool:
    return 0 <= axis < array.ndim and int(array.shape[axis]) == samples > 0
