"""Make the int8 and float16 models that the tests and the README use, all EfficientNet-Lite0.

onnxruntime's static quantiser makes the former. Activations and weights are uint8: on CPUs without VNNI onnxruntime's
kernels saturate with int8 weights. One variant has them all the same, a scale for each channel, so that the finding can
be seen. Calibrated on the photos.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import onnx
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

import l2caf_onnx as caf
from l2caf_onnx.inputs import find_samples
from l2caf_onnx.records import write_atomic

MODELS = Path(__file__).resolve().parents[1] / "models"
SOURCE = MODELS / "efficientnet-lite0.onnx"
RECIPE = "2"  # a change here makes everyone quantise anew
VARIANTS: dict[str, dict[str, Any]] = {
    "int8-qdq": {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QUInt8},
    "int8-qoperator": {"quant_format": QuantFormat.QOperator, "weight_type": QuantType.QUInt8},
    "int8-weights": {"quant_format": QuantFormat.QOperator, "weight_type": QuantType.QInt8, "per_channel": True},
}


class Photos(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
    """The photos, one after the other, as the quantiser asks for them."""

    def __init__(self, model: caf.Model) -> None:
        paths = sorted(str(p) for p in (MODELS / "photos").iterdir() if p.suffix in (".png", ".jpg"))
        samples = find_samples(paths, model.inputs, {model.inputs[0].name: "NCHW"}, "lite")
        self.feeds: Iterator[Any] = iter([s.read().feeds for s in samples])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def path_of(variant: str) -> Path:
    return MODELS / f"efficientnet-lite0-{variant}.onnx"


def quantised(variant: str) -> onnx.ModelProto:
    """EfficientNet-Lite0 quantised that way."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        target = Path(folder) / "model.onnx"
        try:
            quantization.quantize_static(
                SOURCE, target, Photos(caf.load(SOURCE)), activation_type=QuantType.QUInt8, **VARIANTS[variant]
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)


def half() -> onnx.ModelProto:
    """EfficientNet-Lite0 in float16, with float32 at both ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    logging.disable(logging.WARNING)
    try:
        result: onnx.ModelProto = convert_float_to_float16(onnx.load(SOURCE), keep_io_types=True)
    finally:
        logging.disable(logging.NOTSET)
    return result


def _write(path: Path, data: bytes) -> None:
    def write(stream: IO[bytes]) -> None:
        stream.write(data)

    write_atomic(path, write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    for name in (*VARIANTS, "fp16"):
        path = path_of(name)
        stamp = path.with_suffix(".onnx.stamp")
        wanted = f"{RECIPE} {digest}\n"
        if path.exists() and stamp.exists() and stamp.read_text() == wanted:
            continue
        _write(path, (half() if name == "fp16" else quantised(name)).SerializeToString())
        stamp.write_text(wanted)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
