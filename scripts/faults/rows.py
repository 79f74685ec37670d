"""One case of the bench as a line of JSON, so that a run can be cut into pieces and go on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import l2caf_onnx as caf

from .effect import Effect

PACKAGE = Path(caf.__file__).parent
Kind = Literal["fault", "harmless"]


@cache
def state() -> str:
    """A digest of the product's sources: verdicts of several states do not belong in one table."""
    total = hashlib.sha256()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".toml")):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one case.

    Attributes:
        model: Of which model it is a change.
        kind: "fault" or "harmless".
        name: Of the case, unique within model and kind.
        family, strength, place, where: Of a fault.
        base: The class in which it was made: "float32", "float16" or "int8".
        inputs: How many there were.
        effect: What it does; None of a harmless change.
        looks: What a check of outputs alone could hold against a threshold.
        change: The class that the tool read from the graphs.
        failures: The scores that it found beyond their threshold, as [subject, tensor, metric, share failing].
        named: What bisect names first, and whether that is the planted node or its consumer; None where it was not run.
        seconds: Of compare and of bisect.
        judged: How many scores had a threshold.
        rank: Of the planted tensors the best place in bisect's list of the worst.
        error: Why there is no verdict, or no bisection.
        product: Which state of the product gave the verdict.
    """

    model: str
    kind: Kind
    name: str
    base: str
    inputs: int
    family: str = ""
    strength: str = ""
    place: str = ""
    where: str = ""
    effect: Effect | None = None
    looks: dict[str, float] = field(default_factory=dict)
    change: str = ""
    failures: list[list[Any]] = field(default_factory=list)
    judged: int = 0
    named: tuple[str, bool] | None = None
    rank: int | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    error: str = ""
    product: str = field(default_factory=state)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes it the same case."""
        return self.model, self.kind, self.name, self.inputs

    @property
    def alarm(self) -> bool:
        """Whether the tool raises one."""
        return bool(self.failures)

    @property
    def alarm_by_outputs(self) -> bool:
        """Whether its scores of outputs alone do."""
        return any(subject == "output" for subject, *_ in self.failures)


def read(path: Path) -> list[Row]:
    """The rows of a file; of a case that is there twice the later one."""
    rows: dict[Any, Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            made = from_json(line)
            rows[made.key] = made
    return list(rows.values())


def from_json(line: str) -> Row:
    """A row from its line."""
    values = json.loads(line)
    values["effect"] = Effect(**values["effect"]) if values["effect"] else None
    values["named"] = tuple(values["named"]) if values["named"] else None
    values["seconds"] = tuple(values["seconds"])
    return Row(**values)


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
