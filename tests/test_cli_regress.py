"""The command lines of the regression checks: what they print, write and exit with, and what they hand to the API."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import l2caf_onnx as caf
from l2caf_onnx import cli
from l2caf_onnx.cli import options
from l2caf_onnx.errors import InputError, L2cafError
from l2caf_onnx.records import Bisection, Comparison
from tests.conftest import text, weighted
from tests.handmade import bisection, comparison

NET = """g (float[N,3,8,8] image) => (float[N,4] scores)
<float[6,3,3,3] w, float[6] b, float[8,6,3,3] w2, float[8] b2, float[4,8] v, float[4] c>
{ conv = Conv <pads = [1,1,1,1]> (image, w, b)  relu = Relu (conv)  deep = Conv <pads = [1,1,1,1]> (relu, w2, b2)
  act = Relu (deep)  p = GlobalAveragePool (act)  f = Flatten (p)  scores = Gemm <transB = 1> (f, v, c) }"""


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
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*words: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["l2caf-onnx", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Run(int(stop.value.code or 0), printed.out, printed.err)

    return run


def fault(model: caf.Model, weight: str) -> onnx.ModelProto:
    """A copy with one weight tensor's numbers in another order."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name == weight:
            values = onnx.numpy_helper.to_array(tensor)
            mixed = np.random.default_rng(1).permutation(values.ravel()).reshape(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(mixed, weight))
    return proto


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """ref.onnx, good.onnx (tensors renamed), bad.onnx (a layer's weights mixed up) and x.npy, in the working folder."""
    model = weighted(NET)
    onnx.save(model.proto, tmp_path / "ref.onnx")
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model.proto)
    for node in renamed.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = {"conv": "c_1", "relu": "r:1", "deep": "d/1", "act": "a=1"}.get(name, name)
    onnx.save(renamed, tmp_path / "good.onnx")
    onnx.save(fault(model, "w2"), tmp_path / "bad.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32))
    return tmp_path


@pytest.fixture
def handmade(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Let the API give a record made by hand; what it was called with is in the list."""

    def become(found: Comparison | Bisection) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def run(*arguments: Any, tell: Callable[[str, float], None], **asked: Any) -> Any:
            calls.append({"arguments": arguments, **asked})
            tell("part", 0.5)
            return found

        for name in ("compare", "check", "bisect"):
            monkeypatch.setattr(caf, name, run, raising=False)
        return calls

    return become


@pytest.mark.parametrize("words", ["baseline", "check", "compare", "bisect"])
def test_help_says_what_a_command_does(command: Command, words: str) -> None:
    found = command(words, "--help")
    assert found.code == 0
    assert "Exit code" in found.out or words == "baseline"
    assert "--json" in found.out


class TestFormats:
    COMPARE = ("compare", "ref.onnx", "bad.onnx", "x.npy")

    def test_text(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        handmade(comparison())
        found = command(*self.COMPARE)
        assert found.code == 1
        assert found.out.startswith("Regression: on 3 inputs")
        rows = [line for line in found.out.splitlines() if line.startswith("BEYOND")]
        assert [row.split()[2] for row in rows] == ["/t5", "/t4", "/conv"]
        assert "\nattention.cosine: Calibrated: 4 x the noise" in found.out
        assert "Aligned: 6 tensors (6 by activations); confidence at least 0.9." in found.out
        assert "Note: The breakpoints were chosen" in found.err

    @pytest.mark.parametrize("words", [("--json",), ("--format", "json"), ("--format", "text", "--json")])
    def test_json_is_one_document(
        self, command: Command, files: Path, handmade: Callable[..., Any], words: tuple[str, ...]
    ) -> None:
        handmade(comparison())
        found = command(*self.COMPARE, *words)
        document = json.loads(found.out)
        assert document["ok"] is False
        assert len(document["scores"]) == 11
        assert document["alignment"][0]["confidence"] == 0.9
        assert found.code == 1

    def test_good_is_0(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        handmade(comparison(ok=True))
        found = command(*self.COMPARE)
        assert found.code == 0
        assert found.out.startswith("No regression")

    def test_files_are_written_though_it_fails(
        self, command: Command, files: Path, handmade: Callable[..., Any]
    ) -> None:
        handmade(comparison())
        assert command(*self.COMPARE, "--html", "r.html", "--junit", "r.xml").code == 1
        assert "Regression" in (files / "r.html").read_text(encoding="utf-8")
        assert int(ET.parse(files / "r.xml").getroot().attrib["failures"]) > 0

    def test_github(
        self, command: Command, files: Path, handmade: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handmade(comparison())
        summary = files / "summary.md"
        summary.write_text("before\n", encoding="utf-8")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
        found = command(*self.COMPARE, "--format", "github")
        assert all(line.startswith("::") for line in found.out.splitlines())
        assert found.out.startswith("::error ")
        assert summary.read_text(encoding="utf-8").startswith("before\n## ❌ l2caf-onnx compare")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(files / "no" / "summary.md"))
        assert command(*self.COMPARE, "--format", "github").code == 1

    def test_junit_and_markdown(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        handmade(bisection())
        assert ET.fromstring(command("bisect", *self.COMPARE[1:], "--format", "junit").out).attrib["failures"] == "1"
        assert command("bisect", *self.COMPARE[1:], "--format", "markdown").out.startswith("## ❌ l2caf-onnx bisect")

    def test_bisection_as_text(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        handmade(bisection())
        found = command("bisect", *self.COMPARE[1:])
        assert found.code == 1
        assert found.out.startswith("First at fault: node Conv_20 (Conv)")
        assert "20 more nodes" in found.out
        assert next(line for line in found.out.splitlines() if "AT FAULT" in line).split()[2] == "Conv_20"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--format", "yaml"), "There is no format 'yaml'"),
            (("--html", "no/r.html"), "no folder that can be written to"),
            (("--junit", "."), "is a folder"),
        ],
    )
    def test_bad_reports_cost_no_work(
        self, command: Command, files: Path, handmade: Callable[..., Any], words: tuple[str, ...], message: str
    ) -> None:
        calls = handmade(comparison())
        found = command(*self.COMPARE, *words)
        assert found.code == 2
        assert message in found.err
        assert calls == []


class TestOptions:
    def test_what_is_not_given_is_left_to_the_api(
        self, command: Command, files: Path, handmade: Callable[..., Any]
    ) -> None:
        (call,) = [handmade(comparison(ok=True))]
        command("compare", "ref.onnx", "good.onnx", "x.npy")
        assert set(call[0]) == {"arguments", "calibrate", "device", "seed"}
        assert call[0]["arguments"][2] == ["x.npy"]

    def test_all_options_of_compare(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        call = handmade(comparison(ok=True))
        found = command(
            "compare", "ref.onnx", "good.onnx", "x.npy", "--at", "re*", "--to", "scores", "--target", "2", "--align",
            "act=a=1", "--align", "relu=r:1", "--threshold", "attention.cosine@a=1=0.9", "--atol", "scores:1e-3",
            "--atol", "2", "--rtol", "a:b:0.5", "--change", "int8", "--no-calibrate", "--objective", "contrast",
            "--constraint", "l2", "--radius", "0.5", "--basis", "4", "--layout", "NCHW", "--preprocess", "unit",
            "--candidate-preprocess", "raw", "--batch-size", "3", "--providers", "A,B", "--seed", "7",
        )  # fmt: skip
        assert found.code == 0, found.err
        (asked,) = call
        del asked["arguments"]
        assert asked == {
            "at": ("relu",),
            "to": ["scores"],
            "target": 2,
            "align": {"act": "a=1", "relu": "r:1"},
            "thresholds": {
                "attention.cosine@a=1": 0.9,
                "output.max_abs@scores": 1e-3,
                "output.max_abs": 2.0,
                "output.max_rel@a:b": 0.5,
            },
            "change": "int8",
            "calibrate": False,
            "objective": "contrast",
            "constraint": "l2",
            "radius": "0.5",
            "basis": "4",
            "layout": "NCHW",
            "preprocess": "unit",
            "candidate_preprocess": "raw",
            "batch_size": 3,
            "providers": ["A", "B"],
            "device": "cpu",
            "seed": 7,
        }

    def test_options_win_over_a_file_of_thresholds(self, tmp_path: Path) -> None:
        path = tmp_path / "t.toml"
        path.write_text('[attention]\ncosine = 0.5\n[output]\nmax_rel = 0.1\n"max_rel@a.b" = 0.2\n', encoding="utf-8")
        assert options.thresholds_of(path, None, None, None) == str(path)
        assert options.thresholds_of(path, ["attention.cosine=0.9"], None, ["0.3"]) == {
            "attention.cosine": 0.9,
            "output.max_rel": 0.3,
            "output.max_rel@a.b": 0.2,
        }

    def test_random_inputs(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        calls = handmade(comparison(ok=True))
        for seed in (0, 0, 1):
            command("compare", "ref.onnx", "good.onnx", "--input-shapes", "image:[5,3,8,8]", "--seed", seed)
        first, again, other = (c["arguments"][2]["image"] for c in calls)
        assert first.shape == (5, 3, 8, 8)
        assert first.dtype == np.float32
        assert (first == again).all()
        assert not (first == other).any()

    def test_random_inputs_of_a_model_with_several(self) -> None:
        proto = text("g (float[N,3] a, int64[2] b, bool[N] c) => (float[N,3] y) { y = Relu (a) }").proto
        proto.graph.input[0].name = proto.graph.node[0].input[0] = "a:0"
        model = caf.load(proto)
        found = options.inputs_or_random(None, ["a:0:[2,3]", "c:[2]"], model, 0)
        assert isinstance(found, dict)
        assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
            "a:0": ((2, 3), "float32"),
            "b": ((2,), "int64"),
            "c": ((2,), "bool"),
        }

    def test_check_hands_on(self, command: Command, files: Path, handmade: Callable[..., Any]) -> None:
        calls = handmade(comparison())
        found = command(
            "check", "base", "good.onnx", "--input", "x.npy", "--preprocess", "raw", "--rtol", "1", "--align", "b=a=1"
        )
        assert found.code == 1
        assert calls[0] == {
            "arguments": (Path("base"), Path("good.onnx")),
            "update": False,
            "align": {"b": "a=1"},
            "inputs": ["x.npy"],
            "preprocess": "raw",
            "device": "cpu",
            "thresholds": {"output.max_rel": 1.0},
        }
        found = command("check", "base", "--update")
        assert found.code == 0
        assert calls[1] == {"arguments": (Path("base"), None), "update": True, "device": "cpu"}
        assert "now holds this state" in found.err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--threshold", "0.9"), "says no threshold"),
            (("--threshold", "attention.cosine=high"), "'high' is not a number"),
            (("--threshold", "attention.cosine=nan"), "'nan' is not a number"),
            (("--atol", "logits"), "'logits' is not a number"),
            (("--align", "act"), "is no pair"),
            (("--align", "axt=a=1"), "no tensor 'axt'"),
            (("--align", "act=zzz"), "no tensor 'zzz'"),
            (("--input-shapes", "image:[1,3,8,8]"), "both given"),
            (("--target", "top3"), "One class an input"),
            (("--target", "cat"), "no target 'cat'"),
            (("--at", "nothing"), "no tensor 'nothing'"),
        ],
    )
    def test_bad_options(
        self, command: Command, files: Path, handmade: Callable[..., Any], words: tuple[str, ...], message: str
    ) -> None:
        calls = handmade(comparison())
        found = command("compare", "ref.onnx", "good.onnx", "x.npy", *words)
        assert found.code == 2
        assert message in found.err
        assert "Traceback" not in found.err
        assert calls == []

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (["image"], "no tensor ''"),
            (["image:1x3x8x8"], "is not a shape"),
            (["image:[1,-3,8,8]"], "is not a shape"),
            (["image:[1,3,8,8.5]"], "is not a shape"),
            (["imago:[1,3,8,8]"], "Did you mean 'image'"),
            ([], "There is no input"),
        ],
    )
    def test_bad_shapes(self, shapes: list[str], message: str) -> None:
        with pytest.raises(L2cafError, match=message.replace("[", r"\[")):
            options.inputs_or_random(None, shapes, weighted(NET), 0)

    def test_an_open_shape_must_be_given(self) -> None:
        model = text("g (float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Add (a, b) }")
        with pytest.raises(InputError, match="shape of input 'b' is open"):
            options.inputs_or_random(None, ["a:[1,3]"], model, 0)


class TestReal:
    """The commands on real files, through the API as it is."""

    def test_compare(self, command: Command, files: Path) -> None:
        good = command("compare", "ref.onnx", "good.onnx", "x.npy", "--junit", "r.xml")
        assert good.code == 0, good.out + good.err
        assert "by activations" in good.out or "by position" in good.out
        cases = list(ET.parse(files / "r.xml").getroot().iter("testcase"))
        assert {c.attrib["classname"].split()[0] for c in cases} >= {"output", "attention"}
        bad = command("compare", "ref.onnx", "bad.onnx", "x.npy", "--json", "--html", "r.html")
        assert bad.code == 1
        document = json.loads(bad.out)
        assert document["change"] == "float32"
        assert "output" in {s["subject"] for s in document["scores"] if not s["ok"]}
        assert "<svg" in (files / "r.html").read_text(encoding="utf-8")

    def test_given_thresholds_decide(self, command: Command, files: Path) -> None:
        found = command("compare", "ref.onnx", "good.onnx", "x.npy", "--threshold", "output.cosine=1.5")
        assert found.code == 1
        assert "Given by the user." in found.out

    def test_bisect(self, command: Command, files: Path) -> None:
        assert command("bisect", "ref.onnx", "good.onnx", "x.npy").code == 0
        found = command("bisect", "ref.onnx", "bad.onnx", "--input-shapes", "image:[4,3,8,8]", "--json")
        assert found.code == 1
        assert json.loads(found.out)["first"]["candidate"] == "deep"

    def test_baseline_and_check(self, command: Command, files: Path) -> None:
        made = command("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "base", "--json")
        assert made.code == 0, made.err
        assert json.loads(made.out)["at"] == ["act"]
        assert (files / "base" / "manifest.json").is_file()
        assert command("check", "base").code == 0
        assert command("check", "base", "good.onnx").code == 0
        bad = command("check", "base", "bad.onnx", "--format", "github")
        assert bad.code == 1
        assert bad.out.startswith("::error title=l2caf-onnx check::Regression")
        assert command("check", "base", "bad.onnx", "--update").code == 0
        assert command("check", "base", "bad.onnx").code == 0
        assert command("check", "base", "ref.onnx").code == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("compare", "ref.onnx", "no.onnx", "x.npy"), "no.onnx"),
            (("compare", "ref.onnx", "good.onnx", "no.npy"), "no.npy"),
            (("compare", "ref.onnx", "good.onnx", "x.npy", "--threshold", "attention.kosine=1"), "attention.kosine"),
            (("compare", "ref.onnx", "good.onnx", "x.npy", "--change", "int9"), "int9"),
            (("compare", "ref.onnx", "good.onnx", "x.npy", "--thresholds", "no.toml"), "no.toml"),
            (("bisect", "ref.onnx", "good.onnx", "x.npy", "--threshold", "-1"), "-1.0"),
            (("check", "no"), "no"),
            (("check", "."), "no baseline"),
            (("check", "no", "--align", "a=b"), "Name MODEL"),
            (("baseline", "ref.onnx", "x.npy", "--at", "acd", "-o", "b"), "acd"),
            (("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "x.npy"), "x.npy"),
        ],
    )
    def test_nonsense_is_2_in_one_message(
        self, command: Command, files: Path, words: tuple[str, ...], message: str
    ) -> None:
        found = command(*words)
        assert found.code == 2
        assert message in found.err
        assert 1 <= len(found.err.splitlines()) <= 3
        assert not (files / "b").exists()
