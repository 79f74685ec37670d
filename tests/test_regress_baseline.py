"""Baselines: what is stored and how small, that an interrupted one goes on, and that nothing half-written is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError, TensorNotFoundError
from l2caf_onnx.regress import observe, store
from tests.conftest import normal, weighted

TEXT = """g (float[N,3,12,12] x) => (float[N,6] y)
<float[4,3,3,3] k1, float[4] c1, float[8,4,3,3] k2, float[6,8] w, float[6] b>
{ h = Conv <pads = [1,1,1,1], strides = [2,2]> (x, k1, c1)  a = Relu (h)  g2 = Conv <pads = [1,1,1,1]> (a, k2)
  r = Relu (g2)  p = GlobalAveragePool (r)  f = Flatten (p)  y = Gemm <transB = 1> (f, w, b) }"""
FEEDS = {"x": normal(23, 3, 12, 12)}


def model() -> caf.Model:
    return weighted(TEXT)


def made(folder: Path, **options: Any) -> caf.Baseline:
    return caf.baseline(model(), FEEDS, at="r", folder=folder, **options)


def photos(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def saved(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(model().proto, path)
    return path


def test_what_is_stored_is_what_the_model_says(tmp_path: Path) -> None:
    found = made(tmp_path / "b", watch=["a", "g2"])
    assert found.ok
    assert found.at == ("r",)
    assert (len(found.inputs), found.resumed, found.calibrated) == (23, 0, False)
    manifest, seen, weights = store.read_baseline(tmp_path / "b")
    outputs = caf.run(model(), FEEDS)["y"]
    np.testing.assert_allclose(seen.outputs["y"], outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(seen.targets, outputs.argmax(1))
    attention = caf.attend(
        model(), FEEDS, at="r", target=outputs.argmax(1).tolist(), objective="contrast", constraint="l2-nonneg",
        radius=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(seen.filters["r"], attention.filter, atol=2e-3)  # stored in half precision
    np.testing.assert_allclose(seen.maps["r"], attention.heatmap, atol=5e-3)
    a = np.maximum(seen_tensor("h"), 0)
    assert list(seen.tensors) == ["a", "g2"]
    assert set(np.round(seen.tensors["a"][3], 4)) <= set(np.round(a[3].ravel(), 4))
    stored = seen.statistics["a"][3]
    np.testing.assert_allclose(stored, [a[3].mean(), a[3].std(), a[3].min(), a[3].max()], rtol=1e-3, atol=1e-5)
    assert set(weights) == {"k1", "k2"}  # the others are too small to say anything
    assert manifest["versions"]["numpy"] == np.__version__


def seen_tensor(name: str) -> np.ndarray[Any, Any]:
    proto = onnx.ModelProto()
    proto.CopyFrom(model().proto)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return caf.run(caf.load(proto), FEEDS)[name]


def test_files_are_plain_small_and_listed(tmp_path: Path) -> None:
    found = made(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    files = {f["name"] for f in manifest["files"]} | {manifest["weights"]["name"], "manifest.json"}
    assert files == {p.name for p in (tmp_path / "b").iterdir()}
    assert found.bytes_per_input <= 16_000
    assert found.bytes_per_input == sum(p.stat().st_size for p in (tmp_path / "b").iterdir()) / 23
    for path in (tmp_path / "b").glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind != "O" for name in arrays.files)
    with np.load(next((tmp_path / "b").glob("part-000000-*")), allow_pickle=False) as arrays:
        assert arrays["attention/0/heatmap"].dtype == np.uint8
        assert arrays["output/0/top"].tolist() == np.argsort(-arrays["output/0/values"], kind="stable")[:, :5].tolist()


def test_the_same_twice_is_byte_for_byte_the_same(tmp_path: Path) -> None:
    for name in "ab":
        made(tmp_path / name)
    one, other = ((tmp_path / name / "manifest.json").read_text() for name in "ab")
    assert [f["sha256"] for f in json.loads(one)["inputs"]] == [f["sha256"] for f in json.loads(other)["inputs"]]
    assert list(json.loads(one)) == list(json.loads(other))


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observe.Observer.see
    calls: list[int] = []

    def stops(self: observe.Observer, feeds: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(feeds["x"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, feeds, *rest, **options)

    monkeypatch.setattr(observe.Observer, "see", stops)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "b")
    with pytest.raises(InputError, match=r"interrupted.*goes on"):
        caf.check(tmp_path / "b", model(), inputs=FEEDS)
    with pytest.raises(InputError, match="other settings"):
        made(tmp_path / "b", seed=3)
    calls[:] = [0, 0, 0]
    found = made(tmp_path / "b")
    assert found.resumed == 10
    assert calls[3:] == [10, 3]  # the first part tells what the others hold; the second was there
    assert not (tmp_path / "b" / "unfinished.json").exists()
    assert caf.check(tmp_path / "b", model(), inputs=FEEDS).ok


def test_a_damaged_part_of_an_interrupted_run_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "write_manifest", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "b")
    monkeypatch.undo()
    second = next((tmp_path / "b").glob("part-000010-*"))
    second.write_bytes(second.read_bytes()[:100])
    assert made(tmp_path / "b").resumed == 3
    assert caf.check(tmp_path / "b", model(), inputs=FEEDS).ok


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_baseline_is_not_replaced_unasked(tmp_path: Path) -> None:
    made(tmp_path / "b")
    with pytest.raises(InputError, match=r"already.*--force"):
        made(tmp_path / "b")
    assert made(tmp_path / "b", force=True, watch=["h"]).ok
    assert store.read_baseline(tmp_path / "b")[0]["tensors"] == ["h"]


def test_calibrated_thresholds_say_where_they_come_from(tmp_path: Path) -> None:
    found = made(tmp_path / "b", calibrate=True, half=True, thresholds={"attention.cosine": 0.9})
    assert found.calibrated
    assert "harmless variations" in found.thresholds["output.error@y"].source
    assert found.thresholds["attention.cosine"].value == 0.9
    manifest = store.read_manifest(tmp_path / "b")
    lines = manifest["thresholds"]
    assert set(lines) == {"identical", "float32", "float16"}
    assert lines["float32"]["output.error@y"]["value"] > lines["identical"]["output.error@y"]["value"]  # float16 counts


def _schema(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))


def _by_hand(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"target": null', '"target": 3'))


def _cut(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:200])


def _part(folder: Path) -> Path:
    return next(folder.glob("part-*.npz"))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another schema": (_schema, "schema version 99"),
    "manifest changed": (_by_hand, "not as the program wrote it"),
    "manifest cut": (_cut, "not valid JSON"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no baseline"),
    "part cut": (lambda f: _part(f).write_bytes(_part(f).read_bytes()[:500]), "cut short"),
    "part changed": (lambda f: _part(f).write_bytes(_part(f).read_bytes()[:-1] + b"x"), "cut short or changed"),
    "part gone": (lambda f: _part(f).unlink(), "missing"),
    "weights gone": (lambda f: next(f.glob("weights-*")).unlink(), "missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "b")
    damage, said = DAMAGE[kind]
    damage(tmp_path / "b")
    with pytest.raises(InputError, match=said):
        caf.check(tmp_path / "b", model(), inputs=FEEDS)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"at": "rr"}, TensorNotFoundError, "no tensor 'rr'"),
        ({"at": []}, InputError, "No tensor to break at"),
        ({"watch": ["nowhere"]}, TensorNotFoundError, "nowhere"),
        ({"target": "top2"}, InputError, "no target"),
        ({"target": -1}, InputError, "no target"),
        ({"thresholds": {"output.error@z": 1}}, InputError, "not compared"),
        ({"radius": "big"}, InputError, "radius"),
        ({"providers": ["NoProvider"]}, InputError, "NoProvider"),
    ],
)
def test_mistakes_leave_nothing(tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        caf.baseline(model(), FEEDS, **{"at": "r", "folder": tmp_path / "b", **options})
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        made(tmp_path / "b")


def test_pictures_move_with_the_baseline(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    pictures = photos(tmp_path / "one" / "photos")
    caf.baseline(saved(tmp_path / "one"), [pictures], at="r", folder=tmp_path / "one" / "b", preprocess="unit")
    (tmp_path / "one").rename(tmp_path / "two")
    found = caf.check(tmp_path / "two" / "b")
    assert found.ok
    assert found.change == "identical"
    assert [i.shape for i in found.images if i is not None] == [(12, 12, 3)] * 4


def test_large_outputs_are_sampled(tmp_path: Path) -> None:
    big = weighted(
        "g (float[N,1,24,24] x) => (float[N,4,24,24] y) <float[4,1,1,1] k> { a = Relu (x)  y = Conv (a, k) }"
    )
    feeds = {"x": normal(3, 1, 24, 24)}
    found = caf.baseline(big, feeds, at="a", folder=tmp_path / "b")
    assert found.bytes_per_input <= 16_000
    _, seen, _ = store.read_baseline(tmp_path / "b")
    assert seen.outputs["y"].shape == (3, 2048)
    assert seen.sizes["y"].tolist() == [4 * 24 * 24] * 3
    assert caf.check(tmp_path / "b", big, inputs=feeds).ok
