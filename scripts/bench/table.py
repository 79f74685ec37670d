"""Rows of figures, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

COLUMNS = ("breakpoint", "images", "question", "solver", "loss", "evaluations", "certificate",
           "first call, x forward", "then, x forward", "the solve of it", "ms an image")  # fmt: skip
LEFT = ("breakpoint", "question", "solver", "certificate")  # the others are numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one thing.

    Attributes:
        place: The breakpoint's name in the table.
        images: Pictures at once.
        question: What was asked.
        solver: Which one ran; for others' methods, their name.
        first: The first call of a fresh model, as a multiple of a plain forward; None: not measured.
        ratio: Later calls likewise, median; of a batch, this is also a picture's part over a picture's part.
        solve: What of `ratio` finding the filter took; None for others' methods.
        ms: Later calls for one picture, median.
        loss: Reached, mean over the pictures; None for others' methods.
        evaluations: Of the tail with gradient, mean over the pictures.
        certificate: Its kind.
        ratios: Of each run.
        failure: Why there are no figures; "" where there are.
    """

    place: str
    images: int
    question: str
    solver: str
    first: float | None = None
    ratio: float | None = None
    solve: float | None = None
    ms: float | None = None
    loss: float | None = None
    evaluations: float | None = None
    certificate: str = ""
    ratios: tuple[float, ...] = ()
    failure: str = ""

    def cells(self) -> tuple[str, ...]:
        return (
            self.place, str(self.images), self.question, self.solver, number(self.loss, "loss"),
            "" if self.evaluations is None else f"{self.evaluations:.4g}", self.failure or self.certificate,
            number(self.first), number(self.ratio), number(self.solve), number(self.ms),
        )  # fmt: skip


def number(value: float | None, kind: str = "ratio") -> str:
    """Losses with six decimals (the solvers differ in the fourth), all else with three figures."""
    if value is None:
        return ""
    if kind == "loss":
        return f"{value:.6f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def header() -> str:
    return f"{line(COLUMNS)}\n|{'|'.join('---' if c in LEFT else '---:' for c in COLUMNS)}|"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def markdown(rows: Iterable[Row]) -> str:
    return "\n".join([header(), *(line(row.cells()) for row in rows)])


def against_authors(rows: Sequence[Row]) -> Iterator[str]:
    """For each question that the authors' SGD loop answered: its time over ours, at equal or lower loss."""
    for theirs in rows:
        if theirs.solver != "sgd" or theirs.ratio is None or theirs.loss is None:
            continue
        question = f"{theirs.place}, {theirs.question}"
        ours = [
            r for r in rows
            if (r.place, r.images, r.question) == (theirs.place, theirs.images, theirs.question)
            and r.solver not in ("sgd", "adam") and r.ratio is not None and r.loss is not None
        ]  # fmt: skip
        reached = [r for r in ours if r.loss is not None and not_above(r.loss, theirs.loss)]
        best = min(reached, key=lambda r: r.ratio or 0.0, default=None)
        if best is not None and best.ratio:
            times = number(theirs.ratio / best.ratio)
            alone = f", the solve alone {number(theirs.solve / best.solve)} x" if theirs.solve and best.solve else ""
            losses = f"loss {best.loss:.6f}, sgd's {theirs.loss:.6f}"
            yield f"{question}: {times} x faster by {best.solver}{alone} ({losses})"
        elif ours:
            yield f"{question}: no solver of ours reached sgd's loss {theirs.loss:.6f}"


def not_above(ours: float, theirs: float) -> bool:
    """Equal or lower, but for the rounding of float32."""
    return ours <= theirs + 1e-6 * abs(theirs)


def against_peers(rows: Sequence[Row], peers: Sequence[Row], place: str) -> Iterator[str]:
    """The multiple of a forward that each peer's map costs over ours, for one picture and the default settings."""
    for peer in (p for p in peers if p.question != "no map"):
        for row in rows:
            if row.place == place and row.images == 1 and row.question.startswith("defaults") and row.ratio:
                times = number((peer.ratio or 0.0) / row.ratio)
                yield f"{peer.solver}: {times} x the cost of {row.question} at the {place} ({row.solver})"
