"""`l2caf-onnx compare`: are two models still the same, in what they answer and in what they look at?"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .verdicts import format_of, publish, telling


def compare(
    reference: options.Reference,
    candidate: options.Candidate,
    inputs: options.OptionalInputs = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="T",
            help="The tensor to break at, as REF calls it, or a glob; may repeat. Default: chosen, cheap ones.",
            show_default=False,
        ),
    ] = None,
    to: options.To = None,
    target: options.Target = None,
    align: options.Align = None,
    threshold: options.ThresholdOption = None,
    thresholds: options.Thresholds = None,
    atol: options.Atol = None,
    rtol: options.Rtol = None,
    change: options.Change = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Measure the noise of harmless changes on the inputs, or use the bundled.",
        ),
    ] = True,
    objective: options.Objective = None,
    constraint: options.Constraint = None,
    radius: options.Radius = None,
    basis: options.Basis = None,
    layout: options.Layout = None,
    preprocess: options.PreprocessOption = None,
    candidate_preprocess: options.CandidatePreprocess = None,
    input_shapes: options.InputShapes = None,
    batch_size: options.BatchSize = None,
    labels: options.Labels = None,
    device: options.Device = "cpu",
    providers: options.Providers = None,
    seed: options.Seed = 0,
    html: options.Html = None,
    junit: options.JUnit = None,
    form: options.Format = "text",
    json: options.Json = False,
) -> None:
    """Compare CAND with REF on each INPUT: outputs, the tensors inside, and the attention at breakpoints.

    Names, layouts, opsets, fusions and number formats may differ: tensors are
    aligned by name, position and by what they hold. Each measure has a threshold;
    where you give none, it is set above the noise that harmless changes of the
    same class make on these very inputs. Exit code 1 where a score is beyond its
    threshold, 2 for what you can mend.
    """
    from l2caf_onnx import compare as run
    from l2caf_onnx.graph.model import load

    from .asked import breakpoints_named, class_names

    form = format_of(form, json, html, junit)
    one, other = load(reference), load(candidate)
    ours, theirs = options.preprocessings(preprocess, candidate_preprocess, (one, reference), (other, candidate))
    data = options.inputs_or_random(inputs, input_shapes, one, seed)
    asked = options.given(
        at=breakpoints_named(one, at) if at else None,
        to=to,
        target=options.target_of(target),
        align=options.aligned_by(align, one, other),
        thresholds=options.thresholds_of(thresholds, threshold, atol, rtol),
        change=options.change_of(change),
        objective=objective,
        constraint=constraint,
        radius=radius,
        basis=basis,
        layout=layout,
        preprocess=ours,
        candidate_preprocess=theirs,
        batch_size=batch_size,
        labels=class_names(labels) if labels is not None else None,
        device=device,
        providers=providers.split(",") if providers else None,
    )
    with telling("compare") as tell:
        found = run(one, other, data, calibrate=calibrate, seed=seed, tell=tell, **asked)
    publish(found, form, html=html, junit=junit)
    if not found.ok:
        raise typer.Exit(1)
