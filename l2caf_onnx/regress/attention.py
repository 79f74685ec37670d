"""The attention of two models on the same inputs: the same question, asked of both at tensors that do the same work."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from l2caf_onnx.records import Pair

from .breaking import affine_at, counterpart
from .observe import CPU, Observer
from .observed import observed
from .session import Session
from .watch import Question, Seen, Watch


def attentions(
    held: Session,
    at: Sequence[str],
    question: Question | None = None,
    providers: Sequence[str] | None = None,
    device: torch.device = CPU,
) -> tuple[Pair, ...]:
    """Both attentions at each breakpoint of the reference, about the reference's likeliest class where it has classes.

    Raises:
        InputError: a breakpoint without a counterpart; the nearest that have one are named.
    """
    one, other = held.reference.model, held.candidate.model
    asked = question or Question()
    places = {name: counterpart(name, held.alignment, one, other) for name in at}
    ends = [tuple(Seen(name=o.name, own=o.name) for o in m.outputs) for m in (one, other)]
    affine = affine_at(one, at)
    ours = observed(
        Observer(
            one,
            Watch(at={n: n for n in at}, affine=affine, outputs=ends[0], question=asked),
            providers=providers,
            device=device,
        ),
        held.inputs.reference,
        "top1",
    )
    targets = None if ours.targets is None else ours.targets.tolist()
    theirs = observed(
        Observer(
            other, Watch(at=places, affine=affine, outputs=ends[1], question=asked), providers=providers, device=device
        ),
        held.inputs.candidate,
        targets,
    )
    depth = held.reference.depth
    return tuple(
        Pair(
            at=name, candidate_at=places[name], reference=ours.filters[name], candidate=theirs.filters[name],
            reference_maps=ours.maps[name], candidate_maps=theirs.maps[name], depth=depth.get(name, 0.0),
        )
        for name in at
    )  # fmt: skip
