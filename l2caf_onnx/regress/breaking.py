"""Where attention is compared if nobody says: at a tensor whose answer is exact and cheap, and that says something."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from l2caf_onnx.errors import InputError, L2cafError, nearest
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.graph.breakpoints import breakpoints
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Aligned

from .observe import CPU, Observer
from .probe import Probe
from .watch import Question, Seen, Watch

_TRIED = 6  # breakpoints, before it is given up


def usual_breakpoint(
    data: Data,
    among: Collection[str],
    outputs: Sequence[Seen],
    question: Question,
    providers: Sequence[str] | None = None,
    device: torch.device = CPU,
) -> str | None:
    """The last affine breakpoint of `among` at which the first input has an answer, else the last clean one; or None.

    Args:
        data: Inputs of the reference.
        among: Tensors that have a counterpart.
        outputs: What the model returns.
        question: What will be asked.
        providers: onnxruntime's.
        device: Where the torch tails run.
    """
    model = data.model
    ends = {o.name for o in model.outputs}
    known = [b for b in reversed(breakpoints(model)) if b.name in among and b.name not in ends and not b.quantised]
    affine, clean = [b.name for b in known if b.affine], [b.name for b in known if b.clean and not b.affine]
    feeds = data.read(0).feeds
    for name in (*affine[: _TRIED // 2], *clean[:_TRIED]):
        watch = Watch(at={name: name}, outputs=tuple(outputs), question=question)
        try:
            Observer(model, watch, providers=providers, device=device).see(feeds, "top1")
        except L2cafError:  # a dead tail, no gradient, no cells: the next may have an answer
            continue
        return name
    return None


def affine_at(model: Model, names: Collection[str]) -> frozenset[str]:
    """Those of the breakpoints from which on all is affine, up to roundings."""
    return frozenset(b.name for b in breakpoints(model) if b.affine and b.name in names)


def counterpart(name: str, alignment: Sequence[Aligned], reference: Model, candidate: Model) -> str:
    """What the candidate calls the breakpoint `name` of the reference.

    Raises:
        TensorNotFoundError: the reference has no such tensor.
        InputError: the candidate has no counterpart; the nearest breakpoints that have one are offered.
    """
    reference.require(name)
    theirs = {a.reference: a.candidate for a in alignment}
    theirs |= {i.name: j.name for i, j in zip(reference.inputs, candidate.inputs, strict=False)}
    if name in theirs:
        return theirs[name]
    depth = Probe(reference).depth
    known = [b.name for b in breakpoints(reference) if b.name in theirs]
    close = sorted(known, key=lambda n: abs(depth.get(n, 0.0) - depth.get(name, 0.0)))[:3]
    close = close or list(nearest(name, theirs))
    raise InputError(
        f"The model {candidate.name!r} has no counterpart of the breakpoint {name!r}.",
        where=f"Of {len(theirs)} tensors that have one.",
        how=f"Break at {' or '.join(map(repr, close))}, or give the pair by hand (--align)." if close
        else "Give the pair by hand (--align).",
    )  # fmt: skip
