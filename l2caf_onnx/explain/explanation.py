"""One question about one scene: solve, prove, put on record."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx import filters
from l2caf_onnx.agreement import RTOL
from l2caf_onnx.errors import ParityError, SolverError, UnsupportedModelError
from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.layout import letters_in
from l2caf_onnx.graph.nodes import label
from l2caf_onnx.records import Attention, Certificate, Parity
from l2caf_onnx.solvers import Blackbox, Solution

from .closed_form import closed_form, has_closed_form
from .collapsed import Collapsed
from .filtered import Filtered, Outputs
from .joining import worst_of
from .opened import Arrays, on_host
from .query import Plan
from .rows import Rows
from .scene import Scene
from .threads import one_thread

_FLAT = "A filter has no positive structure to show (it is constant, or nowhere positive): its map is blank."
_SMALL = 2**15  # numbers of the Jacobian of a sample
_CLEARLY = 10  # times the tolerance of parity: an output of the torch tail that moved so far moved in onnxruntime too


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A solution, and what found it.

    Attributes:
        solution: Filters and how they were found.
        solver: The name of the solver that ran.
        outputs: What torch gives for the solution, batch first; None for the solver blackbox.
        certificate: Of the exact solver.
    """

    solution: Solution
    solver: str
    outputs: Outputs | None = None
    certificate: Certificate | None = None

    @property
    def filter(self) -> NDArray[np.float32]:
        """(N, *spatial)."""
        found: NDArray[np.float32] = self.solution.filter.detach().float().cpu().numpy()
        return found


class Explanation:
    """One question about one scene."""

    def __init__(self, scene: Scene, asked: Plan, target: tuple[int, ...] | str | None) -> None:
        self.scene, self.asked, self.onnx = scene, asked, scene.onnx
        self.notes = scene.stop.notes
        self.rho = asked.rho(self.onnx.cells)
        norm = filters.norm_of(self.rho, self.onnx.cells)
        self.constraint = filters.constraint_set(asked.constraint, norm, device=scene.device)
        self.filtered: Filtered | None = None
        if not isinstance(asked.solver, Blackbox):
            try:
                self.filtered = scene.filtered
            except (UnsupportedModelError, ParityError) as error:
                self._fall_back(error)
        self.classes = self._classes(target)
        self.target = torch.tensor(self.classes, device=scene.device) if self.classes is not None else None

    def _classes(self, target: tuple[int, ...] | str | None) -> tuple[int, ...] | None:
        if target is None:
            return None
        if isinstance(target, str):
            return self.scene.top_class()
        return target * self.onnx.samples if len(target) == 1 else target

    def _fall_back(self, error: UnsupportedModelError | ParityError) -> None:
        """Go on without a torch tail, where the solver was left to choose; raise the error where it was not."""
        if self.asked.fallback is None:
            raise error
        self.filtered = None
        self.notes += (
            f"Solved by forward runs of onnxruntime alone (solver {Blackbox.name}), for want of a gradient. "
            f"{error.what}",
        )

    def attention(self) -> Attention:
        """Solve, prove and put on record."""
        scene, asked, onnx = self.scene, self.asked, self.onnx
        solved = self._solved()
        proof, deployed = self._proof(solved)
        if not proof.ok and self.filtered is not None and asked.fallback is not None:
            self._fall_back(self._unproved(proof, self.filtered))
            solved = self._solved()
            proof, deployed = self._proof(solved)
        tail = self.filtered.tail if self.filtered is not None else None
        loss = solved.solution.loss.detach().double()
        if tail is None or tail.stepwise is not None:
            loss = scene.losses(asked.objective, self.target, solved.filter)
        with one_thread():
            shown, flat = filters.heatmap(
                torch.from_numpy(solved.filter), scene.picture_size(), absolute=asked.absolute
            )
        stop = scene.stop
        return Attention(
            filter=solved.filter,
            heatmap=shown.numpy().astype(np.float32, copy=False),
            loss=loss.cpu().numpy(),
            evaluations=solved.solution.evaluations.cpu().numpy(),
            radius=np.full(onnx.samples, self.rho),
            target=self.classes,
            stop_reason=solved.solution.stop_reason,
            at=stop.at,
            to=stop.cut.to,
            objective=asked.objective.name,
            constraint=asked.constraint,
            layout=letters_in(stop.layout),
            grid=str(stop.axes.grid or ""),
            solver=solved.solver,
            converter=tail.converter if tail is not None else "",
            parity=tail.parity if tail is not None else None,
            proof=proof,
            proof_kind=asked.proof,
            deployed=deployed,
            certificate=solved.certificate,
            seed=asked.seed,
            notes=self.notes
            + (self.filtered.notes if self.filtered is not None else ())
            + ((_FLAT,) if any(flat) else ()),
        )

    # Solving

    def _solved(self) -> Solved:
        """In closed form where there is one, else by gradient, else by forward runs."""
        asked = self.asked
        if self.filtered is not None:
            tail = self._collapsed(self.filtered)
            if tail is not None and has_closed_form(asked.objective, asked.constraint):
                return self._exact(tail)
            if asked.exact == "only":
                raise self._no_closed_form()
        self.scene.refuse_dead(self.constraint, self.rho, asked.seed)
        if self.filtered is not None:
            try:
                return self._by_gradient(self.filtered)
            except ParityError as error:
                self._fall_back(error)
        solver = asked.solver if isinstance(asked.solver, Blackbox) else asked.fallback
        assert isinstance(solver, Blackbox)
        assert isinstance(self.constraint, filters.Sphere)
        rows = Rows(self.onnx, asked.objective, self.target)
        solution = solver.minimise(rows.respond, rows.loss, self.constraint, self.onnx.shape)
        return Solved(solution=solution, solver=solver.name)

    def _collapsed(self, filtered: Filtered) -> Collapsed | None:
        """The affine tail as a matrix, where it is asked for; the authors' loops run on the tail itself."""
        if self.asked.exact == "no" or filtered.stop.obstacle is not None:
            return None
        with one_thread():
            return self.scene.collapsed

    def _exact(self, tail: Collapsed) -> Solved:
        asked = self.asked
        squares = asked.objective.form == "squares"  # it needs the whole matrix, which is worth two threads
        small = self.scene.device.type == "cpu" and not (squares and tail.size * tail.cells > _SMALL)
        try:
            with one_thread() if small else contextlib.nullcontext():
                found = closed_form(tail, asked.objective, asked.constraint, self.rho, self.target, asked.seed)
        except SolverError:
            self.scene.refuse_dead(self.constraint, self.rho, asked.seed)  # that reason comes first
            raise
        if not self._alive(tail, found.outputs):
            self.scene.refuse_dead(self.constraint, self.rho, asked.seed)
        return Solved(solution=found.solution, solver="exact", outputs=found.outputs, certificate=found.certificate)

    def _alive(self, tail: Collapsed, outputs: Outputs) -> bool:
        """Whether the outputs clearly moved away from those of the filter 0, in each sample.

        An affine tail whose outputs at f and at 0 differ has different outputs at f and at -f, f and other filters: it
        is not dead. The proof then shows that onnxruntime's moved too, since they are within parity's tolerance.
        """
        origin = tail.named(tail.origin)
        moved = np.zeros(self.onnx.samples, bool)
        for name, value in outputs.items():
            new, old = (v.flatten(1).cpu().numpy() for v in (value, origin[name]))
            most = _CLEARLY * RTOL["float32"] * np.maximum(np.abs(new).max(axis=1), np.abs(old).max())
            moved |= np.abs(new - old).max(axis=1) > most
        return bool(moved.all())

    def _no_closed_form(self) -> SolverError:
        node = self.scene.stop.obstacle
        where = f"Between {self.scene.stop.at!r} and {', '.join(self.scene.stop.cut.to)}."
        how = "Leave the solver to choose (auto), or break nearer the output."
        if node is not None:
            what = f"The exact solver needs an affine tail; node {label(node)!r} ({node.op_type}) is not affine."
            return SolverError(what, where=where, how=how)
        if self.scene.stop.integers or uses_half(self.scene.model):
            what = "The exact solver needs float32: quantised and half-precision numbers are rounded on their way."
            return SolverError(what, where=where, how=how)
        if self.scene.collapsed is None:
            return SolverError("The tail is affine by its graph, but not by its numbers.", where=where, how=how)
        what = f"There is no closed form for {self.asked.objective.name!r} with {self.asked.constraint!r}."
        return SolverError(what, where=where, how=how)

    def _by_gradient(self, filtered: Filtered) -> Solved:
        asked, samples = self.asked, self.onnx.samples
        assert not isinstance(asked.solver, Blackbox)
        matrix = self._collapsed(filtered)
        if matrix is not None and matrix.fits and not matrix.made:
            _ = matrix.jacobian  # every further evaluation is a product
        tail = matrix.outputs if matrix is not None else filtered
        with torch.no_grad():
            normal = tail(torch.ones(self.onnx.shape, device=self.scene.device))
        responds = torch.zeros(samples, dtype=torch.bool, device=self.scene.device)
        every = torch.arange(samples)

        def loss(f: Tensor, numbers: Tensor) -> Tensor:
            def note(gradient: Tensor) -> None:
                responds[numbers.to(responds.device)] |= (gradient != 0).flatten(1).any(1)

            if f.requires_grad:
                f.register_hook(note)  # type: ignore[no-untyped-call]  # torch has not annotated it
            outputs = tail(f, numbers)
            own, classes = normal, self.target
            if len(numbers) != samples or not torch.equal(numbers, every):
                own = {k: v.index_select(0, numbers.to(v.device)) for k, v in normal.items()}
                classes = classes[numbers.to(classes.device)] if classes is not None else None
            return asked.objective.losses(outputs, own, samples=len(f), target=classes)

        generator = torch.Generator().manual_seed(asked.seed)
        solution = asked.solver.minimise(loss, self.constraint, self.onnx.shape, generator=generator)
        self.scene.refuse_unresponsive(responds, asked.objective, self.target, self.constraint, asked.seed)
        with torch.no_grad():
            outputs = tail(solution.filter.detach().to(self.scene.device))
        return Solved(solution=solution, solver=asked.solver.name, outputs=outputs)

    # Proving

    def _proof(self, solved: Solved) -> tuple[Parity, Parity | None]:
        """onnxruntime runs the filtered `.onnx`, and what the solver saw is compared with it.

        Returns:
            The proof; and the same for the whole filtered model at the level asked for, if that is another.
        """
        scene, values = self.scene, solved.filter
        own = self._by_sample(self.onnx.outputs(values))
        stepwise = self.filtered.tail.stepwise if self.filtered is not None else None
        if solved.outputs is None:  # run by itself, not among others as for the solver
            found, checked = own, [scene.compared(self._by_sample(self.onnx.among_others(values)), own)]
        else:
            found = {k: v.detach().cpu().numpy() for k, v in solved.outputs.items()}
            checked = [scene.compared(own, found)]
            if stepwise is not None:
                checked = [stepwise.judged(checked[0], {k: on_host(v) for k, v in self.onnx.fed(values).items()})]
        if self.asked.proof == "model":  # of a quantised model, onnxruntime with onnxruntime
            whole = self._by_sample(scene.whole(values, "disable"))
            checked.append(scene.compared(whole, own if stepwise is not None else found))
        level = self.asked.level
        if level == "disable":
            return worst_of(checked), None
        return worst_of(checked), scene.compared(self._by_sample(scene.whole(values, level)), found, level=level)

    def _by_sample(self, outputs: Arrays) -> Arrays:
        """Arrays with the batch in front."""
        batch, count = self.scene.stop.batch, self.onnx.samples
        return {
            k: np.moveaxis(v, batch[k], 0) if batch[k] > 0 and v.ndim > batch[k] and v.shape[batch[k]] == count else v
            for k, v in outputs.items()
        }

    def _unproved(self, proof: Parity, filtered: Filtered) -> ParityError:
        """The torch form agreed with onnxruntime where nothing was filtered, but does not where the solver ended."""
        stepwise = filtered.tail.stepwise is not None
        return ParityError(
            f"The torch tail made by {filtered.tail.converter} is not confirmed at the filter that it led to: "
            + (
                proof.findings[0]
                if stepwise and proof.findings
                else f"off by {proof.max_rel:.2g} of the largest value (allowed {proof.rtol:g})."
            ),
            tensor=proof.tensor,
            worst_index=proof.worst_index,
            rtol=proof.rtol,
        )
