"""What a change does to the outputs, without the product: its size, the noise of onnxruntime's own levels, the answers
that change, and all that a check of outputs alone could look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import l2caf_onnx as caf

from .subjects import Outputs, Subject, answers, rows

PORTION = 25  # inputs at once
Level = Literal["disable", "basic", "extended", "all"]
LEVELS: tuple[Level, ...] = ("basic", "extended", "all")
TINY = 1e-30
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a fault does to a sound model of its class.

    Attributes:
        error: The largest relative distance ||y - sound|| / ||sound|| of any output of any input; inf where not finite.
        noise: The same between onnxruntime's levels of the sound model; of float16 what float16 itself does, if more.
        changed: Share of inputs whose answer is another.
        flips: The same between onnxruntime's levels of the sound model.
    """

    error: float
    noise: float
    changed: float
    flips: float

    @property
    def heard(self) -> bool:
        """Whether it is above the noise."""
        return self.error > self.noise

    @property
    def answers(self) -> str:
        """Whether answers change beyond what onnxruntime's levels change: in "none", in "some", in "many" inputs."""
        excess = self.changed - self.flips
        return "many" if excess >= 0.01 else "some" if excess > 0 else "none"


def outputs_of(model: caf.Model, feeds: Mapping[str, NDArray[Any]], *, level: Level = "disable") -> dict[str, Values]:
    """The outputs for all inputs, called as the graph calls them, in its order."""
    size = model.inputs[0].shape[0] if model.inputs[0].shape else None
    portions = [caf.run(model, f, level=level) for f in rows(feeds, size if isinstance(size, int) else PORTION)]
    return {o.name: np.concatenate([p[o.name] for p in portions]).astype(np.float64) for o in model.outputs}


def distances(outputs: Outputs, sound: Outputs) -> Values:
    """(N,): the largest relative distance of any output, by position."""
    each = []
    for y, s in zip(outputs.values(), sound.values(), strict=True):
        y, s = y.reshape(len(y), -1), s.reshape(len(s), -1)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.linalg.norm(y - s, axis=1) / np.maximum(np.linalg.norm(s, axis=1), TINY)
        each.append(np.where(np.isfinite(apart), apart, np.inf))
    return np.asarray(np.max(each, axis=0), np.float64)


@dataclass(frozen=True, slots=True)
class Ground:
    """A sound model's outputs, and their noise."""

    outputs: dict[str, Values]
    noise: float
    flips: float


def ground(subject: Subject, model: caf.Model, reference: Outputs, *, rounding: bool) -> Ground:
    """A sound model's noise; with `rounding`, what it differs from the reference is noise too."""
    sound = outputs_of(model, subject.feeds)
    said = answers(subject, sound, reference)
    others = [outputs_of(model, subject.feeds, level=level) for level in LEVELS]
    noise = max(float(distances(o, sound).max()) for o in others)
    if rounding:
        noise = max(noise, float(distances(sound, reference).max()))
    flips = max(float(np.mean(answers(subject, o, reference) != said)) for o in others)
    return Ground(sound, noise, flips)


def effect(subject: Subject, outputs: Outputs, sound: Ground, reference: Outputs) -> Effect:
    """What a fault does."""
    said, now = answers(subject, sound.outputs, reference), answers(subject, outputs, reference)
    error = float(distances(outputs, sound.outputs).max())
    return Effect(error=error, noise=sound.noise, changed=float(np.mean(said != now)), flips=sound.flips)


def looks(subject: Subject, outputs: Outputs, reference: Outputs) -> dict[str, float]:
    """What a check of outputs alone can hold against a threshold, larger is worse: of each measure the worst input and
    the mean over inputs.
    """
    found = {"relative error": distances(outputs, reference)}
    flat = [np.concatenate([np.nan_to_num(v).reshape(len(v), -1) for v in o.values()], 1) for o in (outputs, reference)]
    y, r = (np.clip(f, -1e30, 1e30) for f in flat)
    apart = np.abs(y - r)
    found["largest absolute error"] = apart.max(1)
    found["largest error of the largest element"] = apart.max(1) / np.maximum(np.abs(r).max(1), TINY)
    lengths = np.linalg.norm(y, axis=1) * np.linalg.norm(r, axis=1)
    found["1 - cosine"] = 1 - (y * r).sum(1) / np.maximum(lengths, TINY)
    found["KL divergence"] = np.sum(_softmax(r) * (_log_softmax(r) - _log_softmax(y)), 1)
    found["answers changed"] = (answers(subject, outputs, reference) != answers(subject, reference, reference)) * 1.0
    broken = ~np.all([np.isfinite(v).reshape(len(v), -1).all(1) for v in outputs.values()], axis=0)
    table = {name: np.where(broken, np.inf, values) for name, values in found.items()}
    return {
        f"{name}, {how}": float(summed(values))
        for name, values in table.items()
        for how, summed in (("worst", np.max), ("mean", np.mean))
    }


def _log_softmax(values: Values) -> Values:
    shifted = values - values.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)), np.float64)


def _softmax(values: Values) -> Values:
    return np.asarray(np.exp(_log_softmax(values)), np.float64)
