"""The benchmark's arithmetic and its table, and one small run of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scripts.bench import cases, measure, table, timing
from scripts.bench.table import Row
from tests.conftest import normal, parse

POOLED = "g (float[N,2,3,3] x) => (float[N,2] y) { r = Relu (x)  p = GlobalAveragePool (r)  y = Flatten (p) }"


def row(solver: str, ratio: float, loss: float | None = None, question: str = "outputs, unit", images: int = 1) -> Row:
    return Row(place="last conv", images=images, question=question, solver=solver, ratio=ratio, loss=loss)


def test_a_run_is_related_to_its_neighbours() -> None:
    forwards = itertools.cycle([1.0, 3.0])
    runs: list[int] = []
    timed = timing.interleaved(lambda: runs.append(1), lambda: next(forwards), 3)
    assert len(runs) == 3 * timing.NEIGHBOUR
    assert timed.forwards == (1.0, 3.0, 1.0, 3.0)
    np.testing.assert_allclose(timed.ratios, np.array(timed.seconds) / 2.0, rtol=1e-12, atol=0)
    assert timed.ratio == sorted(timed.ratios)[1]


def test_the_table_is_markdown() -> None:
    found = table.markdown(
        [
            Row(place="a|b", images=1, question="outputs, unit", solver="exact", first=1234.5, ratio=1.2345, ms=12.345,
                solve=0.25, loss=1.0, evaluations=26.94, certificate="global"),
            Row(place="c", images=16, question="defaults", solver="auto", failure="failed: dead"),
        ]
    ).splitlines()  # fmt: skip
    assert found[0] == f"| {' | '.join(table.COLUMNS)} |"
    assert found[1] == "|---|---:|---|---|---:|---:|---|---:|---:|---:|---:|"
    assert found[2] == "| a/b | 1 | outputs, unit | exact | 1.000000 | 26.94 | global | 1,234 | 1.23 | 0.25 | 12.3 |"
    assert found[3] == "| c | 16 | defaults | auto |  |  | failed: dead |  |  |  |  |"


def test_only_an_equal_or_lower_loss_counts_against_the_authors() -> None:
    rows = [
        row("sgd", 300, 1.0),
        row("lbfgs", 2.0, 1.1),
        row("exact", 3.0, 1.0 + 1e-8),
        row("exact", 1.0, 0.1, "other"),
    ]
    assert [*table.against_authors(rows)] == [
        "last conv, outputs, unit: 100 x faster by exact (loss 1.000000, sgd's 1.000000)"
    ]
    assert [*table.against_authors(rows[:2])] == [
        "last conv, outputs, unit: no solver of ours reached sgd's loss 1.000000"
    ]
    assert [*table.against_authors(rows[:1])] == [*table.against_authors(rows[1:])] == []


def test_peers_are_compared_with_the_defaults() -> None:
    rows = [row("auto: exact", 1.5, question="defaults, target"), row("exact", 1.0), row("x", 1.0, images=16)]
    assert [*table.against_peers(rows, [row("Grad-CAM", 12.0), row("torch", 4.0, question="no map")], "last conv")] == [
        "Grad-CAM: 8.00 x the cost of defaults, target at the last conv (auto: exact)"
    ]


def test_cases_are_chosen_by_words() -> None:
    every = [*cases.cases()]
    assert {c.solver for c in every} == {"sgd", "adam", "lbfgs", "exact", "auto"}
    assert len({(c.place, c.images, c.question, c.solver) for c in every}) == len(every)
    assert not any(c.slow for c in cases.cases(slow=False))
    one = [*cases.cases(["last 16 outputs exact"])]
    assert [(c.at, c.images, c.solver) for c in one] == [(cases.LAST_CONV, 16, "exact")]
    assert [*cases.cases(["last 1 defaults", "block 1 defaults"])] == [
        c for c in every if c.images == 1 and c.solver == "auto"
    ]
    assert [*cases.cases(["nothing"])] == []


def test_varied_pictures_differ() -> None:
    photos = normal(3, 3, 8, 40)
    made = [cases.varied(photos, i) for i in range(9)]
    assert all(np.array_equal(a, b[None]) for a, b in zip(made, photos, strict=False))
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(made, 2))


@pytest.mark.parametrize("solver", ["exact", "lbfgs", "sgd"])
def test_a_small_run(solver: str) -> None:
    asked = {"objective": "outputs", "radius": "unit", "solver": solver}
    case = cases.Case("pooled", "r", 2, "outputs, unit", solver, asked)
    model = parse(POOLED).SerializeToString()
    (found,) = measure.measured([case], model, lambda count: {"x": np.abs(normal(count, 2, 3, 3))}, 2)
    assert (found.failure, found.solver, len(found.ratios)) == ("", solver, 2)
    assert found.ratio is not None
    assert found.ratio > 0
    assert found.loss is not None
    assert found.loss >= 0
    assert (found.first is None) == (solver == "sgd")
    assert found.certificate == ("global" if solver == "exact" else "")


def test_a_case_that_fails_says_so_and_the_next_is_measured() -> None:
    made = [
        cases.Case("pooled", at, 1, "outputs, unit", "exact", {"radius": "unit", "solver": "exact"})
        for at in ("r", "missing", "r")
    ]
    model = parse(POOLED).SerializeToString()
    found = [*measure.measured(made, model, lambda count: {"x": np.abs(normal(count, 2, 3, 3))}, 1)]
    assert [r.failure.startswith("failed: ") for r in found] == [False, True, False]
    assert "missing" in found[1].failure
