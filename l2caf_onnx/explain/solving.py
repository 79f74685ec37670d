"""Finding the filter: in closed form where there is one, else by gradient, else by forward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import SolverError
from l2caf_onnx.filters import Basis, Smooth, Space, averaged, made_of, parse_basis, space
from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.nodes import label
from l2caf_onnx.objectives import Objective
from l2caf_onnx.solvers import Blackbox, Lbfgs, LossFunction, Slope, Solution

from .alive import Seen, clearly_apart, moved_from_zero
from .closed_form import BUMPS, Lifted, closed_form, has_closed_form
from .collapsed import Collapsed
from .filtered import Filtered, Outputs
from .opened import Arrays
from .query import Plan
from .rows import Rows
from .scene import Scene
from .solved import Rho, Solved, sizes, solved
from .threads import one_thread


@dataclass(kw_only=True)
class Solving:
    """One question about one scene, ready to be solved at any size of the filter.

    Attributes:
        scene: The breakpoint on the batch.
        asked: The question.
        objective: Of the question, bound to what is watched.
        classes: Of each sample the class asked about, or None.
        reference: Outputs that the objective is held against, batch first; None: the model's own.
        filtered: The tail in torch; None: there is none to be had.
        tried: The filters (N, *spatial) after each evaluation, where the question wants them.
        ends: What solvers run, and the outputs that losses compare with, once made.
    """

    scene: Scene
    asked: Plan
    objective: Objective
    classes: tuple[int, ...] | None
    reference: Outputs | None
    filtered: Filtered | None
    tried: list[NDArray[np.float32]] = field(default_factory=list)
    ends: tuple[Callable[..., Outputs], Outputs] | None = field(default=None, init=False)

    @cached_property
    def target(self) -> Tensor | None:
        """The classes as a tensor."""
        return torch.tensor(self.classes, device=self.scene.device) if self.classes is not None else None

    def space(self, rho: Rho, basis: Basis = None) -> Space:
        """Where filters of those sizes (N,) live."""
        onnx, asked = self.scene.onnx, self.asked
        return space(
            asked.constraint, sizes(rho), onnx.spatial, basis=basis, frames=self.scene.frames, device=self.scene.device
        )

    @property
    def exact(self) -> Collapsed | None:
        """The affine tail as a matrix, where the question has a closed form on it."""
        if self.filtered is None or self.scene.frames or len(self._exact_chains) > 1:
            return None
        tail = self._collapsed(self.filtered)
        known = tail is not None and has_closed_form(self.objective, self.asked.constraint, self.lift)
        return tail if known else None

    @cached_property
    def lift(self) -> Lifted:
        """What the filter is made of where there is a closed form: of a chain its end, wherever it started."""
        return made_of(self._exact_chains[0][-1], self.scene.onnx.spatial)

    @property
    def _exact_chains(self) -> tuple[tuple[Basis, ...], ...]:
        return self._chains(self.exact_basis)

    @property
    def exact_basis(self) -> str | int | None:
        """Of what the exact solver makes filters; along a line, such as words, nothing was measured to be smooth."""
        asked, onnx = self.asked, self.scene.onnx
        return asked.exact_basis if len(onnx.spatial) > 1 and onnx.cells <= BUMPS else asked.basis

    def _chains(self, basis: str | int | None) -> tuple[tuple[Basis, ...], ...]:
        return parse_basis(basis, self.scene.onnx.spatial, frames=self.scene.frames)

    def solved(self, rho: Rho) -> Solved:
        """The best filter of those sizes (N,).

        Raises:
            SolverError: the tail is dead there, or the loss does not respond.
            ParityError: torch's gradient is zero where onnxruntime's output moves.
        """
        asked = self.asked
        if self.filtered is not None:
            tail = self.exact
            if tail is not None:
                return self._exact(tail, rho)
            if asked.exact == "only":
                raise self._no_closed_form()
        chosen = isinstance(asked.solver, Slope) and asked.fallback is not None  # it was not named
        if self.filtered is not None and chosen and not self._has_rows(self.filtered):
            self.asked = asked = replace(asked, solver=Lbfgs())  # many filters of a sample would not be told apart
        if self.filtered is not None and not isinstance(asked.solver, Slope):
            return self._by_gradient(self.filtered, rho)
        self.scene.refuse_dead(self.space(rho), asked.seed)
        if self.filtered is not None:
            return self._by_slope(self.filtered, rho)
        solver = asked.solver if isinstance(asked.solver, Blackbox) else asked.fallback
        assert isinstance(solver, Blackbox)
        if self.scene.frames:
            raise SolverError(
                "One filter a frame cannot be found by forward runs alone.",
                where=f"At {self.scene.stop.at!r}.",
                how="Give a layout in which time is no axis of frames, or break where the tail has a gradient.",
            )
        rows = Rows(self.scene.onnx, self.objective, self.target, self.reference)
        solution = solver.minimise(rows.respond, rows.loss, self.space(rho).inner, self.scene.onnx.shape)
        return solved(solution, solver.name, rho)

    def _has_rows(self, filtered: Filtered) -> bool:
        """Whether every output has a row for each sample."""
        samples = self.scene.onnx.samples
        return all(v.ndim and len(v) == samples for v in self._tail_of(filtered)[1].values())

    def _collapsed(self, filtered: Filtered) -> Collapsed | None:
        """The affine tail as a matrix, where it is asked for; the authors' loops run on the tail itself."""
        if self.asked.exact == "no" or filtered.stop.obstacle is not None:
            return None
        return self.scene.collapsed

    # In closed form

    def _exact(self, tail: Collapsed, rho: Rho) -> Solved:
        asked = self.asked
        if self.objective.form == "squares" and tail.fits:
            _ = tail.jacobian  # runs of the tail, or one large product, which are worth all threads
        small = self.scene.device.type == "cpu" and (tail.pooled or tail.made)
        torchless = tail.lean and self.objective.sums_few
        try:
            with one_thread() if small and not torchless else contextlib.nullcontext():
                found = closed_form(
                    tail, self.objective, asked.constraint, rho, self.classes, lift=self.lift, seed=asked.seed
                )
        except SolverError:
            self.scene.refuse_dead(self.space(rho), asked.seed)  # that reason comes first
            raise

        def outputs() -> Arrays:
            given = tail.at(found.filter)
            if not moved_from_zero(tail, given):
                self.scene.refuse_dead(self.space(rho), asked.seed)
            return given

        return replace(found, outputs=outputs, basis=_named(self.exact_basis))

    def _no_closed_form(self) -> SolverError:
        stop, asked = self.scene.stop, self.asked
        where = f"Between {stop.at!r} and {', '.join(stop.cut.to)}."
        how = "Leave the solver to choose (auto), or break nearer the output."
        if stop.obstacle is not None:
            node = stop.obstacle
            what = f"The exact solver needs an affine tail; node {label(node)!r} ({node.op_type}) is not affine."
        elif stop.integers or uses_half(self.scene.model):
            what = "The exact solver needs float32: quantised and half-precision numbers are rounded on their way."
        elif self.scene.collapsed is None:
            what = "The tail is affine by its graph, but not by its numbers."
        else:
            made = "" if self.exact_basis is None else " and that basis"
            made = " and one filter a frame" if self.scene.frames else made
            what = f"There is no closed form for {self.objective.name!r} with {asked.constraint!r}{made}."
        return SolverError(what, where=where, how=how)

    # By gradient

    def _by_gradient(self, filtered: Filtered, rho: Rho) -> Solved:
        asked, scene, samples = self.asked, self.scene, self.scene.onnx.samples
        assert not isinstance(asked.solver, Blackbox | Slope)
        tail, normal = self._tail_of(filtered)
        responds = torch.zeros(samples, dtype=torch.bool, device=scene.device)
        seen = Seen()
        solutions: list[Solution] = []
        ends: list[Tensor] = []
        for chain in self._chains(asked.basis):
            f: Tensor | None = None
            for basis in chain:
                within = self.space(rho, basis)
                loss = self._loss(tail, normal, within, responds, seen=seen, trace=asked.trace)
                generator = torch.Generator().manual_seed(asked.seed)
                start = within.start(f) if isinstance(asked.solver, Lbfgs) else None
                with_start = {"start": start} if start is not None else {}
                try:
                    found = asked.solver.minimise(loss, within.inner, within.shape, generator=generator, **with_start)
                except SolverError:
                    scene.refuse_dead(self.space(rho), asked.seed)  # that reason comes first
                    raise
                solutions.append(found)
                f = within.filters(solutions[-1].filter).detach()
            assert f is not None
            ends.append(f)
        f = averaged(ends, sizes(rho), frames=scene.frames, constraint=asked.constraint)
        with torch.no_grad():
            outputs = seen.at(f) or tail(f.to(scene.device))
        coarse = scene.stop.integers or uses_half(scene.model)  # parity leaves more open there
        if coarse or not clearly_apart(seen.first, outputs, normal, samples):
            scene.refuse_dead(self.space(rho), asked.seed)
        self._refuse_unresponsive(responds, rho)
        with torch.no_grad():
            reached = self.objective.losses(outputs, normal, samples=samples, target=self.target)
        solution = _in_all(solutions, f, reached if len(ends) > 1 else None, str(asked.basis))
        return replace(solved(solution, asked.solver.name, rho, outputs), basis=_named(asked.basis))

    def _tail_of(self, filtered: Filtered) -> tuple[Callable[..., Outputs], Outputs]:
        """What a solver runs, the matrix of an affine tail in its place; and the outputs that losses compare with."""
        if self.ends is None:
            self.ends = self._made_of(filtered)
        return self.ends

    def _made_of(self, filtered: Filtered) -> tuple[Callable[..., Outputs], Outputs]:
        matrix = self._collapsed(filtered)
        if matrix is not None and matrix.fits and not matrix.made:
            _ = matrix.jacobian  # every further evaluation is a product
        tail = matrix.outputs if matrix is not None else filtered
        with torch.no_grad():
            return tail, self.reference or tail(torch.ones(self.scene.onnx.shape, device=self.scene.device))

    def _by_slope(self, filtered: Filtered, rho: Rho) -> Solved:
        """From runs at occlusions, which are filters of any size: the loss takes them as they are.

        Of tokens, which norms make all of one size, a gradient is known to tell nothing. Their layout says so, so that
        two models that hardly differ are asked in one way: of other classes that are ranked under an occlusion too,
        and of filters that are sums of bumps, nothing was measured there.
        """
        asked = self.asked
        solver = asked.solver
        assert isinstance(solver, Slope)
        if self.scene.stop.axes.grid is not None:
            solver = replace(solver, untold=True)
        elif asked.anew and isinstance(self.lift, Smooth):
            solver = replace(solver, bumps=self.lift)
        tail, normal = self._tail_of(filtered)
        with torch.no_grad():  # what does not suit the outputs is said of them, not of those under many occlusions
            self.objective.losses(normal, normal, samples=len(rho), target=self.target)
        within = replace(self.space(rho), lift=None)
        responds = torch.zeros(len(rho), dtype=torch.bool, device=self.scene.device)

        def keep(f: Tensor) -> None:
            self.tried.append(f.cpu().numpy())

        loss = self._loss(tail, normal, within, responds, anew=asked.anew and not solver.untold)
        solution = solver.minimise(loss, within, keep if asked.trace else None)
        if solver.untold:
            rows = solution.filter.flatten(1)
            responds |= (rows != rows[:, :1]).any(1)
        self._refuse_unresponsive(responds, rho)
        with torch.no_grad():
            outputs = tail(solution.filter, torch.arange(len(rho)))
            reached = self.objective.losses(outputs, normal, samples=len(rho), target=self.target)
        found = solved(replace(solution, loss=reached), solver.name, rho, outputs)
        told = bool((solution.evaluations == solver.occlusions).all())  # a sample that was regressed is no sum of bumps
        return replace(found, basis=_named(self.exact_basis)) if told and solver.summed(within) is not None else found

    def _refuse_unresponsive(self, responds: Tensor, rho: Rho) -> None:
        if bool(responds.all()):
            return
        against = self.reference or self.scene.normal
        self.scene.refuse_unresponsive(responds, self.objective, self.target, against, self.space(rho), self.asked.seed)

    def _loss(
        self,
        tail: Callable[[Tensor, Tensor], Outputs],
        normal: Outputs,
        within: Space,
        responds: Tensor,
        *,
        seen: Seen | None = None,
        trace: bool = False,
        anew: bool = False,
    ) -> LossFunction:
        """The objective of what a solver moves; it notes which samples respond, what is seen at the filters, and, where
        the question wants them, all that are tried. `anew`: as `Plan.anew` has it.
        """
        samples = self.scene.onnx.samples
        every = torch.arange(samples)
        current = within.filters(within.inner.uniform_point(within.shape)).detach().cpu() if trace else None

        def loss(w: Tensor, numbers: Tensor) -> Tensor:
            def note(gradient: Tensor) -> None:
                moved = (gradient != 0).flatten(1).any(1).to(numbers.device)
                responds[numbers[moved].to(responds.device)] = True  # a sample may be there more than once

            whole = len(numbers) == samples and torch.equal(numbers, every)
            f = within.filters(w, None if whole else numbers)
            if w.requires_grad:
                w.register_hook(note)  # type: ignore[no-untyped-call]  # torch has not annotated it
            if current is not None:
                current[numbers] = f.detach().cpu().to(current.dtype)
                self.tried.append(current.numpy().copy())
            outputs = tail(f, numbers)
            own, classes = normal, self.target
            if not whole:
                own = {k: v.index_select(0, numbers.to(v.device)) for k, v in normal.items()}
                classes = classes[numbers.to(classes.device)] if classes is not None else None
            losses = self.objective.losses(outputs, own, samples=len(f), target=classes)
            if anew:
                ranked = {k: v.detach() for k, v in outputs.items()}
                losses = (losses + self.objective.losses(outputs, ranked, samples=len(f), target=classes)) / 2
            if seen is not None and whole:
                seen.note(f, outputs, losses.detach())
            return losses

        return loss


def _named(basis: str | int | None) -> str | None:
    return None if basis is None else str(basis)


def _in_all(solutions: Sequence[Solution], f: Tensor, averaged: Tensor | None, basis: str) -> Solution:
    """Several searches as one: the last of those that went on from one another, or the average with its losses."""
    last = solutions[-1]
    evaluations = torch.stack([s.evaluations for s in solutions]).sum(0)
    if averaged is None:
        return Solution(filter=f, loss=last.loss, evaluations=evaluations, stop_reason=last.stop_reason)
    reasons = tuple(
        f"The average of the filters found on the bases {basis}; of the last: {r}" for r in last.stop_reason
    )
    return Solution(filter=f, loss=averaged, evaluations=evaluations + 1, stop_reason=reasons)
