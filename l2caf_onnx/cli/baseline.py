"""`l2caf-onnx baseline`: what a model answers and looks at today, stored for `check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .printing import print_json, print_table, remark
from .verdicts import telling

if TYPE_CHECKING:
    from l2caf_onnx.records import Baseline


def baseline(
    model: options.ModelPath,
    inputs: options.Inputs,
    at: Annotated[
        list[str],
        typer.Option(
            "--at", metavar="T", help="The tensor to break at (S1), or a glob; may repeat.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="The folder of the baseline.", show_default=False),
    ],
    to: options.To = None,
    target: options.Target = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(
            "--watch",
            metavar="T",
            help="A tensor whose statistics are stored too; may repeat. Default: chosen over the depth.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Set each threshold above the noise of harmless variations.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Calibrating, take float16 for a harmless variation too.")
    ] = False,
    threshold: options.ThresholdOption = None,
    thresholds: options.Thresholds = None,
    objective: options.Objective = None,
    constraint: options.Constraint = None,
    radius: options.Radius = None,
    basis: options.Basis = None,
    layout: options.Layout = None,
    preprocess: options.PreprocessOption = None,
    batch_size: options.BatchSize = None,
    labels: options.Labels = None,
    device: options.Device = "cpu",
    providers: options.Providers = None,
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is in DIR.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Store what MODEL answers on each INPUT and what it looks at, at the tensor --at, for `check`.

    DIR holds filters, heatmaps, outputs, statistics of tensors, settings,
    preprocessing and digests: .npz files and one manifest.json, no pickles.
    Interrupted, the same command goes on where it was.
    """
    from l2caf_onnx import baseline as run
    from l2caf_onnx.graph.model import load

    from .asked import breakpoints_named, class_names, preprocess_stated

    loaded = load(model)
    asked = options.given(
        to=to,
        target=options.target_of(target),
        watch=watch,
        preprocess=preprocess or preprocess_stated(loaded, model),
        thresholds=options.thresholds_of(thresholds, threshold, None, None),
        objective=objective,
        constraint=constraint,
        radius=radius,
        basis=basis,
        layout=layout,
        batch_size=batch_size,
        labels=class_names(labels) if labels is not None else None,
        device=device,
        providers=providers.split(",") if providers else None,
    )
    with telling("baseline") as tell:
        found = run(
            loaded, inputs, at=breakpoints_named(loaded, at), folder=output, calibrate=calibrate, half=half, seed=seed,
            force=force, tell=tell, **asked,
        )  # fmt: skip
    for note in found.notes:
        remark(f"Note: {note}")
    if json:
        print_json(found.describe())
    else:
        _print(found)


def _print(found: Baseline) -> None:
    from l2caf_onnx.render.verdict import counted, number

    rows = [
        (name, f"{'<=' if t.above else '>='} {number(t.value)}", f"{t.share:.0%}", t.source)
        for name, t in found.thresholds.items()
    ]
    if rows:
        print_table(("threshold", "allowed", "inputs that may be beyond", "where it comes from"), rows)
    else:
        typer.echo("No thresholds are stored: `check` has those of the class of change that it sees (--calibrate).")
    if found.asked:
        typer.echo(f"Attention is about {counted(found.asked, found.names)}.")
    resumed = f", {found.resumed} of them stored before" if found.resumed else ""
    typer.echo(
        f"{len(found.inputs)} inputs{resumed} at {len(found.at)} breakpoint{'s' if len(found.at) != 1 else ''} are in "
        f"{found.folder}, {found.bytes_per_input / 1000:.1f} kB an input. `l2caf-onnx check {found.folder}` compares."
    )
