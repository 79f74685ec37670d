"""Cases through the product, and what it says of each: `caf.compare` over all inputs, `caf.bisect` over some."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import l2caf_onnx as caf

from .effect import Ground, distances, effect, ground, looks, outputs_of
from .fault import Base, Fault
from .harmless import changes
from .planting import Sound, faults
from .rows import Row
from .subjects import Outputs, Subject

NAMED = 10  # failures that a row keeps of each subject


class Judge:
    """A model under test, and what is kept of it from case to case."""

    def __init__(self, subject: Subject, bisected: int) -> None:
        self.subject = subject
        self.model = caf.load(subject.proto)
        self.sound = Sound(subject)
        self.reference: Outputs = outputs_of(self.model, subject.feeds)
        self.bisected = bisected
        self.count = len(next(iter(subject.feeds.values())))
        self.grounds: dict[Base, Ground] = {}

    def ground(self, base: Base) -> Ground:
        """The sound model of a class."""
        if base not in self.grounds:
            model = self.model if base == "float32" else caf.load(self.sound.of(base))
            self.grounds[base] = ground(self.subject, model, self.reference, rounding=base == "float16")
        return self.grounds[base]

    def harmless(self) -> Iterator[tuple[Row, Any]]:
        """Harmless changes as rows to be filled, each with what makes the verdict."""
        for change in changes(self.subject):
            row = Row(model=self.subject.name, kind="harmless", name=change.kind, base=change.base, inputs=self.count)
            yield row, change

    def faults(self) -> Iterator[tuple[Row, Any]]:
        """Faults, likewise."""
        for fault in faults(self.sound):
            yield (
                Row(
                    model=self.subject.name, kind="fault", name=fault.name, base=fault.base, inputs=self.count,
                    family=fault.family, strength=fault.strength, place=fault.place, where=fault.where,
                ),
                fault,
            )  # fmt: skip

    def judged(self, row: Row, case: Any) -> Row:
        """The row, filled."""
        with tempfile.TemporaryDirectory(prefix="l2caf-") as folder:
            if isinstance(case, Fault):
                return self._of_fault(row, case)
            try:
                candidate = caf.load(case.make(self.subject, Path(folder)))
            except (RuntimeError, ImportError) as e:  # the latter: onnxsim and onnxslim come with the extra `zoo`
                return replace(row, error=f"no place: {e}")
            outputs = dict(zip(self.reference, outputs_of(candidate, self._as_taken(candidate)).values(), strict=True))
            row = replace(row, looks=looks(self.subject, outputs, self.reference))
            return self._compared(row, candidate, None)

    def _of_fault(self, row: Row, fault: Fault) -> Row:
        candidate = caf.load(fault.proto)
        outputs = outputs_of(candidate, fault.feeds or self.subject.feeds)
        outputs = dict(zip(self.reference, outputs.values(), strict=True))
        row = replace(
            row,
            effect=effect(self.subject, outputs, self.ground(fault.base), self.reference),
            looks=looks(self.subject, outputs, self.reference),
        )
        row = self._compared(row, candidate, fault.feeds)
        if fault.place == "input":
            return row
        return self._bisected(row, candidate, fault.tensors, self._shown(fault, outputs))

    def _shown(self, fault: Fault, outputs: Outputs) -> NDArray[np.intp]:
        """The inputs that bisect sees: those whose outputs differ most, as one bisects what a comparison has shown.

        Of int8 some of all: those that differ most are clipped by ranges that were calibrated without them, which is no
        fault, and would be named.
        """
        if fault.base == "int8":
            return np.unique(np.linspace(0, self.count - 1, min(self.bisected, self.count)).round().astype(np.intp))
        worst = np.argsort(-distances(outputs, self.reference), kind="stable")[: self.bisected]
        return np.sort(worst)

    def _as_taken(self, candidate: caf.Model) -> dict[str, NDArray[Any]]:
        """The feeds under the candidate's names and in its layout."""
        fed = {}
        for info, (name, values) in zip(candidate.inputs, self.subject.feeds.items(), strict=True):
            first = self.model.inputs[0].shape or ()
            turned = len(info.shape or ()) == 4 and (info.shape or ())[1:] != first[1:]
            fed[info.name] = values.transpose(0, 2, 3, 1) if turned and name else values
        return fed

    def _compared(self, row: Row, candidate: caf.Model, feeds: Mapping[str, NDArray[Any]] | None) -> Row:
        start = time.perf_counter()
        try:
            found = caf.compare(self.model, candidate, self.subject.feeds, candidate_inputs=feeds)
        except caf.L2cafError as e:
            return replace(row, error=f"compare: {e}", seconds=(time.perf_counter() - start, 0.0))
        failures = [[s.subject, s.name, s.metric, round(s.failing, 4)] for s in found.failures]
        kept = [
            f for subject in ("output", "attention", "tensor") for f in [f for f in failures if f[0] == subject][:NAMED]
        ]
        judged = sum(s.threshold is not None for s in found.scores)
        seconds = time.perf_counter() - start, 0.0
        return replace(row, change=found.change, failures=kept, judged=judged, seconds=seconds)

    def _bisected(self, row: Row, candidate: caf.Model, planted: tuple[str, ...], numbers: NDArray[np.intp]) -> Row:
        """With the node that bisect names on those inputs."""
        start = time.perf_counter()
        try:
            found = caf.bisect(self.model, candidate, {n: v[numbers] for n, v in self.subject.feeds.items()})
        except caf.L2cafError as e:
            return replace(row, error=f"{row.error} bisect: {e}".strip())
        first = found.first
        named = ("", False) if first is None else (first.candidate, first.candidate in planted)
        ranks = [i for i, n in enumerate(found.ranked) if n.candidate in planted]
        seconds = row.seconds[0], time.perf_counter() - start
        return replace(row, named=named, rank=ranks[0] if ranks else None, seconds=seconds)
