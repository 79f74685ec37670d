"""The toys, by onnxruntime alone: they know digits that they were not trained on, and the boxes are the digits' own."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

from scripts.toys import scenes, scores
from scripts.toys.scenes import Clip, Scene

MODELS = Path(__file__).resolve().parents[1] / "models"
TOYS = ("cnn", "vit", "embedding", "recurrent", "detector")
SEED = 20  # not the one of training, nor of what the manifest states
KINDS: tuple[scenes.Kind, ...] = ("cnn", "vit", "embedding", "detector")
BLOCKS: dict[str, tuple[int, ...]] = {
    "block1": (16, 32, 32), "block2": (32, 16, 16), "block3": (48, 16, 16), "block4": (64, 8, 8), "block5": (64, 8, 8),
}  # fmt: skip
STOPS: dict[str, dict[str, tuple[int, ...]]] = {  # the tensors that one would explain at, and their sizes
    "cnn": BLOCKS,
    "vit": {"patches": (64, 64), "layer1": (64, 64), "layer2": (64, 64), "layer3": (64, 64)},
    "embedding": BLOCKS,
    "recurrent": {"block1": (16, 24, 24), "block2": (32, 12, 12), "block3": (48, 12, 12)},
    "detector": BLOCKS,
}
WANTED = {
    "cnn": "BatchNormalization",
    "vit": "Softmax",
    "recurrent": "GRU",
    "embedding": "ReduceL2",
    "detector": "Conv",
}


@cache
def session(toy: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(MODELS / f"toy-{toy}.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(toy: str, shown: Sequence[Scene | Clip]) -> tuple[scores.Floats, ...]:
    if toy == "recurrent":
        rows = [session(toy).run(None, {"clip": s.clip[None]}) for s in shown if isinstance(s, Clip)]
    else:
        rows = [session(toy).run(None, {"image": np.stack([s.image for s in shown if isinstance(s, Scene)])})]
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("toy", ["cnn", "vit"])
@pytest.mark.parametrize("two_of_a_class", [False, True])
def test_classifiers_name_the_digits(toy: scenes.Kind, two_of_a_class: bool) -> None:
    shown = scenes.held_out(toy, 400, SEED, two_of_a_class=two_of_a_class)
    assert scores.classes_right(outputs(toy, shown), shown) > 0.95


def test_embeddings_meet_their_class() -> None:
    shown = scenes.held_out("embedding", 150, SEED)
    found = outputs("embedding", shown)
    assert scores.recall_at_1(found, shown) > 0.95
    assert np.abs(np.linalg.norm(found[0], axis=1) - 1).max() < 1e-5


def test_clips_meet_their_class() -> None:
    shown = scenes.held_out_clips(100, SEED)
    assert scores.recall_at_1(outputs("recurrent", shown), shown) > 0.95


def test_detector_finds_the_digits() -> None:
    shown = scenes.held_out("detector", 100, SEED)
    assert scores.detection_f1(outputs("detector", shown), shown) > 0.95


@pytest.mark.parametrize("toy", TOYS)
def test_files_are_as_stated(toy: str) -> None:
    path = MODELS / f"toy-{toy}.onnx"
    assert path.stat().st_size < 1_000_000
    proto = onnx.load(path)
    assert [o.version for o in proto.opset_import if o.domain == ""] == [17]
    assert WANTED[toy] in {n.op_type for n in proto.graph.node}
    sizes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in proto.graph.value_info}
    for name, size in STOPS[toy].items():
        assert sizes[name] == size


@pytest.mark.parametrize("toy", [t for t in TOYS if t != "recurrent"])
def test_a_batch_is_its_samples(toy: scenes.Kind) -> None:
    shown = scenes.held_out(toy, 3, SEED)
    together = outputs(toy, shown)
    for i in range(3):
        for alone, row in zip(outputs(toy, shown[i : i + 1]), together, strict=True):
            np.testing.assert_allclose(alone[0], row[i], rtol=1e-4, atol=1e-4 * np.abs(row).max())


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_where_the_digits_were_pasted(kind: scenes.Kind) -> None:
    """What differs from the scene without the digit is the digit: the box covers it, and no more than it."""
    doubled = scenes.held_out(kind, 10, SEED, two_of_a_class=True)
    for scene in scenes.held_out(kind, 30, SEED) + doubled:
        for index, box in enumerate(scene.boxes):
            changed = np.abs(scene.image - scene.without(index).image)[0]
            rows, columns = np.nonzero(changed > 0.15)
            assert (rows.min(), columns.min()) >= (box.y0 - 1, box.x0 - 1)
            assert max(box.x0 - columns.min(), columns.max() + 1 - box.x1) <= 1
            assert max(box.y0 - rows.min(), rows.max() + 1 - box.y1) <= 1
            assert max(columns.min() - box.x0, box.x1 - columns.max() - 1) <= 3
            assert max(rows.min() - box.y0, box.y1 - rows.max() - 1) <= 3
            assert changed[box.y0 : box.y1, box.x0 : box.x1].sum() > 0.9 * changed.sum()


def test_boxes_follow_the_digit_through_a_clip() -> None:
    for clip in scenes.held_out_clips(10, SEED):
        assert clip.clip.shape == (8, 1, 48, 48)
        for frame, box in zip(clip.frames, clip.boxes, strict=True):
            changed = np.abs(frame.image - frame.without(0).image)[0]
            assert changed[box.y0 : box.y1, box.x0 : box.x1].sum() > 0.9 * changed.sum()
        assert len(set(clip.boxes)) > 2
        assert len({f.digits[0].ink for f in clip.frames}) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_are_of_their_seed(kind: scenes.Kind) -> None:
    first, same, other = (scenes.held_out(kind, 3, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.boxes == b.boxes
        assert not np.array_equal(a.image, c.image)
        assert a.image.dtype == np.float32
        assert a.image.min() >= 0
        assert a.image.max() <= 1


def test_what_scenes_hold() -> None:
    for scene in scenes.held_out("cnn", 20, SEED):
        assert len(scene.labels) == len(scene.digits) in (2, 3)
    for scene in scenes.held_out("cnn", 20, SEED, two_of_a_class=True):
        first, second, other = (d.label for d in scene.digits)
        assert first == second == scene.label != other
    assert {len(s.digits) for s in scenes.held_out("embedding", 20, SEED)} == {1}
    assert {len(s.digits) for s in scenes.held_out("detector", 20, SEED)} == {1, 2, 3}


def test_held_out_glyphs_were_never_trained_on() -> None:
    kept, trained = (np.concatenate(scenes.indices(split)) for split in ("held-out", "train"))
    assert not set(kept) & set(trained)
    assert len(kept) + len(trained) == 1797
    shown = scenes.training("detector", 20, np.random.default_rng(0))
    assert {d.glyph for s in shown for d in s.digits} <= set(trained)
    assert {d.glyph for s in scenes.held_out("detector", 20, SEED) for d in s.digits} <= set(kept)


def test_written_scenes_are_the_scenes(tmp_path: Path) -> None:
    shown = scenes.held_out("detector", 4, SEED)
    scenes.write_scenes(shown, tmp_path)
    with (tmp_path / "boxes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file", "label", "x0", "y0", "x1", "y1"]
    for scene, path in zip(shown, sorted(tmp_path.glob("*.png")), strict=True):
        image = np.asarray(Image.open(path), np.float32)[None] / 255
        np.testing.assert_array_equal(image, scene.image)
        own = [tuple(int(v) for k, v in row.items() if k != "file") for row in rows if row["file"] == path.name]
        assert own == list(scene.boxes)
