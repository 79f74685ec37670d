"""What nobody can run is refused from the command line: one clear sentence, nothing written, no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from l2caf_onnx import cli
from tests.conftest import normal, parse

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "acme": 1]> '
BRANCH = """g (float[1,3,8,8] x, bool c) => (float[1,3] y) { a = Relu (x)
  b = If (c) <then_branch = t () => (float[1,3,8,8] p) { inside = Abs (a) p = Neg (inside) },
              else_branch = e () => (float[1,3,8,8] q) { q = Exp (a) }>
  y = ReduceMean <axes = [2,3], keepdims = 0> (b) }"""
MEAN = "y = ReduceMean <axes = [2,3], keepdims = 0>"

# Case -> the model, where to break, what the message says.
REFUSED = {
    "a domain without its library": (
        f"g (float[1,3,8,8] x, bool c) => (float[1,3] y) {{ a = Relu (x) [odd] b = acme.Frob (a) {MEAN} (b) }}",
        "a",
        ("no operator 'Frob' of the domain 'acme'", "node 'odd'", "library"),
    ),
    "an unknown operator of onnxruntime's": (
        f"g (float[1,3,8,8] x, bool c) => (float[1,3] y) {{ a = Relu (x) b = com.microsoft.Frob (a) {MEAN} (b) }}",
        "a",
        ("no operator 'Frob' of the domain 'com.microsoft'",),
    ),
    "a name inside a subgraph": (BRANCH, "inside", ("'inside'", "inside a subgraph")),
    "bfloat16 without a kernel": (
        f"g (float[1,3,8,8] x, bool c) => (y) {{ h = Cast <to = 16> (x) a = Relu (h) {MEAN} (a) }}",
        "a",
        ("no kernel for the operator 'Relu'", "bfloat16"),
    ),
    "bfloat16 at the breakpoint": (
        f"g (float[1,3,8,8] x, bool c) => (float[1,3] y) {{ a = Cast <to = 16> (x) b = Cast <to = 1> (a) {MEAN} (b) }}",
        "a",
        ("numpy has no type for the bfloat16 values",),
    ),
    "a shape that cannot be": (
        "g (float[1,3,8,8] x, bool c) => (float[1,5] y) <int64[2] s = {1, 5}> "
        "{ a = Relu (x) m = ReduceMean <axes = [2,3], keepdims = 0> (a) [odd] y = Reshape (m, s) }",
        "a",
        ("node 'odd' (Reshape)", "cannot be reshaped"),
    ),
}


def ask(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["l2caf-onnx", *words])
    try:
        cli.main()
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.mark.parametrize("command", ["attend", "cut"])
@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_and_nothing_written(
    case: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written, at, words = REFUSED[case]
    onnx.save(parse(HEADER + written), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(1, 3, 8, 8), c=np.array(True))
    fed = [str(tmp_path / "x.npz")] if command == "attend" else []
    out = tmp_path / "out"
    code = ask(command, str(tmp_path / "m.onnx"), *fed, "--at", at, "-o", str(out), monkeypatch=monkeypatch)
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("Error") == 1
    for word in words:
        assert word in told
    assert "Traceback" not in told
    assert not out.exists()


def test_an_unknown_operator_that_is_not_in_the_way_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = (
        f"g (float[1,3,8,8] x, bool c) => (float[1,3] y, float[1,3] z) {{ z = acme.Frob (x) a = Relu (x) {MEAN} (a) }}"
    )
    onnx.save(parse(HEADER + model), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(1, 3, 8, 8), c=np.array(True))
    words = ("attend", str(tmp_path / "m.onnx"), str(tmp_path / "x.npz"), "--at", "a", "-o", str(tmp_path / "out"))
    assert ask(*words, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
