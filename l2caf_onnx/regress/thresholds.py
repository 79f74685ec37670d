"""The line between noise and a regression: bundled for each class of change, drawn above measured noise, or given.

A key is "subject.metric", or "subject.metric@tensor" for one tensor alone, which wins. What the user gives wins over
what was measured, and that over what is bundled.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError, nearest
from l2caf_onnx.preprocess import reason_of
from l2caf_onnx.records import Change, Score, Subject, Threshold

from .metrics import METRICS, TABLE

Thresholds = Mapping[str, Threshold]
Stated = Mapping[str, Any] | str | Path | None

KEYS = tuple(f"{subject}.{m.name}" for m in TABLE for subject in m.subjects)
"""Every "subject.metric"."""
COUNTED = ("top1", "differs")
"""Metrics that are right or wrong of an input: noise moves the share that is wrong, not the line."""
_DECIBELS = ("snr", "psnr")
_LEAST_INPUTS = 10  # of so many inputs one may be beyond a line that is counted: two classes may be equally likely


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is bundled for one "subject.metric"; thresholds.toml says what each number means."""

    least: float
    usual: float
    factor: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What a metric of one tensor is under harmless variations.

    Attributes:
        values: (variations x inputs,) of the metric.
        worst: The name of the variation that moves it most.
        variations: How many there are.
        inputs: On how many inputs.
    """

    values: NDArray[np.float64]
    worst: str
    variations: int
    inputs: int


def bundled(change: Change) -> Mapping[str, Line]:
    """The lines that come with the program for a class of change, by "subject.metric"."""
    return _bundle()[change]


def unmeasured(change: Change) -> dict[str, Threshold]:
    """The thresholds of a class where no noise was measured."""
    return {
        key: Threshold(
            value=line.usual, above=above(key), share=line.share,
            source=f"Bundled for changes of class {change}; no noise was measured on these inputs.",
        )
        for key, line in bundled(change).items()
    }  # fmt: skip


def measured(change: Change, noise: Mapping[str, Noise]) -> dict[str, Threshold]:
    """The thresholds of a class above the noise that was measured.

    Args:
        change: The class.
        noise: By "subject.metric@tensor".
    """
    found = dict(unmeasured(change))
    for key, own in noise.items():
        line = bundled(change).get(key.split("@", 1)[0])
        if line is not None:
            found[key] = _above(key, line, own)
    return found


def _above(key: str, line: Line, noise: Noise) -> Threshold:
    """The line above that noise."""
    metric = _metric(key)
    said = noise.values[~np.isnan(noise.values)]
    of = f"{noise.variations} harmless variations on {noise.inputs} inputs"
    if metric in COUNTED:
        wrong = float(np.mean(said != METRICS[metric].perfect)) if said.size else 0.0
        share = max(line.share, line.factor * wrong)
        text = f"{wrong:.1%} of inputs differ under {of}; {share:.1%} may."
        return Threshold(value=line.usual, above=above(key), share=share, source=text)
    errors = _errors(metric, said)
    worst = float(errors.max(initial=0.0))
    least = float(_errors(metric, np.array([line.least]))[0])
    limit = max(line.factor * worst, least)
    text = f"{line.factor:g} times the largest noise of {of} ({_back(metric, worst):.3g}, {noise.worst})"
    if limit == least:
        text = f"The sharpest that is drawn for class: the noise of {of} is at most {_back(metric, worst):.3g}"
    return Threshold(value=_back(metric, limit), above=above(key), share=line.share, source=f"{text}.")


def _errors(metric: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a metric as errors that noise multiplies: 0 is perfect, larger is worse."""
    if metric in _DECIBELS:
        return np.asarray(10.0 ** (-values / 20))
    return values if METRICS[metric].above else METRICS[metric].perfect - values


def _back(metric: str, error: float) -> float:
    """An error as a value of the metric."""
    if metric in _DECIBELS:
        return float(-20 * np.log10(error)) if error > 0 else np.inf
    return error if METRICS[metric].above else METRICS[metric].perfect - error


def given(stated: Stated) -> dict[str, Threshold]:
    """The user's own: {"attention.cosine": 0.9}, or a TOML file of such lines.

    A value is the line itself, or a table {value, share} that also tells what part of the inputs may be beyond it (0).

    Raises:
        InputError: a file that cannot be read, a metric that there is not, or no number.
    """
    if stated is None:
        return {}
    where = "`thresholds`."
    if not isinstance(stated, Mapping):
        where = f"File {str(stated)!r}."
        try:
            stated = tomllib.loads(Path(stated).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            how = 'It must be TOML with lines such as "attention.cosine" = 0.9.'
            raise InputError(f"The thresholds cannot be read: {reason_of(e)}.", where=where, how=how) from e
    return {key: _stated(key, value, where) for key, value in _flat(stated).items()}


def _stated(key: str, value: Any, where: str) -> Threshold:
    name = key.split("@", 1)[0]
    if name not in KEYS:
        hint = nearest(name, KEYS)
        how = f"Did you mean {' or '.join(hint)}?" if hint else f"There are {', '.join(KEYS)}."
        raise InputError(f"There is no metric {name!r}.", where=where, how=how)
    table = value if isinstance(value, Mapping) else {"value": value}
    line, share = table.get("value"), table.get("share", 0.0)
    numbers = all(type(n) in (int, float) and n == n for n in (line, share))
    if line is None or not numbers or set(table) - {"value", "share"} or not 0 <= share <= 1:
        how = "Give a number, or a table with value and share (a part of the inputs, from 0 to 1)."
        raise InputError(f"The threshold {key} = {value!r} cannot be used.", where=where, how=how)
    return Threshold(value=float(line), above=above(key), share=float(share), source="Given by the user.")


def refuse_unknown(stated: Thresholds, names: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError where a threshold is for a tensor that is not compared; `names` are those by subject."""
    for key in stated:
        metric, at, tensor = key.partition("@")
        known = names.get(metric.split(".")[0], ())
        if at and tensor not in known:
            hint = nearest(tensor, known)
            how = (
                f"Did you mean {' or '.join(map(repr, hint))}?" if hint else f"There are {', '.join(known) or 'none'}."
            )
            raise InputError(f"The threshold {key!r} is for a tensor that is not compared.", how=how)


def score(
    subject: Subject, name: str, metric: str, values: NDArray[np.float64], thresholds: Sequence[Thresholds]
) -> Score:
    """The values, judged by the first of the sets that has a line for that metric (of that tensor before any)."""
    key = f"{subject}.{metric}"
    line = next((t[k] for t in thresholds for k in (f"{key}@{name}", key) if k in t), None)
    if line is None:
        return Score(subject=subject, name=name, metric=metric, values=values, threshold=None, failing=0.0, ok=True)
    said = values[~np.isnan(values)]
    failing = float(np.mean(beyond(said, line))) if said.size else 0.0
    few = metric in COUNTED and len(said) >= _LEAST_INPUTS and failing * len(said) < 1.5
    return Score(
        subject=subject, name=name, metric=metric, values=values, threshold=line, failing=failing,
        ok=failing <= line.share or (few and line.share > 0),
    )  # fmt: skip


def beyond(values: NDArray[np.float64], line: Threshold) -> NDArray[np.bool_]:
    """Which of the values are on the wrong side."""
    return values > line.value if line.above else values < line.value


def above(key: str) -> bool:
    """Whether larger values of that metric are worse."""
    return METRICS[_metric(key)].above


def _metric(key: str) -> str:
    return key.split("@", 1)[0].split(".", 1)[1]


@cache
def _bundle() -> dict[str, dict[str, Line]]:
    text = (files(__package__) / "thresholds.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return {name: {key: Line(**line) for key, line in table.items()} for name, table in tables.items()}


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"attention": {"cosine": 0.9}} as {"attention.cosine": 0.9}: both are natural in TOML."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        whole = f"{before}{key}"
        if isinstance(value, Mapping) and not set(value) & {"value", "share"}:
            found |= _flat(value, f"{whole}.")
        else:
            found[whole] = value
    return found
