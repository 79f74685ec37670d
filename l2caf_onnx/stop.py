"""One breakpoint: its cut, its layout, the tail with the filter as an input, and what the user should know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .graph.breakpoints import check_breakpoint
from .graph.cut import Cut, cut, resolve_to
from .graph.insert import open_filter
from .graph.layout import Axes, axes, layout_of, layouts
from .graph.logits import logits_of
from .graph.model import Model
from .graph.paths import reached
from .query import Plan


class Stop:
    """One breakpoint with its cut, layout, and what the user should know of them."""

    def __init__(
        self,
        model: Model,
        at: str,
        to: str | Sequence[str] | None,
        layout: str | None,
        asked: Plan,
        fed: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        check_breakpoint(model, at, layout)
        self.at = at
        self.layout = layout_of(model, at, layout, fed)  # with its grid, as in NTC[1+14x14]
        self.layouts = layouts(model, {at: self.layout} if layout is not None else None)
        self.axes: Axes = axes(self.layout)
        grid = self.axes.grid
        self.notes: tuple[str, ...] = (
            (f"{at!r} is taken for a {grid.describe()} (layout {self.layout}).",) if grid else ()
        )
        targets = resolve_to(model, at, to, layout)
        if asked.objective.class_specific:
            targets = tuple(dict.fromkeys(self._logits(model, name) for name in targets))
        self.cut: Cut = cut(model, at, targets, layout=layout)
        tail = self.cut.tail
        self.opened: Model = tail.cache.get(("opened", self.layout), lambda: open_filter(tail, at, layout=self.layout))

    def _logits(self, model: Model, name: str) -> str:
        before = logits_of(model, name)
        if before is None or before[0] not in reached(model, self.at):
            return name
        self.notes += (f"The output {name!r} is made by {before[1]}: its input {before[0]!r} is watched in its place.",)
        return before[0]
