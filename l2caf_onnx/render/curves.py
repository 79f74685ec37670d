"""Scores by depth: one line a method, one panel a score, a bar for each interval. From numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from l2caf_onnx.records import write_atomic

_COLOURS = "tab10"
_MARKERS = "osD^vP*X<>"
_SPREAD = 0.3  # of the distance of two breakpoints: how far apart the methods' bars stand there
_ABREAST = 3  # panels
_LONGEST = 28  # characters of a tensor's name under the axis


@dataclass(frozen=True, slots=True)
class Point:
    """A mean with its interval, whose ends may be NaN."""

    mean: float
    low: float
    high: float


Panel = Mapping[str, Sequence[Point | None]]  # method -> a point for each breakpoint, None where there is none


def curves(
    path: Path, panels: Mapping[str, Panel], breakpoints: Sequence[str], *, title: str, chance: float | None = None
) -> None:
    """Write a PNG of scores by depth.

    Args:
        path: Where.
        panels: By the score's name.
        breakpoints: From the input to the output.
        title: Over the whole.
        chance: Where a dotted line is drawn.

    Raises:
        InputError: the folder cannot be written to.
    """
    columns = min(len(panels), _ABREAST)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 5.5 * columns, 1.2 + 4.4 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (score, panel) in zip(axes, panels.items(), strict=False):
        if chance is not None:
            ax.axhline(chance, color="0.6", linestyle=":", label="chance")
        for k, method in enumerate(methods):
            there = [(x, p) for x, p in enumerate(panel.get(method, ())) if p is not None]
            aside = (k - (len(methods) - 1) / 2) * _SPREAD / max(len(methods), 1)
            ax.errorbar(
                [x + aside for x, _ in there],
                [p.mean for _, p in there],
                yerr=[[p.mean - p.low for _, p in there], [p.high - p.mean for _, p in there]],
                label=_plain(method),
                color=matplotlib.colormaps[_COLOURS](k % 10),
                marker=_MARKERS[k % len(_MARKERS)],
                markersize=5,
                capsize=3,
                linewidth=1.5,
                linestyle="-" if k < 10 else "--",
            )
        ax.set_ylabel(score.replace("_", " "))
        ax.set_xticks(range(len(breakpoints)), [_plain(b) for b in breakpoints], rotation=20, ha="right")
        ax.set_xlabel("breakpoint")
        ax.grid(axis="y", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    figure.suptitle(_plain(title, 90))

    def write(stream: IO[bytes]) -> None:
        figure.savefig(stream, format="png", metadata={"Software": None})  # no version: the same bytes for the same

    write_atomic(path, write)


def _plain(name: str, most: int = _LONGEST) -> str:
    """A name short enough, and with no sign that matplotlib would read as mathematics."""
    line = "".join(c if c.isprintable() else " " for c in name)
    line = line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[-(most // 2) :]}"
    return line.replace("$", r"\$")
