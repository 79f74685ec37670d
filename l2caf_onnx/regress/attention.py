"""The attention of two models on the same inputs: the same question, asked of both at tensors that do the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.attention import attend_many
from l2caf_onnx.errors import InputError, L2cafError
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.explain.query import Query
from l2caf_onnx.graph.breakpoints import breakpoints
from l2caf_onnx.graph.model import Model
from l2caf_onnx.inputs import Sample
from l2caf_onnx.records import Attention, Pair

from .session import Session

AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Found:
    """The attention of one model at one breakpoint, on all inputs.

    Attributes:
        filters: (N, *spatial).
        maps: (N, *input spatial).
        solver: What found them.
    """

    filters: NDArray[np.float32]
    maps: NDArray[np.float32]
    solver: str


def usual_breakpoints(model: Model, among: Sequence[str]) -> tuple[str, ...]:
    """Where attention is compared if nobody says: the last affine breakpoint, whose answer is exact and cheap.

    Where no tail is affine, the last clean breakpoint; where there is none of `among`, nothing.
    """
    known = [b for b in breakpoints(model) if b.name in among and not b.quantised]
    best = [b for b in known if b.affine] or [b for b in known if b.clean] or known
    return (best[-1].name,) if best else ()


def read_in_batches(data: Data, size: int) -> Iterator[tuple[list[Sample], Mapping[str, NDArray[Any]]]]:
    """The samples and their feeds, stacked."""
    for _, read, feeds in data.batches(size):
        yield read, feeds


def attention_of(
    data: Data,
    at: Sequence[str],
    options: Mapping[str, Any],
    *,
    targets: Sequence[int] | None = None,
    batch_size: int | None = None,
    providers: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Found]:
    """The attention at each breakpoint.

    Args:
        data: The inputs of a model.
        at: Breakpoints.
        options: Of `attend`: to, objective, constraint, radius, basis, layout.
        targets: A class for each input; None: as `options` say.
        batch_size: Inputs at once.
        providers: onnxruntime's.
        seed: Of every random choice.

    Raises:
        L2cafError: as `attend`.
    """
    parts: dict[str, list[Attention]] = {name: [] for name in at}
    start = 0
    for read, feeds in read_in_batches(data, batch_size or AT_ONCE):
        own = dict(options)
        if targets is not None:
            own["target"] = list(targets[start : start + len(read)])
        start += len(read)
        queries = [Query(at=name, **own) for name in at]
        found = attend_many(data.model, feeds, queries, batch_size=len(read), providers=providers, seed=seed)
        for name, attention in zip(at, found, strict=True):
            if not attention.proof.ok:
                raise InputError(
                    "onnxruntime does not confirm the attention, so that there is nothing to compare.",
                    where=f"At {name!r} of {data.model.name!r}.",
                    how="Choose another breakpoint.",
                )
            parts[name].append(attention)
    return {
        name: Found(np.concatenate([a.filter for a in own]), np.concatenate([a.heatmap for a in own]), own[-1].solver)
        for name, own in parts.items()
    }


def attentions(
    held: Session,
    at: Sequence[str],
    options: Mapping[str, Any],
    providers: Sequence[str] | None,
    *,
    targets: Sequence[int] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    notes: list[str] | None = None,
) -> tuple[Pair, ...]:
    """Both attentions at each breakpoint of the reference that has a counterpart.

    Raises:
        InputError: a breakpoint without a counterpart; the nearest that have one are named.
    """
    theirs = {a.reference: a.candidate for a in held.alignment}
    inputs = {i.name: j.name for i, j in zip(held.reference.model.inputs, held.candidate.model.inputs, strict=False)}
    found = []
    for name in at:
        held.reference.model.require(name)
        other = theirs.get(name) or inputs.get(name)
        if other is None:
            raise InputError(
                f"The candidate has no counterpart of the breakpoint {name!r}.",
                where=f"Of {len(held.alignment)} tensors that have one.",
                how=f"Break at {' or '.join(map(repr, nearest_aligned(held, name)))}, or give the pair (--align).",
            )
        common = {"batch_size": batch_size, "providers": providers, "seed": seed, "targets": targets}
        key = ("attention", name, repr(sorted(options.items())), repr(common), held.digest(range(len(held.inputs))))
        kept: list[Found] = held.reference.model.cache.get(key, list)
        if not kept:
            kept.append(attention_of(held.inputs.reference, [name], options, **common)[name])  # type: ignore[arg-type]
        try:
            candidate = attention_of(held.inputs.candidate, [other], options, **common)[other]  # type: ignore[arg-type]
        except L2cafError as e:
            if notes is None:
                raise
            notes.append(f"The candidate's attention at {other!r} is not to be had: {e.what}")
            continue
        if kept[0].filters.shape != candidate.filters.shape:
            if notes is None:
                raise InputError(f"The filters at {name!r} differ in shape.", where=f"{other!r} of the candidate.")
            notes.append(f"The filters at {name!r} and {other!r} differ in shape and are not compared.")
            continue
        found.append(
            Pair(
                at=name, candidate_at=other, reference=kept[0].filters, candidate=candidate.filters,
                reference_maps=kept[0].maps, candidate_maps=candidate.maps, depth=held.reference.depth.get(name, 0.0),
            )
        )  # fmt: skip
    return tuple(found)


def nearest_aligned(held: Session, name: str) -> list[str]:
    """The two breakpoints with a counterpart that lie nearest in depth."""
    depth = held.reference.depth
    known = {b.name for b in breakpoints(held.reference.model)}
    there = [a.reference for a in held.alignment if a.reference in known]
    return sorted(there, key=lambda n: abs(depth[n] - depth.get(name, 0.0)))[:2]
