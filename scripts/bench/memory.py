"""Peak memory while images stream through `attend`, in a process of its own: a peak never falls.

Run by scaling.py; prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

import numpy as np

import l2caf_onnx as caf

from .cases import LAST_CONV, MODEL, pictures, varied

PHOTOS = 9


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    ((name, photos),) = pictures(PHOTOS).items()
    model = caf.load(MODEL)
    count, peak, now = [0], [peak_mb()], [current_mb()]
    while count[-1] < options.images:
        start = count[-1]
        size = min(options.batch, options.images - start)
        batch = np.concatenate([varied(photos, start + i) for i in range(size)])
        caf.attend(model, {name: batch}, at=LAST_CONV, target="top1")
        count.append(start + size)
        peak.append(peak_mb())
        now.append(current_mb())
    print(json.dumps({"batch": options.batch, "images": count, "peak_mb": peak, "current_mb": now}))
    return 0


def peak_mb() -> float:
    """The most that was ever resident.

    getrusage's ru_maxrss is not it on Linux where a large process started this one: exec keeps the parent's peak.
    """
    if (peak := status_mb("VmHWM")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def current_mb() -> float | None:
    """What is resident now, where /proc says."""
    return status_mb("VmRSS")


def status_mb(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{key}:")), None)


if __name__ == "__main__":
    sys.exit(main())
