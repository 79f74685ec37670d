"""Losses per sample against the formulas in numpy, and what cannot be formed is refused by name and shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from l2caf_onnx.errors import InputError
from l2caf_onnx.objectives import OBJECTIVES, class_scores, resolve


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_outputs_is_the_mean_over_outputs_of_each_mean_squared_difference() -> None:
    normal = {"logits": randn(3, 10), "map": randn(3, 2, 4, 4, seed=1), "index": torch.tensor([1, 2, 3])}
    filtered = {"logits": randn(3, 10, seed=2), "map": randn(3, 2, 4, 4, seed=3), "index": torch.tensor([9, 9, 9])}
    losses = resolve("outputs").losses(filtered, normal, samples=3)
    expected = [
        np.mean([np.mean((normal[n][i].numpy() - filtered[n][i].numpy()) ** 2) for n in ("logits", "map")])
        for i in range(3)
    ]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(), (5,), (1,), (4, 3), (1, 6)])
def test_one_sample_s_output_without_a_batch_axis_is_taken_whole(shape: tuple[int, ...]) -> None:
    normal, filtered = randn(*shape), randn(*shape, seed=1)
    losses = resolve("outputs").losses({"y": filtered}, {"y": normal}, samples=1)
    assert losses.tolist() == pytest.approx([np.mean((normal.numpy() - filtered.numpy()) ** 2)], rel=1e-6)


def test_one_number_per_sample_is_an_output() -> None:
    losses = resolve("outputs").losses({"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([0.0, 5.0])}, samples=2)
    assert losses.tolist() == [1, 9]


def test_float16_outputs_are_squared_in_float32() -> None:
    y = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert resolve("outputs").losses({"y": -y}, {"y": y}, samples=2).tolist() == [360000, 360000]


def test_outputs_without_the_batch_or_without_floats_are_refused() -> None:
    y = {"shared": randn(1, 4)}
    with pytest.raises(InputError, match=r"'shared' of shape \(1, 4\) does not have the 2 samples"):
        resolve("outputs").losses(y, y, samples=2)
    for outputs in ({"index": torch.tensor([1, 2])}, {"empty": torch.zeros(2, 0)}, {}):
        with pytest.raises(InputError, match="floating type"):
            resolve("outputs").losses(outputs, outputs, samples=2)


@pytest.mark.parametrize("tail", [(), (1, 1), (1,)])
@pytest.mark.parametrize("name", ["paper-class", "target"])
def test_class_objectives_are_their_formulas(name: str, tail: tuple[int, ...]) -> None:
    scores, target = randn(3, 7), [6, 0, 2]
    signs = -2.0 * np.eye(7)[target] + (1 if name == "paper-class" else 0)
    signs = signs if name == "paper-class" else signs / 2
    objective = resolve(name)
    assert objective.class_specific
    losses = objective.losses({"y": scores.reshape(3, 7, *tail)}, {}, samples=3, target=torch.tensor(target))
    np.testing.assert_allclose(losses.numpy(), (signs * scores.numpy()).sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_loss_depends_on_its_own_sample_alone(name: str) -> None:
    y = randn(3, 5).requires_grad_(True)
    losses = resolve(name).losses({"y": y}, {"y": randn(3, 5, seed=1)}, samples=3, target=torch.tensor([0, 1, 2]))
    assert losses.shape == (3,)
    for i in range(3):
        (gradient,) = torch.autograd.grad(losses[i], y, retain_graph=True)
        assert gradient.abs().sum(1).nonzero()[:, 0].tolist() == [i]


@pytest.mark.parametrize(
    ("shape", "samples", "expected"),
    [
        ((2, 5), 2, (2, 5)),
        ((2, 5), None, (2, 5)),
        ((2, 5, 1, 1), 2, (2, 5)),
        ((2, 1, 1, 5), 2, (2, 5)),
        ((2, 1, 5), None, (2, 5)),
        ((2, 1), 2, (2, 1)),
        ((5,), 1, (1, 5)),
        ((5,), None, (1, 5)),
        ((1,), 1, (1, 1)),
    ],
)
def test_class_scores_have_one_axis_of_classes(
    shape: tuple[int, ...], samples: int | None, expected: tuple[int, int]
) -> None:
    y = randn(*shape)
    scores = class_scores({"y": y, "top": torch.tensor([1])}, samples=samples)
    assert scores.shape == expected
    assert scores.flatten().tolist() == y.flatten().tolist()


@pytest.mark.parametrize(
    ("shape", "samples"), [((2, 5, 3), 2), ((2, 1000, 7, 7), None), ((), 1), ((5,), 5), ((3, 5), 2)]
)
def test_other_outputs_are_no_class_scores(shape: tuple[int, ...], samples: int | None) -> None:
    with pytest.raises(InputError) as caught:
        class_scores({"boxes": randn(*shape)}, samples=samples)
    assert "'boxes'" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_class_scores_need_exactly_one_output(names: list[str]) -> None:
    with pytest.raises(InputError, match="exactly one output"):
        class_scores({name: randn(2, 3) for name in names})


@pytest.mark.parametrize("name", ["paper-class", "target"])
@pytest.mark.parametrize("target", [[0, 7], [-1, 0], [0, 1, 2], [0.0, 1.0], None])
def test_a_target_is_one_class_for_each_sample(name: str, target: list[float] | None) -> None:
    given = None if target is None else torch.tensor(target)
    with pytest.raises(InputError) as caught:
        resolve(name).losses({"y": randn(2, 7)}, {}, samples=2, target=given)
    if target in ([0, 7], [-1, 0]):
        assert "7 classes" in str(caught.value)


def test_an_unknown_objective_is_answered_with_the_names() -> None:
    assert [resolve(name).name for name in OBJECTIVES] == list(OBJECTIVES)
    with pytest.raises(InputError, match=", ".join(OBJECTIVES)):
        resolve("logit")
