"""One breakpoint: its cut, its layout, the tail with the filter as an input, and what the user should know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from l2caf_onnx import runtime
from l2caf_onnx.graph.affine import affine_obstacle
from l2caf_onnx.graph.breakpoints import check_breakpoint
from l2caf_onnx.graph.cut import Cut, cut, extract, resolve_to
from l2caf_onnx.graph.insert import FILTER_INPUT, open_filter
from l2caf_onnx.graph.layout import Axes, axes, layout_of, layouts
from l2caf_onnx.graph.logits import logits_of
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.paths import reached
from l2caf_onnx.graph.pooled import pooled
from l2caf_onnx.graph.shapes import tensors

Shapes = Mapping[str, tuple[int, ...]]


class Stop:
    """One breakpoint of a model, as seen from certain outputs; made once by `stop_at`, and kept by the model.

    Attributes:
        at: S1.
        layout: Of S1, with its grid, as in NTC[1+14x14].
        layouts: The letters of all tensors that have some.
        axes: The same of S1, read.
        cut: Head and tail.
        opened: The tail with the filter as an input.
        own_names: What `opened` calls its outputs, in the order of `cut.to`.
        held_names: The inputs of `opened` but for the filter.
        reached_from: The graph inputs that S1 depends on.
        batch: For S1, the other inputs of the tail and its outputs: the axis of the samples, -1 where there is none.
        notes: What the user should know.
    """

    def __init__(
        self, model: Model, at: str, to: str | Sequence[str] | None, layout: str | None, logits: bool, fed: Shapes
    ) -> None:
        check_breakpoint(model, at, layout)
        self.at = at
        self.layout = layout_of(model, at, layout, fed)
        self.layouts = layouts(model, {at: self.layout} if layout is not None else None)
        self.axes: Axes = axes(self.layout)
        grid = self.axes.grid
        self.notes: tuple[str, ...] = (
            (f"{at!r} is taken for a {grid.describe()} (layout {self.layout}).",) if grid else ()
        )
        targets = resolve_to(model, at, to, layout)
        if logits:
            targets = tuple(dict.fromkeys(self._logits(model, name) for name in targets))
        self.cut: Cut = cut(model, at, targets, layout=layout)
        tail = self.cut.tail
        self.opened: Model = tail.cache.get(("opened", self.layout), lambda: open_filter(tail, at, layout=self.layout))
        if pooled(self.opened, self.axes) is not None:  # what follows the pool is computed on both sides
            runtime.shared_weights(self.opened)
        self.own_names = tuple(o.name for o in self.opened.outputs)
        self.held_names = tuple(i.name for i in self.opened.inputs if i.name != FILTER_INPUT)
        self.batch = {name: self.layouts.get(name, "N").find("N") for name in (*self.held_names, *self.cut.to)}
        self.batch[at] = self.axes.batch if self.axes.batch is not None else -1
        self.reached_from = frozenset(i.name for i in model.inputs if at in reached(model, i.name))

    def _logits(self, model: Model, name: str) -> str:
        before = logits_of(model, name)
        if before is None or before[0] not in reached(model, self.at):
            return name
        self.notes += (f"The output {name!r} is made by {before[1]}: its input {before[0]!r} is watched in its place.",)
        return before[0]

    @property
    def obstacle(self) -> onnx.NodeProto | None:
        """The first node by which the tail is not affine in the filter; None where it is affine, says the graph."""
        return self.opened.cache.get("obstacle", lambda: affine_obstacle(self.opened, FILTER_INPUT))

    @property
    def integers(self) -> bool:
        """Whether the tail holds quantised tensors, which are judged node by node."""
        return has_quantised(self.opened)

    def whole(self, model: Model) -> Model:
        """All of the model that leads to the cut's outputs."""
        inputs = [i.name for i in model.inputs]
        return model.cache.get(("whole", self.cut.to), lambda: extract(model, inputs, self.cut.to, name=model.name))


def has_quantised(model: Model) -> bool:
    """Whether some tensor holds integers of eight bits."""
    return model.cache.get("quantised", lambda: any(i.dtype in ("int8", "uint8") for i in tensors(model).values()))


def stop_at(
    model: Model,
    at: str,
    to: str | Sequence[str] | None = None,
    layout: str | None = None,
    *,
    logits: bool = False,
    fed: Shapes | None = None,
) -> Stop:
    """The Stop at `at`, made once for a model.

    Args:
        model: Whole.
        at: S1.
        to: S2; None: all outputs that S1 reaches.
        layout: Of S1, where the user gives one.
        logits: Whether outputs that are made by a softmax or sigmoid are replaced by that operator's input.
        fed: The shapes of the inputs, which decide the grid of tokens where the file leaves it open.

    Raises:
        TensorNotFoundError, CutError, InputError, UnsupportedModelError: see `cut`.
    """
    fed = fed or {}
    if logits:
        plain = stop_at(model, at, to, layout, fed=fed)
        if not any(logits_of(model, name) for name in plain.cut.to):
            return plain  # the same questions, whether about a class or not, share what is made of them
    watched = to if to is None or isinstance(to, str) else tuple(to)
    key = ("stop", at, watched, layout, logits, tuple(sorted(fed.items())))
    return model.cache.get(key, lambda: Stop(model, at, to, layout, logits, fed))
