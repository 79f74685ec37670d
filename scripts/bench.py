"""What each solver reaches and costs, as ratios to a plain onnxruntime forward of the same model in the same run.

A plain forward is one session with default options, but without spinning threads, which would slow what is timed after
it. It is timed before and after every case, so that a machine that slows down slows both sides of each ratio.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime as ort

import l2caf_onnx as caf
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.inputs import find_samples

MODELS = Path(__file__).resolve().parents[1] / "models"
PLACES = {"last conv, 7x7": "/_conv_head/Conv_output_0", "block 10, 14x14": "/_blocks.10/Add_output_0"}
FLAVOURS: dict[str, dict[str, str]] = {
    "outputs": {"objective": "outputs"},
    "paper-class": {"objective": "paper-class", "target": "top1"},
}
SOLVERS = ("sgd", "adam", "lbfgs")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case after the first (default: 3)")
    options = parser.parse_args(arguments)
    model = caf.load(MODELS / "efficientnet-lite0.onnx")
    (sample,) = find_samples([str(MODELS / "photos" / "chelsea.png")], model.inputs, layouts(model), "lite")
    feeds = sample.read().feeds
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    plain = ort.InferenceSession(str(MODELS / "efficientnet-lite0.onnx"), settings, providers=["CPUExecutionProvider"])

    def forward() -> float:
        return statistics.median(seconds(lambda: plain.run(None, feeds)) for _ in range(9))

    forward()
    print(f"EfficientNet-Lite0, chelsea.png, radius unit; {platform.machine()}, onnxruntime {ort.__version__}.")
    print("First: the first call, with cutting, converting and proving the tail. Then: the median of later calls.\n")
    print("| breakpoint | objective | solver | loss | evaluations | first, x forward | then, x forward | then, ms |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for place, at in PLACES.items():
        for flavour, asked in FLAVOURS.items():
            model = caf.load(MODELS / "efficientnet-lite0.onnx")  # nothing is left in its cache
            for solver in SOLVERS:
                found: list[caf.Attention] = []

                def attend(solver: str = solver, asked: dict[str, str] = asked, at: str = at) -> None:
                    found.append(caf.attend(model, feeds, at=at, radius="unit", solver=solver, **asked))  # noqa: B023

                base = forward()
                first = seconds(attend) / base
                ratios, times = [], []
                for _ in range(1 if first > 300 else options.repeats):
                    before = forward()
                    times.append(seconds(attend))
                    ratios.append(times[-1] / ((before + forward()) / 2))
                a = found[-1]
                assert a.proof.ok
                print(
                    f"| {place} | {flavour} | {solver} | {a.loss[0]:.6f} | {a.evaluations[0]} | {first:.1f} "
                    f"| {statistics.median(ratios):.1f} | {statistics.median(times) * 1000:.0f} |",
                    flush=True,
                )
    return 0


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
