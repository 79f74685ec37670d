"""The model that a baseline was made of, where its file is still there: it makes a check sharper, but is not needed.

With it tensors are matched by what they hold, noise is measured for classes of change that were not thought of when
the baseline was made, and errors inside are told node by node. Without it names must do, and what is bundled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from l2caf_onnx.errors import InputError, nearest
from l2caf_onnx.evaluation.data import Data, Given
from l2caf_onnx.graph.breakpoints import breakpoints
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Aligned, Change, Score, Threshold

from .align import align
from .breaking import counterpart
from .calibrate import noise_of
from .compare import inside
from .given import Both
from .observation import Observation
from .observed import AT_ONCE
from .probe import Probe
from .recall import recalled
from .remember import reference_of, surroundings
from .session import session
from .thresholds import Thresholds, bundled, measured, unmeasured
from .watch import Question, Seen, Watch

_SAMPLES = 2  # whose tensors are looked at to align
_JUDGED_INSIDE: tuple[Change, ...] = ("float16", "int8")
"""Classes whose noise hides a fault in the outputs, so that it is looked for node by node."""


class Original:
    """The baseline's own model and inputs.

    Attributes:
        manifest: Of the baseline.
        model: None where its file is gone, or is another now.
    """

    def __init__(self, manifest: Mapping[str, Any], folder: Path, inputs: Given | None) -> None:
        self.manifest, self.folder, self._inputs = manifest, folder, inputs
        self.model = reference_of(manifest, folder)
        self._data: Data | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors inside that the baseline holds something of."""
        return tuple(self.manifest["places"])

    @property
    def depth(self) -> Mapping[str, float]:
        """Of its tensors; empty where the model is gone."""
        return {} if self.model is None else Probe(self.model).depth

    def both(self, data: Data) -> Both:
        """Its inputs beside those of the candidate."""
        assert self.model is not None
        if self._data is None:
            self._data = recalled(self.manifest, self.folder, self.model, self._inputs, None)
        return Both(self._data, data)

    def alignment(self, data: Data, stated: Mapping[str, str] | None, notes: list[str]) -> tuple[Aligned, ...]:
        """Which tensor of the candidate is which: by name where all are there and are made and read as they were, else
        by what they hold.
        """
        model, there = data.model, set(data.model.names)
        alike = {n: n in there and surroundings(model, n) == was for n, was in self.manifest["places"].items()}
        if not stated and all(alike.values()):
            return tuple(_named(n, n) for n in self.names)
        if self.model is not None:
            data_of_both = self.both(data)
            _, feeds, others = next(data_of_both.pieces(_SAMPLES))
            notes.append(
                "The graph differs from the baseline's around its tensors: they are matched by what they hold."
            )
            return align(Probe(self.model), Probe(model), feeds, others, stated)
        pairs = {n: n for n in self.names if n in there} | dict(stated or {})
        for other in pairs.values():
            model.require(other)
        doubtful = [n for n, o in pairs.items() if n == o and not alike.get(n, True)]
        if doubtful:
            notes.append(
                f"{', '.join(doubtful[:3])}: made or read otherwise than in the baseline, whose model is not where it "
                "was; what has that name may hold something else."
            )
        return tuple(_named(n, o) for n, o in pairs.items())

    def watch(
        self, model: Model, pairs: Sequence[Aligned], outputs: Sequence[Seen], question: Question, notes: list[str]
    ) -> Watch:
        """What is looked at in the candidate.

        Raises:
            InputError: it lacks a breakpoint; the nearest are offered.
        """
        theirs = {a.reference: a for a in pairs}
        places = {b["name"]: self._counterpart(b["name"], pairs, model) for b in self.manifest["at"]}
        tensors = [
            Seen(name=n, own=a.candidate, order=a.order, scale=a.scale)
            for n in self.manifest["tensors"]
            if (a := theirs.get(n)) is not None
        ]
        missing = [n for n in self.manifest["tensors"] if n not in theirs]
        if missing:
            notes.append(f"The model has no counterpart of {', '.join(missing)}: not compared.")
        affine = frozenset(b["name"] for b in self.manifest["at"] if b["affine"])
        return Watch(tensors=tuple(tensors), at=places, affine=affine, outputs=tuple(outputs), question=question)

    def _counterpart(self, name: str, pairs: Sequence[Aligned], model: Model) -> str:
        if self.model is not None:
            return counterpart(name, pairs, self.model, model)
        found = next((a.candidate for a in pairs if a.reference == name), None)
        if found is None:
            known = [b.name for b in breakpoints(model)]
            close = nearest(name, known) or tuple(known[-2:])
            raise InputError(
                f"The model {model.name!r} lacks the baseline's breakpoint {name!r}.",
                where="The baseline's own model is not where it was, so that only names can tell.",
                how=f"Say which it is (`align`): {' or '.join(map(repr, close))}?" if close else "Say which (`align`).",
            )
        return found

    def lines(
        self,
        change: Change,
        watch: Watch,
        stored: Observation,
        data: Data,
        notes: list[str],
        providers: Sequence[str],
        device: torch.device,
    ) -> Thresholds:
        """What was calibrated for the class; else measured now; else what is bundled."""
        kept = self.manifest["thresholds"].get(change)
        if kept is not None:
            return {k: Threshold(**t) for k, t in kept.items()}
        if self.model is None or change == "identical" or not bundled(change):
            if change != "identical":
                notes.append(
                    f"No noise was measured for the class {change}: its bundled thresholds hold, which are coarse."
                )
            return unmeasured(change)
        own = Watch(
            tensors=tuple(Seen(name=t.name, own=t.name) for t in watch.tensors), at={n: n for n in watch.at},
            affine=watch.affine, outputs=tuple(Seen(name=o["name"], own=o["name"]) for o in self.manifest["outputs"]),
            question=watch.question,
        )  # fmt: skip
        batch = self.manifest["batch_size"] or AT_ONCE
        noise, told = noise_of(
            self.model, change, own, self.both(data).reference, stored, batch=batch, providers=providers, device=device,
        )  # fmt: skip
        notes += told
        return measured(change, noise)

    def inside(
        self,
        change: Change,
        data: Data,
        own: Thresholds,
        stated: Mapping[str, str] | None,
        providers: Sequence[str],
    ) -> tuple[list[Score], tuple[Aligned, ...]]:
        """The errors node by node, where the class asks for them and the model is there."""
        if self.model is None or change not in _JUDGED_INSIDE:
            return [], ()
        held = session(self.model, data.model, self.both(data), given=stated, change=change, providers=providers)
        return inside(held, own, lambda what, part: None), held.alignment


def _named(name: str, other: str) -> Aligned:
    how = "name" if name == other else "given"
    return Aligned(reference=name, candidate=other, how=how, order=None, scale=1.0, confidence=1.0)
