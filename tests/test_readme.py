"""Every command of the README runs and does what the README says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of its own, in which the README's relative paths hold."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def run(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A shell line, with the installed command line first on the path."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        words, shell=True, cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=300
    )


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 6
    assert len(PYTHON) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, folder: Path) -> None:
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    out = re.search(r" -o (\S+)", command)
    if out:
        manifest = json.loads((folder / out.group(1) / "manifest.json").read_text(encoding="utf-8"))
        for row in manifest.get("results", []):
            assert row["proof"]["ok"]
            assert all((folder / out.group(1) / f).stat().st_size > 0 for f in row["files"])


def test_python(folder: Path) -> None:
    script = folder / "example.py"
    script.write_text(PYTHON[0], encoding="utf-8")
    done = run(f"{sys.executable} -W error example.py", folder)
    assert done.returncode == 0, done.stderr
    assert "onnx2torch" in done.stdout


def test_make_demo(folder: Path) -> None:
    done = run(f"make -C {ROOT} demo DEMO_OUT={folder / 'demo'}", folder)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((folder / "demo" / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert row["class"] == "tiger cat"
    assert row["proof_kind"] == "model"
    assert row["proof"]["ok"]


def test_make_test_is_what_ci_runs() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert target in targets | {"help"}
    assert "make" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (ROOT / "scripts" / "pictures" / "demo.png").is_file()


def test_pictures_named_exist() -> None:
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README, flags=re.DOTALL):
        assert (ROOT / name).is_file()
