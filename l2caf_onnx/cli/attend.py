"""`l2caf-onnx attend`: the main job, from photos to pictures, arrays and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2caf_onnx.errors import InputError

from .output import MANIFEST, digest, staged, unused, versions
from .printing import print_json, print_table, progress, remark
from .results import ANIMATIONS

if TYPE_CHECKING:
    from l2caf_onnx.graph.model import Model
    from l2caf_onnx.inputs import Sample
    from l2caf_onnx.records import Attention


def attend(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, folders of pictures, .npy or .npz files; NAME=PATH where the model has several inputs.",
            show_default=False,
        ),
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
    target: Annotated[
        str | None,
        typer.Option(
            metavar="282|top1|top3", help="The class to explain. Default: all outputs together.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the results. Default: l2caf-out, -2, -3, ...",
            show_default=False,
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|TOML",
            help="imagenet, tf, lite, unit, raw, or a TOML file. Default: as the model says.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names: a line each, or JSON.", show_default=False)
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="outputs, cosine, similarity, value, target, contrast, log-softmax, probability, paper-class, or "
            "FILE.py:FUNCTION. Default: by the other options.",
            show_default=False,
        ),
    ] = None,
    constraint: Annotated[
        str | None, typer.Option(metavar="NAME", help="l2, l2-nonneg, softmax or gaussian.", show_default=False)
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(metavar="unit|auto|RHO", help="Norm of the filter / sqrt(cells).", show_default=False),
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(
            metavar="BASIS",
            help="What the filter is made of: nodes, interpolated (7, 7x7; coarse to fine 4>7>full), smooth (a blur; "
            "smooth:0.05), the average of several (4+smooth), or full. Default: by the other options.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TERM",
            help='What of S2 is watched: "boxes[0, 12, 4]", "0.5 * scores[:, :, 7].max()"; may repeat.',
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="INPUT", help="Another input: why does INPUT match it?", show_default=False),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="l2caf, or on the same cut gradcam, hirescam, gradcam++, scorecam, eigencam, reciprocam, rise, ...",
        ),
    ] = "l2caf",
    trace: Annotated[
        str | None,
        typer.Option(metavar="gif|webp", help="Animate the filter while it is being found.", show_default=False),
    ] = None,
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="auto, exact, slope, lbfgs, sgd, adam or blackbox.")
    ] = "auto",
    preset: Annotated[
        str | None, typer.Option(metavar="paper", help="All settings as in the paper's programs.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NCHW",
            help="The axes of the breakpoints; a grid of tokens as in NTC[1+14x14] (one class token before it), NTC[] "
            "for none. Default: found from the graph.",
            show_default=False,
        ),
    ] = None,
    proof: Annotated[
        str | None,
        typer.Option(
            metavar="tail|model",
            help="What onnxruntime runs to prove it. Default: model for the first input, then tail.",
            show_default=False,
        ),
    ] = None,
    ort_level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", help="disable, basic, extended or all: report the agreement with onnxruntime there too."
        ),
    ] = "disable",
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
    """Explain MODEL on each INPUT: which cells of the tensor --at decide what arrives at --to.

    Writes for each input, breakpoint and target a picture and the arrays, and one manifest.json. Exit code 1 where
    onnxruntime does not confirm a result.
    """
    from l2caf_onnx.explain.batches import at_once
    from l2caf_onnx.graph.layout import layouts
    from l2caf_onnx.graph.model import load
    from l2caf_onnx.inputs import find_samples
    from l2caf_onnx.records import save_manifest

    from .asked import breakpoints_named, class_names, preprocess_stated, ranks_or_class, reference_feeds
    from .results import write

    loaded = load(model)
    names = breakpoints_named(loaded, at)
    classes = class_names(labels)
    stated = preprocess or preprocess_stated(loaded, model)
    pending = find_samples(inputs, loaded.inputs, layouts(loaded), stated)
    options: dict[str, Any] = {
        "to": to or None,
        "objective": objective,
        "constraint": constraint,
        "radius": radius,
        "basis": basis,
        "select": select or None,
        "method": method,
        "solver": solver,
        "preset": preset,
        "layout": layout,
        "ort_level": ort_level,
        "device": device,
        "providers": providers.split(",") if providers else None,
        "seed": seed,
    }
    if trace is not None and trace not in ANIMATIONS:
        raise InputError(f"There is no animation {trace!r}.", where="--trace.", how="Choose gif or webp.")
    other = reference_feeds(reference, loaded, stated) if reference is not None else None
    wanted = ranks_or_class(target)
    folder = output if output is not None else unused("l2caf-out")
    size = 0
    rows: list[dict[str, Any]] = []
    with staged(folder, force=force) as stage:
        with progress("attention", len(pending)) as steps:
            first, waiting = True, []
            for position, item in enumerate(pending):
                waiting.append(item.read())
                size = size or batch_size or at_once(loaded, waiting[0].feeds, 1)
                if not first and len(waiting) < size and position + 1 < len(pending) and _alike(waiting):
                    continue
                for group in _groups(waiting):
                    kind = proof or ("model" if first else "tail")
                    asked = {**options, "reference": other, "proof": kind, "trace": bool(trace)}
                    for sample, found in _explained(loaded, group, names, wanted, asked):
                        rows.append(write(stage, sample, found, classes, trace=trace, absolute=preset == "paper"))
                    steps.advance(group[-1].name, len(group))
                    first = False
                waiting = []
        manifest = {
            "command": "attend",
            "model": {"name": model.name, "sha256": digest(model)},
            "settings": {"at": names, "target": target, "preprocess": stated, "reference": reference, **options},
            "results": rows,
            "versions": versions(),
        }
        save_manifest(stage / MANIFEST, manifest)
    for note in dict.fromkeys(n for row in rows for n in (*row["notes"], *_findings(row))):
        remark(f"Note: {note}")
    if json:
        print_json({"results": [{**row, "files": [str(folder / f) for f in row["files"]]} for row in rows]})
    else:
        _print(rows, folder)
    if not all((row["parity"] is None or row["parity"]["ok"]) and row["proof"]["ok"] for row in rows):
        remark("Error: onnxruntime does not confirm every result; see `proof` in the manifest.")
        raise typer.Exit(1)


_OF_QUERY = (
    "to", "objective", "constraint", "radius", "basis", "select", "reference", "method", "solver", "preset", "layout",
)  # fmt: skip


def _findings(row: dict[str, Any]) -> list[str]:
    """What parity and the level of deployment tell the user of a result."""
    told = list(row["parity"]["findings"]) if row["parity"] is not None else []
    if row["deployed"] is not None:
        told.append(
            f"With onnxruntime's optimisations at {row['deployed']['level']!r} the filtered model's output is "
            f"{row['deployed']['max_rel']:.2g} of its largest value away from the answer's."
        )
    return told


def _alike(samples: list[Sample]) -> bool:
    shapes = [{k: v.shape for k, v in s.feeds.items()} for s in samples]
    return all(s == shapes[0] for s in shapes)


def _groups(samples: list[Sample]) -> list[list[Sample]]:
    """One batch, or one sample each where they differ in size."""
    return [samples] if _alike(samples) else [[s] for s in samples]


def _explained(
    model: Model,
    samples: list[Sample],
    names: tuple[str, ...],
    wanted: int | tuple[str, int] | None,
    options: dict[str, Any],
) -> list[tuple[Sample, Attention]]:
    """Each (sample, attention) of a batch: all breakpoints, all targets."""
    from l2caf_onnx.attention import attend_many, top_classes
    from l2caf_onnx.explain.batches import stacked
    from l2caf_onnx.explain.joining import split
    from l2caf_onnx.explain.query import Query

    feeds = stacked(model, [s.feeds for s in samples])
    if isinstance(wanted, tuple):
        ranked = top_classes(model, feeds, wanted[1], at=names[0], to=options["to"], providers=options["providers"])
        targets: list[Any] = [[row[rank] for row in ranked] for rank in range(wanted[1])]
    else:
        targets = [wanted]
    query = {k: options[k] for k in _OF_QUERY}
    rest = {k: v for k, v in options.items() if k not in _OF_QUERY}
    queries = [Query(at=name, target=target, **query) for target in targets for name in names]
    found: list[tuple[Sample, Attention]] = []
    for attention in attend_many(model, feeds, queries, batch_size=len(samples), **rest):
        found += zip(samples, split(attention, len(samples)), strict=True)
    return found


def _print(rows: list[dict[str, Any]], folder: Path) -> None:
    print_table(
        ("input", "at", "layout", "class", "loss", "evaluations", "parity", "proof", "picture"),
        [
            (
                row["input"],
                row["at"],
                row["layout"] + (f"[{row['grid']}]" if row["grid"] else ""),
                "-" if row["target"] is None else f"{row['target']} {row['class']}",
                f"{row['loss']:.6g}",
                f"{row['solver']} {row['evaluations']}",
                "-" if row["parity"] is None else f"{row['parity']['max_rel']:.1e} {row['converter']}",
                f"{row['proof_kind']} {row['proof']['max_rel']:.1e} {'ok' if row['proof']['ok'] else 'FAILED'}",
                row["files"][0],
            )
            for row in rows
        ],
    )
    typer.echo(f"Pictures, arrays and manifest.json are in {folder}")
