"""Checks against a baseline: harmless changes pass, faults do not, and what the user can mend is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError
from l2caf_onnx.regress import store
from tests.conftest import normal, weighted
from tests.test_regress_baseline import FEEDS, model, photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A baseline of arrays, whose model is a file beside it."""
    onnx.save(model().proto, tmp_path / "m.onnx")
    caf.baseline(tmp_path / "m.onnx", FEEDS, at="r", folder=tmp_path / "b", watch=["a"], calibrate=True)
    return tmp_path / "b"


def changed(change: Callable[[onnx.ModelProto], Any]) -> caf.Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model().proto)
    change(proto)
    return caf.load(proto)


def weight(proto: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, np.ndarray[Any, Any]]:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    return tensor, onnx.numpy_helper.to_array(tensor).copy()


def put(proto: onnx.ModelProto, name: str, values: np.ndarray[Any, Any]) -> None:
    tensor, _ = weight(proto, name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))


def noised(proto: onnx.ModelProto) -> None:
    _, values = weight(proto, "k2")
    noise = np.random.default_rng(0).standard_normal(values.shape) * values.std() * 0.01
    put(proto, "k2", (values + noise).astype(np.float32))


def permuted(proto: onnx.ModelProto) -> None:
    put(proto, "k1", weight(proto, "k1")[1][[1, 0, 2, 3]])


def unbiased(proto: onnx.ModelProto) -> None:
    put(proto, "b", 0 * weight(proto, "b")[1])


def retrained(proto: onnx.ModelProto) -> None:
    for k, name in enumerate(("k1", "k2", "w")):
        put(proto, name, normal(*weight(proto, name)[1].shape, seed=7 + k))


def renamed(proto: onnx.ModelProto) -> None:
    names = {o: f"t{k}" for k, n in enumerate(proto.graph.node) for o in n.output if o != "y"}
    for node in proto.graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]


def other_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "picture"
    proto.graph.node[0].input[0] = "picture"


def relu_twice(proto: onnx.ModelProto) -> None:
    node = next(n for n in proto.graph.node if n.output[0] == "f")
    proto.graph.node.insert(0, onnx.helper.make_node("Relu", ["r"], ["r2"], "again"))
    next(n for n in proto.graph.node if n.op_type == "GlobalAveragePool").input[0] = "r2"
    assert node.input[0] == "p"


HARMLESS: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "the same": lambda proto: None,
    "renamed": renamed,
    "another name of the input": other_input,
    "another node": relu_twice,
    "off in the last place": lambda p: put(p, "k2", (weight(p, "k2")[1] * (1 + 1e-7)).astype(np.float32)),
}
FAULTS = {"noise of 1%": noised, "two channels exchanged": permuted, "bias dropped": unbiased}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_changes_pass(folder: Path, kind: str) -> None:
    found = caf.check(folder, changed(HARMLESS[kind]), inputs=FEEDS)
    assert found.kind == "check"
    assert found.failures == ()
    assert found.ok
    assert {s.subject for s in found.scores} == {"output", "attention", "tensor"}
    assert found.change == ("identical" if kind == "the same" else "float32")
    assert len(found.inputs) == len(found.images) == 23


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_do_not(folder: Path, kind: str) -> None:
    found = caf.check(folder, changed(FAULTS[kind]), inputs=FEEDS)
    assert not found.ok
    assert found.change == "float32"
    failed = found.failures[0]
    assert failed.threshold is not None
    assert "harmless variations" in failed.threshold.source


@pytest.mark.parametrize("kind", [*HARMLESS, *FAULTS])
def test_the_same_verdict_without_the_model_of_the_baseline(folder: Path, kind: str) -> None:
    (folder.parent / "m.onnx").unlink()
    if kind == "renamed":
        with pytest.raises(InputError, match="lacks the baseline's breakpoint"):
            caf.check(folder, changed(renamed), inputs=FEEDS)
        found = caf.check(folder, changed(renamed), inputs=FEEDS, align={"r": "t3"})
    else:
        found = caf.check(folder, changed({**HARMLESS, **FAULTS}[kind]), inputs=FEEDS)
    assert found.ok == (kind in HARMLESS)


@pytest.mark.parametrize("there", [True, False])
def test_what_was_retrained_is_told_from_a_fault(folder: Path, there: bool) -> None:
    if not there:
        (folder.parent / "m.onnx").unlink()
    assert caf.check(folder, changed(retrained), inputs=FEEDS).change == "retrained"


def test_what_is_compared_is_what_the_two_models_say(folder: Path) -> None:
    other = changed(permuted)
    found = caf.check(folder, other, inputs=FEEDS)
    one, two = caf.run(model(), FEEDS)["y"], caf.run(other, FEEDS)["y"]
    error = np.linalg.norm(two - one, axis=1) / np.linalg.norm(one, axis=1)
    score = next(s for s in found.scores if (s.subject, s.metric) == ("output", "error"))
    np.testing.assert_allclose(score.values, error, rtol=1e-3)
    assert score.worst == int(error.argmax())
    (pair,) = found.pairs
    assert pair.reference.shape == pair.candidate.shape == (23, 6, 6)
    target = one.argmax(1).tolist()  # both are asked about the class that the baseline asked about
    asked = caf.attend(other, FEEDS, at="r", target=target, objective="contrast", constraint="l2-nonneg", radius=0.5)
    np.testing.assert_allclose(pair.candidate, asked.filter, atol=1e-4)
    np.testing.assert_allclose(pair.candidate_maps, asked.heatmap, atol=1e-4)


def test_the_users_lines_win(folder: Path) -> None:
    loose = {"output.error": 9.0, "output.top1": {"value": 1, "share": 1}, "attention.cosine": -1.0}
    assert caf.check(folder, changed(noised), inputs=FEEDS, thresholds=loose).ok
    strict = caf.check(folder, model(), inputs=FEEDS, thresholds={"attention.iou@r": 1.1})
    assert [(s.metric, s.name) for s in strict.failures] == [("iou", "r")]
    with pytest.raises(InputError, match="not compared"):
        caf.check(folder, model(), inputs=FEEDS, thresholds={"attention.iou@a": 1})


def test_update_shows_what_changes_then_accepts(folder: Path) -> None:
    other = changed(permuted)
    before = {p.name for p in folder.iterdir()}
    found = caf.check(folder, other, inputs=FEEDS, update=True)
    assert not found.ok
    assert {p.name for p in folder.iterdir()} != before
    assert store.read_manifest(folder)["thresholds"]["float32"]
    assert caf.check(folder, other, inputs=FEEDS).ok
    assert not caf.check(folder, model(), inputs=FEEDS).ok


def test_update_takes_the_names_of_the_new_model(folder: Path) -> None:
    assert caf.check(folder, changed(renamed), inputs=FEEDS, update=True).ok
    assert [b["name"] for b in store.read_manifest(folder)["at"]] == ["t3"]
    assert caf.check(folder, changed(renamed), inputs=FEEDS).ok


def test_an_update_that_fails_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(store, "save_manifest", fails)
    with pytest.raises(OSError, match="full"):
        caf.check(folder, changed(permuted), inputs=FEEDS, update=True)
    monkeypatch.undo()
    assert caf.check(folder, model(), inputs=FEEDS).ok
    assert not caf.check(folder, changed(permuted), inputs=FEEDS).ok


def test_without_a_model_the_file_is_checked_as_it_is_now(folder: Path) -> None:
    assert caf.check(folder, inputs=FEEDS).ok
    onnx.save(changed(noised).proto, folder.parent / "m.onnx")
    found = caf.check(folder, inputs=FEEDS)
    assert not found.ok
    assert found.change == "float32"
    (folder.parent / "m.onnx").unlink()
    with pytest.raises(InputError, match="no such model file"):
        caf.check(folder, inputs=FEEDS)


def test_arrays_are_asked_for_and_known_again(folder: Path) -> None:
    with pytest.raises(InputError, match=r"were arrays.*Give them again"):
        caf.check(folder)
    other = {"x": FEEDS["x"].copy()}
    other["x"][4, 0, 0, 0] += 1
    with pytest.raises(InputError, match=r"Input 4 .*not what it was"):
        caf.check(folder, inputs=other)
    with pytest.raises(InputError, match="has 23 inputs"):
        caf.check(folder, inputs={"x": np.concatenate([FEEDS["x"], FEEDS["x"]])})
    with pytest.raises(InputError, match="not what it was"):
        caf.check(folder, inputs={"x": FEEDS["x"][:20]})


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A baseline of pictures."""
    onnx.save(model().proto, tmp_path / "m.onnx")
    pictures = photos(tmp_path / "photos")
    caf.baseline(tmp_path / "m.onnx", [str(pictures)], at="r", folder=tmp_path / "b", preprocess="unit")
    return tmp_path / "b"


def test_pictures_are_found_again(pictured: Path) -> None:
    assert caf.check(pictured).ok
    (pictured.parent / "photos" / "new.png").write_bytes((pictured.parent / "photos" / "1.png").read_bytes())
    assert len(caf.check(pictured).inputs) == 4
    assert not caf.check(pictured, preprocess="raw").ok


def test_missing_and_changed_pictures_are_told(pictured: Path) -> None:
    place = pictured.parent / "photos"
    shutil.copytree(place, pictured.parent / "elsewhere")
    (place / "2.png").unlink()
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(place / "3.png")
    with pytest.raises(InputError, match=r"2 of the baseline's 4 inputs.*2\.png.*3\.png"):
        caf.check(pictured)
    with pytest.raises(InputError, match="2 of the baseline's 4 inputs"):
        caf.check(pictured, inputs=[str(place)])
    assert caf.check(pictured, inputs=[str(pictured.parent / "elsewhere")]).ok


def test_a_model_of_another_input_size_is_told(pictured: Path) -> None:
    def larger(proto: onnx.ModelProto) -> None:
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 16

    with pytest.raises(InputError, match=r"another size: \(1, 3, 16, 16\)"):
        caf.check(pictured, changed(larger))


def test_stored_arrays_are_found_again_also_under_other_names(tmp_path: Path) -> None:
    onnx.save(model().proto, tmp_path / "m.onnx")
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", x=FEEDS["x"][k : k + 1])
    files = [str(tmp_path / f"{k}.npz") for k in range(3)]
    caf.baseline(tmp_path / "m.onnx", files, at="r", folder=tmp_path / "b")
    assert caf.check(tmp_path / "b").ok
    assert caf.check(tmp_path / "b", changed(other_input)).ok


def test_a_breakpoint_that_is_gone_is_told_with_the_nearest(folder: Path) -> None:
    other = weighted(
        "g (float[N,3,12,12] x) => (float[N,6] y) <float[6,3] w, float[6] b>"
        "{ p = GlobalAveragePool (x)  f = Flatten (p)  y = Gemm <transB = 1> (f, w, b) }"
    )
    with pytest.raises(InputError, match="no counterpart of the breakpoint 'r'"):
        caf.check(folder, other, inputs=FEEDS)
    (folder.parent / "m.onnx").unlink()
    with pytest.raises(InputError, match="lacks the baseline's breakpoint 'r'"):
        caf.check(folder, other, inputs=FEEDS)


def test_nan_fails(folder: Path) -> None:
    """Also where attention cannot be asked of it."""

    def broken(proto: onnx.ModelProto) -> None:
        bias = weight(proto, "b")[1]
        bias[0] = np.nan
        put(proto, "b", bias)

    found = caf.check(folder, changed(broken), inputs=FEEDS)
    assert not found.ok
    error = next(s for s in found.scores if (s.subject, s.metric) == ("output", "error"))
    assert np.isinf(error.values).all()
    assert any("attention" in note for note in found.notes)
