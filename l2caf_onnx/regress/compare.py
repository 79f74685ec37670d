"""Two models at once: outputs, attention, and every tensor between, each against its own measure of harmless."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from l2caf_onnx.attention import placed
from l2caf_onnx.errors import CutError, ParityError, UnsupportedModelError
from l2caf_onnx.evaluation.data import Data, Given
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import Change, Comparison, Pair, Score, Threshold

from .bisect import local_errors, notes_of, saturation
from .breaking import affine_at, counterpart, usual_breakpoint
from .calibrate import noise_of, spread
from .classes import Names, classes_of, refuse_few
from .given import both
from .identity import identity
from .measure import measured
from .observation import Observation
from .observe import Observer
from .observed import AT_ONCE, observed
from .pairing import numeric_outputs, outputs_of
from .session import Session, session
from .thresholds import Noise, Stated, Thresholds, bundled, given, refuse_unknown, score, unmeasured
from .thresholds import measured as drawn_above
from .watch import Question, Seen, Watch, question_of, targets_of

Tell = Callable[[str, float], None]

INSIDE = 16
"""Inputs on which every tensor is looked at, evenly spread: a fault inside tells on most, and each costs forwards."""


def compare(
    reference: Model | str | Path | bytes | onnx.ModelProto,
    candidate: Model | str | Path | bytes | onnx.ModelProto,
    inputs: Given,
    *,
    at: str | Sequence[str] | None = None,
    to: str | Sequence[str] | None = None,
    target: int | str | None = None,
    align: Mapping[str, str] | None = None,
    thresholds: Stated = None,
    preprocess: Source | None = None,
    candidate_inputs: Given | None = None,
    candidate_preprocess: Source | None = None,
    calibrate: bool = True,
    change: Change | None = None,
    objective: str | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    basis: str | int | None = None,
    layout: str | None = None,
    batch_size: int | None = None,
    labels: Names | None = None,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> Comparison:
    """Tell a regression from noise between two models, also where names, layouts, opsets or fusions differ.

    Tensors are aligned first (l2caf_onnx/regress/align.py). Outputs and attention are compared on all inputs; the local
    error of each aligned tensor, that of what the candidate's nodes make of the reference's tensors, on 16 of them. The
    line between noise and a regression is what the user gives, else a multiple of what harmless variations of the
    reference do on these very inputs (l2caf_onnx/regress/variants.py), else what is bundled for the class of change.

    Args:
        reference: What is right, as `load` takes it.
        candidate: What is in question.
        inputs: Paths as on the command line, or {input name: array}.
        at: Breakpoints of the reference at which attention is compared; None: its last affine one that has an answer,
            else its last clean one.
        to: S2 of the attention; None: all outputs.
        target: A class for the attention; "top1": the reference's likeliest of each input, for both models; "none": no
            class; None: "top1" where the only output is a vector of scores.
        align: {reference's tensor: candidate's} where the alignment is known better.
        thresholds: {"attention.cosine": 0.9, "output.max_rel@logits": 1e-3} or a TOML file; they win.
        preprocess: How pictures become numbers.
        candidate_inputs: The same samples for the candidate, where they differ.
        candidate_preprocess: For the candidate, where it differs.
        calibrate: Whether noise is measured on the reference; else the bundled thresholds hold.
        change: The class of change, where the graphs mislead.
        objective: Of the attention, as `attend`; None: see `Question`.
        constraint: As there; None: "l2-nonneg".
        radius: As there; None: 0.5.
        basis: As there.
        layout: As there.
        batch_size: Inputs at once.
        labels: Class index -> name, for the reports.
        device: "cpu" or "cuda", for the torch tails.
        providers: onnxruntime's execution providers; None: the CPU (CUDA's too where `device` is "cuda").
        seed: Of every random choice.
        tell: Called with what is being done and the part of all that is done.

    Returns:
        A Comparison; `.ok` is the verdict.

    Raises:
        InputError, UnsupportedModelError, TensorNotFoundError: inputs, models or names that cannot be used.
    """
    where, providers = placed(device, providers)
    one, other = load(reference), load(candidate)
    own = given(thresholds)
    data = both(
        one, other, inputs, preprocess=preprocess, candidate_inputs=candidate_inputs,
        candidate_preprocess=candidate_preprocess,
    )  # fmt: skip
    refuse_few(labels, one)
    say = tell or (lambda what, part: None)
    say("alignment", 0.0)
    held = session(one, other, data, given=align, change=change, providers=providers)
    question = question_of(to, objective, constraint, radius, basis, layout, seed)
    outputs = outputs_of(numeric_outputs(one), other, held.alignment)
    notes = list(notes_of(held))
    places = _places(held, at, outputs, question, where, providers, notes)
    names = {"output": [o.name for o, _ in outputs], "attention": list(places),
             "tensor": [a.reference for a in held.alignment]}  # fmt: skip
    refuse_unknown(own, names)
    watch = Watch(
        at={n: n for n in places},
        affine=affine_at(one, places),
        outputs=tuple(o for o, _ in outputs),
        question=question,
    )
    say("reference", 0.05)
    ours = _of_reference(held, watch, targets_of(target, len(data)), batch_size, where, providers)
    refuse_few(labels, ours)
    say("candidate", 0.25)
    theirs = _of_candidate(
        held, watch, places, [o for _, o in outputs], ours, at is not None, batch_size, where, providers, notes
    )
    lines: Thresholds = unmeasured(held.change)
    if calibrate and bundled(held.change):
        noise, told = _noise(
            held, watch, ours, batch_size, where, providers, lambda part: say("noise", 0.4 + 0.3 * part)
        )
        lines = drawn_above(held.change, noise)
        notes += told
    scores = scores_of(ours, theirs, (own, lines))
    scores += inside(held, own, lambda what, part: say(what, 0.7 + 0.3 * part))
    off = {s.name for s in scores if s.subject == "tensor" and not s.ok}
    notes += saturation(held, [a.candidate for a in held.alignment if a.reference in off])
    classes = classes_of(ours, theirs, labels, notes)
    return Comparison(
        kind="compare",
        reference=identity(one),
        candidate=identity(other),
        change=held.change,
        why=held.why,
        inputs=data.names,
        scores=tuple(scores),
        alignment=held.alignment,
        pairs=pairs_of(ours, theirs, places, held.reference.depth),
        images=pictures_of(data.reference),
        notes=tuple(dict.fromkeys((*notes, *theirs.notes))),
        settings={**asdict(question), "at": list(places), "target": target, "calibrated": calibrate,
                  "inside": len(spread(len(data), INSIDE))},
        classes=classes,
    )  # fmt: skip


def _places(
    held: Session,
    at: str | Sequence[str] | None,
    outputs: Sequence[tuple[Seen, Seen]],
    question: Question,
    device: torch.device,
    providers: Sequence[str] | None,
    notes: list[str],
) -> dict[str, str]:
    """{breakpoint: what the candidate calls it}."""
    one, other = held.reference.model, held.candidate.model
    if at is not None:
        names = [at] if isinstance(at, str) else list(at)
        return {n: counterpart(n, held.alignment, one, other) for n in names}
    among = {a.reference for a in held.alignment}
    name = usual_breakpoint(held.inputs.reference, among, [o for o, _ in outputs], question, providers, device)
    if name is None:
        notes.append("No breakpoint of both models has an answer: attention is not compared.")
        return {}
    notes.append(f"Attention is compared at {name!r}, which was chosen: --at names other breakpoints.")
    return {name: counterpart(name, held.alignment, one, other)}


def _of_reference(
    held: Session,
    watch: Watch,
    targets: list[int] | str | None,
    batch_size: int | None,
    device: torch.device,
    providers: Sequence[str] | None,
) -> Observation:
    """Kept by the model: candidates are often many, and the reference and its inputs the same."""
    key = (
        "observed",
        repr(watch),
        repr(targets),
        batch_size,
        device,
        _named(providers),
        held.digest(range(len(held.inputs))),
    )
    observer = Observer(held.reference.model, watch, providers=providers, device=device)
    return held.reference.model.cache.get(
        key, lambda: observed(observer, held.inputs.reference, targets, batch_size=batch_size)
    )


def _of_candidate(
    held: Session,
    watch: Watch,
    places: Mapping[str, str],
    outputs: Sequence[Seen],
    ours: Observation,
    asked: bool,
    batch_size: int | None,
    device: torch.device,
    providers: Sequence[str] | None,
    notes: list[str],
) -> Observation:
    """What is seen of the candidate; attention is left out where it has none to tell and nobody asked for it."""
    model, data = held.candidate.model, held.inputs.candidate
    targets = None if ours.targets is None else ours.targets.tolist()
    whole = replace(watch, at=places, outputs=tuple(outputs))
    observer = Observer(model, whole, providers=providers, device=device)
    try:
        return observed(observer, data, targets, batch_size=batch_size, like=ours)
    except (UnsupportedModelError, ParityError, CutError) as e:
        if asked or not places:
            raise
        notes.append(f"The candidate's attention at {', '.join(places.values())} is not to be had: {e.what}")
    bare = Watch(outputs=tuple(outputs), question=watch.question)
    return observed(Observer(model, bare, providers=providers), data, None, batch_size=batch_size)


def _noise(
    held: Session,
    watch: Watch,
    ours: Observation,
    batch_size: int | None,
    device: torch.device,
    providers: Sequence[str] | None,
    told: Callable[[float], None],
) -> tuple[dict[str, Noise], list[str]]:
    """That of the class on these inputs, kept by the reference."""
    key = (
        "noise of class",
        held.change,
        repr(watch),
        batch_size,
        device,
        _named(providers),
        held.digest(range(len(held.inputs))),
    )
    return held.reference.model.cache.get(
        key,
        lambda: noise_of(
            held.reference.model, held.change, watch, held.inputs.reference, ours, batch=batch_size or AT_ONCE,
            providers=providers, device=device, told=told,
        ),
    )  # fmt: skip


def _named(providers: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(providers or ())


def scores_of(ours: Observation, theirs: Observation, thresholds: Sequence[Thresholds]) -> list[Score]:
    """Every metric, judged."""
    return [score(s, n, m, values, thresholds) for (s, n, m), values in measured(ours, theirs).items()]


def pairs_of(
    ours: Observation, theirs: Observation, places: Mapping[str, str], depth: Mapping[str, float]
) -> tuple[Pair, ...]:
    """The maps of both, where both have them in one shape."""
    return tuple(
        Pair(
            at=name, candidate_at=other, reference=ours.filters[name], candidate=theirs.filters[name],
            reference_maps=ours.maps[name], candidate_maps=theirs.maps[name], depth=depth.get(name, 0.0),
        )
        for name, other in places.items()
        if name in theirs.filters and theirs.filters[name].shape == ours.filters[name].shape
    )  # fmt: skip


def pictures_of(data: Data) -> tuple[NDArray[np.uint8] | None, ...]:
    """What the model saw of each input, where that is a picture."""
    seen = (data.read(k).image if data.picture(k) is not None else None for k in range(len(data)))
    return tuple(None if image is None else np.asarray(image.convert("RGB")) for image in seen)


def inside(held: Session, own: Thresholds, tell: Tell) -> list[Score]:
    """The local and inherited errors of every aligned tensor, on some inputs; NaN on the others."""
    from .twins import MEASURES

    numbers = spread(len(held.inputs), INSIDE)
    values: dict[str, Any] = {}
    local_errors(held, numbers=numbers, tell=tell, values=values)
    line = bundled(held.change).get("tensor.local")
    found = []
    for name, (local, inherited, limit) in values.items():
        lines: Thresholds = {}
        if line is not None and np.isfinite(limit):
            measure = MEASURES[held.change]
            source = f"The noise at this tensor of {measure.twin}, with what thresholds.toml allows beyond."
            lines = {
                "tensor.local": Threshold(value=max(limit, line.least), above=True, share=line.share, source=source)
            }
        for metric, errors in (("local", local), ("inherited", inherited)):
            whole = np.full(len(held.inputs), np.nan)
            whole[numbers] = errors
            found.append(score("tensor", name, metric, whole, (own, lines)))
    return found
