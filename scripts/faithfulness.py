"""The table by which the defaults were decided: the grid pointing game on EfficientNet-Lite0 at five depths.

`python scripts/faithfulness.py` plays it with the photos of the manifest, exponents chosen on one half and scores
reported on the other, every method on the same grids, and prints a table; --plot draws it by depth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

import l2caf_onnx as caf
from l2caf_onnx.evaluation.grid import Grid
from scripts.fetch_models import MANIFEST, read_manifest

MODELS = MANIFEST.parent
MODEL = MODELS / "efficientnet-lite0.onnx"
DEPTHS = {
    "block 4, 28x28": "/_blocks.4/Add_output_0",
    "block 7, 14x14": "/_blocks.7/Add_output_0",
    "block 10, 14x14": "/_blocks.10/Add_output_0",
    "bottleneck, 7x7": "/_blocks.15/_project_conv/Conv_output_0",
    "last conv, 7x7": "/_swish_1/Clip_output_0",
}
OURS = ("default", "paper")
PEERS = ("gradcam", "hirescam", "gradcam++", "scorecam", "eigencam", "reciprocam", "rise", "centre")
SCORES = ("energy", "top_share")


def photos(half: str) -> list[str]:
    """The files of a half."""
    return [str(MODELS / i.to) for p in read_manifest(MANIFEST) for i in p.items if i.half == half]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grids", type=int, default=100, help="on the reporting half")
    parser.add_argument("--choosing", type=int, default=24, help="on the choosing half")
    parser.add_argument("--only", action="append", default=[], metavar="DEPTH", help="depths that hold this word")
    parser.add_argument("--method", action="append", default=[], help="in the place of all")
    parser.add_argument("--without", action="append", default=[], help="leave this method out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores there")
    options = parser.parse_args(arguments)
    methods = [m for m in options.method or (*OURS, *PEERS) if m not in options.without]
    document: list[dict[str, Any]] = []
    print("| breakpoint | method | energy (exponent) | top share | default minus it: energy, top share |")
    print("|---|---|---:|---:|---:|", flush=True)
    for depth, at in DEPTHS.items():
        if options.only and not any(word in depth for word in options.only):
            continue
        start = time.perf_counter()
        found = evaluated(at, methods, options)
        for method in methods:
            energy, top = (found.find(game="grid", at=at, method=method, score=score) for score in SCORES)
            behind = {d.score: d for d in found.differences if d.method == method and d.at == at}
            apart = ", ".join(
                f"{behind[s].mean:+.3f} [{behind[s].low:+.3f}, {behind[s].high:+.3f}]" for s in SCORES if s in behind
            )
            print(
                f"| {depth} | {method} | {energy.mean:.3f} ({energy.exponent}) | {top.mean:.3f} | {apart} |", flush=True
            )
        document.append({"depth": depth, "seconds": time.perf_counter() - start, **found.describe()})
        if options.json:
            options.json.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return 0


def evaluated(at: str, methods: Sequence[str], options: argparse.Namespace) -> caf.Evaluation:
    """One depth: exponents from a game on the choosing half, scores from one on the other."""
    return caf.evaluate(
        MODEL, photos("report"), at=[at], games=[Grid(count=options.grids, choosing=options.choosing)], methods=methods,
        preprocess="lite", choose=photos("choose"), seed=options.seed,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
