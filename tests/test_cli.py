"""The command line as a user meets it: what it prints and writes, and one clear message for each mistake."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from PIL import Image

from l2caf_onnx import cli

CLASSIFIER = """
<ir_version: 8, opset_import: ["": 17]>
tiny (float[N, 3, 16, 16] image, float[6, 3, 3, 3] w, float[5, 6] v, float[5] b)
    => (float[N, 5] scores, float[N, 1, 16, 16] aside)
{
    conv = Conv <pads = [1, 1, 1, 1]> (image, w)
    relu = Relu (conv)
    pooled = GlobalAveragePool (relu)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, v, b)
    scores = Softmax (logits)
    aside = ReduceMax <axes = [1]> (image)
    counted = Cast <to = 7> (relu)
}
"""


class Run(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["l2caf-onnx", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Run(int(stop.value.code or 0), printed.out, printed.err)

    return run


def classifier(text: str = CLASSIFIER) -> onnx.ModelProto:
    """The small network, with seeded weights."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in proto.graph.input[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        weights = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, value.name))
    return proto


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small network as a file."""
    path = tmp_path / "tiny.onnx"
    onnx.save(classifier(), path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of noise."""
    path = tmp_path / "noise.png"
    pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("words", [(), ("inspect",), ("cut",), ("attend",)])
def test_help_says_what_a_command_does(command: Command, words: tuple[str, ...]) -> None:
    found = command(*words, "--help")
    assert found.code == 0
    assert "Usage" in found.out
    assert len(found.out.splitlines()) > 10


def test_version(command: Command) -> None:
    assert command("--version").out.startswith("l2caf-onnx 0.")


class TestInspect:
    def test_a_table_of_breakpoints(self, command: Command, model: Path) -> None:
        found = command("inspect", model)
        assert found.code == 0
        rows = [line.split() for line in found.out.splitlines()]
        assert rows[1][:4] == ["image", "Input", "Nx3x16x16", "NCHW"]
        assert rows[2][0] == "conv"
        assert [row[0] for row in rows[1:-1] if "affine" in row] == ["aside"]  # the others end in a softmax
        assert "<- last" in found.out.splitlines()[-2]

    def test_json(self, command: Command, model: Path) -> None:
        found = json.loads(command("inspect", model, "--json").out)["breakpoints"]
        by_name = {b["name"]: b for b in found}
        assert set(by_name) == {"image", "conv", "relu", "aside"}
        assert by_name["conv"]["shape"] == ["N", 6, 16, 16]
        assert by_name["conv"]["layout"] == "NCHW"
        assert by_name["conv"]["bypass"] == []
        assert [name for name, b in by_name.items() if b["affine"]] == ["aside"]
        assert all(isinstance(b["affine"], bool) for b in found)

    def test_a_model_without_any(self, command: Command, tmp_path: Path) -> None:
        text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
        onnx.save(onnx.parser.parse_model(text), tmp_path / "flat.onnx")
        found = command("inspect", tmp_path / "flat.onnx")
        assert found.code == 0
        assert "no breakpoint" in found.out


class TestCut:
    def test_two_models_and_the_check(self, command: Command, model: Path, tmp_path: Path) -> None:
        found = command("cut", model, "--at", "relu", "-o", "parts", "--json")
        assert found.code == 0
        document = json.loads(found.out)
        assert document["check"]["bitwise"] is True
        assert document["to"] == ["scores"]
        for part in ("head", "tail"):
            onnx.checker.check_model(str(tmp_path / "parts" / f"{part}.onnx"))
        assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["schema_version"] == 1

    def test_words(self, command: Command, model: Path) -> None:
        found = command(
            "cut", model, "--at", "conv", "--to", "pooled", "-o", "p", "--input-shapes", "image:[2,3,16,16]"
        )
        assert found.code == 0
        assert "bit for bit" in found.out
        assert "[2, 3, 16, 16]" in found.out

    @pytest.mark.parametrize("shape", ["image", "image:[1,", "nobody:[1]", "image:['a']"])
    def test_a_shape_that_cannot_be_read(self, command: Command, model: Path, shape: str) -> None:
        assert command("cut", model, "--at", "conv", "-o", "p", "--input-shapes", shape).code == 2
        assert not Path("p").exists()

    def test_an_input_that_noise_cannot_stand_for(self, command: Command, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["": 17]> g (float[1,3,4,4] x, seq(float[1,3,4,4]) s) =>
          (float[1,3,4,4] y) { r = Relu (x)  i = Constant <value_int = 0> ()  e = SequenceAt (s, i)  y = Add (r, e) }"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "sequence.onnx")
        found = command("cut", tmp_path / "sequence.onnx", "--at", "r", "-o", tmp_path / "parts")
        assert found.code == 2
        assert "'s' (sequence)" in found.err
        assert "Traceback" not in found.err
        assert not (tmp_path / "parts").exists()


class TestAttend:
    def ask(self, command: Command, model: Path, photo: object, *words: object) -> Run:
        return command("attend", model, photo, "--at", "relu", "--preprocess", "unit", *words)

    def test_picture_arrays_manifest_and_table(
        self, command: Command, model: Path, photo: Path, tmp_path: Path
    ) -> None:
        found = self.ask(command, model, photo, "--target", "top1", "-o", "out")
        assert found.code == 0, found.err
        assert "noise.png" in found.out
        assert "relu" in found.out
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        (row,) = manifest["results"]
        assert row["proof"]["ok"] is True
        assert row["proof_kind"] == "model"
        assert row["parity"]["ok"] is True
        assert row["to"] == ["logits"]  # the softmax is left out, and that is said
        assert "logits" in found.err
        picture, arrays = (tmp_path / "out" / name for name in row["files"])
        with Image.open(picture) as drawn:
            assert drawn.size[0] > 448
        with np.load(arrays) as stored:
            assert stored["filter"].shape == (16, 16)
            assert stored["heatmap"].shape == (16, 16)
            assert np.linalg.norm(stored["filter"]) == pytest.approx(0.42 * 16, rel=1e-5)

    def test_json_is_one_document_on_stdout(self, command: Command, model: Path, photo: Path) -> None:
        found = self.ask(command, model, photo, "--json", "--to", "scores")
        (row,) = json.loads(found.out)["results"]
        assert {"input", "at", "to", "target", "solver", "loss", "parity", "proof", "files"} <= set(row)
        assert row["target"] is None
        assert row["to"] == ["scores"]
        assert all(Path(f).is_file() for f in row["files"])
        assert Path("l2caf-out/manifest.json").is_file()

    def test_without_o_each_run_has_its_own_folder(self, command: Command, model: Path, photo: Path) -> None:
        for folder in ("l2caf-out", "l2caf-out-2", "l2caf-out-3"):
            assert self.ask(command, model, photo).code == 0
            assert Path(folder, "manifest.json").is_file()

    def test_output_is_overwritten_by_force_alone(self, command: Command, model: Path, photo: Path) -> None:
        assert self.ask(command, model, photo, "-o", "out").code == 0
        before = Path("out/manifest.json").read_bytes()
        refused = self.ask(command, model, photo, "-o", "out", "--seed", 1)
        assert refused.code == 2
        assert "--force" in refused.err
        assert Path("out/manifest.json").read_bytes() == before
        assert self.ask(command, model, photo, "-o", "out", "--seed", 1, "--force").code == 0
        assert Path("out/manifest.json").read_bytes() != before

    def test_several_breakpoints_targets_and_inputs(self, command: Command, model: Path, photo: Path) -> None:
        folder = Path("photos")
        folder.mkdir()
        for name in ("a.png", "b.png", "c.png"):
            (folder / name).write_bytes(photo.read_bytes())
        found = command(
            "attend", model, folder, "--at", "conv", "--at", "re*", "--target", "top2", "--preprocess", "unit", "--json"
        )
        assert found.code == 0, found.err
        rows = json.loads(found.out)["results"]
        assert len(rows) == 3 * 2 * 2
        assert len({f for r in rows for f in r["files"]}) == 2 * len(rows)
        assert {r["at"] for r in rows} == {"conv", "relu"}
        assert {r["proof_kind"] for r in rows if r["input"].endswith("a.png")} == {"model"}
        assert {r["proof_kind"] for r in rows if not r["input"].endswith("a.png")} == {"tail"}

    def test_a_batch_gives_what_single_inputs_give(self, command: Command, model: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        folder = tmp_path / "photos"
        folder.mkdir()
        for name in "abc":
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        losses = []
        for size in (1, 8):
            found = self.ask(command, model, folder, "--target", "2", "--batch-size", size, "--json")
            losses.append([r["loss"] for r in json.loads(found.out)["results"]])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_arrays_as_input(self, command: Command, model: Path, tmp_path: Path) -> None:
        x = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
        np.save(tmp_path / "x.npy", x[:1])
        np.savez(tmp_path / "x.npz", image=x[:1])
        rows = [
            json.loads(command("attend", model, spec, "--at", "conv", "--json").out)["results"][0]
            for spec in ("x.npy", "x.npz", "image=x.npy")
        ]
        assert len({r["loss"] for r in rows}) == 1

    @pytest.mark.parametrize(
        ("name", "text"),
        [("l.txt", "a\nb\nc\nd\ne\n"), ("l.json", '["a","b","c","d","e"]'), ("l.json", '{"3": "d", "0": ["n1", "a"]}')],
    )
    def test_classes_are_named(self, command: Command, model: Path, photo: Path, name: str, text: str) -> None:
        Path(name).write_text(text)
        found = self.ask(command, model, photo, "--target", "3", "--labels", name, "--json")
        assert json.loads(found.out)["results"][0]["class"] == "d"

    def test_the_model_may_say_its_preprocessing(self, command: Command, model: Path, photo: Path) -> None:
        assert command("attend", model, photo, "--at", "relu").code == 2
        proto = classifier()
        onnx.helper.set_model_props(proto, {"l2caf.preprocess": "unit"})
        onnx.save(proto, model)
        assert command("attend", model, photo, "--at", "relu").code == 0

    def test_so_may_a_manifest_beside_it(self, command: Command, model: Path, photo: Path) -> None:
        stated = '[[package]]\n[[package.file]]\nto = "tiny.onnx"\npreprocess = { channel_order = "BGR" }\n'
        (model.parent / "manifest.toml").write_text(stated)
        assert command("attend", model, photo, "--at", "relu").code == 0

    def test_hostile_tensor_names_stay_inside_the_folder(self, command: Command, photo: Path, tmp_path: Path) -> None:
        home = tmp_path / "deep" / "down"
        home.mkdir(parents=True)
        proto = classifier(CLASSIFIER)
        for node in proto.graph.node:
            for names in (node.input, node.output):
                for k, name in enumerate(names):
                    if name == "relu":
                        names[k] = "../../x"
        onnx.save(proto, tmp_path / "hostile.onnx")
        before = {p for p in tmp_path.rglob("*") if home not in p.parents}
        found = command(
            "attend", tmp_path / "hostile.onnx", photo, "--at", "../../x", "--preprocess", "unit", "-o", home / "o"
        )
        assert found.code == 0, found.err
        assert {p for p in tmp_path.rglob("*") if home not in p.parents} == before
        row = json.loads((home / "o" / "manifest.json").read_text())["results"][0]
        assert row["at"] == "../../x"
        assert sorted(p.name for p in (home / "o").iterdir()) == sorted([*row["files"], "manifest.json"])

    def test_a_failed_proof_is_exit_code_1(
        self, command: Command, model: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from l2caf_onnx.explain.opened import Opened

        real = Opened.outputs
        monkeypatch.setattr(Opened, "outputs", lambda self, f: {k: v * 1.01 for k, v in real(self, f).items()})
        found = self.ask(command, model, photo, "--proof", "tail", "--solver", "lbfgs", "-o", "out")
        assert found.code == 1
        assert "FAILED" in found.out
        assert "confirm" in found.err
        assert json.loads(Path("out/manifest.json").read_text())["results"][0]["proof"]["ok"] is False

    def test_where_the_solver_is_ours_to_choose_a_failed_proof_leads_to_forward_runs(
        self, command: Command, model: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from l2caf_onnx.explain.opened import Opened

        real = Opened.outputs
        monkeypatch.setattr(Opened, "outputs", lambda self, f: {k: v * 1.01 for k, v in real(self, f).items()})
        found = self.ask(command, model, photo, "--proof", "tail", "-o", "out")
        assert found.code == 0
        assert "not confirmed at the filter that it led to: off by 0.0099" in found.err
        (result,) = json.loads(Path("out/manifest.json").read_text())["results"]
        assert (result["solver"], result["proof"]["ok"]) == ("blackbox", True)


def broken_files(folder: Path) -> None:
    """Models and inputs, each with one thing wrong."""
    good = classifier()
    data = good.SerializeToString()
    (folder / "text.onnx").write_text("this is not a model, it is a sentence")
    (folder / "truncated.onnx").write_bytes(data[: len(data) // 2])
    (folder / "folder.onnx").mkdir()
    dangling = classifier()
    dangling.graph.node[0].input[0] = "nobody"
    onnx.save(dangling, folder / "invalid.onnx")
    cyclic = classifier()
    cyclic.graph.node[0].input[0] = "relu"
    onnx.save(cyclic, folder / "cycle.onnx")
    unknown = classifier()
    unknown.graph.node[1].op_type = "Frobnicate"
    onnx.save(unknown, folder / "unknown_op.onnx")
    for name, location in (("lost", "lost.bin"), ("outside", "../outside.bin")):
        astray = classifier()
        weights = astray.graph.initializer[0]
        size = len(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        (folder.parent / "outside.bin").write_bytes(bytes(size))
        (folder / f"{name}.onnx").write_bytes(astray.SerializeToString())
    nan = classifier()
    nan.graph.node[1].op_type = "Sqrt"
    onnx.save(nan, folder / "makes_nan.onnx")
    (folder / "text.png").write_text("not a picture")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "bomb.png").write_bytes(bomb)
    (folder / "empty").mkdir()
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "good.npz", image=x)
    np.savez(folder / "name.npz", picture=x)
    np.savez(folder / "shape.npz", image=x[:, :, :8])
    np.savez(folder / "type.npz", image=x.astype(np.float64))
    np.savez(folder / "nan.npz", image=np.where(x > 2, np.nan, x))
    (folder / "labels.json").write_text("{")


BAD = {
    "missing file": ("nowhere.onnx", "good.npz", ("--at", "relu"), "no such model file"),
    "a directory": ("folder.onnx", "good.npz", ("--at", "relu"), "directory"),
    "a text file": ("text.onnx", "good.npz", ("--at", "relu"), "not an ONNX model"),
    "truncated protobuf": ("truncated.onnx", "good.npz", ("--at", "relu"), "truncated"),
    "invalid graph": ("invalid.onnx", "good.npz", ("--at", "relu"), "'nobody'"),
    "a cycle": ("cycle.onnx", "good.npz", ("--at", "relu"), "cycle"),
    "unknown operator": ("unknown_op.onnx", "good.npz", ("--at", "relu"), "Frobnicate"),
    "missing external data": ("lost.onnx", "good.npz", ("--at", "relu"), "lost.bin"),
    "external data outside": ("outside.onnx", "good.npz", ("--at", "relu"), "outside the model's folder"),
    "unknown tensor": ("tiny.onnx", "good.npz", ("--at", "rellu"), "'relu'"),
    "unknown glob": ("tiny.onnx", "good.npz", ("--at", "nothing*"), "nothing*"),
    "one cell": ("tiny.onnx", "good.npz", ("--at", "pooled"), "fewer than two spatial cells"),
    "no cells": ("tiny.onnx", "good.npz", ("--at", "logits"), "fewer than two spatial cells"),
    "integer tensor": ("tiny.onnx", "good.npz", ("--at", "counted"), "int64"),
    "S2 not downstream": ("tiny.onnx", "good.npz", ("--at", "relu", "--to", "aside"), "does not depend"),
    "S2 unknown": ("tiny.onnx", "good.npz", ("--at", "relu", "--to", "logit"), "'logits'"),
    "missing input": ("tiny.onnx", "nowhere.npz", ("--at", "relu"), "nowhere.npz"),
    "wrong input name": ("tiny.onnx", "name.npz", ("--at", "relu"), "picture"),
    "wrong input shape": ("tiny.onnx", "shape.npz", ("--at", "relu"), "shape"),
    "wrong input type": ("tiny.onnx", "type.npz", ("--at", "relu"), "float64"),
    "NaN in the input": ("tiny.onnx", "nan.npz", ("--at", "relu"), "NaN"),
    "NaN in the activations": ("makes_nan.onnx", "good.npz", ("--at", "relu"), "NaN"),
    "class out of range": ("tiny.onnx", "good.npz", ("--at", "relu", "--target", "5"), "out of range"),
    "negative class": ("tiny.onnx", "good.npz", ("--at", "relu", "--target", "-1"), "out of range"),
    "no class": ("tiny.onnx", "good.npz", ("--at", "relu", "--target", "cat"), "'cat'"),
    "negative radius": ("tiny.onnx", "good.npz", ("--at", "relu", "--radius", "-1"), "radius"),
    "trivial radius": ("tiny.onnx", "good.npz", ("--at", "relu", "--radius", "1"), "trivial"),
    "unknown solver": ("tiny.onnx", "good.npz", ("--at", "relu", "--solver", "magic"), "lbfgs"),
    "unknown objective": ("tiny.onnx", "good.npz", ("--at", "relu", "--objective", "x"), "paper-class"),
    "unknown constraint": ("tiny.onnx", "good.npz", ("--at", "relu", "--constraint", "x"), "l2"),
    "unknown preset": ("tiny.onnx", "good.npz", ("--at", "relu", "--preset", "x"), "paper"),
    "unknown proof": ("tiny.onnx", "good.npz", ("--at", "relu", "--proof", "x"), "tail"),
    "unknown device": ("tiny.onnx", "good.npz", ("--at", "relu", "--device", "abacus"), "abacus"),
    "unknown provider": ("tiny.onnx", "good.npz", ("--at", "relu", "--providers", "X"), "CPUExecutionProvider"),
    "bad layout": ("tiny.onnx", "good.npz", ("--at", "relu", "--layout", "NCH"), "layout"),
    "unreadable image": ("tiny.onnx", "text.png", ("--at", "relu", "--preprocess", "unit"), "text.png"),
    "an image bomb": ("tiny.onnx", "bomb.png", ("--at", "relu", "--preprocess", "unit"), "bomb.png"),
    "an empty folder": ("tiny.onnx", "empty", ("--at", "relu", "--preprocess", "unit"), "no picture"),
    "no preprocessing": ("tiny.onnx", "noise.png", ("--at", "relu"), "imagenet"),
    "unknown preprocessing": ("tiny.onnx", "noise.png", ("--at", "relu", "--preprocess", "x"), "imagenet"),
    "labels missing": ("tiny.onnx", "good.npz", ("--at", "relu", "--labels", "nowhere.txt"), "labels"),
    "labels unreadable": ("tiny.onnx", "good.npz", ("--at", "relu", "--labels", "labels.json"), "labels"),
    "unknown option": ("tiny.onnx", "good.npz", ("--at", "relu", "--frobnicate"), "--frobnicate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_written(
    command: Command, model: Path, photo: Path, tmp_path: Path, case: str
) -> None:
    broken_files(tmp_path)
    name, given, words, expected = BAD[case]
    found = command("attend", name, given, *words, "-o", tmp_path / "out")
    assert found.code == 2
    assert found.out == ""
    assert expected in found.err
    assert "Traceback" not in found.err
    assert found.err.count("Error") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["missing file", "a text file", "a cycle", "missing external data"])
def test_inspect_and_cut_refuse_the_same_models(command: Command, model: Path, tmp_path: Path, case: str) -> None:
    broken_files(tmp_path)
    name, _, _, expected = BAD[case]
    for words in (("inspect", name), ("cut", name, "--at", "relu", "-o", "out")):
        found = command(*words)
        assert found.code == 2
        assert expected in found.err
    assert not Path("out").exists()


def test_a_read_only_output_folder(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    # Permissions do not bind root: there, a folder in which nothing can ever be made.
    target = folder / "out" if os.geteuid() else Path("/proc/out")
    found = command("attend", model, photo, "--at", "relu", "--preprocess", "unit", "-o", target)
    folder.chmod(0o700)
    assert found.code == 2
    assert "output folder" in found.err


def test_an_output_folder_that_is_a_file(command: Command, model: Path, photo: Path) -> None:
    found = command("attend", model, photo, "--at", "relu", "--preprocess", "unit", "-o", photo)
    assert found.code == 2
    assert "is a file" in found.err


@pytest.mark.parametrize("force", [False, True])
def test_a_late_failure_leaves_what_was_there_before(
    command: Command, model: Path, photo: Path, tmp_path: Path, force: bool
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(photo.read_bytes())
    (photos / "b.png").write_text("not a picture")
    words = ("--at", "relu", "--preprocess", "unit", "-o", "out", "--batch-size", 1)
    if force:
        assert command("attend", model, photo, *words).code == 0
    before = {p: p.read_bytes() for p in Path("out").glob("*")}
    found = command("attend", model, photos, *words, *(["--force"] if force else []))
    assert found.code == 2
    assert "b.png" in found.err
    assert {p: p.read_bytes() for p in Path("out").glob("*")} == before
    assert Path("out").exists() == force
