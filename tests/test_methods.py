"""Every method against its formula, written again in numpy; and against the package grad-cam on a real network."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program gives it
from numpy.typing import NDArray
from torch import Tensor

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError
from l2caf_onnx.methods import METHODS, Case, Score, resolve
from l2caf_onnx.methods.eigencam import projection
from l2caf_onnx.methods.reciprocam import reciprocam
from l2caf_onnx.methods.rise import Masks, rise
from l2caf_onnx.methods.scorecam import channel_weights, scorecam
from tests.conftest import Arrays

Array = NDArray[np.float64]

SPATIAL = [(9,), (5, 6), (3, 4, 5)]
REFERENCE = Path(__file__).parent / "data" / "gradcam-efficientnet-lite0.npz"  # made by scripts/peers/gradcam.py


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost these small tensors more than they give, by far where other work keeps the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def double(tensor: Tensor) -> Array:
    array: Array = tensor.double().numpy()
    return array


class Curved:
    """A score with a curvature and weights of each sample's own; it notes how many rows it was asked for at once."""

    def __init__(self, samples: int, channels: int, spatial: tuple[int, ...]) -> None:
        self.weights = normal(samples, channels, *spatial, seed=5)
        self.asked: list[int] = []

    def __call__(self, a: Tensor, samples: Tensor) -> Tensor:
        assert samples.dtype == torch.int64
        assert samples.shape == a.shape[:1]
        self.asked.append(len(a))
        weighted = self.weights[samples] * a
        return (weighted.flatten(1).sum(1) / 4).tanh() + (weighted * a).flatten(1).mean(1)

    def gradient(self, a: Array) -> Array:
        """By hand, for the whole batch."""
        w = double(self.weights)
        slope = 1 - np.tanh((w * a).reshape(len(a), -1).sum(1) / 4) ** 2
        by_activation: Array = w * slope.reshape(-1, *[1] * (a.ndim - 1)) / 4 + 2 * w * a / math.prod(a.shape[1:])
        return by_activation

    def values(self, a: Array, sample: int) -> float:
        """Of one activation (C, *spatial), by hand."""
        w = double(self.weights[sample])
        return float(np.tanh((w * a).sum() / 4) + (w * a * a).mean())


def curved(spatial: tuple[int, ...], samples: int = 3, channels: int = 4, **asked: Any) -> Case:
    score = Curved(samples, channels, spatial)
    return Case(activation=normal(samples, channels, *spatial), score=score, **{"batch": 7, "seed": 3, **asked})


def from_sample(score: Score, first: int) -> Score:
    """The score of the batch that begins at that sample."""
    return lambda a, samples: score(a, samples + first)


def close(found: Tensor, expected: Array, rtol: float = 1e-5) -> None:
    """Within `rtol` of the largest value."""
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_methods_are_found_by_name() -> None:
    names = ["gradcam", "hirescam", "gradcam++", "scorecam", "eigencam", "reciprocam", "rise", "centre", "energy"]
    assert list(METHODS) == names
    assert all(resolve(name).name == name and resolve(name).source for name in names)
    with pytest.raises(InputError, match=r"no method 'cam'\. Choose one of gradcam, hirescam, "):
        resolve("cam")


# --- what holds for all of them


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("name", METHODS)
def test_a_sample_gets_the_map_that_it_gets_alone_however_many_rows_go_at_once(
    name: str, spatial: tuple[int, ...]
) -> None:
    case = curved(spatial)
    maps = resolve(name).function(case)
    assert maps.shape == (3, *spatial)
    assert maps.dtype == torch.float32
    assert maps.flatten(1).abs().amax(1).min() > 0  # there is something to compare
    assert isinstance(case.score, Curved)
    assert max(case.score.asked, default=0) <= case.batch
    for batch in (1, 2, 10_000):
        close(resolve(name).function(replace(case, batch=batch)), double(maps))
    for i in range(3):
        alone = replace(case, activation=case.activation[i : i + 1], score=from_sample(case.score, i))
        close(resolve(name).function(alone), double(maps[i : i + 1]))


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_of_no_graph_and_no_other_tensor_collects_a_gradient(name: str) -> None:
    case = curved((4, 5))
    assert isinstance(case.score, Curved)
    expected = double(resolve(name).function(case))
    case.score.weights.requires_grad_(True)
    case.activation.requires_grad_(True)
    close_to_it = resolve(name).function(case)
    assert not close_to_it.requires_grad
    assert case.activation.grad is None
    assert case.score.weights.grad is None
    close(close_to_it, expected)
    case.activation.requires_grad_(False)
    case.score.weights.requires_grad_(False)
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            close(resolve(name).function(case), expected)


@pytest.mark.parametrize("name", METHODS)
def test_who_says_that_it_needs_no_gradient_takes_none(name: str) -> None:
    case = curved((4, 5))
    modes = []

    def score(a: Tensor, samples: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return case.score(a, samples)

    resolve(name).function(replace(case, score=score))
    assert set(modes) <= {resolve(name).gradient}


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_without_a_finite_map_is_zero_and_disturbs_no_other(name: str) -> None:
    case = curved((4, 5))
    expected = double(resolve(name).function(case))
    for value in (math.nan, math.inf):
        broken = case.activation.clone()
        broken[1, 2, 3, 3] = value
        maps = resolve(name).function(replace(case, activation=broken))
        close(maps[[0, 2]], expected[[0, 2]])
        assert maps[1].isfinite().all()
        assert name == "centre" or not maps[1].any()


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "gradcam++", "reciprocam", "rise"])
def test_a_score_that_nothing_moves_gives_zeros(name: str) -> None:
    for score in (lambda a, _: torch.full((len(a),), 0.1), lambda a, _: (0 * a).flatten(1).sum(1) + 0.1):
        assert not resolve(name).function(replace(curved((4, 5)), score=score)).any()


@pytest.mark.parametrize("name", ["gradcam", "scorecam", "eigencam", "energy"])
def test_a_constant_activation_gives_zeros(name: str) -> None:
    constant = normal(3, 4, 1, 1).expand(3, 4, 4, 5)
    assert not resolve(name).function(replace(curved((4, 5)), activation=constant)).any()


@pytest.mark.parametrize("name", METHODS)
def test_one_cell_gives_zeros(name: str) -> None:
    assert not resolve(name).function(curved((1, 1))).any()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_taken_and_float32_given(name: str) -> None:
    case = curved((4, 5))
    maps = resolve(name).function(replace(case, activation=case.activation.half()))
    assert maps.dtype == torch.float32
    expected = double(resolve(name).function(case))
    np.testing.assert_allclose(maps, expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_a_score_of_another_shape_is_refused() -> None:
    for name in ("gradcam", "rise"):
        with pytest.raises(ValueError, match=r"gave shape \(\) for"):
            resolve(name).function(replace(curved((4, 5)), score=lambda a, _: a.sum()))


# --- gradients


@pytest.mark.parametrize("spatial", SPATIAL)
def test_where_the_score_is_linear_in_the_pooled_activation_gradcam_and_hirescam_are_cam(
    spatial: tuple[int, ...],
) -> None:
    """CAM: ReLU(sum_k w_k A_k) (Zhou et al. 2016, equation 2); the pooling's 1 / cells is in the gradient."""
    w, cells = normal(3, 4, seed=1), math.prod(spatial)
    case = Case(
        activation=normal(3, 4, *spatial),
        score=lambda a, i: (a.flatten(2).mean(2) * w[i]).sum(1) + 7,
        batch=2,
        seed=0,
    )
    cam = np.maximum(np.einsum("nc,nc...->n...", double(w), double(case.activation)), 0)
    close(resolve("gradcam").function(case), cam / cells)
    close(resolve("hirescam").function(case), cam / cells)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_gradient_methods_are_their_formulas(spatial: tuple[int, ...]) -> None:
    case = curved(spatial)
    assert isinstance(case.score, Curved)
    a = double(case.activation)
    g = case.score.gradient(a)
    space = tuple(range(2, a.ndim))

    def weighted(w: Array) -> Array:
        return np.asarray(np.maximum(np.einsum("nc,nc...->n...", w, a), 0))

    close(resolve("gradcam").function(case), weighted(g.mean(space)))
    close(resolve("hirescam").function(case), np.maximum((g * a).sum(1), 0))
    alpha = g**2 / (2 * g**2 + a.sum(space, keepdims=True) * g**3 + 1e-6)
    close(resolve("gradcam++").function(case), weighted((alpha * np.maximum(g, 0)).sum(space)), rtol=1e-4)


# --- Score-CAM


def scorecam_by_hand(case: Case, kept: list[list[int]]) -> tuple[list[Array], Array]:
    """The weights of each sample's channels `kept`, and the maps."""
    assert isinstance(case.score, Curved)
    weights, maps = [], []
    for i, sample in enumerate(double(case.activation)):
        nothing = case.score.values(0 * sample, i)
        rise = []
        for k in kept[i]:
            mask = (sample[k] - sample[k].min()) / (sample[k].max() - sample[k].min())
            rise.append(case.score.values(sample * mask, i) - nothing)
        weights.append(np.exp(rise) / np.exp(rise).sum())
        maps.append(np.maximum(sum(w * sample[k] for w, k in zip(weights[-1], kept[i], strict=True)), 0))
    return weights, np.stack(maps)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_scorecam_is_its_formula(spatial: tuple[int, ...]) -> None:
    case = curved(spatial)
    expected, maps = scorecam_by_hand(case, [[0, 1, 2, 3]] * 3)
    close(scorecam(case), maps)
    order, weights = channel_weights(case)
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1], rel=1e-6)
    back = order.argsort(1)
    np.testing.assert_allclose(weights.gather(1, back), np.stack(expected), rtol=1e-4, atol=0)


def test_scorecam_takes_the_channels_of_the_highest_energy_and_none_that_is_constant() -> None:
    case = curved((5, 6), channels=6)
    case.activation.mul_(torch.tensor([1.0, 3, 2, 0.5, 4, 1.5])[:, None, None])
    case.activation[:, 4] = 9  # the highest energy of all, but no place
    _, maps = scorecam_by_hand(case, [[1, 2]] * 3)
    close(scorecam(case, channels=3), maps)
    order, weights = channel_weights(case, channels=3)
    assert order.tolist() == [[4, 1, 2]] * 3
    assert weights[:, 0].tolist() == [0, 0, 0]
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1], rel=1e-6)


def test_scorecam_does_not_see_what_is_added_to_the_score() -> None:
    case = curved((5, 6))
    close(scorecam(replace(case, score=lambda a, i: case.score(a, i) + 3)), double(scorecam(case)))


# --- Eigen-CAM


@pytest.mark.parametrize(("channels", "spatial"), [(4, (9,)), (4, (5, 6)), (50, (5, 6)), (7, (3, 4, 5))])
def test_eigencam_is_numpys_first_principal_component(channels: int, spatial: tuple[int, ...]) -> None:
    case = curved(spatial, channels=channels)
    case.activation[1] += 5  # a mean, that centring takes away
    found = projection(case.activation)
    for i, sample in enumerate(double(case.activation)):
        cells = sample.reshape(channels, -1).T
        centred = cells - cells.mean(0)
        _, _, directions = np.linalg.svd(centred, full_matrices=True)
        expected = (centred @ directions[0]).reshape(spatial)
        expected *= np.sign(np.corrcoef(expected.ravel(), (cells**2).sum(1))[0, 1])
        close(found[i], expected, rtol=1e-4)
    close(resolve("eigencam").function(case), np.maximum(double(found), 0))


# --- Recipro-CAM


@pytest.mark.parametrize("spatial", SPATIAL)
def test_reciprocam_is_the_score_of_each_cell_alone(spatial: tuple[int, ...]) -> None:
    case = curved(spatial)
    assert isinstance(case.score, Curved)
    expected = np.zeros((3, *spatial))
    for i, cell in itertools.product(range(3), np.ndindex(*spatial)):
        alone = np.zeros_like(double(case.activation[i]))
        alone[:, *cell] = double(case.activation[i])[:, *cell]
        expected[i, *cell] = case.score.values(alone, i)
    close(reciprocam(case), expected)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_reciprocam_with_a_gaussian_spreads_the_cell_over_its_neighbours(spatial: tuple[int, ...]) -> None:
    case = curved(spatial)
    assert isinstance(case.score, Curved)
    expected = np.zeros((3, *spatial))
    for i, cell in itertools.product(range(3), np.ndindex(*spatial)):
        a = double(case.activation[i])
        spread = np.zeros_like(a)
        for step in itertools.product((-1, 0, 1), repeat=len(spatial)):
            at = tuple(c + s for c, s in zip(cell, step, strict=True))
            if all(0 <= c < size for c, size in zip(at, spatial, strict=True)):
                spread[:, *at] = a[:, *cell] * math.prod(0.5 if s == 0 else 0.25 for s in step)
        expected[i, *cell] = case.score.values(spread, i)
    close(reciprocam(case, gaussian=True), expected)


def furthest(found: Tensor, cell: tuple[int, ...]) -> int:
    """How many cells the maximum of a map is from `cell`, along the axis where it is furthest: masks are coarse."""
    place = np.unravel_index(int(found.argmax()), found.shape)
    return max(abs(int(p) - c) for p, c in zip(place, cell, strict=True))


@pytest.mark.parametrize("cell", [(0, 0), (2, 4), (6, 1), (3, 3), (5, 6)])
@pytest.mark.parametrize("name", ["reciprocam", "rise"])
def test_the_one_cell_that_the_score_reads_is_found(name: str, cell: tuple[int, int]) -> None:
    case = Case(activation=torch.ones(2, 3, 7, 7), score=lambda a, _: 10 + a[:, 1, *cell], batch=64, seed=0)
    for one in resolve(name).function(case):
        assert furthest(one, cell) <= (0 if name == "reciprocam" else 1)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("name", ["reciprocam", "rise"])
def test_the_one_cell_is_found_on_one_to_three_axes(name: str, spatial: tuple[int, ...]) -> None:
    cell = tuple(size // 2 for size in spatial)
    here = torch.zeros(spatial)
    here[cell] = 1
    case = Case(
        activation=torch.ones(1, 2, *spatial), score=lambda a, _: (a[:, 0] * here).flatten(1).sum(1), batch=64, seed=0
    )
    (one,) = resolve(name).function(case)
    assert furthest(one, cell) <= (0 if name == "reciprocam" else 1)


# --- RISE


def test_rise_is_its_formula_less_the_mean_score() -> None:
    case = curved((5, 6))
    assert isinstance(case.score, Curved)
    masks = double(Masks((5, 6), 80, 0.25, 7, seed=case.seed).of(torch.arange(80)))
    expected = []
    for i, sample in enumerate(double(case.activation)):
        found = np.array([case.score.values(sample * mask, i) for mask in masks])
        expected.append(np.einsum("m,mhw->hw", found - found.mean(), masks) / (80 * 0.25))
    close(rise(case, masks=80, p=0.25), np.stack(expected))


def test_rise_hangs_on_the_seed_alone_and_not_on_what_is_added_to_the_score() -> None:
    case = curved((5, 6))
    maps = double(rise(case))
    close(rise(case), maps)
    close(rise(replace(case, score=lambda a, i: case.score(a, i) + 100)), maps, rtol=1e-3)
    other = double(rise(replace(case, seed=4)))
    assert np.abs(other - maps).max() > 0.01 * np.abs(maps).max()
    assert np.corrcoef(other.ravel(), maps.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (28, 20), (1, 5), (3, 2)])
def test_masks_are_coarse_grids_enlarged_bilinearly_and_cropped(size: tuple[int, int]) -> None:
    masks = Masks(size, 400, 0.5, 7, seed=0)
    made = masks.of(torch.arange(400))
    coarse = masks.grids.shape[1:]
    assert coarse == tuple(min(7, math.ceil(side / 2)) for side in size)
    cell = [math.ceil(side / few) for side, few in zip(size, coarse, strict=True)]
    large = F.interpolate(
        masks.grids[:, None], size=[(f + 1) * c for f, c in zip(coarse, cell, strict=True)], mode="bilinear"
    )[:, 0]
    rows, columns = masks.shifts
    for i in range(400):
        r, c = int(rows[i]), int(columns[i])
        torch.testing.assert_close(made[i], large[i, r : r + size[0], c : c + size[1]], rtol=0, atol=1e-6)
    assert {(int(r), int(c)) for r, c in zip(rows, columns, strict=True)} == set(np.ndindex(*cell))
    assert set(masks.grids.flatten().tolist()) == {0, 1}
    assert made.mean().item() == pytest.approx(0.5, abs=0.06)


# --- baselines


@pytest.mark.parametrize("spatial", SPATIAL)
def test_the_blind_baseline_is_a_gaussian_at_the_centre(spatial: tuple[int, ...]) -> None:
    grids = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / (n / 4) for n in spatial], indexing="ij")
    expected = np.exp(-0.5 * np.sum(np.square(grids), axis=0))
    case = curved(spatial)
    close(resolve("centre").function(case), np.stack([expected] * 3))
    assert isinstance(case.score, Curved)
    assert not case.score.asked


def test_energy_is_the_norm_over_the_channels() -> None:
    case = curved((5, 6))
    close(resolve("energy").function(case), np.sqrt((double(case.activation) ** 2).sum(1)))


# --- the package grad-cam


@pytest.mark.parametrize(
    ("place", "at"),
    [  # the package's hooks see torch's modules; in the .onnx batch norm is in the convolution
        ("head", "/_swish_1/Clip_output_0"),
        ("head-linear", "/_conv_head/Conv_output_0"),
        ("block-10", "/_blocks.10/Add_output_0"),
    ],
)
def test_gradient_methods_are_those_of_the_package_grad_cam(
    efficientnet: caf.Model, chelsea: Arrays, place: str, at: str
) -> None:
    with np.load(REFERENCE) as file:
        reference = dict(file)
    (image,) = chelsea.values()
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(reference["input_sha256"]), "the photo is read otherwise"
    cut = caf.cut(efficientnet, at=at)
    recorded = caf.run(cut.head, chelsea)
    for name, found in {"energy": (recorded[at] ** 2).sum(1), "means": recorded[at].mean((2, 3))}.items():
        expected = reference[f"{place}.{name}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    example = {i.name: recorded[i.name] if i.name in recorded else chelsea[i.name] for i in cut.tail.inputs}
    tail = caf.to_torch(cut.tail, example=example)
    held = {n: torch.from_numpy(v) for n, v in example.items() if n != at}
    (target,) = reference["target"].tolist()

    def score(a: Tensor, _: Tensor) -> Tensor:
        logits: Tensor = tail({**held, at: a})["logits"]
        return logits[:, target]

    case = Case(activation=torch.from_numpy(recorded[at]), score=score, batch=1, seed=0)
    for method in ("gradcam", "hirescam", "gradcam++"):
        close(resolve(method).function(case), reference[f"{place}.{method}"], rtol=1e-4)
