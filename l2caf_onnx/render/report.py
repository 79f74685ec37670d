"""One offline HTML file of a comparison or a bisection: everything is in it, and nothing in it can run or be fetched.

Names of tensors and files are strangers' text: jinja escapes every one, and the page's own policy forbids scripts and
the network. Its size is bounded: only the worst inputs are drawn, and long tables are cut with the count of the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from l2caf_onnx.records import Bisection, Comparison, Pair, Score, plain, write_atomic

from .chart import Line, Mark, chart
from .sidebyside import panels, scales
from .verdict import (
    about,
    answered,
    badness,
    beyond,
    class_name,
    clean,
    headline,
    likeliest,
    number,
    quantiles,
    ranked,
    worst_inputs,
)

DRAWN = 12  # inputs with pictures, over all breakpoints
ROWS = 300  # of a table
_PLOTTED = {"local": "Tensors inside: local error, of what each node makes of the reference's own tensors"}
_GLANCE = 2  # inputs drawn at a breakpoint where nothing fails


def save_report(found: Comparison | Bisection, path: Path, *, drawn: int = DRAWN) -> None:
    """Write `report(found)` to `path`, atomically.

    Raises:
        InputError: the folder cannot be written to.
    """
    page = report(found, drawn=drawn).encode("utf-8", "replace")

    def write(stream: IO[bytes]) -> None:
        stream.write(page)

    write_atomic(path, write)


def report(found: Comparison | Bisection, *, drawn: int = DRAWN) -> str:
    """The page as text; `drawn` inputs at most have pictures, the worst."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clean=clean, number=number)
    shared: dict[str, Any] = {
        "found": found,
        "headline": headline(found),
        "settings": _rows_of(found.settings),
        "alignment": sorted(found.alignment, key=lambda a: a.confidence)[:ROWS],
        "rows": ROWS,
    }
    if isinstance(found, Bisection):
        page = environment.get_template("bisection.html")
        own: dict[str, Any] = {"plots": _bisection_plots(found), "nodes": found.ranked[:ROWS]}
    else:
        page = environment.get_template("comparison.html")
        heat, change = scales()
        own = {
            "plots": _drift(found),
            "failures": [_row(s, found) for s in ranked(found.failures)[:ROWS]],
            "scores": [_row(s, found) for s in ranked(found.scores)[:ROWS]],
            "judged": sum(1 for s in found.scores if s.threshold is not None),
            "maps": _maps(found, drawn),
            "heat": heat,
            "change_scale": change,
            "likeliest": likeliest(found),
            "answers": _answers(found),
            "settings": _rows_of(_with_name(found)),
        }
    return page.render({**shared, **own})


def _row(score: Score, found: Comparison) -> dict[str, Any]:
    worst, tenth, median = quantiles(score)
    return {
        "score": score,
        "worst": worst,
        "tenth": tenth,
        "median": median,
        "on": found.inputs[score.worst] if score.worst is not None else "-",
        "times": badness(score),
    }


def _answers(found: Comparison) -> list[tuple[str, str, str]]:
    """(input, likeliest class in the reference, in the candidate) where both differ."""
    classes = found.classes
    both = [(k, classes.reference[k], classes.candidate[k]) for k in classes.differing[:ROWS]]
    return [
        (found.inputs[k], class_name(classes.names, one), class_name(classes.names, other)) for k, one, other in both
    ]


def _with_name(found: Comparison) -> dict[str, Any]:
    """The settings, with the class that was chosen by its name."""
    target = found.settings.get("target")
    if isinstance(target, int) and found.classes.names:
        return {**found.settings, "target": class_name(found.classes.names, target)}
    return {**found.settings}


def _maps(found: Comparison, drawn: int) -> list[dict[str, Any]]:
    """The breakpoints, worst first, each with the pictures of its worst inputs: those that fail share `drawn` rows."""
    groups = []
    for pair in found.pairs:
        own = [s for s in found.scores if s.subject == "attention" and s.name == pair.at]
        groups.append((any(not s.ok for s in own), max(map(badness, own), default=0.0), pair, own))
    groups.sort(key=lambda g: (-g[0], -g[1]))
    failing = sum(g[0] for g in groups)
    shown: list[dict[str, Any]] = []
    left = drawn
    for bad, _, pair, own in groups:
        room = min(left, max(1, drawn // failing) if bad else _GLANCE)
        if room:
            order = _order(found, pair, own)
            rows = [_case(found, pair, own, k) for k in order[:room]]
            left -= len(rows)
            shown.append({"pair": pair, "rows": rows, "total": len(order), "cells": pair.reference.shape[1:]})
    return shown


def _case(found: Comparison, pair: Pair, own: Sequence[Score], k: int) -> dict[str, Any]:
    image = found.images[k] if k < len(found.images) else None
    scores = [(s.metric, float(s.values[k]), not s.ok and beyond(s, k)) for s in own]
    return {
        "input": found.inputs[k],
        "answered": answered(found, k),
        "moved": k in found.classes.differing,
        "about": about(found, k),
        "panels": panels(pair.reference_maps[k], pair.candidate_maps[k], image),
        "bad": any(bad for _, _, bad in scores),
        "scores": scores,
    }


def _order(found: Comparison, pair: Pair, own: Sequence[Score]) -> list[int]:
    """The inputs of one breakpoint, worst first: by its judged scores, else by how far the maps differ."""
    if any(s.threshold is not None for s in own):
        return worst_inputs(found, pair.at)
    if pair.reference_maps.shape != pair.candidate_maps.shape:
        return list(range(len(found.inputs)))
    apart = np.abs(pair.reference_maps - pair.candidate_maps).reshape(len(pair.reference_maps), -1).mean(1)
    return [int(k) for k in np.argsort(-apart, kind="stable")]


def _drift(found: Comparison) -> list[dict[str, Any]]:
    """How far the two are apart by depth: the attention at each breakpoint, and the tensors inside."""
    depths = {p.at: p.depth for p in found.pairs}
    plots = []
    cosines = {s.name: s for s in found.scores if s.subject == "attention" and s.metric == "cosine"}
    there = sorted((depths[n], s) for n, s in cosines.items() if n in depths) if len(depths) > 1 else []
    if there:
        worst, median = ([_mark(d, s, k, 1.0) for d, s in there] for k in (0, 2))
        lines = [Line("median input", "median", median), Line("worst input", "worst", worst)]
        plots.append(_plot("Attention at the breakpoints", lines, "1 - cosine", "depth in the reference"))
    order = {a.reference: k for k, a in enumerate(found.alignment)}
    groups: dict[str, list[Score]] = {}
    for score in found.scores:
        if score.subject == "tensor":
            groups.setdefault(score.metric, []).append(score)
    if groups:
        metric, scores = max(groups.items(), key=lambda g: (sum(s.threshold is not None for s in g[1]), len(g[1])))
        scores = sorted(scores, key=lambda s: order.get(s.name, len(order)))
        along = [k / max(len(scores) - 1, 1) for k in range(len(scores))]
        decibels = "snr" in metric.lower() or metric.lower().endswith("_db")
        base = None if decibels or (scores[0].threshold is not None and scores[0].threshold.above) else 1.0
        worst, median = ([_mark(x, s, k, base) for x, s in zip(along, scores, strict=True)] for k in (0, 2))
        lines = [Line("median input", "median", median, dots=False), Line("worst input", "worst", worst)]
        limits = [Mark(x, _from(base, s.threshold.value), f"threshold of {clean(s.name)}")
                  for x, s in zip(along, scores, strict=True) if s.threshold is not None]  # fmt: skip
        if limits:
            lines.append(Line("threshold", "limit", limits, dots=False))
        if metric != "inherited" and "inherited" in groups:
            own = sorted(groups["inherited"], key=lambda s: order.get(s.name, len(order)))
            marks = [_mark(k / max(len(own) - 1, 1), s, 0, None) for k, s in enumerate(own)]
            lines.append(Line("inherited, worst input", "inherited", marks, dots=False))
        named = metric if base is None else f"1 - {metric}"
        title = _PLOTTED.get(metric, f"Tensors inside: {clean(metric, 40)}")
        x_label = "tensors, in the order of the reference"
        plots.append(_plot(title, lines, named, x_label, logarithmic=not decibels))
    return [p for p in plots if p["svg"]]


def _from(base: float | None, value: float) -> float:
    return value if base is None else base - value


def _mark(x: float, score: Score, which: int, base: float | None) -> Mark:
    value = quantiles(score)[which]
    title = f"{clean(score.name)}: {score.metric} {number(value)}"
    return Mark(x, _from(base, value), title, bad=which == 0 and not score.ok)


def _plot(title: str, lines: Sequence[Line], y: str, x: str, *, logarithmic: bool = False) -> dict[str, Any]:
    svg = chart(lines, y_label=y, x_label=x, logarithmic=logarithmic)
    return {"title": title, "svg": svg, "lines": [(line.name, line.style) for line in lines]}


def _bisection_plots(found: Bisection) -> list[dict[str, Any]]:
    along = [k / max(len(found.nodes) - 1, 1) for k in range(len(found.nodes))]
    nodes = list(zip(along, found.nodes, strict=True))

    def line(name: str, style: str, dots: bool) -> Line:
        marks = []
        for x, n in nodes:
            value = float(getattr(n, style))
            title = f"{clean(n.candidate)} ({clean(n.op_type, 40)}): {name} {number(value)}"
            marks.append(Mark(x, value, title, bad=style == "local" and not n.ok))
        return Line(name, style, marks, dots)

    lines = [line("local error", "local", True), line("inherited error", "inherited", False),
             line("noise", "noise", False)]  # fmt: skip
    plots = [_plot("Error of each node", lines, "relative error", "nodes, in the candidate's order", logarithmic=True)]
    asked = [(x, n, n.attention) for x, n in nodes if n.attention is not None and math.isfinite(n.attention)]
    if asked:
        marks = [Mark(x, a, f"{clean(n.tensor)}: 1 - cosine {number(a)}") for x, n, a in asked]
        plots.append(
            _plot("Attention", [Line("attention", "worst", marks)], "1 - cosine", "nodes, in the candidate's order")
        )
    return [p for p in plots if p["svg"]]


def _rows_of(settings: Mapping[str, Any], most: int = 2000) -> list[tuple[str, str]]:
    """The settings that there are as text, a row a key."""
    rows = []
    for key, value in settings.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, default=str)
        rows.append((clean(str(key)), clean(text, most)))
    return rows
