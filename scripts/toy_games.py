"""The toys' games, whose right answer is known by construction: is the map's maximum inside the digit?

`python scripts/toy_games.py` prints, for every block of every toy, the share of maps whose maximum lies in the box of a
digit of the class asked about (of the recurrent toy: of frames), and, for scenes with two digits of one class, the
share of scenes in which both are covered: each box holds a pixel of at least half of the map's maximum.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

import l2caf_onnx as caf
from scripts.toys.scenes import Box, held_out, held_out_clips

MODELS = Path(__file__).resolve().parents[1] / "models"
SEED = 40  # held-out glyphs, in scenes that nothing else has seen
HALF = 0.5
BLOCKS = ("block1", "block2", "block3", "block4", "block5")
STOPS: dict[str, tuple[str, ...]] = {
    "cnn": BLOCKS,
    "vit": ("patches", "layer1", "layer2", "layer3"),
    "detector": BLOCKS,
    "embedding": BLOCKS,
    "recurrent": ("block1", "block2", "block3"),
}
Options = Mapping[str, Any]


def inside(heatmap: NDArray[np.floating[Any]], boxes: Sequence[Box]) -> bool:
    """Whether the (first) maximum is in one of the boxes."""
    y, x = np.unravel_index(int(np.argmax(heatmap)), heatmap.shape)
    return any(b.x0 <= x < b.x1 and b.y0 <= y < b.y1 for b in boxes)


def covered(heatmap: NDArray[np.floating[Any]], boxes: Sequence[Box]) -> bool:
    """Whether each box holds a pixel of at least half of the maximum."""
    return all(bool(heatmap[b.y0 : b.y1, b.x0 : b.x1].max() >= HALF * heatmap.max()) for b in boxes)


def scenes_game(toy: str, at: str, count: int, options: Options, *, two: bool = False) -> float:
    """The share of scenes that are answered rightly; of the detector the surest cell of the class is asked about."""
    model = caf.load(MODELS / f"toy-{toy}.onnx")
    shown = held_out(toy, count, SEED + two, two_of_a_class=two)  # type: ignore[arg-type]
    right = []
    for number, scene in enumerate(shown):
        labels = [b.label for b in scene.boxes]
        wanted = max(labels, key=labels.count) if two else labels[number % len(labels)]
        boxes = [b for b in scene.boxes if b.label == wanted]
        feeds = {"image": scene.image[None]}
        asked = dict(options)
        if toy in ("cnn", "vit"):
            asked["target"] = wanted
        elif toy == "detector":
            scores = caf.run(model, feeds)["scores"][0, :, wanted]
            cell = int(scores.argmax())
            asked |= {"to": "scores", "select": f"scores[0, {cell}, {wanted}]"}
        heatmap = caf.attend(model, feeds, at=at, **asked).heatmap[0]
        right.append(covered(heatmap, boxes) if two else inside(heatmap, boxes))
    return float(np.mean(right))


def clips_game(at: str, count: int, options: Options) -> float:
    """The share of frames whose map has its maximum in the digit."""
    model = caf.load(MODELS / "toy-recurrent.onnx")
    right = []
    for clip in held_out_clips(count, SEED):
        a = caf.attend(model, {"clip": clip.clip[None]}, at=at, layout="TCHW", **options)
        right += [inside(m, [box]) for m, box in zip(a.heatmap[0], clip.boxes, strict=True)]
    return float(np.mean(right))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("toys", nargs="*", help=f"of {', '.join(STOPS)} (default: all)")
    parser.add_argument("--count", type=int, default=100, help="scenes of each (clips: a quarter)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of attend")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = dict(part.split("=", 1) for part in options.set)
    rows: list[dict[str, Any]] = []
    print("| toy | breakpoint | maximum in the digit | both of two covered |\n|---|---|---:|---:|", flush=True)
    for toy in options.toys or STOPS:
        for at in STOPS[toy]:
            try:
                if toy == "recurrent":
                    hit, both = clips_game(at, max(options.count // 4, 1), settings), None
                else:
                    hit = scenes_game(toy, at, options.count, settings)
                    both = scenes_game(toy, at, options.count, settings, two=True) if toy in ("cnn", "vit") else None
            except caf.L2cafError as e:
                print(f"| {toy} | {at} | {e} | |", flush=True)
                continue
            rows.append({"toy": toy, "at": at, "hit": hit, "both": both})
            print(f"| {toy} | {at} | {hit:.1%} | {'' if both is None else f'{both:.1%}'} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
