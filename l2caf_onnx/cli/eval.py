"""`l2caf-onnx eval`: how faithful the maps are, methods side by side, measured on the user's own model and photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import MANIFEST, digest, staged, versions
from .printing import print_json, print_table, progress, remark

if TYPE_CHECKING:
    from l2caf_onnx.evaluation import Evaluation

_STEPS = 1000  # of the progress bar
_WORDS = {"better": "worse", "worse": "better", "equal": "equal"}  # of the reference -> of the other
_UNSHOWN = ("evaluations",)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Photos or folders of photos, .npy or .npz files.", show_default=False),
    ],
    at: Annotated[
        list[str],
        typer.Option(
            "--at", metavar="T", help="The tensor to break at (S1), or a glob; may repeat.", show_default=False
        ),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="T", help="The tensor to watch (S2); may repeat. Default: all outputs.", show_default=False
        ),
    ] = None,
    game: Annotated[
        list[str] | None,
        typer.Option(
            "--game",
            metavar="NAME",
            help="grid, boxes, perturb, randomise or repeat; may repeat. Default: grid, or boxes with --boxes.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME[:SETTINGS]",
            help='default, paper, gradcam, ..., or "l2caf:constraint=l2-nonneg,radius=0.5"; may repeat. The first is '
            "what the others are compared with. Default: default.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="282|top1|none",
            help="The class to explain; none for embeddings. Default: the one that the game knows, else top1.",
            show_default=False,
        ),
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(
            "--choose",
            metavar="DATA",
            help="Other photos, to choose each method's exponent on; may repeat.",
            show_default=False,
        ),
    ] = None,
    boxes: Annotated[
        list[Path] | None,
        typer.Option(
            "--boxes",
            metavar="FILE",
            help="Where things are: COCO JSON, VOC XML (a file or a folder of them), or CSV; may repeat.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names: a line each, or JSON.", show_default=False)
    ] = None,
    grids: Annotated[int, typer.Option(metavar="N", min=1, help="Grids of four photos.")] = 100,
    randomisations: Annotated[int, typer.Option(metavar="N", min=1, help="Of the tail's weights.")] = 5,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|TOML",
            help="imagenet, tf, lite, unit, raw, or a TOML file. Default: as the model says.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for evaluation.json and the plots.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Inputs at once. Default: as free memory allows.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the tail runs.")] = "cpu",
    providers: Annotated[
        str | None, typer.Option(metavar="A,B", help="onnxruntime's execution providers.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of every random choice.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is in DIR.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure how faithful the maps of MODEL are on DATA, by games with a known answer, methods side by side.

    grid: four photos of four classes in one picture, the map of a class belongs into its cell. boxes: pointing game,
    localisation and energy against annotated boxes. perturb: insertion, deletion, average drop. randomise: maps must
    change when the tail's weights are randomised. repeat: and must not when nothing that matters is changed.
    """
    from l2caf_onnx.evaluation import evaluate as play
    from l2caf_onnx.graph.model import load
    from l2caf_onnx.records import save_manifest

    from .asked import breakpoints_named, class_names, preprocess_stated

    loaded = load(model)
    names = breakpoints_named(loaded, at)
    stated = preprocess or preprocess_stated(loaded, model)
    played = _games(game, boxes, class_names(labels), grids, randomisations)

    def run() -> Evaluation:
        with progress("evaluation", _STEPS) as steps:
            done = 0

            def tell(what: str, part: float) -> None:
                nonlocal done
                steps.advance(what, int(part * _STEPS) - done)
                done = int(part * _STEPS)

            return play(
                loaded, data, at=names, to=to or None, games=played, methods=method or ["default"],
                target=_target(target), choose=choose or None, preprocess=stated, batch_size=batch_size, device=device,
                providers=providers.split(",") if providers else None, seed=seed, tell=tell,
            )  # fmt: skip

    if output is None:
        found = run()
    else:
        with staged(output, force=force) as stage:
            found = run()
            save_manifest(stage / "evaluation.json", found.describe())
            plots = _plots(stage, found, sorted(found.at, key=loaded.names.index), model.name)
            manifest = {
                "command": "eval",
                "model": {"name": model.name, "sha256": digest(model)},
                "settings": {"data": data, "choose": choose, "preprocess": stated, **found.settings, "seed": seed},
                "summaries": found.describe()["summaries"],
                "files": ["evaluation.json", *plots],
                "versions": versions(),
            }
            save_manifest(stage / MANIFEST, manifest)
    for note in found.notes:
        remark(f"Note: {note}")
    if json:
        print_json(found.describe())
        return
    _print(found)
    if output is not None:
        typer.echo(f"evaluation.json, the plots and manifest.json are in {output}")


def _games(
    names: list[str] | None, boxes: list[Path] | None, classes: dict[int, str], grids: int, randomisations: int
) -> list[Any]:
    """The games that are asked for, with their settings."""
    from l2caf_onnx.errors import InputError
    from l2caf_onnx.evaluation.boxes import read_boxes
    from l2caf_onnx.evaluation.grid import Grid
    from l2caf_onnx.evaluation.localise import Boxes
    from l2caf_onnx.evaluation.randomise import Randomise

    asked = names or (["boxes"] if boxes else ["grid"])
    if boxes and "boxes" not in asked:
        raise InputError("--boxes is for the game boxes, which is not asked for.", how="Add --game boxes.")
    found: list[Any] = []
    for name in asked:
        if name == "grid":
            found.append(Grid(count=grids))
        elif name == "randomise":
            found.append(Randomise(count=randomisations))
        elif name == "boxes" and boxes:
            found.append(Boxes(annotations=read_boxes(boxes), classes=classes))
        else:
            found.append(name)
    return found


def _target(text: str | None) -> int | str | None:
    from l2caf_onnx.errors import InputError

    from .asked import ranks_or_class

    if text == "none":
        return text
    found = ranks_or_class(text)
    if isinstance(found, tuple):
        if found[1] > 1:
            raise InputError(
                f"eval asks about one class a photo, not {text!r}.", where="--target.", how="Give top1 or a class."
            )
        return "top1"
    return found


def _print(found: Evaluation) -> None:
    """A table for each game: breakpoint and method down, scores across."""
    verdicts = {(d.game, d.at, d.method, d.score): _WORDS[d.verdict] for d in found.differences}
    for game in found.games:
        own = [s for s in found.summaries if s.game == game and s.score not in _UNSHOWN]
        scores = list(dict.fromkeys(s.score for s in own))
        cells = {(s.at, s.method, s.score): s for s in own}
        lines = []
        for at, method in dict.fromkeys((s.at, s.method) for s in own):
            line = [at, method]
            for score in scores:
                s = cells.get((at, method, score))
                if s is None:
                    line.append("-")
                    continue
                power = f"^{s.exponent}" if s.exponent is not None and found.chosen else ""
                word = verdicts.get((game, at, method, score), "")
                if game == "repeat":
                    line.append(f"{s.mean:.4f} least {s.least:.4f}")
                else:
                    line.append(f"{s.mean:.3f}{power} [{s.low:.3f}, {s.high:.3f}] {word}".rstrip())
            some = next(s for s in own if (s.at, s.method) == (at, method))
            line += [f"{some.items}/{some.photos}", str(some.failed) if some.failed else ""]
            lines.append(line)
        typer.echo(f"{game}:")
        print_table(("at", "method", *scores, "maps/photos", "blank"), lines)
    if found.differences:
        typer.echo(
            f"In brackets: 95% intervals, bootstrap over photos. Better or worse than {found.reference}: by the "
            "interval of the paired difference; equal: it cannot tell."
        )


def _plots(folder: Path, found: Evaluation, at: list[str], model: str) -> list[str]:
    """A picture by depth for each game, where there are several breakpoints; their file names."""
    if len(at) < 2:
        return []
    from l2caf_onnx.render.curves import Point, curves

    files = []
    for game in found.games:
        own = [s for s in found.summaries if s.game == game and s.score not in _UNSHOWN]
        points = {(s.score, s.method, s.at): Point(s.mean, s.low, s.high) for s in own}
        panels = {
            score: {m: [points.get((score, m, b)) for b in at] for m in found.methods}
            for score in dict.fromkeys(s.score for s in own)
        }
        if panels:
            files.append(f"{game}.png")
            chance = 0.25 if game == "grid" else None
            curves(folder / files[-1], panels, at, title=f"{game}, {model}", chance=chance)
    return files
