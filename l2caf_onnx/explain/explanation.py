"""One question about one scene: solve, prove, put on record."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx import filters
from l2caf_onnx.errors import ParityError, UnsupportedModelError
from l2caf_onnx.graph.layout import letters_in
from l2caf_onnx.methods import Method
from l2caf_onnx.objectives import selected
from l2caf_onnx.records import Attention, Parity
from l2caf_onnx.solvers import Blackbox, Solution

from .attributed import attributed, drawn
from .filtered import Filtered
from .joining import worst_of
from .opened import Arrays, on_host
from .query import OURS, Plan
from .radius import calibrated
from .scene import Scene
from .solved import Solved, sizes, solved
from .solving import Solving

_FLAT = "A filter has no positive structure to show (it is constant, or nowhere positive): its map is blank."
_METHOD_RHO = 0.5  # of the filter that is made of another method's map, for its proof


class Explanation:
    """One question about one scene."""

    def __init__(self, scene: Scene, asked: Plan, target: tuple[int, ...] | str | None) -> None:
        self.scene, self.asked, self.onnx = scene, asked, scene.onnx
        self.notes = scene.stop.notes
        self.seconds: dict[str, float] = {}
        self.rho = asked.rho(self.onnx.cells)
        self.filtered: Filtered | None = None
        if not isinstance(asked.solver, Blackbox):
            try:
                self.filtered = scene.filtered
            except (UnsupportedModelError, ParityError) as error:
                self._fall_back(error)
        self.classes = self._classes(target)
        self.objective = asked.objective
        if asked.select is not None:
            watched = {name: scene.stop.batch[name] for name in scene.stop.cut.to}
            self.objective = selected(asked.objective, asked.select, watched)
        self.reference = scene.reference(asked.reference) if asked.reference is not None else None

    @cached_property
    def target(self) -> Tensor | None:
        """(N,) the classes asked about."""
        return torch.tensor(self.classes, device=self.scene.device) if self.classes is not None else None

    def _classes(self, target: tuple[int, ...] | str | None) -> tuple[int, ...] | None:
        if target is None:
            return None
        if isinstance(target, str):
            return self.scene.top_class()
        return target * self.onnx.samples if len(target) == 1 else target

    def _fall_back(self, error: UnsupportedModelError | ParityError) -> None:
        """Go on without a torch tail, where the solver was left to choose; raise the error where it was not."""
        if self.asked.fallback is None or self.asked.method is not None:
            raise error
        self.filtered = None
        asked = self.asked.basis
        free = f" Free in every cell: it keeps to no basis, not to {asked!r}." if asked is not None else ""
        self.notes += (
            f"Solved by forward runs of onnxruntime alone (solver {Blackbox.name}), for want of a gradient.{free} "
            f"{error.what}",
        )

    def attention(self) -> Attention:
        """Solve, prove and put on record."""
        if self.asked.method is not None:
            assert self.filtered is not None
            return self._by_method(self.asked.method, self.filtered)
        start = perf_counter()
        solving, answer = self._solved()
        found = perf_counter()
        shown, flat = self._shown(answer)
        drawn = perf_counter()
        proof, deployed = self._proof(answer)
        if not proof.ok and self.filtered is not None and self.asked.fallback is not None:
            self._fall_back(self._unproved(proof, self.filtered))
            solving, answer = self._solved()
            found = perf_counter()
            shown, flat = self._shown(answer)
            drawn = perf_counter()
            proof, deployed = self._proof(answer)
        self.seconds = {"solve": found - start, "proof": perf_counter() - drawn, "map": drawn - found}
        self.notes += (_FLAT,) if any(flat) else ()
        trace = np.stack(solving.tried) if solving.tried else None
        return self._record(answer, answer.filter, shown, proof, deployed, trace)

    def _shown(self, solved: Solved) -> tuple[NDArray[np.float32], list[bool]]:
        """The maps, and which of them are blank."""
        return filters.heatmap(solved.filter, self.scene.picture_size(), absolute=self.asked.absolute)

    def _by_method(self, method: Method, filtered: Filtered) -> Attention:
        """Another method's map; proved by the filter that is made of it."""
        maps = attributed(method, self.scene, filtered, self.objective, self.target, self.reference, self.asked.seed)
        shown, flat = drawn(maps, self.scene.picture_size())
        positive = torch.from_numpy(maps - maps.reshape(len(maps), -1).min(1).reshape(-1, *[1] * (maps.ndim - 1)))
        positive[torch.tensor(flat)] = 1.0
        rho = np.full(len(maps), _METHOD_RHO)
        f = filters.sized(positive, sizes(rho), frames=False, total=False).to(self.scene.device)
        with torch.no_grad():
            outputs = filtered(f)
        none = torch.zeros(len(maps), dtype=torch.int64)
        reasons = (f"The map of {method.name} ({method.source}).",) * len(maps)
        solution = Solution(filter=f, loss=torch.zeros(len(maps)), evaluations=none, stop_reason=reasons)
        found = solved(solution, method.name, rho, outputs)
        found = replace(found, loss=self._loss_in_onnxruntime(found.filter))
        self.notes += (_FLAT,) if any(flat) else ()
        return self._record(found, maps, shown, *self._proof(found))

    def _loss_in_onnxruntime(self, f: NDArray[np.float32]) -> NDArray[np.float64]:
        against = self.reference or self.scene.normal
        return self.scene.losses(self.objective, self.target, against, f).numpy()

    def _record(
        self,
        solved: Solved,
        filter: NDArray[np.float32],
        shown: NDArray[np.float32],
        proof: Parity,
        deployed: Parity | None,
        trace: NDArray[np.float32] | None = None,
    ) -> Attention:
        scene, asked, stop = self.scene, self.asked, self.scene.stop
        tail = self.filtered.tail if self.filtered is not None else None
        loss = solved.loss
        if tail is None or tail.stepwise is not None:
            loss = self._loss_in_onnxruntime(solved.filter)
        return Attention(
            filter=filter,
            heatmap=shown,
            loss=loss,
            evaluations=solved.evaluations,
            radius=solved.rho,
            target=self.classes,
            stop_reason=solved.stop_reason,
            at=stop.at,
            to=stop.cut.to,
            objective=asked.objective.name,
            constraint=asked.constraint if asked.method is None else "none",
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
            notes=self.notes + (self.filtered.notes if self.filtered is not None else ()),
            method=asked.method.name if asked.method is not None else OURS,
            basis=solved.basis,
            watched=self._watched(),
            frames=scene.frames,
            trace=trace,
            seconds=self.seconds,
        )

    def _watched(self) -> tuple[str, ...]:
        select = self.asked.select
        return () if select is None else (select,) if isinstance(select, str) else tuple(select)

    # Solving

    def _solved(self) -> tuple[Solving, Solved]:
        """By gradient, or else by forward runs, at the radius asked for or calibrated."""
        try:
            return self._attempt()
        except ParityError as error:
            self._fall_back(error)
            return self._attempt()

    def _attempt(self) -> tuple[Solving, Solved]:
        solving = Solving(
            scene=self.scene, asked=self.asked, objective=self.objective, classes=self.classes,
            reference=self.reference, filtered=self.filtered,
        )  # fmt: skip
        if self.rho is None:
            return solving, calibrated(solving)
        return solving, solving.solved(np.full(self.onnx.samples, self.rho))

    # Proving

    def _proof(self, solved: Solved) -> tuple[Parity, Parity | None]:
        """onnxruntime runs the filtered `.onnx`, and what the solver saw is compared with it.

        Returns:
            The proof; and the same for the whole filtered model at the level asked for, if that is another.
        """
        scene, values = self.scene, solved.filter
        found = None if solved.outputs is None else solved.outputs()
        own = self._by_sample(self.onnx.outputs(values))
        stepwise = self.filtered.tail.stepwise if self.filtered is not None else None
        if found is None:  # run by itself, not among others as for the solver
            found, checked = own, [scene.compared(self._by_sample(self.onnx.among_others(values)), own)]
        else:
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
