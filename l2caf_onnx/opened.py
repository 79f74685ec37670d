"""The filtered tail in onnxruntime, on the activations recorded of one batch: what every answer is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import filters, runtime
from .batches import refuse_nan
from .errors import CutError, L2cafError, SolverError
from .graph.insert import FILTER_INPUT, broadcastable
from .query import Plan
from .stop import Stop

Arrays = dict[str, NDArray[Any]]

_DEAD = 1e-6  # of max|NT - T(0)|: what outputs may differ by, among filters of the constraint set, in a dead tail
_AT_ONCE = 16  # runs of one sample that are made one batch, where the graph allows
_SKETCHED = 2**16  # numbers of an output from which on differences are taken of a sketch of it
_SKETCH = 2**13  # numbers of the sketch


class Opened:
    """T(A f) by onnxruntime for any filter f (N, *spatial).

    Attributes:
        stop: The breakpoint.
        held: The tail's inputs but for the filter.
        samples: N.
        spatial: The filter's other axes.
        rho: The radius asked for.
    """

    def __init__(
        self,
        feeds: Arrays,
        recorded: Arrays,
        stop: Stop,
        asked: Plan,
        providers: Sequence[str] | None,
        name: str,
    ) -> None:
        self.stop, self.asked, self.providers = stop, asked, providers
        self.held = {i.name: recorded[i.name] for i in stop.opened.inputs if i.name != FILTER_INPUT}
        for held, array in self.held.items():
            refuse_nan(held, array, "an activation" if held not in feeds else "the input")
        activation = recorded[stop.at]
        self.samples = activation.shape[stop.axes.batch] if stop.axes.batch is not None else 1
        self.spatial = tuple(int(s) for s in stop.axes.cells(activation.shape))
        cells = int(np.prod(self.spatial))
        if cells < 2:
            raise CutError(
                f"Here this tensor has one spatial cell (shape {activation.shape}): there is nothing to choose among.",
                where=f"Tensor {stop.at!r} of model {name!r}.",
                how="Break earlier, or feed a larger input.",
            )
        self.rho = asked.rho(cells)
        self.own_names = tuple(o.name for o in stop.opened.outputs)
        self._together: bool | None = None
        self._batch = {name: stop.layouts.get(name, "N").find("N") for name in stop.cut.to}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a filter: (N, *spatial)."""
        return (self.samples, *self.spatial)

    def ones(self) -> NDArray[np.float32]:
        """The filter that changes nothing."""
        return np.ones(self.shape, np.float32)

    def fed(self, f: NDArray[np.float32]) -> Arrays:
        """The tail's inputs with that filter."""
        return {**self.held, FILTER_INPUT: broadcastable(f, self.stop.axes)}

    def outputs(self, f: NDArray[np.float32]) -> Arrays:
        """What the tail gives, under the names of S2."""
        return self._run(self.fed(f))

    def _run(self, fed: Arrays) -> Arrays:
        outputs = runtime.run(self.stop.opened, fed, providers=self.providers)
        return {name: outputs[own] for name, own in zip(self.stop.cut.to, self.own_names, strict=True)}

    def by_sample(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs with the batch in front, where their layout says that it is elsewhere (TNC of recurrent nets)."""
        return {
            k: v.movedim(self._batch[k], 0)
            if self._batch[k] > 0 and v.ndim > self._batch[k] and v.shape[self._batch[k]] == self.samples
            else v
            for k, v in outputs.items()
        }

    def losses(self, f: NDArray[np.float32], target: Tensor | None) -> Tensor:
        """The objective at `f`: (N,) float64."""
        filtered, normal = (self.by_sample(_tensors(self.outputs(g))) for g in (f, self.ones()))
        wanted = target.cpu() if target is not None else None
        return self.asked.objective.losses(filtered, normal, samples=self.samples, target=wanted).double()

    def points(self, sphere: filters.Sphere) -> list[NDArray[np.float32]]:
        """Three seeded filters of the constraint set."""
        generator = torch.Generator().manual_seed(self.asked.seed)
        return [sphere.random_point(self.shape, generator).float().cpu().numpy() for _ in range(3)]

    def refuse_dead(self, sphere: filters.Sphere) -> None:
        """Raise SolverError where the outputs are the same whatever cells the filter keeps."""
        outputs = [self._per_sample(self.outputs(f)) for f in self.points(sphere)]
        whole, nothing = (self._per_sample(self.outputs(np.full(self.shape, v, np.float32))) for v in (1.0, 0.0))
        moved = np.ptp(np.stack(outputs), axis=0).max(axis=1, initial=0)
        dead = np.flatnonzero(moved <= _DEAD * np.abs(whole - nothing).max(axis=1, initial=0))
        grid = self.stop.axes.grid
        if dead.size:
            raise SolverError(
                f"The tail is dead at radius {self.rho:g}: whatever cells the filter keeps, the output is the same.",
                where=f"Between {self.stop.at!r} and {', '.join(self.stop.cut.to)}, {named(dead, self.samples)}.",
                how="Perhaps only the class token is read from here on: break before the last attention."
                if grid and grid.prefix + grid.suffix
                else "Filters that small leave only biases: try a larger radius (0.5), or break nearer the output.",
            )

    def moving(self, silent: NDArray[np.intp], sphere: filters.Sphere, target: Tensor | None) -> NDArray[np.intp]:
        """Those of the samples `silent` whose loss is not the same for three filters."""
        losses = np.stack([self.losses(f, target).numpy() for f in self.points(sphere)])
        found: NDArray[np.intp] = silent[np.ptp(losses, axis=0)[silent] > _DEAD * np.abs(losses).max(axis=0)[silent]]
        return found

    def _per_sample(self, outputs: Arrays) -> NDArray[np.float64]:
        """All floating outputs as one row a sample (NaN and infinities, that stay, as 0)."""
        rows = [
            np.nan_to_num(v.double().numpy(), posinf=0, neginf=0).reshape(
                self.samples if v.ndim and v.shape[0] == self.samples else 1, -1
            )
            for v in self.by_sample(_tensors(outputs)).values()
            if v.is_floating_point()
        ]
        rows = [np.broadcast_to(r, (self.samples, r.shape[1])) for r in rows]
        return np.concatenate(rows, axis=1) if rows else np.zeros((self.samples, 0))

    # What the blackbox solver asks: rows of numbers, many filters at once.

    def respond(self, filters: Tensor) -> Tensor:
        """Filters (K, N, *spatial) -> outputs (K, N, M), all floating outputs in a row, large ones sketched."""
        values = filters.float().cpu().numpy()
        if self._together is None:
            self._together = len(values) > 1 and self._agrees_together(values[:2])
        step = max(_AT_ONCE // self.samples, 1) if self._together else 1
        parts = [values[k : k + step] for k in range(0, len(values), step)]
        return torch.from_numpy(np.concatenate([self._rows(self._several(p), len(p)) for p in parts]))

    def among_others(self, f: NDArray[np.float32]) -> Arrays:
        """What the tail gives for `f` when it is run as for the blackbox solver, in one batch with another filter."""
        if not self._together:
            return self.outputs(f)
        outputs = self._several(np.stack([f, self.ones()]))
        return {k: v[: self.samples] if v.ndim else v for k, v in outputs.items()}

    def _several(self, values: NDArray[np.float32]) -> Arrays:
        """The outputs for filters (k, N, *spatial), the k batches one after the other."""
        count = len(values)
        if count == 1:
            return self.outputs(values[0])
        declared = {i.name: i.shape for i in self.stop.opened.inputs}
        held = {}
        for name, array in self.held.items():
            axis = self.stop.axes.batch if name == self.stop.at else 0
            shape = declared[name]
            open_ = axis is not None and array.ndim > axis and array.shape[axis] == self.samples
            if not (open_ and shape is not None and isinstance(shape[axis or 0], str)):
                held[name] = array
                continue
            held[name] = np.concatenate([array] * count, axis=axis)
        together = values.reshape(count * self.samples, *self.spatial)
        return self._run({**held, FILTER_INPUT: broadcastable(together, self.stop.axes)})

    def _agrees_together(self, values: NDArray[np.float32]) -> bool:
        """Whether one batch of two gives what two batches give: a batch may be baked into the graph."""
        shape = next(i.shape for i in self.stop.opened.inputs if i.name == self.stop.at)
        axis = self.stop.axes.batch
        if axis is None or shape is None or not isinstance(shape[axis], str):
            return False
        alone = np.concatenate([self._rows(self.outputs(v), 1) for v in values])
        try:
            both = self._rows(self._several(values), 2)
        except (L2cafError, ValueError):
            return False
        return both.shape == alone.shape and bool(np.abs(both - alone).max() <= 1e-5 * np.abs(alone).max())

    def _rows(self, outputs: Arrays, count: int) -> NDArray[np.float64]:
        """(count, N, M)."""
        rows = []
        for name, value in outputs.items():
            if value.dtype.kind != "f" or not value.size:
                continue
            axis = self._batch[name]
            inside = axis > 0 and value.ndim > axis and value.shape[axis] == count * self.samples
            first = np.moveaxis(value, axis, 0) if inside else value
            flat = first.astype(np.float64).reshape(count * self.samples, -1)
            rows.append(_sketched(flat) if self._sketches and flat.shape[1] > _SKETCHED else flat)
        return np.concatenate(rows, axis=1).reshape(count, self.samples, -1)

    @property
    def _sketches(self) -> bool:
        return not self.asked.objective.class_specific

    def row_loss(self, target: Tensor | None) -> Any:
        """(rows (k, M), sample) -> losses (k,): the objective on rows as `respond` makes them."""
        whole = self.outputs(self.ones())
        self.losses(self.ones(), target)  # it refuses outputs that the objective cannot be formed from
        normal = torch.from_numpy(self._rows(whole, 1)[0])
        names, widths = [], []
        for name, value in whole.items():
            if value.dtype.kind == "f" and value.size:
                width = value.size // self.samples
                names.append(name)
                widths.append(_SKETCH if self._sketches and width > _SKETCHED else width)

        def loss(rows: Tensor, sample: int) -> Tensor:
            count = len(rows)
            usual = normal[sample].expand(count, -1)
            filtered, unfiltered = (dict(zip(names, torch.split(r, widths, 1), strict=True)) for r in (rows, usual))
            wanted = target[sample].cpu().expand(count) if target is not None else None
            return self.asked.objective.losses(filtered, unfiltered, samples=count, target=wanted)

        return loss


def _tensors(outputs: Arrays) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in outputs.items()}


def _sketched(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, M) -> (n, _SKETCH), linear, whose mean square is that of the rows but for noise.

    A count sketch: every number is added, with a random sign, to one of the sketch's (Charikar, Chen & Farach-Colton,
    2002); seeded, so that it is always the same.
    """
    width = rows.shape[1]
    rng = np.random.default_rng(width)
    places, signs = rng.integers(0, _SKETCH, width), rng.choice([-1.0, 1.0], width)
    added = np.stack([np.bincount(places, weights=row * signs, minlength=_SKETCH) for row in rows])
    scaled: NDArray[np.float64] = added * np.sqrt(_SKETCH / width)
    return scaled


def named(indices: NDArray[np.intp], total: int) -> str:
    """Samples as a message names them."""
    if total == 1:
        return "the only sample"
    return f"sample{'s' if len(indices) > 1 else ''} {', '.join(str(i) for i in indices[:8])} of {total}"
