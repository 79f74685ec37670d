"""`attend` and `inspect` on tokens, time and volumes: what was inferred is printed, and each has its own picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from l2caf_onnx import cli
from tests.conftest import VIT, weighted

SEQUENCE = """g (float[N,3,40] x) => (float[N,5] y) <float[5,3,3] k>
{ c = Conv <pads = [1,1]> (x, k)  s = Abs (c)  y = ReduceMean <axes = [2], keepdims = 0> (s) }"""
VOLUME = """g (float[N,1,6,16,16] x) => (float[N,5] y) <float[5,1,3,3,3] k>
{ c = Conv <pads = [1,1,1,1,1,1]> (x, k)  s = Abs (c)  y = ReduceMean <axes = [2,3,4], keepdims = 0> (s) }"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Run the command line in a folder of its own, on a network and one sample of noise: (code, out, err)."""
    monkeypatch.chdir(tmp_path)

    def run(network: str, verb: str, *words: str) -> tuple[int, str, str]:
        model = weighted(network)
        onnx.save(model.proto, "m.onnx")
        shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape or ()]
        np.save("x.npy", np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        monkeypatch.setattr(sys, "argv", ["l2caf-onnx", verb, "m.onnx", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def manifest() -> dict[str, Any]:
    """The one result's row."""
    (row,) = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["results"]
    return dict(row)


def test_inspect_says_the_grid(command: Any) -> None:
    code, out, _ = command(VIT, "inspect", "--json")
    found = {b["name"]: (b["layout"], b["grid"]) for b in json.loads(out)["breakpoints"]}
    assert code == 0
    assert (found["c"], found["s"], found["a"]) == (("NCHW", ""), ("NTC", "1+4x4"), ("NGTS", ""))
    assert "NTC[1+4x4]" in command(VIT, "inspect")[1]


def test_tokens_are_printed_and_put_on_record(command: Any) -> None:
    code, out, err = command(VIT, "attend", "x.npy", "--at", "s", "--target", "1", "-o", "out")
    assert code == 0
    assert "NTC[1+4x4]" in out
    assert "4 x 4 grid of tokens, 1 class or register token kept out of the map" in err
    row = manifest()
    assert (row["layout"], row["grid"]) == ("NTC", "1+4x4")
    assert any("4 x 4 grid" in note for note in row["notes"])
    with np.load(Path("out") / row["files"][1]) as arrays:
        assert arrays["filter"].shape == (4, 4)
        assert arrays["heatmap"].shape == (8, 8)


def test_the_layout_option_overrules(command: Any) -> None:
    code, out, _ = command(VIT, "attend", "x.npy", "--at", "s", "--target", "1", "-o", "out", "--layout", "NTC[]")
    assert (code, manifest()["grid"]) == (0, "")
    assert "NTC[" not in out
    code, _, err = command(VIT, "attend", "x.npy", "--at", "s", "--target", "1", "-o", "o", "--layout", "NTC[3x3]")
    assert code == 2
    assert "9 tokens; the tensor has 17" in err


@pytest.mark.parametrize(
    ("network", "layout", "size"),
    [(SEQUENCE, "NCL", 30 + 960), (VOLUME, "NCDHW", 4 * 144 + 3 * 16)],
    ids=["a strip", "slices"],
)
def test_time_and_volumes_have_their_pictures(command: Any, network: str, layout: str, size: int) -> None:
    code, _, _ = command(network, "attend", "x.npy", "--at", "s", "--target", "1", "-o", "out")
    assert code == 0
    row = manifest()
    assert row["layout"] == layout
    with Image.open(Path("out") / row["files"][0]) as drawn:
        assert 48 + size < drawn.width < 48 + size + 120


def test_what_a_manifest_says_of_signals_is_no_preprocessing(command: Any) -> None:
    Path("manifest.toml").write_text(
        '[[package]]\n[[package.file]]\nto = "m.onnx"\npreprocess = { signal = "audio" }\n', encoding="utf-8"
    )
    assert command(SEQUENCE, "attend", "x.npy", "--at", "s", "--target", "1", "-o", "out")[0] == 0
