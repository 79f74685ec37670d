"""One case after the other, timed: the first call of a fresh model, then calls between plain forwards."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import l2caf_onnx as caf

from .cases import Case
from .table import Row
from .timing import Feeds, Timed, interleaved, plain_forward, seconds

SLOW_REPEATS = 2  # of the authors' loops
LONG, FEW = 5.0, 3  # a call of so many seconds is repeated so often at most
SETTLE = 2  # calls between the first one and those that count


def measured(
    cases: Iterable[Case], model: Path | bytes, feeds_of: Callable[[int], Feeds], repeats: int
) -> Iterator[Row]:
    """A row for each case; one that fails says why in its row, and the others are measured all the same."""
    known: dict[int, tuple[Feeds, Callable[[], float]]] = {}
    warm = False
    for case in cases:
        if case.images not in known:
            feeds = feeds_of(case.images)
            known[case.images] = feeds, plain_forward(model, feeds)
        feeds, forward = known[case.images]
        try:
            if not warm:  # the libraries are imported, which is no case's cost
                caf.attend(model, feeds, at=case.at)
                warm = True
            yield measure(case, model, feeds, forward, repeats)
        except caf.L2cafError as e:
            failure = f"failed: {str(e).splitlines()[0]}"
            yield Row(place=case.place, images=case.images, question=case.question, solver=case.solver, failure=failure)


def measure(case: Case, model: Path | bytes, feeds: Feeds, forward: Callable[[], float], repeats: int) -> Row:
    """The figures of one case.

    Raises:
        L2cafError: the question cannot be answered, or onnxruntime does not confirm the answer.
    """
    asked: dict[str, Any] = dict(case.asked)
    loaded: list[caf.Model] = []
    answers: list[caf.Attention] = []

    def first() -> None:
        loaded.append(caf.load(model))
        again()

    def again() -> float:
        answers[:] = [caf.attend(loaded[0], feeds, at=case.at, **asked)]
        return answers[0].seconds["solve"]

    beginning: Timed | None = None
    if case.slow:  # a thousand steps more would drown what the first call costs; another solver warms the model
        loaded.append(caf.load(model))
        caf.attend(loaded[0], feeds, at=case.at, **{**asked, "solver": "auto"})
        times = min(SLOW_REPEATS, repeats)
    else:
        beginning = interleaved(first, forward, 1, once=True)
        times = min(FEW, repeats) if seconds(again) > LONG else repeats
        for _ in range(SETTLE if times == repeats else 0):
            again()
    solves: list[float] = []
    timed = interleaved(lambda: solves.append(again()), forward, times)
    (a,) = answers
    if not a.proof.ok:
        raise caf.ParityError("onnxruntime does not confirm the filter.", tensor=a.proof.tensor)
    return Row(
        place=case.place, images=case.images, question=case.question,
        solver=a.solver if case.solver == a.solver else f"{case.solver}: {a.solver}",
        first=beginning.ratio if beginning else None, ratio=timed.ratio, ms=timed.ms / case.images,
        loss=float(a.loss.mean()), evaluations=float(a.evaluations.mean()),
        solve=statistics.median(solves) / statistics.median(timed.forwards),
        certificate=a.certificate.kind if a.certificate else "", ratios=timed.ratios,
    )  # fmt: skip
