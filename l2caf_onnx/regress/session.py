"""A reference and a candidate on the same inputs, made ready for comparing: probes, class of change, alignment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Aligned, Change

from .align import align
from .calibrate import spread
from .change import change_of
from .given import Both
from .local import at_once
from .probe import Arrays, Probe, Real
from .steps import EIGHT_BITS, Grain, Steps, grain_of, steps_of
from .twins import Ranges, noise, ranges_of, tolerances

_SAMPLES = 2  # whose tensors are looked at to align
_NOISY = 4  # samples of which the twin's noise is measured
_RANGED = 32  # samples that tell what values a tensor takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Two models side by side.

    Attributes:
        reference: The one.
        candidate: The other.
        inputs: The samples.
        change: The class of change.
        why: What tells it.
        alignment: Which tensor is which.
        size: Samples whose tensors may be held at once.
    """

    reference: Probe
    candidate: Probe
    inputs: Both
    change: Change
    why: str
    alignment: tuple[Aligned, ...]
    size: int

    @property
    def unaligned(self) -> tuple[str, ...]:
        """Tensors of the candidate without a counterpart."""
        taken = {a.candidate for a in self.alignment}
        return tuple(n for n in self.candidate.names if n not in taken)

    @property
    def noisy(self) -> list[int]:
        """The samples that noise is measured on."""
        return list(range(min(_NOISY, len(self.inputs))))

    @property
    def grain(self) -> Grain:
        """How fine most layers of an int8 candidate hold their weights."""
        return grain_of(self.candidate.model) if self.change == "int8" else EIGHT_BITS

    @property
    def steps(self) -> dict[str, Steps]:
        """What the candidate rounds on the way to each aligned tensor, where the class is int8."""
        return steps_of(self.candidate, self.alignment) if self.change == "int8" else {}

    def tolerances(self) -> dict[str, float]:
        """What the local error of each of the reference's aligned tensors may be."""
        return tolerances(self.noise(), self.change, self.steps)

    def noise(self) -> dict[str, float]:
        """Of the reference's aligned tensors, on the first few samples."""
        names = [a.reference for a in self.alignment]
        numbers = self.noisy
        steps = self.steps
        grain = self.grain
        key = ("noise", self.change, tuple(names), tuple(steps.items()), grain, self.digest(numbers))
        kept: dict[str, float] = self.reference.model.cache.get(key, dict)
        if not kept:
            pieces = ((len(part), feeds) for part, feeds, _ in self.inputs.pieces(self.size, numbers))
            ranges = self._ranges(names) if self.change == "int8" else None
            kept.update(noise(self.reference, names, pieces, self.change, steps, ranges, grain))
        return dict(kept)

    def _ranges(self, names: Sequence[str]) -> Ranges:
        """Of the reference's tensors, on more samples than noise is measured on."""
        numbers = spread(len(self.inputs), _RANGED)
        pieces = (feeds for _, feeds, _ in self.inputs.pieces(self.size, numbers))
        return ranges_of(self.reference, names, pieces)

    def digest(self, numbers: Sequence[int]) -> str:
        """Of what the reference is fed with."""
        total = hashlib.sha256()
        for number in numbers:
            for name, array in sorted(self.inputs.reference.read(number).feeds.items()):
                total.update(name.encode() + str(array.dtype).encode() + str(array.shape).encode() + array.tobytes())
        return total.hexdigest()


def session(
    reference: Model,
    candidate: Model,
    inputs: Both,
    *,
    given: Mapping[str, str] | None,
    change: Change | None,
    providers: Sequence[str] | None,
) -> Session:
    """Look at both models and align them.

    Raises:
        InputError, UnsupportedModelError: inputs or models that onnxruntime refuses; an alignment that cannot be; a
            class of change that there is not.
    """
    runtime.check_providers(providers)
    if change is not None and change not in get_args(Change):
        raise InputError(
            f"There is no class of change {change!r}.",
            how=f"Choose one of {', '.join(get_args(Change))}, or leave it out.",
        )
    found, why = change_of(reference, candidate) if change is None else (change, "The user said so.")
    probes = Probe(reference, providers), Probe(candidate, providers)
    numbers, feeds, candidate_feeds = next(inputs.pieces(_SAMPLES))
    pairs = align(*probes, feeds, candidate_feeds, given)
    size = at_once(_sizes(probes[0], feeds), len(numbers))
    return Session(
        reference=probes[0], candidate=probes[1], inputs=inputs, change=found, why=why, alignment=pairs, size=size
    )


def _sizes(probe: Probe, feeds: Arrays) -> Mapping[str, Real]:
    return probe.values(feeds, probe.names)
