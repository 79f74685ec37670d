"""A model against its baseline: does it still answer, and look at, what was stored?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from l2caf_onnx import runtime
from l2caf_onnx.attention import placed
from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Data, Given
from l2caf_onnx.graph.model import Model, load
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import Comparison, Threshold

from . import store
from .baseline import calibrated, places_of, write
from .breaking import affine_at
from .classes import Names, classes_of, refuse_few
from .compare import pairs_of, scores_of
from .identity import identity
from .observation import Observation
from .observe import Observer
from .observed import AT_ONCE, Pictures, observed
from .original import Original
from .pairing import outputs_of
from .recall import described, recalled, stated
from .remember import class_of
from .thresholds import Stated, Thresholds, given, refuse_unknown
from .watch import Question, Seen, Watch

Tell = Callable[[str, float], None]


def check(
    folder: str | Path,
    model: Model | str | Path | bytes | onnx.ModelProto | None = None,
    *,
    inputs: Given | None = None,
    thresholds: Stated = None,
    update: bool = False,
    preprocess: Source | None = None,
    align: Mapping[str, str] | None = None,
    labels: Names | None = None,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Compute anew what a baseline holds, and compare.

    One run of the model on each batch gives outputs, tensors and attention; where the tail is affine a check costs
    little more than the forward passes. Attention is asked about the classes that the baseline asked about.

    A line is the user's (given now, else with the baseline), else what was calibrated when the baseline was made. For a
    class of change that was not (int8 for one) noise is measured now on the baseline's own model, if its file is still
    where it was and still the same; then the errors inside are judged too, node by node, as by `compare`. Else what is
    bundled for the class holds, which is coarse.

    Args:
        folder: What `baseline` made.
        model: What `load` takes; None: the baseline's own file, as it is now.
        inputs: The baseline's inputs again, where they were arrays, or are elsewhere now.
        thresholds: {"attention.cosine": 0.9} or a TOML file; they win.
        update: Whether the new state becomes the baseline, after the comparison; at once or not at all.
        preprocess: How pictures become numbers for this model; None: as in the baseline.
        align: {baseline's tensor: the model's} where names differ and are known better.
        labels: Class index -> name, for the reports; None: the baseline's.
        device: "cpu" or "cuda", for the torch tails; whatever the baseline was made on.
        providers: onnxruntime's execution providers; None: CUDA's where `device` is "cuda", the CPU's where the
            baseline alone was made on a GPU, else the baseline's.
        tell: Called with what is being done and the part of all that is done.

    Returns:
        A Comparison of kind "check"; `.ok` is the verdict on what was stored before.

    Raises:
        InputError: a baseline of another schema version, cut short or changed; inputs that are missing or changed; a
            breakpoint that the model lacks (with the nearest it has); inputs of another size.
    """
    where, providers = placed(device, providers)
    place, own, say = Path(folder), given(thresholds), tell or (lambda what, part: None)
    manifest, stored, weights = store.read_baseline(place)
    refuse_few(labels, stored)
    called = _labels(manifest) if labels is None else labels
    breaks = [b["name"] for b in manifest["at"]]
    ends = [o["name"] for o in manifest["outputs"]]
    refuse_unknown(own, {"output": ends, "attention": breaks, "tensor": manifest["tensors"]})
    loaded = load(_file_of(manifest, place) if model is None else model)
    original = Original(manifest, place, inputs)
    change, why = class_of(manifest, weights, original.model, loaded)
    data = recalled(manifest, place, loaded, inputs, preprocess)
    used = _providers(manifest, providers)
    notes: list[str] = []
    pairs = original.alignment(data, align, notes)
    outputs = [theirs for _, theirs in outputs_of(ends, loaded, pairs)]
    watch = original.watch(loaded, pairs, outputs, _question(manifest), notes)
    targets = None if stored.targets is None else stored.targets.tolist()
    pictures: Pictures = []
    seen = observed(
        Observer(loaded, watch, providers=used, device=where), data, targets, batch_size=manifest["batch_size"],
        like=stored, pictures=pictures, told=lambda part: say("inputs", 0.7 * part),
    )  # fmt: skip
    _refuse_other_shapes(stored, seen)
    first = {k: Threshold(**t) for k, t in manifest["stated"].items()} | own
    say("noise", 0.7)
    lines = original.lines(change, watch, stored, data, notes, used, where)
    scores = scores_of(stored, seen, (first, lines))
    more, aligned = original.inside(change, data, first, align, used)
    classes = classes_of(stored, seen, called, notes)
    found = Comparison(
        kind="check",
        reference={k: manifest["model"][k] for k in ("name", "sha256")},
        candidate=identity(loaded),
        change=change,
        why=why,
        inputs=data.names,
        scores=(*scores, *more),
        alignment=aligned or pairs,
        pairs=pairs_of(stored, seen, dict(watch.at), original.depth),
        images=tuple(pictures),
        notes=tuple(dict.fromkeys((*notes, *seen.notes))),
        settings={
            **manifest["question"], "at": breaks, "target": manifest["target"], "preprocess": manifest["preprocess"],
            "device": where.type, "providers": list(used), "versions": manifest["versions"],
            "calibrated": sorted(manifest["thresholds"]),
        },
        classes=classes,
    )  # fmt: skip
    if update:
        _accept(place, manifest, data, seen, watch, preprocess, used, where, called)
    say("done", 1.0)
    return found


def _file_of(manifest: Mapping[str, Any], folder: Path) -> Path:
    """Where the baseline's model is."""
    path = manifest["model"]["path"]
    if path is None:
        raise InputError("The baseline's model was no file.", where=f"Folder {str(folder)!r}.", how="Name the model.")
    return folder / str(path)


def _providers(manifest: Mapping[str, Any], asked: Sequence[str] | None) -> list[str]:
    """Those asked for; else the baseline's, but for those that came of a GPU, which need not be here."""
    if asked is not None:
        return list(asked)
    elsewhere = manifest.get("device", "cpu") != "cpu"  # one made before there was a choice was made on the CPU
    return list(runtime.check_providers(None)) if elsewhere else list(manifest["providers"])


def _labels(manifest: Mapping[str, Any]) -> Names | None:
    kept = manifest.get("labels")  # one made before there were any has none
    return None if kept is None else {int(k): str(name) for k, name in kept.items()}


def _question(manifest: Mapping[str, Any]) -> Question:
    asked = dict(manifest["question"])
    return Question(**{**asked, "to": tuple(asked["to"]) if isinstance(asked["to"], list) else asked["to"]})


def _refuse_other_shapes(stored: Observation, seen: Observation) -> None:
    """Raise InputError where a filter has another shape than the stored one: there is no cell for each cell."""
    for name, ours in stored.filters.items():
        theirs = seen.filters[name]
        if theirs.shape != ours.shape:
            raise InputError(
                f"The filters at {name!r} have the shape {theirs.shape[1:]}, the baseline's {ours.shape[1:]}.",
                how="Break at a tensor that has the same cells in both, or make a baseline of this model.",
            )


def _accept(
    folder: Path,
    manifest: Mapping[str, Any],
    data: Data,
    seen: Observation,
    watch: Watch,
    preprocess: Source | None,
    providers: Sequence[str],
    device: torch.device,
    labels: Names | None,
) -> None:
    """Make what was seen the baseline, under the model's own names; calibrated anew where it was."""
    named = {**places_of(watch), **{o.name: o.own for o in watch.outputs}}

    def own(values: Mapping[str, Any]) -> dict[str, Any]:
        return {named[name]: v for name, v in values.items()}

    now = Watch(
        tensors=tuple(Seen(name=t.own, own=t.own) for t in watch.tensors), at={o: o for o in watch.at.values()},
        affine=affine_at(data.model, tuple(watch.at.values())),
        outputs=tuple(Seen(name=o.own, own=o.own) for o in watch.outputs), question=watch.question,
    )  # fmt: skip
    if any(t.order is not None or t.scale != 1 for t in (*watch.tensors, *watch.outputs)):
        targets = None if seen.targets is None else seen.targets.tolist()  # seen as the old model has its axes
        state = observed(Observer(data.model, now, providers=providers, device=device), data, targets)
    else:
        state = replace(
            seen, outputs=own(seen.outputs), sizes=own(seen.sizes), kinds=own(seen.kinds), tensors=own(seen.tensors),
            statistics=own(seen.statistics), filters=own(seen.filters), maps=own(seen.maps),
        )  # fmt: skip
    lines: Mapping[str, Thresholds] = {}
    if manifest["thresholds"]:
        observer = Observer(data.model, now, providers=providers, device=device)
        lines, _ = calibrated(observer, data, state, manifest["half"], manifest["batch_size"], lambda part: None)
    digests = [e["sha256"] for e in described(data, folder)]
    parts = []
    for start in range(0, len(data), AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, len(data)))
        parts.append(store.write_part(folder, start, state.part(numbers), [digests[k] for k in numbers]))
    settings = {**manifest, "device": device.type, "providers": list(providers), "labels": labels}
    if preprocess is not None:
        settings["preprocess"] = stated(preprocess)
    given_before = {k: Threshold(**t) for k, t in manifest["stated"].items()}
    write(
        folder, data.model, data, state, now, parts, settings=settings, thresholds=lines, own=given_before,
        half=manifest["half"],
    )  # fmt: skip
