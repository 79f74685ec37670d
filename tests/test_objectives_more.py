"""Objectives beside the paper's, selections and a user's function: against their formulas in numpy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import InputError
from l2caf_onnx.objectives import OBJECTIVES, Objective, custom, resolve, selected, selection
from tests.test_objectives import randn

F64 = NDArray[np.float64]
TARGET = [6, 0, 2]


def numpy(tensor: Tensor) -> F64:
    return np.asarray(tensor.double().numpy())


def contrast(z: F64, before: F64, t: int, strongest: int = 20) -> float:
    others = np.argsort(-np.delete(before, t))[:strongest]
    return float((np.delete(z, t)[others].mean() if len(others) else 0) - z[t])


def log_softmax(z: F64, before: F64, t: int) -> float:
    return float(np.log(np.exp(z).sum()) - z[t]) if len(z) > 1 else float(np.log1p(np.exp(-z[0])))


FORMULAS: dict[str, Callable[[Any, Any, int], float]] = {
    "contrast": contrast,
    "log-softmax": log_softmax,
    "probability": lambda z, before, t: -np.exp(-log_softmax(z, before, t)),
    "target": lambda z, before, t: -z[t],
    "paper-class": lambda z, before, t: z.sum() - 2 * z[t],
}


@pytest.mark.parametrize("classes", [1, 7, 50])
@pytest.mark.parametrize("name", FORMULAS)
def test_class_objectives(name: str, classes: int) -> None:
    after, before = randn(3, classes), randn(3, classes, seed=1)
    target = [t % classes for t in TARGET]
    found = resolve(name).losses({"y": after}, {"y": before}, samples=3, target=torch.tensor(target))
    expected = [FORMULAS[name](numpy(after)[i], numpy(before)[i], target[i]) for i in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def cosine(a: Tensor, b: Tensor) -> list[float]:
    return [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(numpy(a), numpy(b), strict=True)]


@pytest.mark.parametrize(("name", "scale", "shift"), [("cosine", -1, 1), ("similarity", -1, 0)])
def test_angles(name: str, scale: float, shift: float) -> None:
    after = {"a": randn(3, 8), "b": randn(3, 2, 4, seed=1)}
    against = {"a": randn(3, 8, seed=2), "b": randn(3, 2, 4, seed=3)}
    found = resolve(name).losses(after, against, samples=3)
    both = [cosine(after[k].flatten(1), against[k].flatten(1)) for k in "ab"]
    np.testing.assert_allclose(found.numpy(), shift + scale * np.mean(both, axis=0), rtol=0, atol=1e-6)
    alike = resolve(name).losses(after, {k: 3 * v for k, v in after.items()}, samples=3)
    np.testing.assert_allclose(alike.numpy(), shift + scale, rtol=0, atol=1e-6)


def test_similarity_refuses_a_reference_of_another_size() -> None:
    with pytest.raises(InputError, match=r"\(1, 8\) for the input and \(1, 9\)"):
        resolve("similarity").losses({"a": randn(1, 8)}, {"a": randn(1, 9)}, samples=1)


def test_value_is_minus_what_is_watched() -> None:
    y = {"a": randn(2, 3, 4), "b": randn(2, seed=1)}
    expected = -(numpy(y["a"]).reshape(2, -1).mean(1) + numpy(y["b"]))
    np.testing.assert_allclose(resolve("value").losses(y, {}, samples=2).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_says_its_formula_and_where_it_is_from(name: str) -> None:
    objective = resolve(name)
    assert objective.name == name
    assert len(objective.formula) > 3
    assert len(objective.source) > 10


class TestSelection:
    boxes = randn(2, 6, 4)
    first = randn(6, 2, 4, seed=1)  # the samples on its second axis
    alone = randn(2, 3, 5, 5, seed=2)

    def value(self, *terms: str, name: str = "value") -> F64:
        """Minus the value of a selection, a number for each sample."""
        objective = selected(resolve(name), terms, {"boxes": 0, "first": 1, "map:0": 0})
        outputs = {"boxes": self.boxes, "first": self.first.movedim(1, 0), "map:0": self.alone}
        return -numpy(objective.losses(outputs, {}, samples=2))

    @pytest.mark.parametrize(
        ("term", "index", "reduce"),
        [
            ("boxes[0, 5, 2]", np.s_[:, 5, 2], np.mean),
            ("boxes[:, -1, 2]", np.s_[:, -1, 2], np.mean),
            ("boxes[0, 1:4]", np.s_[:, 1:4], np.mean),
            ("boxes[:, ::2, 3]", np.s_[:, ::2, 3], np.mean),
            ("boxes[..., 1]", np.s_[..., 1], np.mean),
            ("boxes [ 0 , ... , 1 ]", np.s_[..., 1], np.mean),
            ("boxes[:, :, 2].max()", np.s_[..., 2], np.max),
            ("boxes[:, :, 2].min()", np.s_[..., 2], np.min),
            ("boxes[:, :, 2].sum()", np.s_[..., 2], np.sum),
            ("boxes.mean()", np.s_[:], np.mean),
            ("boxes", np.s_[:], np.mean),
            ("map:0[:, 1, 2:4, 2:4]", None, np.mean),
        ],
    )
    def test_is_numpys_index(self, term: str, index: Any, reduce: Any) -> None:
        whole = numpy(self.boxes) if index is not None else numpy(self.alone)
        picked = whole[index] if index is not None else whole[:, 1, 2:4, 2:4]
        np.testing.assert_allclose(self.value(term), [reduce(row) for row in picked], rtol=1e-5, atol=1e-6)

    def test_the_index_is_that_of_the_model_wherever_its_samples_are(self) -> None:
        np.testing.assert_allclose(self.value("first[3, 0, 1]"), numpy(self.first)[3, :, 1], rtol=1e-6)
        np.testing.assert_allclose(self.value("first[:, :, 1].max()"), numpy(self.first)[..., 1].max(0), rtol=1e-6)

    def test_values_are_added_with_their_weights(self) -> None:
        one, two = self.value("boxes[0, 1, 1]"), self.value("map:0[0, 0].max()")
        both = self.value("0.5 * boxes[0, 1, 1]", "-2*map:0[0, 0].max()")
        np.testing.assert_allclose(both, 0.5 * one - 2 * two, rtol=1e-5)

    @pytest.mark.parametrize("name", ["outputs", "cosine", "similarity"])
    def test_of_the_other_losses_a_weight_is_a_part(self, name: str) -> None:
        after, before = {"a": randn(2, 6), "b": randn(2, 6, seed=1)}, {"a": randn(2, 6, seed=2), "b": randn(2, 6)}
        batch = {"a": 0, "b": 0}

        def losses(*terms: str) -> F64:
            return numpy(selected(resolve(name), terms, batch).losses(after, before, samples=2))

        np.testing.assert_allclose(losses("3 * a", "b[:, 2:]"), (3 * losses("a") + losses("b[:, 2:]")) / 4, rtol=1e-5)
        np.testing.assert_allclose(losses("7 * a"), losses("a"), rtol=1e-6)
        np.testing.assert_allclose(losses("a", "b"), numpy(resolve(name).losses(after, before, samples=2)), rtol=1e-5)

    def test_class_scores_of_one_place(self) -> None:
        scores = randn(2, 4, 3, 3)
        objective = selected(resolve("log-softmax"), "y[:, :, 1, 2]", {"y": 0})
        found = objective.losses({"y": scores}, {"y": scores}, samples=2, target=torch.tensor([0, 3]))
        own = numpy(scores)[:, :, 1, 2]
        expected = [log_softmax(own[k], own[k], t) for k, t in enumerate([0, 3])]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)

    def test_form(self) -> None:
        batch = {"y": 0}
        assert selected(resolve("value"), "y[0, 1]", batch).form == "linear"
        assert selected(resolve("value"), "2 * y.sum()", batch).form == "linear"
        assert selected(resolve("value"), "y.max()", batch).form is None
        assert selected(resolve("outputs"), "y", batch).form is None

    @pytest.mark.parametrize(
        ("terms", "told"),
        [
            (["nowhere[0]"], "names no output"),
            (["boxes[0, 9]"], "out of range"),
            (["boxes[0, -7]"], "out of range"),
            (["boxes[1, 2]"], "among the samples"),
            (["boxes[0:1, 2]"], "among the samples"),
            (["boxes[0, 1, 2, 3]"], "4 indices"),
            (["boxes[0, 3:3]"], "selects nothing"),
            (["boxes[0, ::-1]"], "cannot be read"),
            (["boxes[0, [1, 2]]"], "cannot be read"),
            (["boxes[0, x]"], "cannot be read"),
            (["boxes[..., ...]"], "cannot be read"),
            (["boxes[0"], "cannot be read"),
            (["boxes[0].median()"], "cannot be read"),
            (["boxes[__import__('os').getcwd()]"], "cannot be read"),
            (["two * boxes"], "no number"),
            (["nan * boxes"], "weight nan"),
            (["0 * boxes"], "weights are 0"),
            ([], "empty"),
            (["boxes", "boxes"], "twice"),
        ],
    )
    def test_what_is_refused(self, terms: list[str], told: str) -> None:
        with pytest.raises(InputError) as caught:
            self.value(*terms)
        assert told in str(caught.value)

    def test_nothing_of_the_text_is_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            selection(f"boxes[open({str(tmp_path / 'made')!r}, 'w')]", {"boxes": 0})
        assert list(tmp_path.iterdir()) == []


class TestCustom:
    def made(self, folder: Path, text: str) -> Objective:
        file = folder / "mine.py"
        file.write_text(text)
        return resolve(f"{file}:loss")

    def test_a_function_of_a_file(self, tmp_path: Path) -> None:
        objective = self.made(
            tmp_path, "def loss(filtered, normal, target):\n    return (filtered['y'] - normal['y']).abs().sum(1)\n"
        )
        after, before = randn(3, 4), randn(3, 4, seed=1)
        found = objective.losses({"y": after}, {"y": before}, samples=3)
        np.testing.assert_allclose(found.numpy(), np.abs(numpy(after) - numpy(before)).sum(1), rtol=1e-5)
        assert not objective.class_specific
        assert objective.may_have_target

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("def other(): pass", "no function 'loss'"),
            ("loss = 3", "no function 'loss'"),
            ("1 / 0", "ZeroDivisionError"),
            ("def loss(:", "SyntaxError"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path: Path, text: str, told: str) -> None:
        with pytest.raises(InputError, match=told):
            self.made(tmp_path, text)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not there"):
            custom(f"{tmp_path / 'no.py'}:loss")

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ("return filtered['z']", "KeyError"),
            ("return 3.0", "returns float"),
            ("return filtered['y']", r"\(2, 4\), not 2 losses"),
            ("return filtered['y'].sum(1).long()", "int64"),
        ],
    )
    def test_what_it_returns_is_checked(self, tmp_path: Path, body: str, told: str) -> None:
        objective = self.made(tmp_path, f"def loss(filtered, normal, target):\n    {body}\n")
        with pytest.raises(InputError, match=told):
            objective.losses({"y": randn(2, 4)}, {"y": randn(2, 4)}, samples=2)

    @pytest.fixture(autouse=True)
    def clean(self) -> Any:
        yield
        sys.modules.pop("l2caf_objective_mine", None)
