"""How everything is timed: against plain onnxruntime forwards of the same model, run just before and just after it.

Ratios of neighbours hold on a machine that slows down or is shared; seconds do not. This file is read by the children
in .venv-peers too, so it needs nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

NEIGHBOUR = 3  # in a row, of the plain forward and of what is measured alike: their median counts
BRIEF = 0.25  # seconds: what takes longer has the caches for itself however often it runs in a row

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Timed:
    """Runs of one thing.

    Attributes:
        seconds: Of each run.
        ratios: Of each run, to the mean of the plain forwards before and after it.
        forwards: Seconds of the plain forwards, one more than runs.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    forwards: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ms(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def forward_ms(self) -> float:
        return statistics.median(self.forwards) * 1000


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_a_row(work: Callable[[], object]) -> float:
    """Seconds of `work`, once its own weights have taken the place of another's in the caches."""
    first = seconds(work)
    return first if first > BRIEF else statistics.median([first, *(seconds(work) for _ in range(NEIGHBOUR - 1))])


def plain_forward(model: str | Path | bytes, feeds: Feeds) -> Callable[[], float]:
    """What the ratios are to: default options, but without spinning threads, which slow what is timed next to them."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    given = dict(feeds)

    def forward() -> float:
        return in_a_row(lambda: session.run(None, given))

    forward()
    return forward


def interleaved(work: Callable[[], object], forward: Callable[[], float], repeats: int, *, once: bool = False) -> Timed:
    """Time `work` so many times, with plain forwards before the first, between any two and after the last.

    A run is the median of three in a row, as a plain forward is: else the one would find its weights in the caches and
    the other would not.
    """
    forwards, runs = [forward()], []
    for _ in range(repeats):
        runs.append(seconds(work) if once else in_a_row(work))
        forwards.append(forward())
    neighbours = zip(runs, forwards, forwards[1:], strict=False)
    return Timed(tuple(runs), tuple(run / ((a + b) / 2) for run, a, b in neighbours), tuple(forwards))


def machine(**versions: str) -> str:
    """One line on what the figures hold for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} cores of {names[0] if names else platform.machine()}", f"Python {platform.python_version()}"]
    parts += [f"{name} {version}" for name, version in {"onnxruntime": ort.__version__, **versions}.items()]
    return ", ".join(parts)
