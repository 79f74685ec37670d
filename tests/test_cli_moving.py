"""`attend` on clips, and `--trace`: what moves is animated, and what does not is said."""

# ruff: noqa: F811 - pytest finds a fixture by the name of the parameter

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

import l2caf_onnx as caf
from scripts.toys.scenes import held_out, write_scenes
from tests.conftest import MODELS, weighted
from tests.test_cli import Command, command  # noqa: F401 - the fixture
from tests.test_cli_layouts import SEQUENCE, VOLUME

DEEP = """g (float[N,3,8,8] x) => (float[N,5] y) <float[4,3,3,3] k, float[5,4] w>
{ c = Conv <pads = [1,1,1,1]> (x, k)  r = Relu (c)  s = Softplus (r)  p = GlobalAveragePool (s)  f = Flatten (p)
  y = Gemm <transB = 1> (f, w) }"""


def clip() -> np.ndarray:
    """(1, 8, 1, 48, 48): a bright square that wanders over a dark ground."""
    frames = np.zeros((1, 8, 1, 48, 48), np.float32)
    for k in range(8):
        frames[0, k, 0, 10:22, 4 + 3 * k : 14 + 3 * k] = 0.8
    return frames


def row() -> dict[str, Any]:
    (found,) = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["results"]
    return dict(found)


def frames_of(ending: str) -> tuple[int, tuple[int, int]]:
    (name,) = [f for f in row()["files"] if f.endswith(ending)]
    with Image.open(Path("out") / name) as picture:
        return getattr(picture, "n_frames", 1), picture.size


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_clip_has_a_filter_a_frame_a_strip_and_an_animation(command: Command, kind: str) -> None:
    np.save("clip.npy", clip())
    words = ["--trace", kind] if kind == "webp" else []
    found = command(
        "attend", MODELS / "toy-recurrent.onnx", "clip.npy", "--at", "block3", "--layout", "TCHW", "-o", "out", *words
    )
    assert found.code == 0, found.err
    with np.load(next(Path("out").glob("*.npz"))) as arrays:
        f = arrays["filter"]
        assert ("trace" in arrays) == (kind == "webp")
    assert f.shape == (8, 12, 12)
    norms = np.linalg.norm(f.reshape(8, -1), axis=1) / 12
    np.testing.assert_allclose(norms, row()["radius"], rtol=1e-5)  # each frame has a constraint of its own
    names = [f for f in row()["files"] if f.endswith(kind)]
    assert len(names) == (2 if kind == "webp" else 1)
    with Image.open(Path("out") / names[0]) as moving:
        assert getattr(moving, "n_frames", 1) == 8


@pytest.mark.parametrize(("network", "at"), [(DEEP, "c"), (SEQUENCE, "c"), (VOLUME, "c")])
def test_the_search_is_animated_and_ends_with_the_answer(command: Command, network: str, at: str) -> None:
    model = weighted(network)
    onnx.save(model.proto, "m.onnx")
    shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape or ()]
    np.save("x.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    found = command(
        "attend", "m.onnx", "x.npy", "--at", at, "--solver", "lbfgs", "--target", 1, "--trace", "gif", "-o", "out"
    )
    assert found.code == 0, found.err
    with np.load(next(Path("out").glob("*.npz"))) as arrays:
        tried, answer = arrays["trace"], arrays["filter"]
    assert tried.shape[1:] == answer.shape
    assert min(np.abs(t - answer).max() for t in tried) < 1e-5  # what was found is among what was tried
    assert 2 <= frames_of("-trace.gif")[0] <= len(tried) + 1


def test_where_nothing_is_searched_a_note_says_so(command: Command) -> None:
    onnx.save(weighted(SEQUENCE).proto, "m.onnx")
    np.save("x.npy", np.random.default_rng(0).standard_normal((1, 3, 40)).astype(np.float32))
    found = command("attend", "m.onnx", "x.npy", "--at", "s", "--target", 1, "--trace", "gif", "-o", "out")
    assert found.code == 0, found.err
    assert row()["solver"] == "exact"
    assert "no search to animate (closed form)" in " ".join(found.err.split())
    assert not list(Path("out").glob("*.gif"))


def test_another_kind_of_animation_is_refused(command: Command) -> None:
    onnx.save(weighted(SEQUENCE).proto, "m.onnx")
    np.save("x.npy", np.zeros((1, 3, 40), np.float32))
    found = command("attend", "m.onnx", "x.npy", "--at", "s", "--trace", "mp4", "-o", "out")
    assert found.code == 2
    assert "'mp4'" in found.err
    assert not Path("out").exists()


def test_a_committed_model_says_its_preprocessing(command: Command, tmp_path: Path) -> None:
    write_scenes(held_out("cnn", 1, 0), tmp_path)
    found = command(
        "attend", MODELS / "toy-cnn.onnx", "scene-0000.png", "--at", "block5", "--target", "top1", "-o", "out"
    )
    assert found.code == 0, found.err
    assert json.loads(Path("out/manifest.json").read_text())["settings"]["preprocess"] == "unit"


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "rise", "eigencam"])
def test_other_methods_take_a_clip_whose_frames_are_the_batch(method: str) -> None:
    a = caf.attend(
        MODELS / "toy-recurrent.onnx", {"clip": clip()}, at="block3", layout="TCHW", method=method,
        select="embedding[:, 3]",
    )  # fmt: skip
    assert a.heatmap.shape == (1, 8, 48, 48)
    assert a.heatmap.max() == 1
    assert a.proof.ok


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcam++"])
def test_a_gradient_of_roundings_is_no_map(method: str) -> None:
    """The embedding has length 1, so that its product with itself stays 1 whatever the activation does at first."""
    a = caf.attend(MODELS / "toy-recurrent.onnx", {"clip": clip()}, at="block3", layout="TCHW", method=method)
    assert a.heatmap.max() == 0
    assert "blank" in a.notes[-1]
