"""`device` of the regression checks: it says where one runs, and is no part of what is asked or stored."""

# ruff: noqa: F811 - pytest finds a fixture by the name of the parameter

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import l2caf_onnx as caf
from l2caf_onnx.attention import placed
from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.scene import Scene
from l2caf_onnx.regress import observe, store
from tests.test_cli_regress import Command, command, files  # noqa: F401 - fixtures
from tests.test_regress_baseline import FEEDS, model, saved

CUDA = "CUDAExecutionProvider"


def again(made: caf.Model) -> caf.Model:
    """The same network, of which nothing is kept yet."""
    return caf.load(made.proto.SerializeToString())


CALLS: dict[str, Callable[..., Any]] = {
    "baseline": lambda folder, **where: caf.baseline(
        model(), FEEDS, at="r", folder=folder / "b2", calibrate=True, **where
    ),
    "check": lambda folder, **where: caf.check(folder / "b", inputs=FEEDS, update=True, **where),
    "compare": lambda folder, **where: caf.compare(model(), again(model()), FEEDS, **where),
    "bisect": lambda folder, **where: caf.bisect(model(), again(model()), FEEDS, at="r", **where),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model in m.onnx and its baseline in b."""
    caf.baseline(saved(tmp_path), FEEDS, at="r", folder=tmp_path / "b", calibrate=True)
    return tmp_path


@pytest.mark.parametrize("name", CALLS)
def test_every_tail_runs_there(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    class Watched(Scene):
        def __init__(self, *given: Any) -> None:
            seen.append(given[4])
            super().__init__(*given)

    monkeypatch.setattr(observe, "Scene", Watched)
    assert CALLS[name](folder, device="cpu:0").ok  # the CPU too, but told from the default
    assert len(seen) >= 2
    assert set(seen) == {torch.device("cpu", 0)}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("device", "message"), [("cuda", "There is no CUDA device here"), ("abacus", "'abacus'")])
def test_a_device_that_is_not_there(
    folder: Path, name: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(p.name for p in folder.rglob("*"))
    with pytest.raises(InputError, match=message):
        CALLS[name](folder, device=device)
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_a_gpu_brings_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placed("cuda", None) == (torch.device("cuda"), [CUDA])
    assert placed("cuda", ["CPUExecutionProvider"]) == (torch.device("cuda"), ["CPUExecutionProvider"])
    assert placed("cpu", None) == (torch.device("cpu"), None)


def test_a_baseline_made_on_a_gpu_is_checked_without(folder: Path) -> None:
    manifest = store.read_manifest(folder / "b")
    assert (manifest["device"], manifest["providers"]) == ("cpu", ["CPUExecutionProvider"])
    parts, weights = [f["name"] for f in manifest["files"]], manifest["weights"]["name"]
    there = {**manifest, "device": "cuda", "providers": ["NoSuchProvider", "CPUExecutionProvider"]}
    store.write_manifest(folder / "b", there, parts, weights)
    found = caf.check(folder / "b", inputs=FEEDS, update=True)
    assert found.ok
    assert (found.settings["device"], found.settings["providers"]) == ("cpu", ["CPUExecutionProvider"])
    after = store.read_manifest(folder / "b")
    assert (after["device"], after["providers"]) == ("cpu", ["CPUExecutionProvider"])


def test_a_baseline_made_before_there_was_a_choice_is_checked(folder: Path) -> None:
    manifest = store.read_manifest(folder / "b")
    del manifest["device"]
    parts, weights = [f["name"] for f in manifest["files"]], manifest["weights"]["name"]
    store.write_manifest(folder / "b", manifest, parts, weights)
    assert caf.check(folder / "b", inputs=FEEDS).ok


def test_an_interrupted_baseline_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(store, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            caf.baseline(model(), FEEDS, at="r", folder=tmp_path / "b")
    found = caf.baseline(model(), FEEDS, at="r", folder=tmp_path / "b", device="cpu:0")
    assert found.resumed > 0


@pytest.mark.parametrize(
    "words",
    [
        ("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "b"),
        ("check", "base"),
        ("compare", "ref.onnx", "good.onnx", "x.npy", "--html", "r.html"),
        ("bisect", "ref.onnx", "good.onnx", "x.npy", "--html", "r.html"),
    ],
)
def test_on_the_command_line(
    command: Command,
    files: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "base").code == 0
    for device, message in (("cuda", "There is no CUDA device here."), ("abacus", "'abacus'")):
        found = command(*words, "--device", device)
        assert found.code == 2
        assert message in found.err
        assert found.out == ""
        assert found.err.count("Error") == 1
    assert not (files / "b").exists()
    assert not (files / "r.html").exists()
    assert command(*words, "--device", "cpu").code == 0
    monkeypatch.setenv("COLUMNS", "200")
    shown = command(words[0], "--help").out
    assert "--device" in shown
    assert "Where the tail runs." in shown


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", CALLS)
def test_on_a_gpu(folder: Path, name: str) -> None:
    assert CALLS[name](folder, device="cuda").ok
