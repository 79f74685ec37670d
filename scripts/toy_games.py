"""The toys' games, whose right answer is known by construction: is the map's maximum inside the digit?

`python scripts/toy_games.py` prints, for every block of every toy, the share of maps whose maximum lies in the box of a
digit of the class asked about (of the recurrent toy: of frames), and, for scenes with two digits of one class, the
share of scenes in which both are covered: each box holds a pixel of at least half of the map's maximum. Other methods
stand beside, at the same cut and about the same number. Scenes are held out: neither training nor the accuracy that the
manifest states has seen them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

import l2caf_onnx as caf
from scripts.toys.scenes import Box, held_out, held_out_clips

MODELS = Path(__file__).resolve().parents[1] / "models"
SEED = 40  # held-out glyphs, in scenes that nothing else has seen
BLOCKS = ("block1", "block2", "block3", "block4", "block5")
STOPS: dict[str, tuple[str, ...]] = {
    "cnn": BLOCKS,
    "vit": ("patches", "layer1", "layer2", "layer3"),
    "detector": BLOCKS,
    "embedding": BLOCKS,
    "recurrent": ("block1", "block2", "block3"),
}
WATCHED = "select=scores[:, :, {class}].max()"  # of the detector: the surest cell of the class
METHODS = ("default", "gradcam", "hirescam", "rise", "centre")


def called(toy: str, method: str) -> str:
    """A method with what it needs to ask about a digit of this toy."""
    if toy != "detector":
        return method
    return f"{'l2caf' if method == 'default' else method}{',' if ':' in method else ':'}{WATCHED}"


def scenes_game(
    toy: str, at: Sequence[str], count: int, methods: Sequence[str], *, two: bool = False, seed: int = SEED
) -> dict[tuple[str, str], float]:
    """(breakpoint, method) -> the share of questions that are answered rightly, a question for each class in a scene.

    Args:
        toy: Its name.
        at: Breakpoints.
        count: Scenes.
        methods: As `evaluate` takes them.
        two: Two digits of one class in each scene, about which alone is asked: both must be covered.
        seed: Of the scenes.
    """
    shown = held_out(toy, count, seed + two, two_of_a_class=two)  # type: ignore[arg-type]
    boxes = {
        f"sample {k}": [(str(b.label), b[1:]) for b in s.boxes if not two or b.label == s.label]
        for k, s in enumerate(shown)
    }
    names = [called(toy, m) for m in methods]
    images = np.stack([s.image for s in shown])
    found = caf.evaluate(
        MODELS / f"toy-{toy}.onnx", {"image": images}, at=at, games=["boxes"], boxes=boxes, methods=names,
        target="none" if toy == "embedding" else None, batch_size=32,
    )  # fmt: skip
    score = "covered" if two else "hit"
    return {(b, m): found.find("boxes", b, n, score).mean for b in at for m, n in zip(methods, names, strict=True)}


def inside(heatmap: NDArray[np.floating[Any]], box: Box) -> bool:
    """Whether the (first) maximum is in the box."""
    y, x = np.unravel_index(int(np.argmax(heatmap)), heatmap.shape)
    return bool(box.x0 <= x < box.x1 and box.y0 <= y < box.y1)


def clips_game(at: Sequence[str], count: int, methods: Sequence[str], seed: int = SEED) -> dict[tuple[str, str], float]:
    """(breakpoint, method) -> the share of frames whose map has its maximum in the digit."""
    model = caf.load(MODELS / "toy-recurrent.onnx")
    right: dict[tuple[str, str], list[bool]] = {}
    for clip in held_out_clips(count, seed):
        queries = [
            caf.Query(b, layout="TCHW", **({} if m == "default" else {"method": m})) for b in at for m in methods
        ]
        answers = caf.attend_many(model, {"clip": clip.clip[None]}, queries)
        for a, key in zip(answers, [(b, m) for b in at for m in methods], strict=True):
            right.setdefault(key, []).extend(inside(m, b) for m, b in zip(a.heatmap[0], clip.boxes, strict=True))
    return {key: float(np.mean(hits)) for key, hits in right.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("toys", nargs="*", help=f"of {', '.join(STOPS)} (default: all)")
    parser.add_argument("--count", type=int, default=100, help="scenes of each (clips: a quarter)")
    parser.add_argument("--method", action="append", help=f"as `eval` takes it (default: {', '.join(METHODS)})")
    parser.add_argument("--at", action="append", help="only at this breakpoint")
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    methods = options.method or METHODS
    rows: list[dict[str, Any]] = []
    print("Maximum in the digit; both of two digits covered.\n")
    print(f"| toy | breakpoint | {' | '.join(methods)} | both: {' | both: '.join(methods)} |")
    print(f"|---|---|{'---:|' * 2 * len(methods)}", flush=True)
    for toy in options.toys or STOPS:
        for at in [s for s in STOPS[toy] if not options.at or s in options.at]:
            both: dict[tuple[str, str], float] = {}
            if toy == "recurrent":
                hit = clips_game([at], max(options.count // 4, 1), methods, options.seed)
            else:
                hit = scenes_game(toy, [at], options.count, methods, seed=options.seed)
                if toy in ("cnn", "vit"):
                    both = scenes_game(toy, [at], options.count, methods, two=True, seed=options.seed)
            rows += [{"toy": toy, "at": at, "method": m, "hit": hit[at, m], "both": both.get((at, m))} for m in methods]
            cells = [f"{hit[at, m]:.1%}" for m in methods] + [f"{both[at, m]:.1%}" if both else "" for m in methods]
            print(f"| {toy} | {at} | {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
