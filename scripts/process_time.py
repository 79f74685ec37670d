"""What starting the command line costs: the median wall and CPU time of whole processes, interleaved.

`import typer` alone is the floor that a command line made with it stands on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).parent / "l2caf-onnx"
COMMANDS = {
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "l2caf-onnx --help": [str(PROGRAM), "--help"],
    "l2caf-onnx inspect models/efficientnet-lite0.onnx": [str(PROGRAM), "inspect", "models/efficientnet-lite0.onnx"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11, help="runs of each command (default: 11)")
    options = parser.parse_args(arguments)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        process_time(command)  # reads the files, writes the bytecode
    for _ in range(options.repeats):
        for name, command in COMMANDS.items():
            times[name].append(process_time(command))
    print("| command | wall, s | CPU, s |\n|---|---:|---:|")
    for name, runs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| `{name}` | {wall:.2f} | {cpu:.2f} |")
    return 0


def process_time(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process with its children.

    Raises:
        CalledProcessError: it failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # else compiled in every run
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, env=environment)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


if __name__ == "__main__":
    sys.exit(main())
