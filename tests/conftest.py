"""What all tests share: tiny models as ONNX text, and the real model and photo that `make models` brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.inputs import find_samples

MODELS = Path(__file__).parent.parent / "models"
HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'

Arrays = dict[str, NDArray[Any]]


def parse(model_text: str) -> onnx.ModelProto:
    """ONNX text as a protobuf; without a header of its own it has opset 17 and onnxruntime's operators."""
    written = model_text.strip()
    return onnx.parser.parse_model(written if written.startswith("<") else f"{HEADER}\n{written}")


def text(model_text: str) -> caf.Model:
    """ONNX text as a loaded Model (see `parse`)."""
    return caf.load(parse(model_text))


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    """Standard normal numbers, seeded."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def real(name: str) -> caf.Model:
    """One of the models that `make models` brings; an InputError where it has not been run."""
    return caf.load(MODELS / name)


@pytest.fixture(scope="session")
def efficientnet() -> caf.Model:
    """EfficientNet-Lite0, trained on ImageNet; one for all tests, as it is never changed."""
    return real("efficientnet-lite0.onnx")


@pytest.fixture(scope="session")
def chelsea(efficientnet: caf.Model) -> Arrays:
    """The feeds of EfficientNet-Lite0 for a photo of a cat."""
    (sample,) = find_samples(
        [str(MODELS / "photos" / "chelsea.png")], efficientnet.inputs, {efficientnet.inputs[0].name: "NCHW"}, "lite"
    )
    return sample.read().feeds
