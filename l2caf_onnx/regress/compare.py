"""Two models at once: outputs, attention, and every tensor between, each against its own measure of harmless."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx.evaluation.data import Data, Given
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import Change, Comparison, Pair, Score, Threshold

from . import outputs
from .attention import attentions, usual_breakpoints
from .bisect import local_errors, notes_of
from .calibrate import calibrated
from .given import both
from .identity import identity
from .metrics import metrics_of
from .session import Session, session
from .thresholds import Stated, Thresholds, bundled, given, score

Tell = Callable[[str, float], None]

INSIDE = 16
"""Inputs on which every tensor is looked at: a fault inside tells on most, and each costs some forwards."""


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
    providers: Sequence[str] | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> Comparison:
    """Tell a regression from noise between two models, also where names, layouts, opsets or fusions differ.

    Tensors are aligned (l2caf_onnx/regress/align.py). Every output metric and attention metric is taken on all inputs;
    the local error of each aligned tensor, that of what the candidate's nodes make of the reference's tensors, on the
    first 16. Lines between noise and regression: what the user gives, else what harmless variations of the reference
    show on these inputs, else those bundled for the class of change.

    Args:
        reference: What is right, as `load` takes it.
        candidate: What is in question.
        inputs: Paths as on the command line, or {input name: array}.
        at: Breakpoints of the reference at which attention is compared; None: its last affine one, the cheapest.
        to: S2 of the attention; None: all outputs.
        target: A class for the attention; "top1": the reference's likeliest of each input; None: the class-oblivious.
        align: {reference's tensor: candidate's} where the alignment is known better.
        thresholds: {"attention.cosine": 0.9, "output.max_rel@logits": 1e-3} or a TOML file; they win.
        preprocess: How pictures become numbers.
        candidate_inputs: The same samples for the candidate, where they differ.
        candidate_preprocess: For the candidate, where it differs.
        calibrate: Whether noise is measured on the reference; else the bundled thresholds hold.
        change: The class of change, where the graphs mislead.
        objective: Of the attention, as `attend`; and so on.
        constraint: As there.
        radius: As there.
        basis: As there.
        layout: As there.
        batch_size: Inputs at once.
        providers: onnxruntime's execution providers.
        seed: Of every random choice.
        tell: Called with what is being done and the part of all that is done.

    Returns:
        A Comparison; `.ok` is the verdict.

    Raises:
        InputError, UnsupportedModelError, TensorNotFoundError: inputs, models or names that cannot be used.
    """
    one, other = load(reference), load(candidate)
    own = given(thresholds)
    data = both(
        one, other, inputs, preprocess=preprocess, candidate_inputs=candidate_inputs,
        candidate_preprocess=candidate_preprocess,
    )  # fmt: skip
    say = tell or (lambda what, part: None)
    say("alignment", 0.0)
    held = session(one, other, data, given=align, change=change, providers=providers)
    notes = list(notes_of(held))
    say("outputs", 0.1)
    found_outputs = outputs.matched(data, providers=providers)
    names = usual_breakpoints(one, [a.reference for a in held.alignment]) if at is None else _several(at)
    if at is None:
        notes.append(
            f"Attention is compared at {names[0]!r}; --at names other breakpoints."
            if names
            else "No breakpoint has a counterpart: attention is not compared."
        )
    options = {"to": to, "objective": objective, "constraint": constraint, "radius": radius, "basis": basis,
               "layout": layout}  # fmt: skip
    targets = _targets(target, found_outputs, len(data))
    say("attention", 0.3)
    pairs = attentions(held, names, options, providers, targets=targets, batch_size=batch_size, seed=seed, notes=notes)
    lines: Thresholds = bundled(held.change)
    if calibrate:
        key = (
            "calibrated",
            held.change,
            names,
            repr(options),
            repr(targets),
            seed,
            held.digest(range(min(6, len(data)))),
        )
        kept: dict[str, Threshold] = one.cache.get(key, dict)
        if not kept:
            kept.update(
                calibrated(
                    lines, data.reference, [p.at for p in pairs], options, held.change, targets=targets,
                    providers=providers, seed=seed,
                )
            )  # fmt: skip
        lines = kept
    scores = [s for pair in found_outputs for s in outputs.scores(pair, (own, lines))]
    scores += [s for pair in pairs for s in attention_scores(pair, (own, lines))]
    say("tensors", 0.5)
    scores += _inside(held, own, len(data), lambda what, part: say(what, 0.5 + part / 2))
    return Comparison(
        kind="compare",
        reference=identity(one),
        candidate=identity(other),
        change=held.change,
        why=held.why,
        inputs=data.names,
        scores=tuple(scores),
        alignment=held.alignment,
        pairs=pairs,
        images=pictures_of(data.reference),
        notes=tuple(notes),
        settings={**options, "at": list(names), "target": target, "calibrated": calibrate, "seed": seed,
                  "inside": min(INSIDE, len(data))},
    )  # fmt: skip


def attention_scores(pair: Pair, thresholds: Sequence[Thresholds]) -> list[Score]:
    """Every metric of the attention at a breakpoint."""
    return [
        score("attention", pair.at, m.name, m(pair.reference, pair.candidate), thresholds)
        for m in metrics_of("attention")
    ]


def pictures_of(data: Data) -> tuple[NDArray[np.uint8] | None, ...]:
    """What the model saw of each input, where that is a picture."""
    seen = (data.read(k).image if data.picture(k) is not None else None for k in range(len(data)))
    return tuple(None if image is None else np.asarray(image.convert("RGB")) for image in seen)


def _inside(held: Session, own: Thresholds, count: int, tell: Tell) -> list[Score]:
    """The local and inherited errors of every aligned tensor, on the first inputs."""
    numbers = list(range(min(INSIDE, count)))
    values: dict[str, Any] = {}
    local_errors(held, numbers=numbers, tell=tell, values=values)
    found = []
    share = 0.5 if held.change == "int8" else 0.0
    for name, (local, inherited, limit) in values.items():
        line = {
            "tensor.local": Threshold(
                value=limit, above=True, share=share, source=f"The noise of {_twin(held.change)} at this tensor."
            )
        }
        lines = (own, line) if np.isfinite(limit) else (own,)
        for metric, errors in (("local", local), ("inherited", inherited)):
            whole = np.full(count, np.nan)
            whole[numbers] = errors
            found.append(score("tensor", name, metric, whole, lines))
    return found


def _twin(change: Change) -> str:
    from .twins import MEASURES

    measure = MEASURES[change]
    return f"{measure.twin}, times {measure.factor:g}, at least {measure.floor:g},"


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _targets(target: int | str | None, found: Sequence[outputs.Matched], count: int) -> list[int] | None:
    """A class for each input."""
    if target is None:
        return None
    if target != "top1":
        return [int(target)] * count
    scores = next(f.reference for f in found)
    return [int(k) for k in scores.reshape(count, -1).argmax(1)]
