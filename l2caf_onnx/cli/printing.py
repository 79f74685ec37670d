"""What the commands print: tables and JSON on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their contents: a tensor's name is there to be copied, so it is never cut or wrapped."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def remark(text: str) -> None:
    """A line on stderr."""
    typer.echo(text, err=True)


class Steps:
    """Work that is under way; `advance` after each step."""

    def advance(self, what: str, count: int = 1) -> None:
        """`count` steps are done, `what` the last of them."""


@contextmanager
def progress(title: str, total: int) -> Iterator[Steps]:
    """A progress bar on stderr, where stderr is a terminal and there is more than one step."""
    if not sys.stderr.isatty() or total < 2:
        yield Steps()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        class Shown(Steps):
            def advance(self, what: str, count: int = 1) -> None:
                bar.update(task, advance=count, description=what)

        yield Shown()
