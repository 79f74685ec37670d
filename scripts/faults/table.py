"""What the rows add up to: detection beside false alarms, of this tool and of checks of outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from .planting import absent
from .rows import Row

CLASSES = {"many": "change the answer of 1% of inputs or more", "some": "of fewer", "none": "of none"}
Verdict = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """A check of one measure of the outputs against one threshold for each class of change (and model).

    The thresholds are the largest values that any harmless change has: no lower ones raise no false alarm. So it knows
    what it will be asked, which no check does in life.
    """

    measure: str
    thresholds: dict[tuple[str, ...], float]
    by_model: bool

    def __call__(self, row: Row) -> bool:
        """Whether it raises an alarm."""
        key = (row.base, row.model) if self.by_model else (row.base,)
        return row.looks[self.measure] > self.thresholds.get(key, float("inf"))


def best_output_check(rows: Sequence[Row], *, by_model: bool = False) -> OutputCheck | None:
    """Of all measures the one that finds the most faults, each at its lowest thresholds without a false alarm."""
    harmless = [r for r in rows if r.kind == "harmless" and r.looks]
    planted = heard(rows)
    checks = []
    for measure in harmless[0].looks if harmless else ():
        thresholds: dict[tuple[str, ...], float] = {}
        for row in harmless:
            key = (row.base, row.model) if by_model else (row.base,)
            thresholds[key] = max(thresholds.get(key, 0.0), row.looks[measure])
        checks.append(OutputCheck(measure, thresholds, by_model))
    return max(checks, key=lambda check: sum(map(check, planted)), default=None)


def heard(rows: Iterable[Row]) -> list[Row]:
    """The faults whose effect is above the noise."""
    return [r for r in rows if r.kind == "fault" and r.effect is not None and r.effect.heard]


def report(rows: Sequence[Row]) -> Iterator[str]:
    """The tables and lists, as lines of markdown."""
    overall, by_model = best_output_check(rows), best_output_check(rows, by_model=True)
    if overall is None or by_model is None:
        yield "No harmless change has been tried yet."
        return
    states = sorted({r.product for r in rows})
    if len(states) > 1:
        yield f"Verdicts of {len(states)} states of the product are mixed here ({', '.join(states)})."
        yield ""
    yield from _detection(rows, overall, by_model)
    yield from _harmless(rows)
    yield from _bisection(rows)
    yield from _families(rows)
    yield from _apart(rows)
    yield ""
    yield f"Output check: {overall.measure}; with thresholds for each model: {by_model.measure}."
    for base in dict.fromkeys(r.base for r in rows):
        yield f"- {base}: threshold {overall.thresholds.get((base,), float('nan')):.2e}"


def _detection(rows: Sequence[Row], overall: OutputCheck, by_model: OutputCheck) -> Iterator[str]:
    columns: dict[str, Verdict] = {
        "outputs, one threshold": overall,
        "outputs, a threshold for each model": by_model,
        "this tool's output scores": attrgetter("alarm_by_outputs"),
        "this tool": attrgetter("alarm"),
    }
    yield f"| faults that | planted | {' | '.join(columns)} |"
    yield f"|---|---:|{'---:|' * len(columns)}"
    for kind, words in CLASSES.items():
        for base in ("", "float32", "float16", "int8"):
            here = [r for r in heard(rows) if _answers(r) == kind and base in (r.base, "")]
            if here:
                cells = [_share(sum(map(check, here)), len(here)) for check in columns.values()]
                yield f"| {words if not base else f'— {base}'} | {len(here)} | {' | '.join(cells)} |"
    harmless = [r for r in rows if r.kind == "harmless" and not r.error.startswith("no place")]
    cells = [_share(sum(map(check, [r for r in harmless if r.looks])), len(harmless)) for check in columns.values()]
    yield f"| harmless changes (false alarms) | {len(harmless)} | {' | '.join(cells)} |"


def _harmless(rows: Sequence[Row]) -> Iterator[str]:
    harmless = [r for r in rows if r.kind == "harmless"]
    yield ""
    for model in dict.fromkeys(r.model for r in harmless):
        here = [r for r in harmless if r.model == model]
        kinds = [r for r in here if not r.error.startswith("no place")]
        wrong = [f"{r.name} ({r.error or _why(r)})" for r in kinds if r.alarm or r.error]
        none = [r.name for r in here if r not in kinds]
        yield (
            f"- {model}: {len(kinds)} kinds of harmless changes, {len(wrong)} alarms or refusals"
            f"{': ' + '; '.join(wrong) if wrong else ''}{'; no place for ' + ', '.join(none) if none else ''}"
        )


def _bisection(rows: Sequence[Row]) -> Iterator[str]:
    asked = [r for r in heard(rows) if r.place != "input"]
    yield ""
    yield "| bisect | faults | names the planted node or its consumer |"
    yield "|---|---:|---:|"
    for base in ("", "float32", "float16", "int8"):
        here = [r for r in asked if base in (r.base, "")]
        if here:
            yield f"| {base or 'all'} | {len(here)} | {_share(sum(_is_named(r) for r in here), len(here))} |"
    yield ""
    for row in asked:
        if not _is_named(row):
            said = row.named[0] if row.named else row.error or "not run"
            yield f"- not named: {row.model}, {row.name} ({row.where}): {said or 'nothing'}"


def _families(rows: Sequence[Row]) -> Iterator[str]:
    yield ""
    yield "| fault | planted | above the noise | found | named by bisect |"
    yield "|---|---:|---:|---:|---:|"
    planted = [r for r in rows if r.kind == "fault"]
    for family in dict.fromkeys(f"{r.family} {r.strength}".strip() for r in planted):
        here = [r for r in planted if f"{r.family} {r.strength}".strip() == family]
        loud = heard(here)
        asked = [r for r in loud if r.place != "input"]
        named = f"{sum(map(_is_named, asked))} of {len(asked)}" if asked else ""
        yield f"| {family} | {len(here)} | {len(loud)} | {sum(r.alarm for r in loud)} | {named} |"


def _apart(rows: Sequence[Row]) -> Iterator[str]:
    planted = [r for r in rows if r.kind == "fault" and r.effect is not None]
    yield ""
    for row in planted:
        if row.effect is not None and not row.effect.heard:
            size = f"{row.effect.error:.1e}, noise {row.effect.noise:.1e}"
            yield f"- below the noise: {row.model}, {row.name} ({size}); {'an alarm' if row.alarm else 'no alarm'}"
    for row in heard(rows):
        if not row.alarm:
            yield f"- not found: {row.model}, {row.name}, answers change in {_answers(row)} {row.error}"
    for model in dict.fromkeys(r.model for r in planted):
        missing = absent([(r.family, r.place) for r in planted if r.model == model])
        text = "; ".join(f"{f}: {', '.join(p) if len(p) < 3 else 'none'}" for f, p in missing.items())
        yield f"- no place in {model}: {text}"


def _answers(row: Row) -> str:
    return row.effect.answers if row.effect is not None else ""


def _is_named(row: Row) -> bool:
    return row.named is not None and row.named[1]


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "0"


def _why(row: Row) -> str:
    return ", ".join(f"{subject} {metric} of {name}" for subject, name, metric, _ in row.failures[:3])
