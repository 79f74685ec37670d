"""Frozen results of comparing two models, or a model with what was stored of it: scores, thresholds, verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .files import plain

Change = Literal["identical", "float32", "float16", "int8", "retrained"]
Subject = Literal["output", "attention", "tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The line between noise and a regression, for one metric of one subject.

    Attributes:
        value: The line.
        above: Whether larger values are worse; else smaller ones are.
        share: The part of the inputs that may be beyond the line.
        source: One sentence: where the number comes from.
    """

    value: float
    above: bool
    share: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """One metric of one tensor, for each of N inputs, and over the set.

    Attributes:
        subject: "output" (what a model returns), "attention" (the filter at a breakpoint), "tensor" (an intermediate).
        name: Of the tensor, as the reference calls it.
        metric: Its name; l2caf_onnx/regress/metrics.py has the formulas.
        values: (N,) float64; NaN where the metric says nothing of an input.
        threshold: The line it is held against; None: reported, not judged.
        failing: The share of inputs beyond the line, in [0, 1].
        ok: Whether it is within the line, or not judged.
    """

    subject: Subject
    name: str
    metric: str
    values: NDArray[np.float64]
    threshold: Threshold | None
    failing: float
    ok: bool

    @property
    def worst(self) -> int | None:
        """The input whose value is worst; None where no value says anything."""
        finite = np.flatnonzero(np.isfinite(self.values) | np.isinf(self.values))
        if not finite.size:
            return None
        signs = 1.0 if self.threshold is None or self.threshold.above else -1.0
        return int(finite[np.argmax(signs * self.values[finite])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """A tensor of the reference and the one of the candidate that does its work.

    Attributes:
        reference: Its name in the reference.
        candidate: Its name in the candidate.
        how: "given", "name", "position" or "activations".
        order: The axes of the candidate's tensor in the order of the reference's: NHWC seen as NCHW is (0, 3, 1, 2);
            None: as they are.
        scale: What the candidate's values are multiplied by to be the reference's, usually 1.
        confidence: In [0, 1]: the correlation of both on the inputs.
    """

    reference: str
    candidate: str
    how: str
    order: tuple[int, ...] | None
    scale: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """The maps of both at one breakpoint.

    Attributes:
        at: The breakpoint, as the reference calls it.
        candidate_at: As the candidate calls it.
        reference: (N, *spatial) float32 filters of the reference.
        candidate: (N, *spatial) float32 filters of the candidate.
        reference_maps: (N, *input spatial) float32 in [0, 1].
        candidate_maps: The same of the candidate.
        depth: In [0, 1]: where in the reference's topological order it lies.
    """

    at: str
    candidate_at: str
    reference: NDArray[np.float32]
    candidate: NDArray[np.float32]
    reference_maps: NDArray[np.float32]
    candidate_maps: NDArray[np.float32]
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes of N inputs, by index.

    Attributes:
        reference: The likeliest in the reference; empty where the models do not return one vector of scores.
        candidate: The likeliest in the candidate; empty likewise.
        asked: What attention was asked about; empty where about no class.
        names: Of those of all these that have a name.
    """

    reference: tuple[int, ...] = ()
    candidate: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def differing(self) -> tuple[int, ...]:
        """The inputs whose likeliest class is another in the candidate."""
        both = zip(self.reference, self.candidate, strict=True)
        return tuple(k for k, (one, other) in enumerate(both) if one != other)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What `caf.compare` and `caf.check` found.

    Attributes:
        kind: "compare" (two models) or "check" (a model against a baseline).
        reference: Name and sha256 of the reference model.
        candidate: Of the candidate.
        change: The class of change, read from both graphs; its thresholds apply.
        why: One sentence: what in the graphs tells that class.
        inputs: Names of the N inputs.
        scores: All metrics of all subjects.
        alignment: Which tensor is which.
        pairs: The maps, for each breakpoint.
        images: What the model saw, (H, W, 3) uint8, for each input; None where it is no picture.
        notes: Sentences that a reader should know.
        settings: Of both runs: at, target, preprocessing, seed, versions, provider.
        classes: The likeliest class of each input in both, and the one that attention was asked about.
    """

    kind: Literal["compare", "check"]
    reference: Mapping[str, str]
    candidate: Mapping[str, str]
    change: Change
    why: str
    inputs: tuple[str, ...]
    scores: tuple[Score, ...]
    alignment: tuple[Aligned, ...]
    pairs: tuple[Pair, ...]
    images: tuple[NDArray[np.uint8] | None, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: Classes = Classes()

    @property
    def ok(self) -> bool:
        """Whether no score is beyond its threshold."""
        return all(s.ok for s in self.scores)

    @property
    def failures(self) -> tuple[Score, ...]:
        """The scores beyond their threshold."""
        return tuple(s for s in self.scores if not s.ok)

    def describe(self) -> dict[str, Any]:
        """All but maps and images, as JSON-ready values."""
        left = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in _LARGE}
        return {"ok": self.ok, **left}


_LARGE = ("pairs", "images")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeError:
    """How far one aligned tensor of the candidate is from the reference's, over all inputs.

    Attributes:
        tensor: As the reference calls it.
        candidate: As the candidate calls it.
        node: The candidate's node that makes it.
        op_type: Its operator.
        local: The relative error ||c - r|| / ||r|| (of the worst input; of int8 the median of the inputs) of what the
            candidate makes of the *reference's* tensors: its own fault.
        inherited: The same in the candidate's own run: its fault and all that came before.
        noise: The local error that a harmless change of this class has here.
        attention: 1 - cosine of the attentions there; None where it was not asked.
        ok: Whether `local` is within the noise.
    """

    tensor: str
    candidate: str
    node: str
    op_type: str
    local: float
    inherited: float
    noise: float
    attention: float | None
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """What `caf.bisect` found.

    Attributes:
        reference: Name and sha256 of the reference model.
        candidate: Of the candidate.
        change: The class of change.
        why: One sentence: what in the graphs tells that class.
        first: The first node, in the candidate's order, whose local error is beyond the noise; None: there is none.
        nodes: All aligned nodes, in the candidate's order.
        alignment: Which tensor is which.
        unaligned: Tensors of the candidate that have no counterpart.
        inputs: Names of the inputs.
        notes: Sentences that a reader should know.
        settings: As of a Comparison.
    """

    reference: Mapping[str, str]
    candidate: Mapping[str, str]
    change: Change
    why: str
    first: NodeError | None
    nodes: tuple[NodeError, ...]
    alignment: tuple[Aligned, ...]
    unaligned: tuple[str, ...]
    inputs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no node differs by more than noise."""
        return self.first is None

    @property
    def ranked(self) -> tuple[NodeError, ...]:
        """The nodes, worst local error in units of its noise first."""
        return tuple(sorted(self.nodes, key=lambda n: -n.local / n.noise if n.noise > 0 else -np.inf))

    def describe(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return {"ok": self.ok, **{f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A folder that `caf.baseline` wrote or completed.

    Attributes:
        folder: Where.
        model: Name and sha256.
        at: The breakpoints.
        inputs: Names of the inputs.
        bytes_per_input: Size of all files, divided by inputs.
        resumed: How many inputs an earlier, interrupted call had done.
        calibrated: Whether thresholds were set above the noise of harmless variations.
        thresholds: By "subject.metric" or "subject.metric@tensor".
        notes: Sentences that a reader should know.
        asked: The class that attention was asked about, for each input; empty where about none.
        names: Of those classes that have a name.
    """

    folder: str
    model: Mapping[str, str]
    at: tuple[str, ...]
    inputs: tuple[str, ...]
    bytes_per_input: float
    resumed: int
    calibrated: bool
    thresholds: Mapping[str, Threshold]
    notes: tuple[str, ...] = ()
    asked: tuple[int, ...] = ()
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """A baseline that was written is one."""
        return True

    def describe(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return {"ok": self.ok, **{f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}
