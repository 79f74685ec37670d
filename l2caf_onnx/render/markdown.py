"""Markdown for pull requests and GitHub's step summary: the verdict, what failed, the worst first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from l2caf_onnx.records import Bisection, Comparison

from .verdict import called, class_name, clean, differing, headline, likeliest, number, quantiles, ranked

MOST = 50  # rows of a table: a step summary holds a megabyte
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$@&!])")


def markdown(found: Comparison | Bisection) -> str:
    """The report as GitHub's markdown; names are code, so that nothing in them is read as markup."""
    what = found.kind if isinstance(found, Comparison) else "bisect"
    lines = [f"## {'✅' if found.ok else '❌'} l2caf-onnx {what}", "", _text(headline(found)), ""]
    sides = (("reference", found.reference), ("candidate", found.candidate))
    lines += [f"- {side}: {code(m.get('name', ''))} {code(m.get('sha256', '')[:12])}" for side, m in sides]
    lines += [f"- change: **{found.change}**. {_text(found.why)}", f"- inputs: {len(found.inputs)}"]
    lines += [f"- {_text(note)}" for note in found.notes[:MOST]]
    lines.append("")
    lines += [*_of_scores(found), *_of_classes(found)] if isinstance(found, Comparison) else _of_nodes(found)
    return "\n".join(lines) + "\n"


def _of_scores(found: Comparison) -> list[str]:
    judged = [s for s in ranked(found.scores) if s.threshold is not None]
    head = ("", "score", "tensor", "worst", "1 in 10", "median", "allowed", "beyond", "worst input", "threshold from")
    rows = []
    for s in judged[:MOST]:
        if s.threshold is None:
            continue
        worst, tenth, median = map(number, quantiles(s))
        line = f"{'≤' if s.threshold.above else '≥'} {number(s.threshold.value)}"
        on = code(found.inputs[s.worst]) if s.worst is not None else "-"
        share = f"{s.failing:.0%}" + (f" ({s.threshold.share:.0%} allowed)" if s.threshold.share else "")
        rows.append(
            ("ok" if s.ok else "**beyond**", code(called(s)), code(s.name), worst, tenth, median, line,
             share, on, _text(clean(s.threshold.source)))
        )  # fmt: skip
    return _table(head, rows, len(judged))


def _of_classes(found: Comparison) -> list[str]:
    classes = found.classes
    if not classes.differing:
        return ["", _text(told)] if (told := likeliest(found)) else []
    rows = [
        (
            code(found.inputs[k]),
            *(_text(class_name(classes.names, c[k])) for c in (classes.reference, classes.candidate)),
        )
        for k in classes.differing[:MOST]
    ]
    return ["", f"{differing(found)}:", "", *_table(("input", "reference", "candidate"), rows, len(classes.differing))]


def _of_nodes(found: Bisection) -> list[str]:
    head = ("", "node", "operator", "tensor", "local error", "noise", "inherited error", "1 - cosine of attention")
    order = found.ranked
    rows = [
        ("ok" if n.ok else "**at fault**", code(n.node or n.candidate), code(n.op_type), code(n.candidate),
         number(n.local), number(n.noise), number(n.inherited), number(n.attention))
        for n in order[:MOST]
    ]  # fmt: skip
    return _table(head, rows, len(order))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], total: int) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    if total > MOST:
        lines += ["", f"{total - MOST} more rows are not shown."]
    return lines


def code(name: str) -> str:
    """A name as a code span: its fence is longer than any run of backticks in it, its pipes end no cell."""
    line = clean(name).replace("|", "\\|")
    if not line.strip():
        return "(no name)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    edge = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def _text(sentence: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(sentence.split()))
