"""How the regression commands tell what they found: on stdout in one format, in files beside it, by the exit code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from l2caf_onnx.errors import InputError

from .printing import print_json, print_table, progress, remark

if TYPE_CHECKING:
    from l2caf_onnx.records import Bisection, Comparison, Score

FORMATS = ("text", "github", "junit", "markdown", "json")
_STEPS = 1000  # of the progress bar
_SHOWN = 20  # rows of a table on the screen; the page and --json have them all
_UNSURE = 10  # of the alignment


@contextmanager
def telling(title: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar as the function that the API calls with what is done and the part of all that is done."""
    with progress(title, _STEPS) as steps:
        done = 0

        def tell(what: str, part: float) -> None:
            nonlocal done
            now = min(max(int(part * _STEPS), done), _STEPS)
            steps.advance(what, now - done)
            done = now

        yield tell


def format_of(name: str, json: bool, *files: Path | None) -> str:
    """The format that is printed, after a look at the `files` that shall be written: a mistake there costs no work.

    Raises:
        InputError: an unknown format, or a file that cannot be written.
    """
    if name not in FORMATS:
        raise InputError(f"There is no format {name!r}.", where="--format.", how=f"Choose {', '.join(FORMATS)}.")
    for file in files:
        if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            what = "is a folder" if file.is_dir() else "is in no folder that can be written to"
            raise InputError(f"The report {str(file)!r} {what}.", how="Give a file in a folder that exists.")
    return "json" if json else name


def publish(found: Comparison | Bisection, form: str, *, html: Path | None, junit: Path | None) -> None:
    """Write the files, print the verdict in the format `form`; GitHub's step summary too where it is asked for."""
    from l2caf_onnx.records import write_atomic
    from l2caf_onnx.render.github import commands
    from l2caf_onnx.render.junit import junit as document
    from l2caf_onnx.render.markdown import markdown

    if html is not None:
        from l2caf_onnx.render.report import save_report

        save_report(found, html)
    if junit is not None:
        content = document(found).encode()
        write_atomic(junit, lambda stream: _all(stream.write(content)))
    if form == "json":
        print_json(found.describe())
    elif form == "junit":
        typer.echo(document(found), nl=False)
    elif form == "markdown":
        typer.echo(markdown(found), nl=False)
    elif form == "github":
        typer.echo(commands(found), nl=False)
        _summarise(markdown(found))
    else:
        _print(found)
    if form in ("text", "json"):
        for note in found.notes:
            remark(f"Note: {note}")
    for file in (html, junit):
        if file is not None:
            remark(f"Written: {file}")


def _all(_: int) -> None:
    """A file object's `write` as the callback wants it."""


def _summarise(text: str) -> None:
    """Append to the step's summary, where GitHub names one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as e:
        remark(f"Note: the step summary cannot be written: {e.strerror}.")


def _print(found: Comparison | Bisection) -> None:
    from l2caf_onnx.records import Comparison
    from l2caf_onnx.render.verdict import headline

    typer.echo(headline(found))
    typer.echo(f"Change: {found.change}. {found.why}")
    if isinstance(found, Comparison):
        _print_scores(found)
        _print_classes(found)
    else:
        _print_nodes(found)
    _print_alignment(found)


def _print_scores(found: Comparison) -> None:
    """All failures and all that is judged of outputs and attention; of the tensors inside the worst."""
    from l2caf_onnx.render.verdict import called, number, quantiles, ranked

    judged = [s for s in ranked(found.scores) if s.threshold is not None]
    inside = [s for s in judged if s.ok and s.subject == "tensor"]
    shown = [s for s in judged if not (s.ok and s.subject == "tensor")][:_SHOWN] + inside[:1]
    if not shown:
        return

    def row(s: Score) -> tuple[str, ...]:
        worst, tenth, median = map(number, quantiles(s))
        line = s.threshold
        allowed = "-" if line is None else f"{'<=' if line.above else '>='} {number(line.value)}"
        share = f"{s.failing:.0%}" + (f" of {line.share:.0%}" if line and line.share else "")
        on = found.inputs[s.worst] if s.worst is not None else "-"
        return ("ok" if s.ok else "BEYOND", called(s), s.name, worst, tenth, median, allowed, share, on)

    head = ("", "score", "tensor", "worst", "1 in 10", "median", "allowed", "beyond", "worst on")
    typer.echo("")
    print_table(head, [row(s) for s in shown])
    if len(judged) > len(shown):
        typer.echo(f"{len(judged) - len(shown)} more judged scores; --html or --json have them all.")
    typer.echo("")
    sources = {called(s): s.threshold.source for s in reversed(shown) if s.threshold is not None}
    for name, source in reversed(sources.items()):
        typer.echo(f"{name}: {source}")


def _print_classes(found: Comparison) -> None:
    """The inputs whose likeliest class is another now; where there is none, and they have names, what it is."""
    from l2caf_onnx.render.verdict import class_name, differing, likeliest

    told, classes = likeliest(found), found.classes
    if not told:
        return
    typer.echo("")
    if not classes.differing:
        typer.echo(told)
        return
    typer.echo(f"{differing(found)}:")
    both = [(k, classes.reference[k], classes.candidate[k]) for k in classes.differing[:_SHOWN]]
    rows = [
        (found.inputs[k], class_name(classes.names, one), class_name(classes.names, other)) for k, one, other in both
    ]
    print_table(("input", "reference", "candidate"), rows)
    if len(classes.differing) > len(rows):
        typer.echo(f"{len(classes.differing) - len(rows)} more inputs; --html or --json have them all.")


def _print_nodes(found: Bisection) -> None:
    from l2caf_onnx.render.verdict import number

    if not found.nodes:
        return
    head = ("", "node", "operator", "makes", "local error", "noise", "inherited", "1 - cosine")
    typer.echo("")
    print_table(
        head,
        [
            ("ok" if n.ok else "AT FAULT", n.node or "-", n.op_type, n.candidate, number(n.local), number(n.noise),
             number(n.inherited), number(n.attention))
            for n in found.ranked[:_SHOWN]
        ],
    )  # fmt: skip
    if len(found.nodes) > _SHOWN:
        typer.echo(f"{len(found.nodes) - _SHOWN} more nodes; --html or --json have them all.")


def _print_alignment(found: Comparison | Bisection) -> None:
    """How many tensors are aligned and how; those that no name tells, the least certain first."""
    from l2caf_onnx.records import Comparison
    from l2caf_onnx.render.verdict import number

    if not found.alignment:
        return
    ways = Counter(a.how for a in found.alignment)
    told = ", ".join(f"{count} by {how}" if how != "given" else f"{count} given" for how, count in ways.most_common())
    least = min(a.confidence for a in found.alignment)
    typer.echo("")
    typer.echo(f"Aligned: {len(found.alignment)} tensors ({told}); confidence at least {number(least)}.")
    broken = {p.at for p in found.pairs} if isinstance(found, Comparison) else set()
    unsure = sorted(found.alignment, key=lambda a: (a.reference not in broken, a.confidence))
    rows = [a for a in unsure if a.reference in broken or a.reference != a.candidate][:_UNSURE]
    if rows:
        print_table(
            ("reference", "candidate", "how", "axes", "scale", "confidence"),
            [
                (a.reference, a.candidate, a.how, ",".join(map(str, a.order)) if a.order else "-", number(a.scale),
                 number(a.confidence))
                for a in rows
            ],
        )  # fmt: skip
