"""Time RISE of the package dianna on an `.onnx`, with the package's defaults, for the top class.

Run by scripts/bench with the Python of .venv-peers; prints one JSON document. The package runs 900 forwards to choose
how much of the picture its masks keep, before those of the masks themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import warnings
from importlib.metadata import version

import numpy as np
import onnxruntime as ort

from scripts.bench.timing import interleaved, machine, plain_forward


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the .onnx")
    parser.add_argument("--input", required=True, help=".npy, (N, 3, 224, 224); the first picture is explained")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--masks", type=int, default=1000)
    options = parser.parse_args()

    array = np.load(options.input)[:1]
    session = ort.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    top = int(session.run(None, {name: array})[0].argmax())
    del session
    forward = plain_forward(options.model, {name: array})
    dianna = importlib.import_module("dianna")

    def explain() -> None:
        # Its progress bars and remarks would end up in the JSON; its guess of the channel axis is right.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = dianna.explain_image(
                options.model, array[0], method="RISE", labels=[top], n_masks=options.masks, axis_labels={0: "channels"}
            )
        assert np.shape(maps) == (1, *array.shape[2:])

    timed = interleaved(explain, forward, options.repeats)
    row = {
        "name": f"RISE, {options.masks} masks, dianna {version('dianna')} on onnxruntime", "question": "top class",
        "images": 1,
        "first": timed.ratios[0], "ratio": timed.ratio, "ms": timed.ms, "forward_ms": timed.forward_ms,
        "ratios": timed.ratios,
    }  # fmt: skip
    print(json.dumps({"machine": machine(), "rows": [row]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
