"""What all reports say alike of a comparison: how bad a score is, which is worst, and one sentence for the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from l2caf_onnx.records import Bisection, Comparison, NodeError, Score, Threshold

LONGEST = 160  # characters of a name in a report
_LABEL = 60  # and of a class
_FEW = 5  # inputs or classes in a sentence
_CAP = 1e9  # nothing is said to be worse than that
WHAT = {"output": "outputs", "attention": "attention", "tensor": "tensors inside"}


def excess(value: float, line: Threshold) -> float:
    """How many times the allowed deviation `value` is: 1 on the line, more beyond it.

    Of errors it is value / line. Of similarities, which are at most 1, it is (1 - value) / (1 - line); of decibels,
    whose line is above 1, the ratio of the amplitudes.
    """
    if math.isnan(value):
        return 0.0
    if line.above:
        return min(value / line.value, _CAP) if line.value > 0 else (_CAP if value > line.value else 1.0)
    if line.value > 1:
        return min(10 ** (min(line.value - value, 180) / 20), _CAP)
    if line.value == 1:
        return _CAP if value < 1 else 1.0
    return min((1 - value) / (1 - line.value), _CAP)


def beyond(score: Score, number: int) -> bool:
    """Whether input `number` is beyond the line of `score`."""
    value, line = float(score.values[number]), score.threshold
    if line is None or math.isnan(value):
        return False
    return value > line.value if line.above else value < line.value


def badness(score: Score) -> float:
    """The excess of the worst input; 0 where nothing is judged."""
    worst = score.worst
    return 0.0 if worst is None or score.threshold is None else excess(float(score.values[worst]), score.threshold)


def ranked(scores: Iterable[Score]) -> list[Score]:
    """Failures first, worst first; then what is judged, nearest to its line first; then the rest."""
    return sorted(scores, key=lambda s: (s.ok, s.threshold is None, -badness(s)))


def worst_inputs(found: Comparison, at: str | None = None) -> list[int]:
    """The inputs, worst first: by their largest excess in scores that fail, then in all; of one breakpoint, its own."""
    own = [s for s in found.scores if at is None or (s.subject == "attention" and s.name == at)]
    judged = [s for s in own if s.threshold is not None]

    def key(number: int) -> tuple[float, float, int]:
        failing = [excess(float(s.values[number]), s.threshold) for s in judged if s.threshold and not s.ok]
        each = [excess(float(s.values[number]), s.threshold) for s in judged if s.threshold]
        return (-max(failing, default=0.0), -max(each, default=0.0), number)

    return sorted(range(len(found.inputs)), key=key)


def headline(found: Comparison | Bisection) -> str:
    """The verdict in one sentence, names as they are."""
    if isinstance(found, Bisection):
        return _of_bisection(found)
    judged = [s for s in found.scores if s.threshold is not None]
    many = f"{len(found.inputs)} input{'s' if len(found.inputs) != 1 else ''}"
    if found.ok:
        held = f"all {len(judged)} judged scores are" if len(judged) != 1 else "the only judged score is"
        return f"No regression: on {many}, {held} within {_its(len(judged))}."
    failures = ranked(found.failures)
    of = ", ".join(f"{count} of {WHAT[s]}" for s in WHAT if (count := sum(1 for f in failures if f.subject == s)))
    beyond_them = "are beyond their thresholds" if len(failures) > 1 else "is beyond its threshold"
    return (
        f"Regression: on {many}, {len(failures)} of {len(judged)} judged scores {beyond_them} ({of}). "
        f"Worst: {said(failures[0], found)}"
    )


def _its(count: int) -> str:
    return "its threshold" if count == 1 else "their thresholds"


def _of_bisection(found: Bisection) -> str:
    many = f"{len(found.inputs)} input{'s' if len(found.inputs) != 1 else ''}"
    if found.first is None:
        return f"No node at fault: on {many}, none of {len(found.nodes)} aligned nodes differs by more than noise."
    bad = sum(1 for n in found.nodes if not n.ok)
    more = f" {bad - 1} later node{'s differ' if bad != 2 else ' differs'} by itself too." if bad > 1 else ""
    first = found.first
    return (
        f"First at fault: node {clean(first.node or first.candidate)} ({clean(first.op_type, 40)}), which makes "
        f"{clean(first.candidate)}: its local error is {number(first.local)}, noise is {number(first.noise)}.{more}"
    )


def said(score: Score, found: Comparison) -> str:
    """One score as a sentence: where, what, how far, on which input."""
    worst = score.worst
    text = f"{called(score)} at {clean(score.name)}"
    if worst is None:
        return f"{text} says nothing of any input."
    text = (
        f"{text} is {number(float(score.values[worst]))} on {clean(found.inputs[worst])}{_classes(score, found, worst)}"
    )
    if score.threshold is None:
        return f"{text}, not judged."
    line = score.threshold
    some = f" on all but {line.share:.0%} of the inputs" if line.share else ""
    way = "at most" if line.above else "at least"
    return f"{text}, allowed {way} {number(line.value)}{some}; beyond on {score.failing:.0%}."


def called(score: Score) -> str:
    """Subject and metric, as `--threshold` names them."""
    return f"{score.subject}.{clean(score.metric, 40)}"


def class_name(names: Mapping[int, str], index: int) -> str:
    """A class with its name, if it has one."""
    name = clean(names.get(index, ""), _LABEL)
    return f"{index} {name}" if name else f"class {index}"


def answered(found: Comparison, k: int) -> str:
    """The likeliest class of input `k` in both models; "" where they have no classes."""
    if not found.classes.reference:
        return ""
    one, other = found.classes.reference[k], found.classes.candidate[k]
    told = class_name(found.classes.names, one)
    return told if one == other else f"{told}, in the candidate {class_name(found.classes.names, other)}"


def about(found: Comparison, k: int) -> str:
    """The class that attention was asked about on input `k`; "" where about none."""
    return f"about {class_name(found.classes.names, found.classes.asked[k])}" if found.classes.asked else ""


def likeliest(found: Comparison) -> str:
    """One sentence: on which inputs the likeliest class is another; where on none, and they have names, which it is."""
    classes, total = found.classes, len(found.inputs)
    if classes.differing:
        told = [f"{clean(found.inputs[k])} ({answered(found, k)})" for k in classes.differing]
        return f"{differing(found)}: {_listed(told)}."
    if not classes.reference or not classes.names:
        return ""
    where = f"all {total} inputs" if total > 1 else "the only input"
    return f"The likeliest class is the same on {where}: {counted(classes.reference, classes.names)}."


def differing(found: Comparison) -> str:
    """How often the likeliest class is another, without a stop."""
    total = len(found.inputs)
    return f"The likeliest class differs on {len(found.classes.differing)} of {total} input{'s' if total != 1 else ''}"


def counted(classes: Iterable[int], names: Mapping[int, str]) -> str:
    """The classes of some inputs, each with how many it is of, the most frequent first."""
    return _listed([f"{class_name(names, k)} ({count})" for k, count in Counter(classes).most_common()])


def _listed(told: list[str]) -> str:
    return ", ".join(told[:_FEW]) + (f", and {len(told) - _FEW} more" if len(told) > _FEW else "")


def _classes(score: Score, found: Comparison, k: int) -> str:
    """Behind a score that counts classes: which they are."""
    told = answered(found, k) if (score.subject, score.metric) == ("output", "top1") else ""
    return f" ({told})" if told else ""


def number(value: float | None) -> str:
    """A number as a reader wants it: four digits."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4g}"


def clean(name: str, most: int = LONGEST) -> str:
    """A name on one line and of bearable length, its middle cut; what cannot be printed becomes a mark."""
    ends = name[: 4 * most] + name[4 * most :][-most:]  # a name of a megabyte is not looked at whole
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in ends)
    return line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[-(most // 2) :]}"


def quantiles(score: Score) -> tuple[float, float, float]:
    """(the worst, the one that one input in ten is beyond, the median) of the values that say something."""
    known = score.values[~np.isnan(score.values)]
    if not known.size:
        return (math.nan,) * 3
    worse_up = score.threshold is None or score.threshold.above
    ordered = np.sort(known)[:: -1 if worse_up else 1]
    last = len(ordered) - 1
    return (float(ordered[0]), float(ordered[int(0.1 * last + 0.5)]), float(ordered[int(0.5 * last + 0.5)]))


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of one input at one tensor, or of all inputs (`input` None): a line of a test report.

    `failures` are sentences; a case without any passed. `seen` are the judged values, as text;
    `classes` the likeliest, or what attention was asked about.
    """

    tensor: str
    subject: str
    input: str | None
    failures: tuple[str, ...]
    seen: tuple[str, ...]
    classes: str = ""


def cases(found: Comparison | Bisection) -> tuple[Case, ...]:
    """A case for each input at each output and breakpoint, one for each tensor inside; failures as the record has them.

    An input that is beyond a line where the line allows that of some inputs is no failure. A failing score that no
    single input explains fails in a case of its own.
    """
    if isinstance(found, Bisection):
        return tuple(
            Case(n.candidate, "node", None, () if n.ok else (node_said(n),), (f"local {number(n.local)}",))
            for n in found.nodes
        )
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in found.scores:
        if score.threshold is not None:
            groups.setdefault((score.subject, score.name), []).append(score)
    made: list[Case] = []
    for (subject, name), scores in groups.items():
        if subject == "tensor":
            bad = [s for s in scores if not s.ok]
            seen = tuple(f"{s.metric} {number(quantiles(s)[0])}" for s in scores)
            made.append(Case(name, subject, None, tuple(f"{said(s, found)} ({_source(s)})" for s in bad), seen))
            continue
        for k, given in enumerate(found.inputs):
            bad = [s for s in scores if not s.ok and beyond(s, k)]
            seen = tuple(f"{s.metric} {number(float(s.values[k]))}" for s in scores)
            told = answered(found, k) if subject == "output" else about(found, k)
            made.append(Case(name, subject, given, tuple(_at(s, k, found) for s in bad), seen, told))
        whole = [s for s in scores if not s.ok and not any(beyond(s, k) for k in range(len(found.inputs)))]
        if whole:
            made.append(Case(name, subject, None, tuple(said(s, found) for s in whole), ()))
    return tuple(made)


def _at(score: Score, k: int, found: Comparison) -> str:
    line = score.threshold
    if line is None:
        return ""
    way = "at most" if line.above else "at least"
    return (
        f"{called(score)} at {clean(score.name)} is {number(float(score.values[k]))}{_classes(score, found, k)}, "
        f"allowed {way} {number(line.value)} ({_source(score)})"
    )


def _source(score: Score) -> str:
    return clean(score.threshold.source, 400) if score.threshold is not None else "not judged"


def node_said(node: NodeError) -> str:
    """One node of a bisection as a sentence."""
    return (
        f"node {clean(node.node or node.candidate)} ({clean(node.op_type, 40)}): local error {number(node.local)}, "
        f"noise {number(node.noise)}; inherited {number(node.inherited)}"
    )
