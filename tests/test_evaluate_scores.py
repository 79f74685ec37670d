"""Scores against brute force, and the bootstrap against what it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from l2caf_onnx.evaluation.bootstrap import interval
from l2caf_onnx.evaluation.components import components, overlap
from l2caf_onnx.evaluation.perturb import area, blur, hottest_first
from l2caf_onnx.evaluation.scores import cosine, energy, hit, hit_box, ranks, spearman, top_share
from tests.conftest import normal


def region(shape: tuple[int, ...] = (4, 5), seed: int = 3) -> NDArray[np.bool_]:
    return normal(*shape, seed=seed) > 0


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_energy_is_a_share_of_the_sum(exponent: int) -> None:
    shown, inside = np.abs(normal(4, 5)), region()
    pairs = [(float(v) ** exponent, bool(i)) for v, i in zip(shown.ravel(), inside.ravel(), strict=True)]
    expected = sum(v for v, i in pairs if i) / sum(v for v, _ in pairs)
    assert energy(shown, inside, exponent) == pytest.approx(expected, rel=1e-6)


def test_a_blank_map_scores_as_chance() -> None:
    inside, blank = region(), np.zeros((4, 5))
    for score in (energy, top_share, hit):
        assert score(blank, inside) == pytest.approx(inside.mean())


def test_top_share_is_the_mean_over_all_orders_of_ties() -> None:
    shown, inside = np.array([[3.0, 2.0, 2.0], [2.0, 1.0, 0.0]]), np.array([[True, True, False], [False, True, False]])
    orders = [
        order
        for order in itertools.permutations(range(6))
        if all(shown.ravel()[a] >= shown.ravel()[b] for a, b in itertools.pairwise(order))
    ]
    for part in (1 / 6, 1 / 3, 1 / 2, 2 / 3):
        expected = np.mean([inside.ravel()[list(o[: round(part * 6)])].mean() for o in orders])
        assert top_share(shown, inside, [part]) == pytest.approx(expected)


def test_sharpening_raises_energy_and_leaves_the_top_share() -> None:
    inside = np.zeros((8, 8), dtype=bool)
    inside[:4, :4] = True
    shown = np.random.default_rng(0).random((8, 8)) + inside
    energies = [energy(shown / shown.max(), inside, e) for e in (1, 2, 4)]
    assert energies == sorted(energies)
    assert energies[2] > energies[0] + 0.1
    assert len({top_share((shown / shown.max()) ** e, inside) for e in (1, 2, 4)}) == 1


@pytest.mark.parametrize(
    ("at", "tolerance", "expected"),
    [((2, 3), 0, 1.0), ((2, 6), 0, 0.0), ((2, 6), 1, 1.0), ((0, 7), 3, 1.0), ((0, 7), 2, 0.0)],
)
def test_pointing(at: tuple[int, int], tolerance: float, expected: float) -> None:
    shown = np.zeros((9, 9))
    shown[at] = 1
    assert hit_box(shown, [(2, 2, 6, 5)], tolerance) == expected


def test_pointing_with_equal_maxima() -> None:
    shown = np.zeros((4, 4))
    shown[0, 0] = shown[3, 3] = 1
    assert hit_box(shown, [(0, 0, 2, 2)]) == 0.5
    assert hit_box(shown, [(0, 0, 2, 2), (2, 2, 4, 4)]) == 1


def test_ranks_share_what_is_equal() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 0.0, 3.0])).tolist() == [3, 1, 3, 0, 3]


def test_spearman_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, other = normal(6, 7).round(1), normal(6, 7, seed=1).round(1)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one.ravel(), other.ravel()).statistic, abs=1e-12)
    assert spearman(one, np.exp(one)) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    assert spearman(one, np.ones((6, 7))) == 0


def test_cosine() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(2**-0.5)
    assert cosine(np.zeros(3), np.zeros(3)) == 1
    assert cosine(np.zeros(3), np.ones(3)) == 0


class TestBootstrap:
    def test_the_interval_holds_the_truth_as_often_as_it_says(self) -> None:
        held = 0
        for trial in range(200):
            rng = np.random.default_rng(trial)
            photos = np.repeat(np.arange(40), 3)
            values = rng.normal(size=40)[photos] + rng.normal(size=120)
            _, low, high = interval(values, photos.tolist(), resamples=500, seed=trial)
            held += low <= 0 <= high
        assert 0.89 <= held / 200 <= 0.985

    def test_many_scores_of_few_photos_are_not_many_findings(self) -> None:
        rng = np.random.default_rng(0)
        photos = np.repeat(np.arange(5), 100)
        values = rng.normal(size=5)[photos]
        _, low, high = interval(values, photos.tolist())
        _, near, far = interval(values, list(range(500)))
        assert high - low > 5 * (far - near)

    def test_it_is_seeded(self) -> None:
        values, photos = normal(30), list(range(30))
        assert interval(values, photos, seed=4) == interval(values, photos, seed=4)
        assert interval(values, photos, seed=4) != interval(values, photos, seed=5)

    def test_one_photo_tells_no_interval(self) -> None:
        mean, low, high = interval([1.0, 2.0], ["a", "a"])
        assert mean == 1.5
        assert np.isnan([low, high]).all()


class TestComponents:
    @pytest.mark.parametrize("seed", range(12))
    def test_they_are_those_of_a_flood(self, seed: int) -> None:
        mask = np.random.default_rng(seed).random((11, 13)) < 0.25 + 0.05 * seed
        boxes, areas = components(mask)
        assert sorted(map(tuple, np.column_stack([boxes, areas]).tolist())) == sorted(self.flood(mask))

    def flood(self, mask: NDArray[np.bool_]) -> list[tuple[int, ...]]:
        left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
        found: list[tuple[int, ...]] = []
        while left:
            stack = [left.pop()]
            own = []
            while stack:
                r, c = stack.pop()
                own.append((r, c))
                near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                stack += near
            rows, columns = zip(*own, strict=True)
            found.append((min(columns), min(rows), max(columns) + 1, max(rows) + 1, len(own)))
        return found

    def test_a_spiral_is_one(self) -> None:
        mask = np.zeros((9, 9), dtype=bool)
        mask[0, :] = mask[:, 8] = mask[8, :] = mask[2:, 0] = mask[2, :7] = mask[2:7, 6] = mask[6, 2:7] = mask[
            4:7, 2
        ] = 1
        boxes, areas = components(mask)
        assert boxes.tolist() == [[0, 0, 9, 9]]
        assert areas.tolist() == [int(mask.sum())]

    def test_none(self) -> None:
        boxes, areas = components(np.zeros((3, 3), dtype=bool))
        assert boxes.shape == (0, 4)
        assert len(areas) == 0

    def test_overlap_counts_pixels(self) -> None:
        rng = np.random.default_rng(0)
        corners = rng.integers(0, 10, (12, 2, 2))
        boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)
        sets = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in boxes.tolist()]
        expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
        np.testing.assert_allclose(overlap(boxes, boxes), expected, rtol=1e-12)


class TestPerturbing:
    def test_the_hottest_come_first_and_equal_ones_at_random(self) -> None:
        shown = np.array([[0.0, 2.0], [0.0, 1.0]])
        orders = {tuple(hottest_first(shown, np.random.default_rng(s)).tolist()) for s in range(20)}
        assert orders == {(1, 3, 0, 2), (1, 3, 2, 0)}

    def test_area(self) -> None:
        assert area([0.0, 1.0]) == 0.5
        assert area([1.0, 1.0, 0.0]) == 0.75

    @pytest.mark.parametrize("shape", [(1, 3, 20, 31), (1, 2, 1, 5)])
    def test_blur_is_a_convolution(self, shape: tuple[int, ...]) -> None:
        values = normal(*shape)
        found = blur(values, (2, 3))
        expected = values.astype(np.float64)
        for axis in (2, 3):
            side = shape[axis]
            reach = max(1, min(round(0.15 * side), side - 1))
            weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (side / 20)) ** 2)
            period = max(2 * side - 2, 1)
            folded = [min(k % period, -k % period) for k in range(-reach, side + reach)]
            matrix = np.zeros((side, side))
            for out, k in itertools.product(range(side), range(2 * reach + 1)):
                matrix[out, folded[out + k]] += weights[k] / weights.sum()
            expected = np.moveaxis(np.moveaxis(expected, axis, -1) @ matrix.T, -1, axis)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
