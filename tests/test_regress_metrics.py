"""Every metric against an independent computation: loops over cells, closed forms, worked examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from l2caf_onnx.regress.metrics import METRICS, TABLE, metrics_of

Values = NDArray[np.float64]
RNG = np.random.default_rng(0)
R = RNG.standard_normal((6, 12))
C = R + 0.3 * RNG.standard_normal((6, 12))
MAPS = RNG.uniform(0, 1, (4, 5, 6)), RNG.uniform(0, 1, (4, 5, 6))


def softmax(row: Values) -> list[float]:
    weights = [math.exp(v) for v in row]
    return [w / sum(weights) for w in weights]


def rank(row: Values) -> list[float]:
    """By counting: the mean place among all cells of those with its value."""
    return [sum(o < v for o in row) + (sum(o == v for o in row) + 1) / 2 for v in row]


def correlation(a: list[float], b: list[float]) -> float:
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))


def by_hand(name: str, r: Values, c: Values) -> float:
    """One row, by loops."""
    pairs = list(zip(r.ravel().tolist(), c.ravel().tolist(), strict=True))
    signal, noise = sum(x * x for x, _ in pairs), sum((y - x) ** 2 for x, y in pairs)
    best = [sorted(range(len(pairs)), key=lambda k: -pairs[k][side])[:5] for side in (0, 1)]
    if name == "kl":
        p, q = softmax(r), softmax(c)
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    if name == "jensen_shannon":
        p, q = ([max(v[side], 0.0) for v in pairs] for side in (0, 1))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        halves = [sum(a * math.log2(a / m) for a, m in zip(d, middle, strict=True) if a > 0) for d in (p, q)]
        return sum(halves) / 2
    if name == "iou":
        count = max(1, round(0.2 * len(pairs)))
        kept = [set(sorted(range(len(pairs)), key=lambda k: -pairs[k][side])[:count]) for side in (0, 1)]
        return len(kept[0] & kept[1]) / len(kept[0] | kept[1])
    if name == "peak_shift":
        cells = list(itertools.product(*map(range, r.shape)))
        ends = [max(range(len(cells)), key=lambda k: pairs[k][side]) for side in (0, 1)]
        return math.dist(cells[ends[0]], cells[ends[1]])
    return {
        "max_abs": lambda: max(abs(y - x) for x, y in pairs),
        "max_rel": lambda: max(abs(y - x) for x, y in pairs) / max(abs(x) for x, _ in pairs),
        "error": lambda: math.sqrt(noise / signal),
        "local": lambda: math.sqrt(noise / signal),
        "inherited": lambda: math.sqrt(noise / signal),
        "cosine": lambda: sum(x * y for x, y in pairs) / math.sqrt(signal * sum(y * y for _, y in pairs)),
        "snr": lambda: 10 * math.log10(signal / noise),
        "psnr": lambda: (
            10 * math.log10((max(x for x, _ in pairs) - min(x for x, _ in pairs)) ** 2 / (noise / len(pairs)))
        ),
        "top1": lambda: float(best[0][0] == best[1][0]),
        "top5": lambda: len(set(best[0]) & set(best[1])) / 5,
        "differs": lambda: sum(x != y for x, y in pairs) / len(pairs),
        "pearson": lambda: correlation([x for x, _ in pairs], [y for _, y in pairs]),
        "spearman": lambda: correlation(rank(r.ravel()), rank(c.ravel())),
    }[name]()


@pytest.mark.parametrize("name", METRICS)
def test_equals_the_formula_by_loops(name: str) -> None:
    metric = METRICS[name]
    pairs = [(R, C), MAPS] if metric.maps or "attention" in metric.subjects else [(R, C)]
    for r, c in [(R, C), *pairs][-2 if metric.maps else 0 :]:
        if metric.maps and r.ndim == 2:
            continue
        wanted = [by_hand(name, a, b) for a, b in zip(r, c, strict=True)]
        np.testing.assert_allclose(metric(r, c), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_equal_tensors_are_perfect(name: str) -> None:
    metric = METRICS[name]
    r = MAPS[0] if metric.maps else R
    np.testing.assert_allclose(metric(r, r.copy()), metric.perfect, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_as_bad_as_can_be(name: str, bad: float) -> None:
    metric = METRICS[name]
    r, c = (v.copy() for v in (MAPS if metric.maps else (R, C)))
    c.reshape(len(c), -1)[2, 3] = bad
    found = metric(r, c)
    assert found[2] == (np.inf if metric.above else -np.inf)
    np.testing.assert_array_equal(np.delete(found, 2), metric(np.delete(r, 2, 0), np.delete(c, 2, 0)))


@pytest.mark.parametrize("name", METRICS)
def test_an_infinity_that_both_have_is_no_difference(name: str) -> None:
    metric = METRICS[name]
    r = (MAPS[0] if metric.maps else R).copy()
    r.reshape(len(r), -1)[1, 0] = -np.inf
    assert not np.isinf(metric(r, r.copy())).any() or name in ("snr", "psnr")


@pytest.mark.parametrize("name", ["cosine", "pearson", "spearman", "jensen_shannon"])
def test_scale_does_not_matter(name: str) -> None:
    np.testing.assert_allclose(METRICS[name](R, 7 * C), METRICS[name](R, C), rtol=1e-9)


def test_what_says_nothing_is_nan() -> None:
    flat = np.ones((1, 4))
    assert np.isnan(METRICS["pearson"](flat, R[:1, :4])).all()
    assert np.isnan(METRICS["spearman"](R[:1, :4], flat)).all()
    assert np.isnan(METRICS["jensen_shannon"](-flat, flat)).all()
    for name in ("top1", "kl"):
        assert np.isnan(METRICS[name](R[:, :1], C[:, :1])).all()
    assert np.isnan(METRICS["top5"](R[:, :5], C[:, :5])).all()


@pytest.mark.parametrize(("r", "c", "wanted"), [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, -1, -1.0)])
def test_cosine_with_nothing(r: float, c: float, wanted: float) -> None:
    assert METRICS["cosine"](np.full((1, 3), float(r)), np.full((1, 3), float(c))) == pytest.approx(wanted)


def test_kl_takes_distributions_as_they_are() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    assert METRICS["kl"](p, q) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))


def test_spearman_shares_ranks_of_equal_cells() -> None:
    assert METRICS["spearman"](np.array([[1.0, 2, 2, 3]]), np.array([[10.0, 20, 20, 99]])) == pytest.approx(1.0)


def test_disjoint_maps() -> None:
    one, other = np.zeros((1, 10)), np.zeros((1, 10))
    one[0, :2], other[0, 5:7] = 1, 1
    assert METRICS["jensen_shannon"](one, other) == pytest.approx(1.0)
    assert METRICS["iou"](one, other) == 0


def test_every_metric_says_its_formula_and_source() -> None:
    assert len({m.name for m in TABLE}) == len(TABLE)
    assert all(m.formula and m.source and m.function.__doc__ for m in TABLE)
    wanted = {
        "output": {"max_abs", "max_rel", "cosine", "snr", "psnr", "top1", "top5", "kl"},
        "attention": {"cosine", "pearson", "spearman", "iou", "jensen_shannon", "peak_shift"},
        "tensor": {"snr", "error"},
    }
    for subject, names in wanted.items():
        assert names <= {m.name for m in metrics_of(subject)}  # type: ignore[arg-type]
