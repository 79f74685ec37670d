"""`l2caf-onnx check`: does a model still answer, and look at, what was stored of it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2caf_onnx.errors import InputError

from . import options
from .printing import remark
from .verdicts import format_of, publish, telling


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `baseline` made.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="The .onnx file. Default: the one of the baseline.", show_default=False),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="INPUT",
            help="Where the baseline's inputs are now; may repeat. Default: where they were.",
            show_default=False,
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Show what changes, and store it as the new baseline.")
    ] = False,
    align: Annotated[
        list[str] | None,
        typer.Option(
            "--align",
            metavar="NAME=MODEL_NAME",
            help="What MODEL calls a tensor that the baseline calls NAME; may repeat.",
            show_default=False,
        ),
    ] = None,
    threshold: options.ThresholdOption = None,
    thresholds: options.Thresholds = None,
    atol: options.Atol = None,
    rtol: options.Rtol = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|TOML",
            help="How pictures become numbers for MODEL. Default: as in the baseline.",
            show_default=False,
        ),
    ] = None,
    labels: options.Labels = None,
    device: options.Device = "cpu",
    providers: options.Providers = None,
    html: options.Html = None,
    junit: options.JUnit = None,
    form: options.Format = "text",
    json: options.Json = False,
) -> None:
    """Compute anew what the baseline in DIR holds, with MODEL, and compare.

    Exit code 0 where every score is within its threshold (and after --update), 1
    where one is beyond, 2 for what you can mend. Made for CI: --format github
    annotates the run, --junit and --html write what is kept of it.
    """
    from l2caf_onnx import check as run

    from .asked import class_names

    form = format_of(form, json, html, junit)
    asked = options.given(
        inputs=inputs,
        align=_aligned(align, model),
        thresholds=options.thresholds_of(thresholds, threshold, atol, rtol),
        preprocess=preprocess,
        labels=class_names(labels) if labels is not None else None,
        device=device,
        providers=providers.split(",") if providers else None,
    )
    with telling("check") as tell:
        found = run(folder, model, update=update, tell=tell, **asked)
    publish(found, form, html=html, junit=junit)
    if update:
        remark(f"The baseline in {folder} now holds this state.")
    elif not found.ok:
        raise typer.Exit(1)


def _aligned(texts: list[str] | None, model: Path | None) -> dict[str, str] | None:
    from l2caf_onnx.graph.model import load

    if not texts:
        return None
    if model is None:
        raise InputError("--align says what MODEL calls a tensor.", how="Name MODEL.")
    return options.aligned_by(texts, None, load(model))
