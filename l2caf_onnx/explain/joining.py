"""Records of several batches as one, and one of several samples as one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.records import Attention, Certificate, Parity


def split(found: Attention, count: int) -> tuple[Attention, ...]:
    """An Attention of `count` samples as one for each."""
    if count == 1:
        return (found,)
    return tuple(
        replace(
            found,
            filter=found.filter[i : i + 1],
            heatmap=found.heatmap[i : i + 1],
            loss=found.loss[i : i + 1],
            evaluations=found.evaluations[i : i + 1],
            radius=found.radius[i : i + 1],
            target=None if found.target is None else found.target[i : i + 1],
            stop_reason=found.stop_reason[i : i + 1],
            certificate=_certificate([found.certificate], slice(i, i + 1)),
            trace=None if found.trace is None else found.trace[:, i : i + 1],
        )
        for i in range(count)
    )


def joined(parts: Sequence[Attention]) -> Attention:
    """The batches of one question as one record."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return replace(
        first,
        filter=np.concatenate([p.filter for p in parts]),
        heatmap=np.concatenate([p.heatmap for p in parts]),
        loss=np.concatenate([p.loss for p in parts]),
        evaluations=np.concatenate([p.evaluations for p in parts]),
        radius=np.concatenate([p.radius for p in parts]),
        target=None if first.target is None else tuple(t for p in parts for t in p.target or ()),
        stop_reason=tuple(s for p in parts for s in p.stop_reason),
        parity=_worst_or_none([p.parity for p in parts]),
        deployed=_worst_or_none([p.deployed for p in parts]),
        proof=worst_of([p.proof for p in parts]),
        certificate=_certificate([p.certificate for p in parts]),
        trace=_traces([p.trace for p in parts]),
        seconds={name: sum(p.seconds.get(name, 0.0) for p in parts) for name in first.seconds},
        notes=tuple(dict.fromkeys(n for p in parts for n in p.notes)),
    )


def _certificate(parts: Sequence[Certificate | None], piece: slice = slice(None)) -> Certificate | None:
    """Those of several batches as one, or of a piece of it; None where some part has none."""
    there = [p for p in parts if p is not None]
    if len(there) < len(parts):
        return None
    kinds = tuple(k for p in there for k in p.kinds)[piece]
    return Certificate(
        kind="global" if all(k == "global" for k in kinds) else "gap",
        kinds=kinds,
        multiplier=np.concatenate([p.multiplier for p in there])[piece],
        residuals=np.concatenate([p.residuals for p in there])[piece],
        gap=np.concatenate([p.gap for p in there])[piece],
    )


def _traces(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """Side by side, the shorter ones resting at their last; None where some part has none."""
    there = [p for p in parts if p is not None]
    if len(there) < len(parts):
        return None
    longest = max(len(p) for p in there)
    return np.concatenate([np.concatenate([p, np.repeat(p[-1:], longest - len(p), 0)]) for p in there], axis=1)


def _worst_or_none(found: Sequence[Parity | None]) -> Parity | None:
    """None where some part has none."""
    there = [p for p in found if p is not None]
    return worst_of(there) if len(there) == len(found) else None


def worst_of(found: Sequence[Parity]) -> Parity:
    """The parity to report for several: not ok before ok, then the largest difference relative to its tolerance."""
    return max(found, key=lambda p: (not p.ok, p.max_rel / p.rtol if p.rtol else p.max_rel))
