"""How the cost of attention grows with cells, images and targets, and whether memory does over a thousand images."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import l2caf_onnx as caf

from .cases import LAST_CONV, MODEL, pictures
from .timing import Timed, interleaved, plain_forward

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
SIDES = (7, 14, 28, 56, 112)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
TARGETS = (1, 2, 4, 8, 16, 32)
BLUE, ORANGE, GREY = "#1f5fa8", "#d06a12", "#888888"


def scaling(repeats: int) -> dict[str, Any]:
    """All that the plot shows, in milliseconds and MB."""
    return {
        "cells": over_cells(repeats), "images": over_images(repeats), "targets": over_targets(repeats),
        "memory": over_time(),
    }  # fmt: skip


def over_cells(repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"cells": [], "outputs": [], "target": [], "forward": []}
    for side in SIDES:
        data = affine_tail(side).SerializeToString()
        model = caf.load(data)
        feeds = {"x": np.random.default_rng(side).standard_normal((1, 3, side, side)).astype(np.float32)}
        forward = plain_forward(data, feeds)
        found["cells"].append(side * side)
        for name, asked in {"outputs": {"radius": "unit"}, "target": {"target": "top1"}}.items():

            def attend(model: caf.Model = model, feeds: Any = feeds, asked: Any = asked) -> None:
                assert caf.attend(model, feeds, at="map", **asked).solver == "exact"

            timed = settled(attend, forward, repeats)
            found[name].append(timed.ms)
        found["forward"].append(timed.forward_ms)
    return found


def affine_tail(side: int) -> onnx.ModelProto:
    """Two convolutions up to `map` (1, 32, side, side); then a convolution, the mean over cells, 100 scores."""
    rng = np.random.default_rng(0)
    weights = {"a": (32, 3, 3, 3), "b": (32, 32, 3, 3), "c": (32, 32, 3, 3), "w": (32, 100)}
    same: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], **same), helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], **same), helper.make_node("Relu", ["r"], ["map"]),
        helper.make_node("Conv", ["map", "c"], ["s"], **same), helper.make_node("GlobalAveragePool", ["s"], ["t"]),
        helper.make_node("Flatten", ["t"], ["u"]), helper.make_node("Gemm", ["u", "w"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "affine_tail",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 100])],
        [
            numpy_helper.from_array((rng.standard_normal(s) * np.prod(s[1:]) ** -0.5).astype(np.float32), name)
            for name, s in weights.items()
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def over_images(repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"images": [], "outputs": [], "target": [], "forward": []}
    model = caf.load(MODEL)
    for count in IMAGES:
        feeds = pictures(count)
        forward = plain_forward(MODEL, feeds)
        found["images"].append(count)
        for name, asked in {"outputs": {}, "target": {"target": "top1"}}.items():

            def attend(feeds: Any = feeds, asked: Any = asked) -> None:
                caf.attend(model, feeds, at=LAST_CONV, **asked)

            timed = settled(attend, forward, repeats)
            found[name].append(timed.ms)
        found["forward"].append(timed.forward_ms)
    return found


def over_targets(repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"targets": [], "together": [], "forward": []}
    model, feeds = caf.load(MODEL), pictures(1)
    forward = plain_forward(MODEL, feeds)
    for count in TARGETS:
        queries = [caf.Query(LAST_CONV, target=31 * k) for k in range(count)]
        timed = settled(lambda queries=queries: caf.attend_many(model, feeds, queries), forward, repeats)
        found["targets"].append(count)
        found["together"].append(timed.ms)
        found["forward"].append(timed.forward_ms)
    return found


def over_time() -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.bench.memory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def settled(work: Any, forward: Any, repeats: int) -> Timed:
    work()  # cuts, converts
    work()
    return interleaved(work, forward, repeats)


def draw(found: dict[str, Any], machine: str, path: Path) -> None:
    """Four small plots in one PNG."""
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    figure, panels = plt.subplots(2, 2, figsize=(8, 5.6), layout="constrained")
    cells, images, targets, memory = (found[k] for k in ("cells", "images", "targets", "memory"))
    curves(
        panels[0][0], cells, "cells", {"outputs": BLUE, "target": ORANGE, "forward": GREY},
        title="Cells (synthetic, affine tail, 100 outputs)", label="cells of the map",
    )  # fmt: skip
    curves(
        panels[0][1], images, "images", {"outputs": BLUE, "target": ORANGE, "forward": GREY},
        title="Images (EfficientNet-Lite0, last conv)", label="images in one call",
    )  # fmt: skip
    curves(
        panels[1][0], targets, "targets", {"together": ORANGE, "forward": GREY},
        title="Targets of one image, in one call of attend_many", label="targets",
    )  # fmt: skip
    one = targets["together"][0]
    panels[1][0].plot(
        targets["targets"], [one * n for n in targets["targets"]], color=ORANGE, linestyle=":", linewidth=1,
        label="so many times the first",
    )  # fmt: skip
    panels[1][0].legend(frameon=False)
    panel = panels[1][1]
    panel.plot(memory["images"], memory["peak_mb"], color=BLUE, linewidth=3, label="peak so far")
    if None not in memory["current_mb"]:
        panel.plot(memory["images"], memory["current_mb"], color=ORANGE, linewidth=1, label="resident")
    panel.set(title=f"Memory, batches of {memory['batch']}", xlabel="images seen", ylabel="MB")
    panel.set_ylim(bottom=0)
    panel.grid(color="#e6e6e6")
    panel.legend(frameon=False)
    figure.suptitle(f"Cost of a whole attention. {machine.split(', Python')[0]}", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)  # half the size, for git


def curves(
    panel: Any, found: dict[str, list[float]], x: str, colours: dict[str, str], *, title: str, label: str
) -> None:
    for name, colour in colours.items():
        shown = {"forward": "plain forward", "together": "attention"}.get(name, name)
        panel.plot(found[x], found[name], color=colour, marker="o", markersize=3, linewidth=1.3, label=shown)
    panel.set(title=title, xlabel=label, ylabel="ms", xscale="log", yscale="log")
    panel.set_xticks(found[x], [f"{v:,.0f}" for v in found[x]], minor=False)
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    panel.grid(color="#e6e6e6")
    panel.legend(frameon=False)
