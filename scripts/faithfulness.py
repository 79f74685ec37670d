"""The tables by which the defaults were decided: how faithful maps of EfficientNet-Lite0 are at five depths.

`python scripts/faithfulness.py` plays the grid pointing game with the photos of the manifest, exponents chosen on one
half and scores reported on the other, every method on the same grids, and prints a table. `--game perturb` has
insertion and deletion, `--game randomise` the sanity check, `--game repeat` repeatability, on the same photos.
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
from l2caf_onnx.evaluation.games import Game
from l2caf_onnx.evaluation.grid import Grid
from l2caf_onnx.evaluation.perturb import Perturb
from l2caf_onnx.evaluation.randomise import Randomise
from l2caf_onnx.evaluation.repeat import Repeat
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
SCORES = {
    "grid": ("energy", "top_share"),
    "perturb": ("insertion_minus_deletion", "insertion", "deletion"),
    "randomise": ("rank_correlation",),
    "repeat": ("noise", "activation", "seed", "threads", "level"),
}


def photos(half: str) -> list[str]:
    """The files of a half."""
    return [str(MODELS / i.to) for p in read_manifest(MANIFEST) for i in p.items if i.half == half]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--game", choices=SCORES, default="grid")
    parser.add_argument("--randomisations", type=int, default=20, help="draws of the tail's weights, of all photos")
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
    print(f"| breakpoint | method | {' | '.join(SCORES[options.game])} |")
    print("|---|---|" + "---|" * len(SCORES[options.game]), flush=True)
    for depth, at in DEPTHS.items():
        if options.only and not any(word in depth for word in options.only):
            continue
        start = time.perf_counter()
        found = evaluated(at, methods, options)
        for method in methods:
            print(f"| {depth} | {method} | {' | '.join(cells(found, options.game, at, method))} |", flush=True)
        document.append({"depth": depth, "seconds": time.perf_counter() - start, **found.describe()})
        if options.json:
            options.json.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return 0


def cells(found: caf.Evaluation, game: str, at: str, method: str) -> list[str]:
    """Each score's mean, with the exponent of an energy; of repetitions the least too; then the first method's lead."""
    shown = []
    for score in SCORES[game]:
        own = found.find(game=game, at=at, method=method, score=score)
        text = f"{own.mean:.3f}" + (f" ({own.exponent})" if own.exponent is not None else "")
        text += f", least {own.least:.3f}" if game == "repeat" else ""
        for d in found.differences:
            if (d.score, d.method, d.at) == (score, method, at):
                text += f"; {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        shown.append(text)
    return shown


def game_of(options: argparse.Namespace) -> Game:
    """As asked for."""
    if options.game == "grid":
        return Grid(count=options.grids, choosing=options.choosing)
    if options.game == "randomise":
        return Randomise(count=options.randomisations)
    if options.game == "repeat":
        return Repeat()
    return Perturb()


def evaluated(at: str, methods: Sequence[str], options: argparse.Namespace) -> caf.Evaluation:
    """One depth: exponents from a game on the choosing half, scores from one on the other."""
    settled = options.game == "randomise"  # nothing was chosen by it, so that all photos may tell
    return caf.evaluate(
        MODEL, photos("report") + (photos("choose") if settled else []), at=[at], games=[game_of(options)],
        methods=methods, preprocess="lite", choose=photos("choose") if options.game == "grid" else None,
        seed=options.seed,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
