"""Gauss-Newton by differences: the solver for tails that can be run but not differentiated.

Which of the outputs move, and how far, is known after one run for each cell; the loss of the outputs taken for linear
in the filter is then minimised by L-BFGS without running the tail again (Nocedal & Wright, "Numerical Optimization",
2nd edition, sections 8.1 and 10.3). A step that lowers the true loss is taken, and what it taught corrects the slopes
by Broyden's rank-one update (section 11.1), until that no longer helps and the differences are taken anew. For a tail
that is linear one round is exact.

Large maps begin on a coarse grid of nodes, between which the filter is interpolated, and go on to a finer one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.filters import ConstraintSet, NonnegSphere, Sphere

from .lbfgs import Lbfgs
from .solution import Solution, refuse_unusable_start

Vector = NDArray[np.float64]

Respond = Callable[[Tensor], Tensor]
"""Filters (K, N, *spatial) -> outputs (K, N, M): K runs of N samples, each output a row of M numbers."""

RowLoss = Callable[[Tensor, int], Tensor]
"""Outputs (k, M) of the sample with that index -> their losses (k,), differentiable."""

Search = Generator[Vector, Vector, str]
"""Yields filters (k, cells), is sent their outputs (k, M), returns the sentence why it stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blackbox:
    """Gauss-Newton on the outputs, from forward runs alone, that keeps the best filter evaluated.

    Attributes:
        forwards_per_cell: Runs that a sample may take for each of its cells (or nodes, where the map is large).
        nodes: A map of more cells has its filter interpolated between at most so many nodes...
        coarse: ...and at first between at most so many.
        steps: Changes of one cell (or node) by which differences are taken, first and later, as parts of the uniform
            filter's value; large ones see over the stairs of a quantised tail.
        tolerance: A step that gains less of the loss's scale than this is no progress.
        parts: Of the way to the linear form's minimum, that are tried; where none helps, parts of the last of them...
        shortest: ...down to this.
    """

    forwards_per_cell: int = 4
    nodes: int = 196
    coarse: int = 49
    steps: tuple[float, float] = (0.25, 0.1)
    tolerance: float = 1e-3
    parts: tuple[float, ...] = (1.0, 0.5, 0.2)
    shortest: float = 0.01

    name = "blackbox"

    def minimise(self, respond: Respond, loss: RowLoss, sphere: ConstraintSet, shape: tuple[int, ...]) -> Solution:
        """Minimise over filters of `shape` (N, *spatial) on `sphere`; each sample searches by itself.

        Args:
            respond: The tail; runs for several samples are shared, padded where one asks for fewer.
            loss: Of outputs of one sample.
            sphere: The constraint set, "l2" or "l2-nonneg".
            shape: (N, *spatial).

        Returns:
            `evaluations` counts the sample's own runs of the tail.

        Raises:
            SolverError: a sample's loss is not finite at the uniform filter.
        """
        samples, spatial = shape[0], shape[1:]
        radii = sphere.radii(samples).double().cpu().numpy()
        nonneg = sphere.name == NonnegSphere.name
        runs = [
            _Run(_search(self, _numpy(loss, n), loss, n, r, spatial, nonneg), _numpy(loss, n))
            for n, r in enumerate(radii)
        ]
        while any(run.running for run in runs):
            count = max(len(run.wanted) for run in runs if run.running)
            stacked = np.stack([run.padded(count) for run in runs], axis=1)
            filters = torch.from_numpy(stacked.reshape(count, samples, *spatial)).to(sphere.device, sphere.dtype)
            outputs = respond(filters).double().cpu().numpy()
            for n, run in enumerate(runs):
                run.tell(outputs[:, n])
            if runs[0].first:
                refuse_unusable_start(torch.tensor([run.best_loss for run in runs]))
        best = torch.from_numpy(np.stack([run.best for run in runs]).reshape(shape))
        return Solution(
            filter=best.to(sphere.device, sphere.dtype),
            loss=torch.tensor([run.best_loss for run in runs], dtype=torch.float64),
            evaluations=torch.tensor([run.forwards for run in runs]),
            stop_reason=tuple(f"{run.reason} It took {run.forwards} forward runs." for run in runs),
        )


def _numpy(loss: RowLoss, sample: int) -> Callable[[Vector], Vector]:
    """The losses (k,) of outputs (k, M) in numpy."""

    def value(outputs: Vector) -> Vector:
        with torch.no_grad():
            return loss(torch.from_numpy(outputs), sample).double().cpu().numpy()

    return value


class _Run:
    """One sample's search, what it wants evaluated, and the best filter so far."""

    def __init__(self, search: Search, loss: Callable[[Vector], Vector]) -> None:
        self.search, self.loss = search, loss
        self.wanted = next(search)
        self.best, self.best_loss = self.wanted[0], math.inf
        self.forwards = 0
        self.calls = 0
        self.reason = ""

    @property
    def running(self) -> bool:
        return not self.reason

    @property
    def first(self) -> bool:
        return self.calls == 1

    def padded(self, count: int) -> Vector:
        """The filters wanted, and as many further ones as make `count`."""
        wanted = self.wanted if self.running else self.best[None]
        return np.concatenate([wanted[:count], np.repeat(wanted[:1], max(count - len(wanted), 0), axis=0)])

    def tell(self, outputs: Vector) -> None:
        if not self.running:
            return
        own = outputs[: len(self.wanted)]
        self.calls += 1
        self.forwards += len(own)
        losses = self.loss(own)
        if self.first:
            self.best_loss = float(losses[0])
        norm = np.linalg.norm(self.best)
        on_sphere = np.abs(np.linalg.norm(self.wanted, axis=1) - norm) <= 1e-9 * norm  # differences are taken off it
        for k in np.flatnonzero(on_sphere & (losses < self.best_loss)):
            if losses[k] < self.best_loss:
                self.best, self.best_loss = self.wanted[k], float(losses[k])
        try:
            self.wanted = self.search.send(own)
        except StopIteration as stop:
            self.reason = stop.value


def _search(
    settings: Blackbox,
    value: Callable[[Vector], Vector],
    loss: RowLoss,
    sample: int,
    radius: float,
    spatial: Sequence[int],
    nonneg: bool,
) -> Search:
    cells = math.prod(spatial)
    limit = settings.forwards_per_cell * min(cells, settings.nodes)
    f = np.full(cells, radius / math.sqrt(cells))
    (at,) = yield f[None]
    spent, first = 1, float(value(at[None])[0])
    reason, scouted = "", False
    for nodes in bases(spatial, settings):
        basis, mix = np.linalg.qr(nodes)  # columns without overlap: the sphere stays one in their coordinates
        count = basis.shape[1]
        steps = [part * radius / math.sqrt(cells) for part in settings.steps]
        c = basis.T @ f
        slopes: Vector | None = None
        best, reach, fresh = float(value(at[None])[0]), 1.0, False
        reason = f"The limit of {limit} forward runs was reached."
        while spent + len(settings.parts) <= limit:
            if slopes is None or (not fresh and reach < 1 and spent + count + len(settings.parts) <= limit):
                if spent + count + len(settings.parts) > limit:
                    break
                step = steps[0] if slopes is None else steps[1]
                ends = yield f + step * nodes.T
                spent += count
                slopes = np.linalg.solve(mix.T, (ends - at) / step).T  # (M, nodes): d outputs / d coordinates
                reach, fresh = 1.0, True
            goal = _minimum(loss, sample, at, slopes, c, radius, (nodes, basis) if nonneg else None)
            trials = np.stack([_part(c, goal, reach * t, radius) for t in settings.parts])
            outputs = yield trials @ basis.T
            spent += len(trials)
            losses = np.nan_to_num(value(outputs), nan=np.inf)
            order = np.argsort(-losses)  # the best one last, so that its correction holds exactly
            for k in order:
                move = trials[k] - c
                length = float(move @ move)
                if length:
                    slopes = slopes + np.outer(outputs[k] - at - slopes @ move, move / length)
            gain = best - float(losses[k])
            if gain > 0:
                c, at, best, f = trials[k], outputs[k], float(losses[k]), basis @ trials[k]
            if gain > settings.tolerance * max(abs(best), first - best):
                fresh = False
                continue
            reach *= settings.parts[-1]
            if reach < settings.shortest and best == first and not scouted and spent + count <= limit:
                # Nothing moves around the uniform filter: perhaps because it is so small. One node at a time is not.
                scouts = np.stack([radius * node / np.linalg.norm(node) for node in nodes.T])
                outputs = yield scouts
                spent, scouted = spent + count, True
                losses = np.nan_to_num(value(outputs), nan=np.inf)
                k = int(np.argmin(losses))
                if losses[k] < best:
                    c, at, best, f, slopes = basis.T @ scouts[k], outputs[k], float(losses[k]), scouts[k], None
                    continue
            if reach < settings.shortest:
                reason = f"It settled: no step gained more than {settings.tolerance:g} of the loss's scale."
                break
    return reason


def _minimum(
    loss: RowLoss,
    sample: int,
    at: Vector,
    slopes: Vector,
    c: Vector,
    radius: float,
    nonneg: tuple[Vector, Vector] | None,
) -> Vector:
    """Where on the sphere the loss of at + slopes (. - c) is least, found from c; the tail is not run.

    `nonneg` (nodes, basis): among filters nodes v, v >= 0, which are nowhere negative, as c = basis' f.
    """
    origin, jacobian = torch.from_numpy(at), torch.from_numpy(slopes)
    centre = torch.from_numpy(c)
    solver = Lbfgs(loss_tolerance=3e-5)  # exactly: an evaluation of the linear form costs next to nothing
    generator = torch.Generator().manual_seed(0)
    if nonneg is None:
        found = solver.minimise(
            lambda points, _: loss(origin + (points - centre) @ jacobian.T, sample),
            Sphere(radius, dtype=torch.float64), (1, len(c)), generator=generator, start=centre[None],
        )  # fmt: skip
        return found.filter[0].numpy()
    nodes, basis = nonneg
    turned = torch.from_numpy(basis.T @ nodes)  # of the same length as nodes v: basis spans them

    def placed(v: Tensor) -> Tensor:
        moved = v @ turned.T
        found: Tensor = moved * (radius / torch.linalg.vector_norm(moved, dim=1, keepdim=True))
        return found

    start = torch.from_numpy(np.maximum(np.linalg.lstsq(nodes, basis @ c, rcond=None)[0], 0.0))
    found = solver.minimise(
        lambda v, _: loss(origin + (placed(v) - centre) @ jacobian.T, sample),
        NonnegSphere(1.0, dtype=torch.float64), (1, len(start)), generator=generator, start=start[None],
    )  # fmt: skip
    return placed(found.filter)[0].numpy()


def _part(c: Vector, goal: Vector, part: float, radius: float) -> Vector:
    """The point that far along the great circle from `c` to `goal`."""
    u, v = c / np.linalg.norm(c), goal / np.linalg.norm(goal)
    across = v - u * (u @ v)
    size = float(np.linalg.norm(across))
    if size < 1e-12:
        return c
    angle = part * math.atan2(size, float(u @ v))
    point: Vector = radius * (u * math.cos(angle) + across * (math.sin(angle) / size))
    return point


def bases(spatial: Sequence[int], settings: Blackbox) -> list[Vector]:
    """What the filter is made of, coarse to fine: matrices (cells, nodes) whose rows add up to 1."""
    cells = math.prod(spatial)
    if cells <= settings.nodes:
        return [np.eye(cells)]
    return [_interpolation(spatial, limit) for limit in (settings.coarse, settings.nodes)]


def _interpolation(spatial: Sequence[int], limit: int) -> Vector:
    """Linear interpolation along each axis between at most `limit` nodes in all."""
    counts = list(spatial)
    while math.prod(counts) > limit:  # shorten the axis that has the most
        axis = int(np.argmax(counts))
        if counts[axis] <= 2:
            break
        counts[axis] -= 1
    matrix: Vector = np.ones((1, 1))
    for size, count in zip(spatial, counts, strict=True):
        places = np.linspace(0, size - 1, count) if count > 1 else np.zeros(1)
        line = np.stack([np.interp(np.arange(size), places, row) for row in np.eye(count)], axis=1)
        matrix = np.asarray(np.kron(matrix, line), np.float64)
    return matrix
