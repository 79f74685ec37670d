"""`l2caf-onnx eval` as a user meets it."""

# ruff: noqa: F811 - pytest finds a fixture by the name of the parameter

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from PIL import Image

from tests.conftest import text
from tests.test_cli import Command, command  # noqa: F401 - the fixture
from tests.test_evaluate_games import COLOURS, FREE, photos


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "colours.onnx"
    onnx.save(text(COLOURS).proto, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


def test_a_table_files_and_a_plot_by_depth(command: Command, model: Path, folder: Path) -> None:
    found = command(
        "eval", model, folder, "--at", "relu", "--at", "image", "--grids", 4, "--preprocess", "unit",
        "--method", FREE, "--method", "paper", "-o", "out",
    )  # fmt: skip
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == "grid:"
    assert lines[1].split()[:4] == ["at", "method", "energy", "top_share"]
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["relu", FREE, "1.000"],
        ["relu", "paper", *lines[3].split()[2:3]],
    ]
    assert "worse" in lines[3]
    assert "exponent 1" in found.err
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["command"] == "eval"
    assert manifest["files"] == ["evaluation.json", "grid.png"]
    document = json.loads(Path("out/evaluation.json").read_text())
    assert document["methods"] == [FREE, "paper"]
    assert len(document["rows"]) == 4 * 2 * 2
    with Image.open("out/grid.png") as plot:
        assert plot.size[0] > 800


def test_json_is_one_document(command: Command, model: Path, folder: Path, tmp_path: Path) -> None:
    found = command(
        "eval", model, folder, "--at", "relu", "--grids", 3, "--preprocess", "unit", "--json",
        "--choose", photos(tmp_path / "other", seed=1),
    )  # fmt: skip
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["chosen"] is True
    assert document["settings"]["grid"]["count"] == 3
    assert not Path("out").exists()


def test_boxes_and_labels(command: Command, model: Path, folder: Path) -> None:
    Path("b.csv").write_text("red0.png,red,0,0,24,20\ngreen1.png,green,0,0,24,20\n")
    Path("names.txt").write_text("red\ngreen\nblue\nyellow\n")
    found = command(
        "eval", model, folder, "--at", "relu", "--boxes", "b.csv", "--labels", "names.txt", "--preprocess", "unit"
    )
    assert found.code == 0, found.err
    assert "max_box_acc" in found.out
    assert "6 of 8 samples have no box" in found.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--game", "chess"], "There is no game 'chess'"),
        (["--method", "gradcom"], "gradcam"),
        (["--method", "l2caf:radius=-1"], "radius"),
        (["--game", "boxes"], "needs boxes"),
        (["--boxes", "no.csv"], "no.csv"),
        (["--boxes", "hostile.xml"], "document type"),
        (["--game", "grid", "--boxes", "b.csv"], "--game boxes"),
        (["--choose", "photos"], "in the choosing half too"),
        (["--target", "top3"], "one class"),
        (["--target", "cat"], "no target"),
        (["--at", "nowhere"], "nowhere"),
        (["--to", "nowhere"], "nowhere"),
        (["--labels", "no.txt"], "labels"),
        (["--batch-size", "0"], "Usage"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    command: Command,
    model: Path,
    folder: Path,
    words: list[str],
    told: str,
) -> None:
    Path("hostile.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    Path("b.csv").write_text("red0.png,red,0,0,24,20\n")
    found = command("eval", model, folder, "--at", "relu", "--preprocess", "unit", "--grids", 1, "-o", "out", *words)
    assert found.code == 2, found.out
    assert told in found.err
    assert "Traceback" not in found.err
    assert not Path("out").exists()


def test_few_photos_end_with_2(command: Command, model: Path, folder: Path) -> None:
    found = command("eval", model, folder / "red0.png", "--at", "relu", "--preprocess", "unit", "-o", "out")
    assert found.code == 2
    assert "4 classes" in found.err
    assert not Path("out").exists()


def test_help(command: Command) -> None:
    found = command("eval", "--help")
    assert found.code == 0
    assert "--boxes" in found.out
