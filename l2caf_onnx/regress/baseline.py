"""A baseline: what a model answers and looks at today, stored for `check`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from l2caf_onnx import runtime
from l2caf_onnx.attention import placed
from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Data, Given
from l2caf_onnx.graph.breakpoints import breakpoints
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import Baseline, Classes, Threshold

from . import store
from .breaking import affine_at
from .calibrate import merged, noise_of, spread
from .classes import Names, classes_of, refuse_few
from .given import samples
from .identity import identity
from .observation import Observation, joined
from .observe import Observer
from .observed import AT_ONCE, observed
from .pairing import numeric_outputs
from .probe import Probe
from .recall import described, signature, stated
from .remember import model_facts, surroundings, weights_of
from .thresholds import Stated, Thresholds, given, measured, refuse_unknown
from .watch import Question, Seen, Watch, question_of, targets_of

Tell = Callable[[str, float], None]

TENSORS = 4
"""Whose statistics are stored where nobody says."""


def baseline(
    model: Model | str | Path | bytes | onnx.ModelProto,
    inputs: Given,
    *,
    at: str | Sequence[str],
    folder: str | Path,
    to: str | Sequence[str] | None = None,
    target: int | str | None = None,
    watch: Sequence[str] | None = None,
    preprocess: Source | None = None,
    calibrate: bool = False,
    half: bool = False,
    thresholds: Stated = None,
    objective: str | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    basis: str | int | None = None,
    layout: str | None = None,
    batch_size: int | None = None,
    labels: Names | None = None,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    seed: int = 0,
    force: bool = False,
    tell: Tell | None = None,
) -> Baseline:
    """Store what a model answers on each input, and what it looks at, for `check`.

    Of each input: outputs (a float copy of up to 2048 values each, and the five largest), filter and heatmap at each
    breakpoint, and of some tensors 128 values at seeded places and four statistics. Of the run: settings,
    preprocessing, digests of model and inputs, versions, provider, seed. An interrupted call leaves what it did, and
    the same call goes on from there.

    Args:
        model: What `load` takes.
        inputs: Paths as on the command line, which `check` finds again by itself, or {input name: array}, which it asks
            for again: of arrays only digests are stored.
        at: Breakpoints.
        folder: Where; made if need be.
        to: S2 of the attention; None: all outputs.
        target: A class for the attention; "top1": the likeliest of each input; "none": no class; None: "top1" where the
            only output is a vector of scores.
        watch: Tensors whose values and statistics are stored; None: four over the depth.
        preprocess: How pictures become numbers.
        calibrate: Whether thresholds are set above the noise of harmless variations on these inputs
            (l2caf_onnx/regress/variants.py), and stored with where each comes from.
        half: Calibrating, whether float16 is a harmless variation too.
        thresholds: The user's own, which win: {"attention.cosine": 0.9} or a TOML file.
        objective: Of the attention, as `attend`; None: see `Question`.
        constraint: As there; None: "l2-nonneg".
        radius: As there; None: 0.5.
        basis: As there.
        layout: As there.
        batch_size: Inputs at once.
        labels: Class index -> name, which the reports of `check` use.
        device: "cpu" or "cuda", for the torch tails.
        providers: onnxruntime's execution providers; None: the CPU (CUDA's too where `device` is "cuda").
        seed: Of every random choice.
        force: Whether a baseline that is there is replaced.
        tell: Called with what is being done and the part of all that is done.

    Returns:
        A Baseline.

    Raises:
        InputError: inputs, settings or a folder that cannot be used; another baseline is there.
        TensorNotFoundError, CutError, UnsupportedModelError, SolverError: as `attend`.
    """
    where, providers = placed(device, providers)
    loaded, place = load(model), Path(folder)
    own = given(thresholds)
    data = samples(loaded, inputs, preprocess)
    question = question_of(to, objective, constraint, radius, basis, layout, seed)
    names = tuple(dict.fromkeys(loaded.require(n) for n in ([at] if isinstance(at, str) else at)))
    if not names:
        raise InputError("No tensor to break at was named.", where="`at` is empty.", how="Name one.")
    looked = watch_of(loaded, names, watch, question)
    known = {"output": [o.name for o in looked.outputs], "attention": names, "tensor": [t.name for t in looked.tensors]}
    refuse_unknown(own, known)
    targets = targets_of(target, len(data))
    settings = {
        "model": identity(loaded)["sha256"],
        "at": names,
        "tensors": known["tensor"],
        "question": asdict(question),
        "target": target,
        "preprocess": stated(preprocess),
        "batch_size": batch_size,
        "providers": list(runtime.check_providers(providers)),
        "inputs": [e["sha256"] for e in described(data, place)],
    }
    if labels is not None:  # before anything is written, and the graph need not tell how many classes there are
        bare = Observer(loaded, Watch(outputs=looked.outputs), providers=providers, device=where)
        refuse_few(labels, observed(bare, data, None, numbers=[0]))
    store.begin(place, settings, force=force)
    observer = Observer(loaded, looked, providers=providers, device=where)
    keeping = _Keeping(place, observer, data, targets, batch_size, settings["inputs"])
    most = 0.6 if calibrate else 1.0
    say = tell or (lambda what, part: None)
    seen, parts, resumed = keeping.all(lambda part: say("inputs", most * part))
    lines: dict[str, Thresholds] = {}
    notes = list(seen.notes)
    if calibrate:
        lines, told = calibrated(
            observer, data, seen, half, batch_size, lambda part: say("noise", most + (1 - most) * part)
        )
        notes += told
    # No part of what is asked: neither keeps an interrupted baseline from going on.
    kept = {**settings, "device": where.type, "labels": labels}
    write(place, loaded, data, seen, looked, parts, settings=kept, thresholds=lines, own=own, half=half)
    return record(place, loaded, data, names, lines, own, resumed, notes, classes_of(seen, seen, labels, notes))


def watch_of(model: Model, at: Sequence[str], tensors: Sequence[str] | None, question: Question) -> Watch:
    """What is looked at.

    Raises:
        TensorNotFoundError: a tensor that the model has not.
        InputError: one that does not hold real numbers.
    """
    probe = Probe(model)
    if tensors is None:
        clean = [b.name for b in breakpoints(model) if b.clean and b.name in probe.names]
        among = clean if len(clean) >= TENSORS else list(probe.names)
        tensors = [among[k] for k in spread(len(among), TENSORS)] if among else []
    for name in tensors:
        if model.require(name) not in probe.names:
            what = f"The tensor {name!r} holds no real numbers that depend on the input."
            raise InputError(what, where=f"Model {model.name!r}.", how="Watch another one.")
    return Watch(
        tensors=tuple(Seen(name=n, own=n) for n in dict.fromkeys(tensors)),
        at={n: n for n in at},
        affine=affine_at(model, at),
        outputs=tuple(Seen(name=n, own=n) for n in numeric_outputs(model)),
        question=question,
    )


def places_of(watch: Watch) -> dict[str, str]:
    """{name in the comparison: own name} of all tensors inside."""
    return {**watch.at, **{t.name: t.own for t in watch.tensors}}


class _Keeping:
    """The inputs in parts, each seen or found from an interrupted run."""

    def __init__(
        self,
        folder: Path,
        observer: Observer,
        data: Data,
        targets: list[int] | str | None,
        batch_size: int | None,
        digests: Sequence[str],
    ) -> None:
        self.folder, self.observer, self.data, self.targets = folder, observer, data, targets
        self.batch_size, self.digests = batch_size, digests

    def all(self, told: Callable[[float], None]) -> tuple[Observation, list[str], int]:
        """(what was seen, the parts' names, how many inputs an earlier run had seen)."""
        seen: list[Observation] = []
        names: list[str] = []
        resumed = 0
        for start in range(0, len(self.data), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(self.data)))
            digests = [self.digests[k] for k in numbers]
            kept = store.kept_part(self.folder, start, outline(self.observer.watch, seen[0]), digests) if seen else None
            if kept is None:
                found = self._see(numbers)
                names.append(store.write_part(self.folder, start, found, digests))
                seen.append(found)
            else:
                names.append(kept[0])
                seen.append(kept[1])
                resumed += len(numbers)
            told(numbers.stop / len(self.data))
        return joined(seen), names, resumed

    def _see(self, numbers: range) -> Observation:
        targets = [self.targets[k] for k in numbers] if isinstance(self.targets, list) else self.targets
        return observed(self.observer, self.data, targets, batch_size=self.batch_size, numbers=numbers)


def outline(watch: Watch, seen: Observation) -> dict[str, Any]:
    """What the arrays of a part are: names, kinds, sizes of maps."""
    return {
        "at": [{"name": n, "map": list(seen.maps[n].shape[1:]), "affine": n in watch.affine} for n in watch.at],
        "outputs": [{"name": o.name, "kind": seen.kinds[o.name]} for o in watch.outputs],
        "tensors": [t.name for t in watch.tensors],
    }


def calibrated(
    observer: Observer,
    data: Data,
    seen: Observation,
    half: bool,
    batch_size: int | None,
    told: Callable[[float], None],
) -> tuple[dict[str, Thresholds], list[str]]:
    """The thresholds of the classes whose noise is measured, and what a reader should know."""
    model, watch = observer.model, observer.watch
    own = noise_of(
        model, "float32", watch, data, seen, batch=batch_size or AT_ONCE, providers=observer.providers,
        device=observer.device, told=lambda part: told(part * (0.5 if half else 1)),
    )  # fmt: skip
    noise, notes = own
    found: dict[str, Thresholds] = {"identical": measured("identical", noise)}
    if half:
        narrow, also = noise_of(
            model, "float16", watch, data, seen, batch=batch_size or AT_ONCE, providers=observer.providers,
            device=observer.device, told=lambda part: told(0.5 + part / 2),
        )  # fmt: skip
        notes += also
        noise = merged(noise, narrow)
        found["float16"] = measured("float16", narrow)
    return {**found, "float32": measured("float32", noise)}, notes


def write(
    folder: Path,
    model: Model,
    data: Data,
    seen: Observation,
    watch: Watch,
    parts: Sequence[str],
    *,
    settings: Mapping[str, Any],
    thresholds: Mapping[str, Thresholds],
    own: Thresholds,
    half: bool,
) -> None:
    """Make these parts the baseline."""
    weights = weights_of(model)
    stored = {"names": np.array(list(weights), str), **{f"weight/{k}": v for k, v in enumerate(weights.values())}}
    held = store.write_named(folder, "weights", stored)
    manifest = {
        "kind": "baseline",
        "model": model_facts(model, folder),
        **outline(watch, seen),
        "places": {n: surroundings(model, own) for n, own in places_of(watch).items()},
        "question": settings["question"],
        "target": settings["target"],
        "preprocess": settings["preprocess"],
        "batch_size": settings["batch_size"],
        "device": settings["device"],
        "labels": settings["labels"],
        "providers": settings["providers"],
        "signature": signature(data),
        "versions": versions(),
        "half": half,
        "thresholds": {name: {k: asdict(t) for k, t in lines.items()} for name, lines in thresholds.items()},
        "stated": {k: asdict(t) for k, t in own.items()},
        "inputs": described(data, folder),
    }
    store.write_manifest(folder, manifest, parts, held)


def record(
    folder: Path,
    model: Model,
    data: Data,
    names: Sequence[str],
    thresholds: Mapping[str, Thresholds],
    own: Thresholds,
    resumed: int,
    notes: Sequence[str],
    classes: Classes,
) -> Baseline:
    """What was written, as a record."""
    lines: dict[str, Threshold] = {**thresholds.get("float32", {}), **own}
    return Baseline(
        folder=str(folder),
        model=identity(model),
        at=tuple(names),
        inputs=data.names,
        bytes_per_input=store.size_of(folder) / len(data),
        resumed=resumed,
        calibrated=bool(thresholds),
        thresholds=lines,
        notes=tuple(dict.fromkeys(notes)),
        asked=classes.asked,
        names=classes.names,
    )


def versions() -> dict[str, str]:
    """Of all that the numbers hang on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("l2caf_onnx", "onnxruntime", "onnxruntime-gpu", "onnx", "torch", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
