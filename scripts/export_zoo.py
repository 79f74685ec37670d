"""Export the zoo: networks of torchvision and a CRNN, by each exporter and opset, optimised and simplified.

Weights are random (nothing is downloaded) but for batch norms, whose statistics are those of random pictures, so that
activations live, and for what starts at nearly 0 (layer scales, a last layer), which is drawn too. Each export runs in
a process of its own, which gives its memory back; what exists is kept. The files lie in models/zoo/, outside of git;
the networks called small-* lie in models/ and are committed: `--only 'small-*'` makes them anew once they are removed.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

MODELS = Path(__file__).resolve().parents[1] / "models"
ZOO = MODELS / "zoo"
ALL = ("ts11", "ts13", "ts17", "dynamo18", "dynamo20", "dynamo23")
BOTH = ("ts17", "dynamo20")
DERIVED = ("ort-basic", "ort-extended", "onnxsim", "onnxslim")
LIMIT = 600  # seconds an export


class Crnn(nn.Module):
    """Text recognition in small: convolutions, then a bidirectional LSTM along the width."""

    def __init__(self, width: int = 16, hidden: int = 48) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d((4, 2)),
        )  # fmt: skip
        self.lstm = nn.LSTM(8 * width, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 32, W) -> (W / 4, N, 37)."""
        y = self.features(x)
        y = y.flatten(1, 2).permute(2, 0, 1)
        return self.head(self.lstm(y)[0])  # type: ignore[no-any-return]


class Video(nn.Module):
    """A residual network over frames in small, in the manner of torchvision's r3d_18."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(),
            nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8),
        )  # fmt: skip
        self.down = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, T, H, W) -> (N, 10)."""
        y = self.stem(x)
        return self.head(self.down(nn.functional.relu(y + self.block(y))))  # type: ignore[no-any-return]


def _small_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10)  # type: ignore[no-any-return]


def _small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)  # type: ignore[no-any-return]


def _vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]

    return make


# Name -> (how it is made, the input's shape, exporters, derived from the first of them).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...], tuple[str, ...]]] = {
    "resnet18": (_vision("resnet18"), (1, 3, 224, 224), ALL, DERIVED),
    "mobilenet_v3_small": (_vision("mobilenet_v3_small"), (1, 3, 224, 224), ALL, DERIVED),
    "swin_t": (_vision("swin_t"), (1, 3, 224, 224), ("ts17", "dynamo18", "dynamo20"), ("ort-extended", "onnxslim")),
    "vit_b_16": (_vision("vit_b_16"), (1, 3, 224, 224), ("ts17", "dynamo18", "dynamo23"), ("ort-extended",)),
    "crnn": (Crnn, (2, 1, 32, 64), ALL, DERIVED),
    "resnet50": (_vision("resnet50"), (1, 3, 224, 224), BOTH, ()),
    "googlenet": (_vision("googlenet", aux_logits=False, init_weights=False), (1, 3, 224, 224), BOTH, ()),
    "densenet161": (_vision("densenet161"), (1, 3, 224, 224), BOTH, ()),
    "densenet169": (_vision("densenet169"), (1, 3, 224, 224), BOTH, ()),
    "convnext_tiny": (_vision("convnext_tiny"), (1, 3, 224, 224), BOTH, ("ort-extended",)),
    "r3d_18": (lambda: _video(), (1, 3, 8, 64, 64), BOTH, ()),
    "small-crnn": (lambda: Crnn(4, 8), (2, 1, 32, 64), ("ts11", "ts17", "dynamo20"), ("ort-extended",)),
    "small-swin": (_small_swin, (1, 3, 32, 32), ("ts17",), ("ort-extended",)),
    "small-vit": (_small_vit, (1, 3, 32, 32), ("ts17", "dynamo20"), ()),
    "small-video": (Video, (1, 3, 4, 16, 16), ("dynamo20",), ()),
}


def _video() -> nn.Module:
    import torchvision

    return torchvision.models.video.r3d_18(weights=None)  # type: ignore[no-any-return]


def wanted() -> list[str]:
    """Names of all files, without `.onnx`."""
    names = []
    for network, (_, _, exporters, derived) in NETWORKS.items():
        names += [f"{network}-{e}" for e in exporters]
        source = "ts17" if "ts17" in exporters else exporters[0]
        names += [f"{network}-{source}-{d}" for d in derived]
    return names


def path_of(name: str) -> Path:
    return (MODELS if name.startswith("small-") else ZOO) / f"{name}.onnx"


def export(name: str) -> None:
    """Make one file, under a temporary name first."""
    ZOO.mkdir(parents=True, exist_ok=True)
    temporary = ZOO / f".{name}.part.onnx"
    suffix = next((d for d in DERIVED if name.endswith(d)), None)
    if suffix is not None:
        _derive(path_of(name.removesuffix(f"-{suffix}")), suffix, temporary)
    else:
        network, exporter = name.rsplit("-", 1)
        _export(network, exporter, temporary)
    temporary.rename(path_of(name))


def _export(network: str, exporter: str, path: Path) -> None:
    make, shape, _, _ = NETWORKS[network]
    torch.manual_seed(0)
    module = make()
    x = torch.randn(shape)
    _settle(module, shape)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    dynamo = exporter.startswith("dynamo")
    opset = int(exporter.removeprefix("dynamo").removeprefix("ts"))
    options: dict[str, Any] = {"external_data": False} if dynamo else {"dynamic_axes": {"input": {0: "n"}}}
    torch.onnx.export(module, (x,), str(path), input_names=["input"], opset_version=opset, dynamo=dynamo, **options)
    _without_paths(path)
    onnx.checker.check_model(str(path))


def _without_paths(path: Path) -> None:
    """Drop the stack traces that the exporter writes at every node: they name folders of the machine that exported."""
    proto = onnx.load(path)
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(proto, path)


def _settle(module: nn.Module, shape: tuple[int, ...]) -> None:
    """What training would leave: norms' statistics of random pictures, layer scales and last layers that are not 0."""
    generator = torch.Generator().manual_seed(1)
    module.train()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("layer_scale"):  # ConvNeXt starts them at 1e-6
                parameter.uniform_(0.1, 1, generator=generator)
            elif parameter.ndim > 1 and not parameter.any():  # ViT's last layer starts at 0
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # the plain mean
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            for _ in range(2):
                coarse = torch.randn(4, *shape[1:-2], 8, 8, generator=generator).flatten(0, -3)[None]
                grown = nn.functional.interpolate(coarse, shape[-2:], mode="bilinear")[0]
                module(grown.reshape(4, *shape[1:]))
    module.eval()


def _derive(source: Path, how: str, path: Path) -> None:
    if how.startswith("ort"):
        import onnxruntime  # what is exported here is the file that onnxruntime itself writes

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if "basic" in how else level.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    elif how == "onnxsim":
        import onnxsim

        simple, checked = onnxsim.simplify(onnx.load(source), overwrite_input_shapes=None)
        if not checked:
            raise RuntimeError("onnxsim could not confirm its own result")
        onnx.save(simple, path)
    else:
        import onnxslim

        onnx.save(onnxslim.slim(onnx.load(source)), path)


def main() -> None:
    """Export what is missing; say what failed, and go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="a pattern of names, such as 'resnet18-*'")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        np.random.seed(0)
        export(asked.one)
        return
    failed = []
    for name in wanted():
        if not fnmatch(name, asked.only) or path_of(name).exists():
            continue
        command = [sys.executable, __file__, "--one", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
            reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"took more than {LIMIT} s"
        print(f"{name}: {reason or 'exported'}", flush=True)
        failed += [name] if reason else []
    for part in ZOO.glob(".*.part*"):
        part.unlink()
    print(f"{len(failed)} failed" if failed else "All there.")


if __name__ == "__main__":
    main()
