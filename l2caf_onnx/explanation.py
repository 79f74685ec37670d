"""One breakpoint on one batch: the tail in torch and in onnxruntime, the solve, and the proof that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import filters, objectives, runtime
from .agreement import compare
from .batches import worst_of
from .errors import ParityError, SolverError, UnsupportedModelError
from .graph.cut import extract
from .graph.half import uses_half
from .graph.insert import FILTER_INPUT, insert_filter
from .graph.layout import axes, letters_in
from .graph.model import Model
from .graph.paths import reached
from .opened import Opened, named
from .query import Plan
from .records import Attention, Parity
from .solvers import Blackbox, Solution
from .stop import Stop
from .tail import TorchTail, to_torch

Arrays = dict[str, NDArray[Any]]

_FLAT = "A filter has no positive structure to show (it is constant, or nowhere positive): its map is blank."


class Explanation:
    """One breakpoint on one batch: the tail in both worlds, the solve, the proof."""

    def __init__(
        self,
        model: Model,
        feeds: Arrays,
        recorded: Arrays,
        stop: Stop,
        asked: Plan,
        device: torch.device,
        providers: Sequence[str] | None,
    ) -> None:
        self.model, self.feeds, self.stop, self.asked, self.providers = model, feeds, stop, asked, providers
        self.device = device
        self.onnx = Opened(feeds, recorded, stop, asked, providers, model.name)
        self.tail: TorchTail | None = None
        self.solver = asked.solver
        self.notes = stop.notes
        if not isinstance(asked.solver, Blackbox):
            try:
                held = [i.name for i in stop.opened.inputs if i.name != FILTER_INPUT]
                self.tail = to_torch(stop.opened, self.onnx.fed(self.onnx.ones()), held=held, providers=providers)
            except (UnsupportedModelError, ParityError) as error:
                self._fall_back(error)
        if self.tail is not None:
            self.tail.to(device)
            read = {n: a for n, a in self.onnx.held.items() if n in self.tail.reads}
            self.constants = {n: torch.from_numpy(np.array(a)).to(device) for n, a in read.items()}

    def _fall_back(self, error: UnsupportedModelError | ParityError) -> None:
        """Go on without a torch tail, where the solver was left to choose; raise the error where it was not."""
        if self.asked.fallback is None:
            raise error
        self.tail, self.solver = None, self.asked.fallback
        self.notes += (
            f"Solved by forward runs of onnxruntime alone (solver {self.solver.name}), for want of a gradient. "
            f"{error.what}",
        )

    def attention(self, target: tuple[int, ...] | str | None) -> Attention:
        """Solve, prove and put on record."""
        stop, asked, onnx = self.stop, self.asked, self.onnx
        sphere = filters.Sphere(filters.norm_of(onnx.rho, int(np.prod(onnx.spatial))), device=self.device)
        onnx.refuse_dead(sphere)
        normal = onnx.by_sample({k: torch.from_numpy(np.array(v)) for k, v in onnx.outputs(onnx.ones()).items()})
        classes = self._classes(target, normal)
        chosen = torch.tensor(classes, device=self.device) if classes is not None else None
        solution = self._solved(sphere, chosen)
        proof, deployed = self._proof(solution.filter.detach().float().cpu())
        if not proof.ok and self.tail is not None and asked.fallback is not None:
            self._fall_back(_unproved(proof, self.tail))
            solution = self._solved(sphere, chosen)
            proof, deployed = self._proof(solution.filter.detach().float().cpu())
        filter = solution.filter.detach().float().cpu()
        exact = self.tail is not None and self.tail.stepwise is None
        loss = solution.loss.detach().double() if exact else onnx.losses(filter.numpy(), chosen)
        shown, flat = filters.heatmap(filter, self._picture_size(), absolute=asked.absolute)
        return Attention(
            filter=filter.numpy(),
            heatmap=shown.numpy().astype(np.float32),
            loss=loss.cpu().numpy(),
            evaluations=solution.evaluations.cpu().numpy(),
            radius=np.full(onnx.samples, onnx.rho),
            target=classes,
            stop_reason=solution.stop_reason,
            at=stop.at,
            to=stop.cut.to,
            objective=asked.objective.name,
            constraint=asked.constraint,
            layout=letters_in(stop.layout),
            grid=str(stop.axes.grid or ""),
            solver=self.solver.name,
            converter=self.tail.converter if self.tail is not None else "",
            parity=self.tail.parity if self.tail is not None else None,
            proof=proof,
            proof_kind=asked.proof,
            deployed=deployed,
            seed=asked.seed,
            notes=self.notes + ((_FLAT,) if any(flat) else ()),
        )

    def _solved(self, sphere: filters.Sphere, chosen: torch.Tensor | None) -> Solution:
        """By gradient where there is a torch tail that has one, else by forward runs."""
        if self.tail is not None:
            try:
                return self._by_gradient(self.tail, sphere, chosen)
            except ParityError as error:
                self._fall_back(error)
        assert isinstance(self.solver, Blackbox)
        return self.solver.minimise(self.onnx.respond, self.onnx.row_loss(chosen), sphere, self.onnx.shape)

    def _by_gradient(self, tail: TorchTail, sphere: filters.Sphere, chosen: torch.Tensor | None) -> Solution:
        asked, samples = self.asked, self.onnx.samples
        assert not isinstance(asked.solver, Blackbox)
        with torch.no_grad():
            normal = self.onnx.by_sample(self.torch_outputs(tail, torch.ones(self.onnx.shape, device=self.device)))
        responds = torch.zeros(samples, dtype=torch.bool, device=self.device)

        def note(gradient: torch.Tensor) -> None:
            responds.logical_or_((gradient != 0).flatten(1).any(1))

        def loss(f: torch.Tensor) -> torch.Tensor:
            if f.requires_grad:
                f.register_hook(note)  # type: ignore[no-untyped-call]  # torch has not annotated it
            outputs = self.onnx.by_sample(self.torch_outputs(tail, f))
            return asked.objective.losses(outputs, normal, samples=samples, target=chosen)

        generator = torch.Generator().manual_seed(asked.seed)
        solution = asked.solver.minimise(loss, sphere, self.onnx.shape, generator=generator)
        self._refuse_unresponsive(tail, responds, sphere, chosen)
        return solution

    def torch_outputs(self, tail: TorchTail, f: torch.Tensor) -> dict[str, torch.Tensor]:
        """T(A f) in torch, under the names of S2; f is (N, *spatial)."""
        way = self.stop.axes.placement(tuple(f.shape))
        placed = torch.nn.functional.pad(f.reshape(way.flat), way.kept, value=1.0).permute(way.order).reshape(way.shape)
        outputs = tail({**self.constants, FILTER_INPUT: placed})
        return {name: outputs[own] for name, own in zip(self.stop.cut.to, self.onnx.own_names, strict=True)}

    def _refuse_unresponsive(
        self, tail: TorchTail, responds: torch.Tensor, sphere: filters.Sphere, target: torch.Tensor | None
    ) -> None:
        """Where torch's gradient was zero throughout: the converter's fault if onnxruntime's moves, else the user's."""
        silent = np.flatnonzero(~responds.cpu().numpy())
        if not silent.size:
            return
        moving = self.onnx.moving(silent, sphere, target)
        where = f"Between {self.stop.at!r} and {', '.join(self.stop.cut.to)}"
        if moving.size:
            raise ParityError(
                f"The torch tail made by {tail.converter} has a zero gradient where onnxruntime's output moves.",
                where=f"{where}, {named(moving, self.onnx.samples)}.",
                how="Break at a later tensor, so that the operator without gradient is in the head, or let the solver "
                "blackbox do without.",
            )
        raise SolverError(
            "The loss does not respond to any filter: what is asked does not depend on it here.",
            where=f"{where}, {named(silent, self.onnx.samples)}.",
            how="Choose another target or objective, or a larger radius.",
        )

    def _classes(
        self, target: tuple[int, ...] | str | None, normal: Mapping[str, torch.Tensor]
    ) -> tuple[int, ...] | None:
        if target is None:
            return None
        scores = objectives.class_scores(normal, samples=self.onnx.samples)
        if isinstance(target, str):
            return tuple(int(c) for c in scores.argmax(1))
        return target * self.onnx.samples if len(target) == 1 else target

    def _picture_size(self) -> tuple[int, ...]:
        """The spatial size of the input that the model saw; the filter's own where no input has as many axes."""
        own, found = letters_in(self.stop.layout), self.stop.axes
        spatial = self.onnx.spatial
        tokens = {own[a] for a in found.spatial} & {"T", "S"} if found.grid is None and len(spatial) > 1 else set()
        for info in self.model.inputs:
            letters = self.stop.layouts.get(info.name, "")
            places = axes(letters).spatial
            if not tokens <= set(letters):  # query x key is no picture
                continue
            if len(places) == len(spatial) and self.stop.at in reached(self.model, info.name):
                return tuple(self.feeds[info.name].shape[a] for a in places)
        return spatial

    def _proof(self, filter: torch.Tensor) -> tuple[Parity, Parity | None]:
        """onnxruntime runs the filtered `.onnx`, and what the solver saw is compared with it.

        Returns:
            The proof; and the same for the whole filtered model at the level asked for, if that is another.
        """
        values = filter.numpy()
        own = self.onnx.outputs(values)
        if self.tail is None:  # run by itself, not among others as for the solver
            found, checked = own, [self._compared(self.onnx.among_others(values), own)]
        else:
            with torch.no_grad():
                found = {k: v.cpu().numpy() for k, v in self.torch_outputs(self.tail, filter.to(self.device)).items()}
            checked = [self._compared(own, found)]
            if self.tail.stepwise is not None:
                checked = [self.tail.stepwise.judged(checked[0], self.onnx.fed(values))]
        if self.asked.proof == "model":  # of a quantised model, onnxruntime with onnxruntime
            exact = self.tail is not None and self.tail.stepwise is None
            checked.append(self._compared(self._whole(values, "disable"), found if exact else own))
        level = self.asked.level
        deployed = None if level == "disable" else self._compared(self._whole(values, level), found, level=level)
        return worst_of(checked), deployed

    def _whole(self, values: NDArray[np.float32], level: runtime.Level) -> Arrays:
        """What the whole filtered model gives in onnxruntime, under the names of S2."""
        to = self.stop.cut.to
        whole = extract(self.model, [i.name for i in self.model.inputs], to, name=self.model.name)
        filtered = insert_filter(whole, self.stop.at, values, layout=self.stop.layout)
        outputs = runtime.run(filtered, self.feeds, level=level, providers=self.providers)
        return {name: outputs[o.name] for name, o in zip(to, filtered.outputs, strict=True)}

    def _compared(self, reference: Arrays, found: Arrays, *, level: str = "disable") -> Parity:
        provider = runtime.check_providers(self.providers)[0]
        return compare(reference, found, half=uses_half(self.model), provider=provider, level=level)


def _unproved(proof: Parity, tail: TorchTail) -> ParityError:
    """The torch form agreed with onnxruntime where nothing was filtered, but does not where the solver ended."""
    return ParityError(
        f"The torch tail made by {tail.converter} is not confirmed at the filter that it led to: "
        + (
            proof.findings[0]
            if tail.stepwise is not None and proof.findings
            else f"off by {proof.max_rel:.2g} of the largest value (allowed {proof.rtol:g})."
        ),
        tensor=proof.tensor,
        worst_index=proof.worst_index,
        rtol=proof.rtol,
    )
