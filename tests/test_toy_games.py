"""The games on the toys, where the right answer is known by construction: maps point at the digit asked about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

import l2caf_onnx as caf
from l2caf_onnx.evaluation.contenders import contender
from scripts.toy_games import clips_game, inside, scenes_game
from scripts.toys.scenes import Box, held_out

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize(
    ("toy", "at", "least"),
    [("cnn", "block5", 0.97), ("detector", "block1", 0.97), ("embedding", "block3", 0.97), ("vit", "layer3", 0.95)],
)
def test_the_maximum_is_in_the_digit(toy: str, at: str, least: float) -> None:
    found = scenes_game(toy, [at], 12, ["default", "centre"])
    assert found[at, "default"] >= least
    assert found[at, "centre"] < 0.5  # the digits are not where a blind guess is


@pytest.mark.parametrize(("toy", "at"), [("cnn", "block5"), ("vit", "layer1")])
def test_both_digits_of_a_class_are_covered(toy: str, at: str) -> None:
    assert scenes_game(toy, [at], 12, ["default"], two=True)[at, "default"] >= 0.9


def test_each_frame_has_its_maximum_in_the_digit() -> None:
    found = clips_game(["block3"], 2, ["default"])
    assert found["block3", "default"] >= 0.9


def test_what_counts_as_inside() -> None:
    heat = np.zeros((8, 8))
    heat[3, 5] = 1
    assert inside(heat, Box(0, 5, 3, 6, 4))
    assert not inside(heat, Box(0, 0, 0, 5, 8))
    assert not inside(heat, Box(0, 5, 4, 8, 8))


class TestOneClassOfADetector:
    """A contender may watch the class that is asked about: `{class}` in its selection."""

    def evaluated(self, name: str, **options: Any) -> caf.Evaluation:
        (scene,) = held_out("detector", 1, 5)
        boxes = {"sample 0": [(str(b.label), b[1:]) for b in scene.boxes]}
        return caf.evaluate(
            MODELS / "toy-detector.onnx", {"image": scene.image[None]}, at="block5",
            **{"games": ["boxes"], "boxes": boxes, "methods": [name], **options},
        )  # fmt: skip

    def test_each_class_is_a_question_of_its_own(self) -> None:
        (scene,) = held_out("detector", 1, 5)
        found = self.evaluated("l2caf:select=scores[:, :, {class}].max()")
        assert sorted(r.target for r in found.rows if r.target is not None) == sorted({b.label for b in scene.boxes})

    def test_a_batch_gives_what_singles_give(self) -> None:
        shown = held_out("detector", 4, 6)
        boxes = {f"sample {k}": [(str(b.label), b[1:]) for b in s.boxes] for k, s in enumerate(shown)}
        images = np.stack([s.image for s in shown])
        name = "l2caf:select=scores[:, :, {class}].max()"
        one, many = (
            caf.evaluate(
                MODELS / "toy-detector.onnx", {"image": images}, at="block5", games=["boxes"], boxes=boxes,
                methods=[name], batch_size=size,
            )
            for size in (1, 4)
        )  # fmt: skip
        scores = [{(r.item, r.target): r.scores["energy@1"] for r in found.rows} for found in (one, many)]
        assert scores[0].keys() == scores[1].keys()
        for key, value in scores[0].items():
            assert scores[1][key] == pytest.approx(value, abs=1e-2)

    def test_without_a_class_it_is_refused(self) -> None:
        with pytest.raises(caf.InputError, match="watches one class"):
            self.evaluated("l2caf:select=scores[:, :, {class}].max()", games=["repeat"])

    def test_the_class_takes_its_place(self) -> None:
        own = contender("l2caf:select=scores[:, :, {class}].max()")
        assert own.by_class
        assert own.query("a", None, [3, 3], scored=False).select == "scores[:, :, 3].max()"
        assert own.query("a", None, [3, 3]).target is None
        assert not contender("default").by_class
        with pytest.raises(caf.InputError, match="watches one class"):
            own.query("a", None, [3, 4])
