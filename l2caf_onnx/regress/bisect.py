"""The first node of a candidate that does not do what the reference does, by each node's own error on all inputs.

gdb's bisection halves a run, because a run is expensive; here one pass tells of every node at once whether it is at
fault, and a search by halves would stop at the first difference that is merely inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from l2caf_onnx import runtime
from l2caf_onnx.attention import placed
from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Given
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.graph.nodes import label
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import Bisection, Change, NodeError
from l2caf_onnx.tail.saturation import saturates

from .given import both
from .identity import identity
from .local import measured, typical
from .session import Session, session
from .weights import by_weights

Tell = Callable[[str, float], None]


def bisect(
    reference: Model | str | Path | bytes | onnx.ModelProto,
    candidate: Model | str | Path | bytes | onnx.ModelProto,
    inputs: Given,
    *,
    align: Mapping[str, str] | None = None,
    preprocess: Source | None = None,
    candidate_inputs: Given | None = None,
    candidate_preprocess: Source | None = None,
    at: str | Sequence[str] | None = None,
    change: Change | None = None,
    thresholds: float | None = None,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    tell: Tell | None = None,
) -> Bisection:
    """Name the first node after which two models differ by more than their noise, over all inputs.

    For every tensor of the candidate that has a counterpart the *local* relative error is measured, that of what the
    candidate's nodes make of the reference's tensors, and the *inherited* one, of its own run. What is noise comes of a
    twin of the reference, changed as harmlessly as the class of change allows (l2caf_onnx/regress/twins.py).

    Args:
        reference: What is right, as `load` takes it.
        candidate: What is in question.
        inputs: Paths as on the command line, or {input name: array}.
        align: {reference's tensor: candidate's} where the alignment is known better.
        preprocess: How pictures become numbers.
        candidate_inputs: The same samples for the candidate, where they differ.
        candidate_preprocess: For the candidate, where it differs.
        at: Breakpoints at which the drift of attention is told too.
        change: The class of change, where the graphs mislead.
        thresholds: A relative local error that is allowed everywhere, in the place of the measured noise.
        device: "cpu" or "cuda", for the torch tails of attention.
        providers: onnxruntime's execution providers; None: the CPU (CUDA's too where `device` is "cuda").
        tell: Called with what is being done and the part of all that is done.

    Returns:
        A Bisection.

    Raises:
        InputError, UnsupportedModelError, TensorNotFoundError: inputs, models or names that cannot be used; two models
            of which nothing can be judged.
    """
    where, providers = placed(device, providers)
    one, other = load(reference), load(candidate)
    data = both(
        one, other, inputs, preprocess=preprocess, candidate_inputs=candidate_inputs,
        candidate_preprocess=candidate_preprocess,
    )  # fmt: skip
    if thresholds is not None and not thresholds > 0:
        raise InputError(f"The threshold {thresholds!r} cannot be used.", how="Give a positive relative error.")
    held = session(one, other, data, given=align, change=change, providers=providers)
    _refuse_unjudged(held, thresholds)
    nodes = local_errors(held, thresholds=thresholds, tell=tell)
    drift = _drift(held, at, providers, where) if at is not None else {}
    nodes = tuple(_with_attention(n, drift) for n in nodes)
    first = next((n for n in nodes if not n.ok), None)
    notes = notes_of(held) + saturation(held, [first.candidate] if first is not None else [])
    return Bisection(
        reference=identity(one),
        candidate=identity(other),
        change=held.change,
        why=held.why,
        first=first,
        nodes=nodes,
        alignment=held.alignment,
        unaligned=held.unaligned,
        inputs=data.names,
        notes=notes,
        settings={"samples": len(data), "threshold": thresholds},
    )


def _refuse_unjudged(held: Session, thresholds: float | None) -> None:
    """Raise InputError where no node could be found at fault: that no fault was found would say nothing."""
    where = f"{held.reference.model.name!r} and {held.candidate.model.name!r}."
    if not held.alignment:
        raise InputError(
            "No tensor of the candidate has a counterpart in the reference: there is nothing to bisect.",
            where=where,
            how="Check that these are two forms of one network, or give pairs by hand (--align).",
        )
    if held.change == "retrained" and thresholds is None:
        raise InputError(
            "The weights differ wholly, so that no local error tells a fault from training.",
            where=f"{where} {held.why}",
            how="Say what the change is (--change) or what error is allowed (thresholds), or use `compare`.",
        )


def local_errors(
    held: Session,
    *,
    numbers: list[int] | None = None,
    thresholds: float | None = None,
    tell: Tell | None = None,
    values: dict[str, Any] | None = None,
) -> tuple[NodeError, ...]:
    """The errors of all aligned tensors in the candidate's order, judged; `values` is filled with those by sample."""
    pairs = sorted(held.alignment, key=lambda a: held.candidate.names.index(a.candidate))
    wanted = list(range(len(held.inputs))) if numbers is None else numbers
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if tell is not None:
            tell("local errors", done / len(wanted))

    errors = measured(held.reference, held.candidate, pairs, held.inputs.pieces(held.size, wanted), told=told)
    names = [a.reference for a in held.alignment]
    allowed = dict.fromkeys(names, thresholds) if thresholds is not None else held.tolerances()
    sharp = by_weights(held, wanted) if held.change == "int8" and thresholds is None else {}
    found = []
    for pair, local, inherited in zip(pairs, errors.local, errors.inherited, strict=True):
        node = held.candidate.model.proto.graph.node[held.candidate.model.producers[pair.candidate]]
        worst = float(typical(local, held.change))
        limit = allowed[pair.reference]
        if pair.reference in sharp:
            alone, least = sharp[pair.reference]
            exactly = held.steps[pair.reference].alone
            if exactly or typical(alone, held.change) / least > worst / limit:
                local, worst, limit = alone, float(typical(alone, held.change)), least
        if values is not None:
            values[pair.reference] = (local, inherited, limit)
        found.append(
            NodeError(
                tensor=pair.reference,
                candidate=pair.candidate,
                node=label(node),
                op_type=node.op_type,
                local=worst,
                inherited=float(typical(inherited, held.change)),
                noise=float(limit),
                attention=None,
                ok=worst <= limit,
            )
        )
    return tuple(found)


def notes_of(held: Session) -> tuple[str, ...]:
    """What a reader should know of how two models were laid side by side."""
    notes = []
    numbers = list(range(min(4, len(held.inputs))))
    for k in numbers:
        ours, theirs = held.inputs.reference.read(k).feeds, held.inputs.candidate.read(k).feeds
        shared = [n for n in ours if n in theirs and ours[n].shape == theirs[n].shape]
        if any(not np.array_equal(ours[n], theirs[n]) for n in shared):
            notes.append("The two models are fed different numbers: the preprocessing differs, which no node can mend.")
            break
    if not held.alignment:
        notes.append("No tensor of the candidate has a counterpart: nothing could be compared inside.")
    if held.unaligned:
        notes.append(
            f"{len(held.unaligned)} tensors of the candidate have no counterpart; they are judged with the next."
        )
    if not held.grain.each:
        notes.append(
            "The weights of most layers have one scale for all channels: they may lose twice what they would with a "
            "scale for each, and are at fault beyond."
        )
    if held.change == "retrained":
        notes.append(
            "The weights differ wholly: local errors say nothing of a fault, "
            "and are judged only by what you say is allowed."
        )
    return tuple(notes)


def saturation(held: Session, failing: Sequence[str]) -> tuple[str, ...]:
    """Whether the first of the candidate's tensors that are off is so for the processor's sake: a note, or none."""
    if not failing:
        return ()
    model = held.candidate.model
    index = model.producers[min(failing, key=held.candidate.names.index)]
    node = model.proto.graph.node[index]
    feeds = held.inputs.candidate.read(0).feeds
    made = [n for n in (*node.input, *node.output) if n and n not in model.initialisers and n not in feeds]
    head = extract(model, [i.name for i in model.inputs], made)
    if not saturates(model, index, {**feeds, **runtime.run(head, feeds)}):
        return ()
    return (
        f"onnxruntime's kernel of {label(node)!r} ({node.op_type}) saturates on this processor, which has no VNNI: "
        "written with uint8 in the place of int8, the same arithmetic gives something else. Quantise with weights of "
        "seven bits (reduce_range) or uint8.",
    )


def _with_attention(node: NodeError, drift: Mapping[str, float]) -> NodeError:
    from dataclasses import replace

    return replace(node, attention=drift[node.tensor]) if node.tensor in drift else node


def _drift(
    held: Session, at: str | Sequence[str], providers: Sequence[str] | None, device: torch.device
) -> dict[str, float]:
    """For each breakpoint the worst of 1 - cosine of both models' attentions."""
    from .attention import attentions

    found = {}
    names = [at] if isinstance(at, str) else list(at)
    for pair in attentions(held, names, providers=providers, device=device):
        one, other = (f.reshape(len(f), -1).astype(np.float64) for f in (pair.reference, pair.candidate))
        sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found[pair.at] = float((1 - (one * other).sum(1) / np.where(sizes > 0, sizes, 1)).max())
    return found
