"""One breakpoint on one batch: the tail in torch and in onnxruntime, the solve, and the proof that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import filters, objectives, runtime
from .batches import refuse_nan, worst_of
from .errors import CutError, ParityError, SolverError
from .graph.breakpoints import check_breakpoint
from .graph.cut import Cut, cut, extract, resolve_to
from .graph.insert import FILTER_INPUT, broadcastable, insert_filter, open_filter
from .graph.layout import Axes, axes, check_layout, layouts
from .graph.logits import logits_of
from .graph.model import Model
from .graph.paths import reached
from .query import Plan
from .records import Attention, Parity
from .tail import TorchTail, to_torch
from .tail.convert import uses_half
from .tail.parity import compare

Arrays = dict[str, NDArray[Any]]

_DEAD = 1e-6  # of max|NT - T(0)|: what outputs may differ by, among filters of the constraint set, in a dead tail
_FLAT = "A filter has no positive structure to show (it is constant, or nowhere positive): its map is blank."


class Stop:
    """One breakpoint with its cut, layout, and what the user should know of them."""

    def __init__(self, model: Model, at: str, to: str | Sequence[str] | None, layout: str | None, asked: Plan) -> None:
        info = check_breakpoint(model, at)
        self.at = at
        given = {at: check_layout(layout, len(info.shape or ()), at)} if layout is not None else None
        self.layouts = layouts(model, given)
        self.layout = self.layouts[at]
        self.axes: Axes = axes(self.layout)
        self.notes: tuple[str, ...] = ()
        targets = resolve_to(model, at, to)
        if asked.objective.class_specific:
            targets = tuple(dict.fromkeys(self._logits(model, name) for name in targets))
        self.cut: Cut = cut(model, at, targets)
        tail = self.cut.tail
        self.opened: Model = tail.cache.get(("opened", self.layout), lambda: open_filter(tail, at, layout=self.layout))

    def _logits(self, model: Model, name: str) -> str:
        before = logits_of(model, name)
        if before is None or before[0] not in reached(model, self.at):
            return name
        self.notes += (f"The output {name!r} is made by {before[1]}: its input {before[0]!r} is watched in its place.",)
        return before[0]


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
        opened = stop.opened
        self.held = {i.name: recorded[i.name] for i in opened.inputs if i.name != FILTER_INPUT}
        for name, array in self.held.items():
            refuse_nan(name, array, "an activation" if name not in feeds else "the input")
        activation = recorded[stop.at]
        self.samples = activation.shape[stop.axes.batch] if stop.axes.batch is not None else 1
        self.spatial = tuple(activation.shape[a] for a in stop.axes.spatial)
        cells = int(np.prod(self.spatial))
        if cells < 2:
            raise CutError(
                f"Here this tensor has one spatial cell (shape {activation.shape}): there is nothing to choose among.",
                where=f"Tensor {stop.at!r} of model {model.name!r}.",
                how="Break earlier, or feed a larger input.",
            )
        self.rho = asked.rho(cells)
        ones = np.ones((self.samples, *self.spatial), np.float32)
        self.tail: TorchTail = to_torch(
            opened, {**self.held, FILTER_INPUT: broadcastable(ones, stop.axes)}, providers=providers
        )
        self.tail.to(device)
        self.constants = {
            n: torch.from_numpy(np.array(a)).to(device) for n, a in self.held.items() if n in self.tail.reads
        }
        self.opened_names = tuple(o.name for o in opened.outputs)

    def attention(self, target: tuple[int, ...] | str | None) -> Attention:
        """Solve, prove and put on record."""
        stop, asked = self.stop, self.asked
        radius = filters.norm_of(self.rho, int(np.prod(self.spatial)))
        sphere = filters.Sphere(radius, device=self.device)
        shape = (self.samples, *self.spatial)
        self._refuse_dead_tail(sphere)
        with torch.no_grad():
            normal = self.torch_outputs(torch.ones(shape, device=self.device))
        classes = self._classes(target, normal)
        chosen = torch.tensor(classes, device=self.device) if classes is not None else None
        responds = torch.zeros(self.samples, dtype=torch.bool, device=self.device)

        def note(gradient: torch.Tensor) -> None:
            responds.logical_or_((gradient != 0).flatten(1).any(1))

        def loss(f: torch.Tensor) -> torch.Tensor:
            if f.requires_grad:
                f.register_hook(note)  # type: ignore[no-untyped-call]  # torch has not annotated it
            return asked.objective.losses(self.torch_outputs(f), normal, samples=self.samples, target=chosen)

        solution = asked.solver.minimise(loss, sphere, shape, generator=torch.Generator().manual_seed(asked.seed))
        self._refuse_unresponsive(responds, sphere, normal, chosen)
        filter = solution.filter.detach().float().cpu()
        shown, flat = filters.heatmap(filter, self._picture_size(), absolute=asked.absolute)
        notes = stop.notes + ((_FLAT,) if any(flat) else ())
        return Attention(
            filter=filter.numpy(),
            heatmap=shown.numpy().astype(np.float32),
            loss=solution.loss.detach().double().cpu().numpy(),
            evaluations=solution.evaluations.cpu().numpy(),
            radius=np.full(self.samples, self.rho),
            target=classes,
            stop_reason=solution.stop_reason,
            at=stop.at,
            to=stop.cut.to,
            objective=asked.objective.name,
            constraint=asked.constraint,
            layout=stop.layout,
            solver=asked.solver.name,
            converter=self.tail.converter,
            parity=self.tail.parity,
            proof=self._proof(filter),
            proof_kind=asked.proof,
            seed=asked.seed,
            notes=notes,
        )

    def torch_outputs(self, f: torch.Tensor) -> dict[str, torch.Tensor]:
        """T(A f) in torch, under the names of S2; f is (N, *spatial)."""
        order, shape = self.stop.axes.placement(tuple(f.shape))
        outputs = self.tail({**self.constants, FILTER_INPUT: f.permute(order).reshape(shape)})
        return {name: outputs[own] for name, own in zip(self.stop.cut.to, self.opened_names, strict=True)}

    def onnx_outputs(self, f: NDArray[np.float32]) -> Arrays:
        """T(A f) in onnxruntime, under the names of S2."""
        fed = {**self.held, FILTER_INPUT: broadcastable(f, self.stop.axes)}
        outputs = runtime.run(self.stop.opened, fed, providers=self.providers)
        return {name: outputs[own] for name, own in zip(self.stop.cut.to, self.opened_names, strict=True)}

    def _points(self, sphere: filters.Sphere) -> list[NDArray[np.float32]]:
        """Three seeded filters of the constraint set."""
        generator = torch.Generator().manual_seed(self.asked.seed)
        shape = (self.samples, *self.spatial)
        return [sphere.random_point(shape, generator).float().cpu().numpy() for _ in range(3)]

    def _refuse_dead_tail(self, sphere: filters.Sphere) -> None:
        outputs = [self._per_sample(self.onnx_outputs(f)) for f in self._points(sphere)]
        shape = (self.samples, *self.spatial)
        whole, nothing = (self._per_sample(self.onnx_outputs(np.full(shape, v, np.float32))) for v in (1.0, 0.0))
        moved = np.ptp(np.stack(outputs), axis=0).max(axis=1, initial=0)
        dead = np.flatnonzero(moved <= _DEAD * np.abs(whole - nothing).max(axis=1, initial=0))
        if dead.size:
            raise SolverError(
                f"The tail is dead at radius {self.rho:g}: whatever cells the filter keeps, the output is the same.",
                where=f"Between {self.stop.at!r} and {', '.join(self.stop.cut.to)}, {_samples(dead, self.samples)}.",
                how="Filters that small leave only biases: try a larger radius (0.5), or break nearer the output.",
            )

    def _refuse_unresponsive(
        self,
        responds: torch.Tensor,
        sphere: filters.Sphere,
        normal: Mapping[str, torch.Tensor],
        target: torch.Tensor | None,
    ) -> None:
        """Where torch's gradient was zero throughout: the converter's fault if onnxruntime's moves, else the user's."""
        silent = np.flatnonzero(~responds.cpu().numpy())
        if not silent.size:
            return

        def loss(f: NDArray[np.float32]) -> NDArray[np.float64]:
            outputs = {k: torch.from_numpy(np.array(v)).to(self.device) for k, v in self.onnx_outputs(f).items()}
            return (
                self.asked.objective.losses(outputs, normal, samples=self.samples, target=target).double().cpu().numpy()
            )

        losses = np.stack([loss(f) for f in self._points(sphere)])
        moving = silent[np.ptp(losses, axis=0)[silent] > _DEAD * np.abs(losses).max(axis=0)[silent]]
        where = f"Between {self.stop.at!r} and {', '.join(self.stop.cut.to)}"
        if moving.size:
            raise ParityError(
                f"The torch tail made by {self.tail.converter} has a zero gradient where onnxruntime's output moves.",
                where=f"{where}, {_samples(moving, self.samples)}.",
                how="Break at a later tensor, so that the operator without gradient is in the head.",
            )
        raise SolverError(
            "The loss does not respond to any filter: what is asked does not depend on it here.",
            where=f"{where}, {_samples(silent, self.samples)}.",
            how="Choose another target or objective, or a larger radius.",
        )

    def _per_sample(self, outputs: Arrays) -> NDArray[np.float64]:
        """All floating outputs as one row a sample (NaN and infinities, that stay, as 0)."""
        rows = [
            np.nan_to_num(v.astype(np.float64), posinf=0, neginf=0).reshape(
                self.samples if v.ndim and v.shape[0] == self.samples else 1, -1
            )
            for v in outputs.values()
            if v.dtype.kind == "f"
        ]
        rows = [np.broadcast_to(r, (self.samples, r.shape[1])) for r in rows]
        return np.concatenate(rows, axis=1) if rows else np.zeros((self.samples, 0))

    def _classes(
        self, target: tuple[int, ...] | str | None, normal: Mapping[str, torch.Tensor]
    ) -> tuple[int, ...] | None:
        if target is None:
            return None
        scores = objectives.class_scores(normal, samples=self.samples)
        if isinstance(target, str):
            return tuple(int(c) for c in scores.argmax(1))
        return target * self.samples if len(target) == 1 else target

    def _picture_size(self) -> tuple[int, ...]:
        """The spatial size of the input that the model saw; the filter's own where no input has as many axes."""
        for info in self.model.inputs:
            letters = self.stop.layouts.get(info.name, "")
            places = axes(letters).spatial
            if len(places) == len(self.spatial) and self.stop.at in reached(self.model, info.name):
                return tuple(self.feeds[info.name].shape[a] for a in places)
        return self.spatial

    def _proof(self, filter: torch.Tensor) -> Parity:
        """onnxruntime runs the filtered `.onnx`; what it returns against what torch returned."""
        with torch.no_grad():
            found = {k: v.cpu().numpy() for k, v in self.torch_outputs(filter.to(self.device)).items()}
        values = filter.numpy()
        checked = [self._compared(self.onnx_outputs(values), found)]
        if self.asked.proof == "model":
            to = self.stop.cut.to
            whole = extract(self.model, [i.name for i in self.model.inputs], to, name=self.model.name)
            filtered = insert_filter(whole, self.stop.at, values, layout=self.stop.layout)
            outputs = runtime.run(filtered, self.feeds, providers=self.providers)
            named = {name: outputs[o.name] for name, o in zip(to, filtered.outputs, strict=True)}
            checked.append(self._compared(named, found))
        return worst_of(checked)

    def _compared(self, reference: Arrays, found: Arrays) -> Parity:
        provider = self.tail.parity.provider
        return compare(reference, found, half=uses_half(self.model), provider=provider, level="disable")


def _samples(indices: NDArray[np.intp], total: int) -> str:
    if total == 1:
        return "the only sample"
    return f"sample{'s' if len(indices) > 1 else ''} {', '.join(str(i) for i in indices[:8])} of {total}"
