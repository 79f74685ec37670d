"""The sphere, the multiplication in any layout, the heatmap: against numpy, einsum and a resize by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from l2caf_onnx.errors import InputError
from l2caf_onnx.filters import SETS, Sphere, constraint_set, heatmap, norm_of, parse_radius


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def norms(f: Tensor) -> list[float]:
    return [float(np.linalg.norm(sample)) for sample in f.double().numpy()]


@pytest.mark.parametrize(
    ("radius", "rho"), [(0.5, 0.5), (1, 1.0), ("unit", 1 / 7), ("0.25", 0.25), (np.float32(2), 2.0)]
)
def test_a_radius_is_a_number_or_unit(radius: float | str, rho: float) -> None:
    assert parse_radius(radius, 49) == pytest.approx(rho, rel=1e-12)


def test_rho_1_is_the_norm_of_the_filter_of_ones_and_unit_has_norm_1() -> None:
    assert norm_of(1.0, 49) == pytest.approx(float(torch.ones(7, 7).norm()), rel=1e-6)
    assert norm_of(parse_radius("unit", 50), 50) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("radius", [0, -1.0, math.nan, math.inf, "nan", "one", "", True, None, [1.0], 10**400])
def test_another_radius_is_refused(radius: object) -> None:
    with pytest.raises(InputError, match='"unit"'):
        parse_radius(radius, 49)  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, torch.tensor([1.0, math.inf]), torch.ones(2, 2)])
def test_a_sphere_refuses_a_norm_that_is_none(radius: float | Tensor) -> None:
    with pytest.raises(InputError, match="norm"):
        Sphere(radius)


@pytest.mark.parametrize("spatial", [(7,), (3, 5), (2, 3, 4)])
def test_retracted_points_have_each_sample_s_radius(spatial: tuple[int, ...]) -> None:
    sphere = Sphere(torch.tensor([0.5, 1.0, 7.0]))
    w = randn(3, *spatial)
    points = (
        sphere.retract(w),
        sphere.uniform_point((3, *spatial)),
        sphere.random_point((3, *spatial), seeded()),
    )
    for f in points:
        assert f.shape == (3, *spatial)
        assert norms(f) == pytest.approx([0.5, 1.0, 7.0], rel=1e-6)
    cosine = (points[0] * w).flatten(1).sum(1) / (points[0].flatten(1).norm(dim=1) * w.flatten(1).norm(dim=1))
    assert cosine.tolist() == pytest.approx([1, 1, 1], rel=1e-6)


def test_retract_is_differentiable_and_its_slope_is_tangent() -> None:
    sphere = Sphere(2.0, dtype=torch.float64)
    w = randn(2, 3, 4, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(sphere.retract, (w,))
    (gradient,) = torch.autograd.grad((sphere.retract(w) * randn(2, 3, 4, seed=1, dtype=torch.float64)).sum(), w)
    assert (gradient * w).sum((1, 2)).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_tangent_part_is_orthogonal_to_the_point_even_of_a_nearly_radial_vector() -> None:
    sphere = Sphere(3.0)
    f = sphere.retract(randn(4, 5, 5))
    g = randn(4, 5, 5, seed=1) + 100 * f  # where float32 alone would cancel
    t = sphere.project_tangent(f, g)
    for i in range(4):
        u, v = f[i].flatten().double().numpy(), g[i].flatten().double().numpy()
        np.testing.assert_allclose(t[i].flatten().numpy(), v - u * (u @ v) / (u @ u), rtol=1e-6, atol=1e-6)
        assert float(t[i].flatten().double().numpy() @ u) == pytest.approx(0, abs=1e-5)


def test_a_random_point_is_seeded_the_same_for_each_sample_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    two = Sphere(1.0).random_point((2, 4, 4), seeded(3))
    one = Sphere(1.0).random_point((1, 4, 4), seeded(3))
    assert torch.equal(two[0], two[1])
    assert torch.equal(two[:1], one)
    assert not torch.equal(one, Sphere(1.0).random_point((1, 4, 4), seeded(4)))
    assert torch.equal(before, torch.get_rng_state())


def test_the_constraint_sets_have_names_and_another_is_refused() -> None:
    assert SETS == ("l2", "l2-nonneg", "softmax")
    for name in SETS:
        made = constraint_set(name, 2.0, dtype=torch.float64)
        assert made.name == name
        assert made.uniform_point((1, 3)).dtype == torch.float64
        with pytest.raises(InputError, match="norm"):
            constraint_set(name, 0.0)
    assert isinstance(constraint_set("l2", 1.0), Sphere)
    with pytest.raises(InputError, match="l2, l2-nonneg, softmax"):
        constraint_set("gaussian", 1.0)


@pytest.mark.parametrize("spatial", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("name", SETS)
def test_points_of_each_set_have_its_size_and_signs(name: str, spatial: tuple[int, ...]) -> None:
    radii = [0.5, 1.0, 7.0]
    made, cells = constraint_set(name, torch.tensor(radii)), math.prod(spatial)
    uniform = made.uniform_point((3, *spatial))
    expected = np.broadcast_to(np.reshape(radii, (3,) + (1,) * len(spatial)), uniform.shape) / math.sqrt(cells)
    np.testing.assert_allclose(uniform.numpy(), expected, rtol=1e-6)
    for f in (uniform, made.random_point((3, *spatial), seeded()), made.retract(randn(3, *spatial))):
        assert name == "l2" or float(f.min()) >= 0
        sizes = (f.flatten(1).sum(1) / math.sqrt(cells)).tolist() if name == "softmax" else norms(f)
        assert sizes == pytest.approx(radii, rel=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_taking_samples_takes_their_radii(name: str) -> None:
    made, w = constraint_set(name, torch.tensor([0.5, 1.0, 7.0])), randn(3, 4)
    picked = torch.tensor([2, 0, 2])
    torch.testing.assert_close(made.take(picked).retract(w[picked]), made.retract(w)[picked], rtol=0, atol=0)
    one = constraint_set(name, 3.0)
    torch.testing.assert_close(one.take(picked).retract(w), one.retract(w), rtol=0, atol=0)


@pytest.mark.parametrize("name", SETS)
def test_every_retraction_is_differentiable(name: str) -> None:
    w = randn(2, 3, 4, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(constraint_set(name, 2.0, dtype=torch.float64).retract, (w,))


def test_the_softmax_at_rho_1_over_cells_is_the_paper_s_of_total_1() -> None:
    w = randn(1, 7, 7)
    f = constraint_set("softmax", norm_of(1 / 49, 49)).retract(w)
    np.testing.assert_allclose(f.flatten().numpy(), torch.softmax(w.flatten(), 0).numpy(), rtol=1e-5)


def resized_by_hand(values: np.ndarray, size: int) -> np.ndarray:
    """One axis, the last, resized linearly with half-pixel centres and clamped ends."""
    at = np.clip((np.arange(size) + 0.5) * values.shape[-1] / size - 0.5, 0, values.shape[-1] - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, values.shape[-1] - 1)
    return np.asarray(values[..., low] * (1 - (at - low)) + values[..., high] * (at - low))


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(
    ("spatial", "size"), [((5,), (17,)), ((3, 4), (20, 31)), ((2, 3, 4), (5, 6, 7)), ((7, 7), (3, 5))]
)
def test_a_heatmap_is_resized_first_then_scaled_per_sample(
    spatial: tuple[int, ...], size: tuple[int, ...], absolute: bool
) -> None:
    f = randn(2, *spatial)
    expected = f.abs().numpy() if absolute else np.maximum(f.numpy(), 0)
    for axis, cells in enumerate(size, start=1):
        expected = np.moveaxis(resized_by_hand(np.moveaxis(expected, axis, -1), cells), -1, axis)
    flat = expected.reshape(2, -1)
    low, high = flat.min(1), flat.max(1)
    column = (2, *[1] * len(size))
    expected = (expected - low.reshape(column)) / (high - low).reshape(column)
    maps, constant = heatmap(f.numpy(), size, absolute=absolute)
    assert constant == [False, False]
    np.testing.assert_allclose(maps, expected, rtol=0, atol=2e-6)
    assert (maps.min(), maps.max()) == (0.0, 1.0)


def test_a_heatmap_of_the_filter_s_own_size_is_not_resized() -> None:
    maps, _ = heatmap(np.array([[[-2.0, 1.0], [0.0, 3.0]]], np.float32), (2, 2), absolute=False)
    assert maps.tolist() == [[[0, pytest.approx(1 / 3, rel=1e-6)], [0, 1]]]
    maps, _ = heatmap(np.array([[[-2.0, 1.0], [0.0, 3.0]]], np.float32), (2, 2), absolute=True)
    assert maps[0, 0, 0].item() == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("size", [(7, 7), (224, 224), (31, 17), (1, 1)])
def test_a_constant_filter_gives_zeros_and_says_so_beside_one_that_is_not(size: tuple[int, int]) -> None:
    uniform = Sphere(1.0).uniform_point((1, 7, 7))
    nearly = uniform * (1 + 1e-7 * randn(1, 7, 7))
    maps, constant = heatmap(torch.cat([uniform, nearly, -uniform, randn(1, 7, 7)]).numpy(), size, absolute=False)
    assert constant == [True, True, True, size == (1, 1)]
    assert maps[:3].max() == maps[:3].min() == 0
    assert maps[3].max() == (0 if size == (1, 1) else 1)


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 4), (5,)), ((2,), ()), ((1, 2, 2, 2, 2), (2, 2, 2, 2))])
def test_a_heatmap_needs_a_size_for_each_of_one_to_three_axes(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be drawn"):
        heatmap(randn(*shape).numpy(), size, absolute=True)
