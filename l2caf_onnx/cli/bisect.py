"""`l2caf-onnx bisect`: which node of a changed model is the first that does not do what it should?"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .verdicts import format_of, publish, telling


def bisect(
    reference: options.Reference,
    candidate: options.Candidate,
    inputs: options.OptionalInputs = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="T",
            help="Also tell how far the attention has drifted there, or at a glob; may repeat.",
            show_default=False,
        ),
    ] = None,
    align: options.Align = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR", help="The relative local error allowed. Default: measured noise.", show_default=False
        ),
    ] = None,
    change: options.Change = None,
    preprocess: options.PreprocessOption = None,
    candidate_preprocess: options.CandidatePreprocess = None,
    input_shapes: options.InputShapes = None,
    device: options.Device = "cpu",
    providers: options.Providers = None,
    seed: options.Seed = 0,
    html: options.Html = None,
    junit: options.JUnit = None,
    form: options.Format = "text",
    json: options.Json = False,
) -> None:
    """Name the first node of CAND that differs from REF by more than noise, over all INPUTs.

    A node's local error is what it makes of the tensors of REF, so its own fault;
    the inherited error is what is there when CAND runs by itself. Exit code 1
    where a node is at fault, 2 for what you can mend.
    """
    from l2caf_onnx import bisect as run
    from l2caf_onnx.graph.model import load

    from .asked import breakpoints_named

    form = format_of(form, json, html, junit)
    one, other = load(reference), load(candidate)
    ours, theirs = options.preprocessings(preprocess, candidate_preprocess, (one, reference), (other, candidate))
    data = options.inputs_or_random(inputs, input_shapes, one, seed)
    asked = options.given(
        at=breakpoints_named(one, at) if at else None,
        align=options.aligned_by(align, one, other),
        thresholds=threshold,
        change=options.change_of(change),
        preprocess=ours,
        candidate_preprocess=theirs,
        device=device,
        providers=providers.split(",") if providers else None,
    )
    with telling("bisect") as tell:
        found = run(one, other, data, tell=tell, **asked)
    publish(found, form, html=html, junit=junit)
    if not found.ok:
        raise typer.Exit(1)
