"""The line between noise and a regression: bundled for each class of change, calibrated where it can be, or given.

A key is "subject.metric", or "subject.metric@tensor" for one tensor alone, which wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import InputError, nearest
from l2caf_onnx.records import Change, Score, Subject, Threshold

from .metrics import TABLE

Thresholds = Mapping[str, Threshold]
Stated = Mapping[str, float] | str | Path | None

ABOVE = {"tensor.local": True, "tensor.inherited": True} | {
    f"{subject}.{m.name}": m.above for m in TABLE for subject in m.subjects
}
"""Every "subject.metric" and whether larger values are worse."""


def bundled(change: Change) -> dict[str, Threshold]:
    """The thresholds of a class that come with the program (thresholds.toml says how they were set)."""
    source = f"Bundled for changes of the class {change}."
    return {key: _threshold(key, line, share, source) for key, (line, share) in _bundle()[change].items()}


def given(stated: Stated) -> dict[str, Threshold]:
    """The user's own: {"attention.cosine": 0.9}, or a TOML file of such lines.

    Raises:
        InputError: a file that cannot be read, a metric that there is not, or no number.
    """
    if stated is None:
        return {}
    where = "`thresholds`."
    if not isinstance(stated, Mapping):
        where = f"File {str(stated)!r}."
        try:
            stated = _flat(tomllib.loads(Path(stated).read_text(encoding="utf-8")))
        except OSError as e:
            raise InputError(f"The thresholds cannot be read: {e.strerror}.", where=where) from e
        except (ValueError, TypeError) as e:
            raise InputError(f"The thresholds are not valid TOML: {e}.", where=where) from e
    found = {}
    for key, value in stated.items():
        metric = key.split("@", 1)[0]
        if metric not in ABOVE:
            hint = nearest(metric, ABOVE)
            raise InputError(
                f"There is no metric {metric!r}.",
                where=where,
                how=f"Did you mean {' or '.join(hint)}?" if hint else f"There are {', '.join(ABOVE)}.",
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or np.isnan(value):
            raise InputError(f"The threshold {key} = {value!r} is no number.", where=where, how="Give a number.")
        found[key] = _threshold(metric, float(value), 0.0, "Given by the user.")
    return found


def score(
    subject: Subject, name: str, metric: str, values: NDArray[np.float64], thresholds: Sequence[Thresholds]
) -> Score:
    """The values, judged by the first of the sets that has a line for that metric (of that tensor before any)."""
    key = f"{subject}.{metric}"
    keys = (f"{key}@{name}", key)
    line = next((t[k] for t in thresholds for k in keys if k in t), None)
    if line is None:
        return Score(subject=subject, name=name, metric=metric, values=values, threshold=None, failing=0.0, ok=True)
    failing = beyond(values, line)
    return Score(
        subject=subject, name=name, metric=metric, values=values, threshold=line, failing=failing,
        ok=failing <= line.share,
    )  # fmt: skip


def beyond(values: NDArray[np.float64], line: Threshold) -> float:
    """The share of the values that say something that is beyond the line."""
    said = values[~np.isnan(values)]
    if not said.size:
        return 0.0
    return float(np.mean(said > line.value if line.above else said < line.value))


def widened(bundle: Thresholds, floors: Mapping[str, float], factor: float, source: str) -> dict[str, Threshold]:
    """The bundled lines, moved away from what is harmless by `factor` times the noise measured, where that is further.

    Args:
        bundle: The class's.
        floors: For each "subject.metric" (or with @tensor) the worst value that harmless variations had.
        factor: How far beyond the noise a line is drawn.
        source: Where the floors come from.
    """
    found = dict(bundle)
    for key, floor in floors.items():
        metric = key.split("@", 1)[0]
        base = bundle.get(key) or bundle.get(metric)
        if base is None or not np.isfinite(floor):
            continue
        line = factor * floor if base.above else 1 - factor * (1 - floor)
        further = line > base.value if base.above else line < base.value
        if further:
            said = f"{source} at worst {floor:.4g}, times {factor:g}" + ("" if base.above else " (of 1 minus it)")
            found[key] = Threshold(value=float(line), above=base.above, share=base.share, source=f"{said}.")
    return found


def _threshold(key: str, line: float, share: float, source: str) -> Threshold:
    return Threshold(value=line, above=ABOVE[key], share=share, source=source)


@cache
def _bundle() -> dict[str, dict[str, tuple[float, float]]]:
    text = (files(__package__) / "thresholds.toml").read_text(encoding="utf-8")
    return {name: {k: (v[0], v[1]) for k, v in table.items()} for name, table in tomllib.loads(text).items()}


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """{"attention": {"cosine": 0.9}} as {"attention.cosine": 0.9}: both are natural in TOML."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            found[key] = value
    return found
