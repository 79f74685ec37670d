"""What all tests share: tiny models as ONNX text, and the real model and photo that `make models` brings."""

from __future__ import annotations

import re
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

# A vision transformer in small: 4 x 4 tokens after a class token, two heads, the class token read at the end.
VIT = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[4,3,2,2] kernel, float[1,1,4] cls, float[1,17,4] pos, float[4,4] wq, float[4,4] wk, float[4,4] wv, float[4,5] wo,
 int64[3] tokens = {0,4,-1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[4] heads = {0,0,2,2},
 int64[3] joined = {0,0,4}, int64 first = {0}>
{ c = Conv <strides = [2,2]> (x, kernel)  t = Reshape (c, tokens)  u = Transpose <perm = [0,2,1]> (t)
  shape = Shape (u)  n = Slice (shape, zero, one)  sizes = Concat <axis = 0> (n, one, four)  e = Expand (cls, sizes)
  v = Concat <axis = 1> (e, u)  s = Add (v, pos)
  q = MatMul (s, wq)  qh = Reshape (q, heads)  qt = Transpose <perm = [0,2,1,3]> (qh)
  k = MatMul (s, wk)  kh = Reshape (k, heads)  kt = Transpose <perm = [0,2,3,1]> (kh)
  w = MatMul (s, wv)  wh = Reshape (w, heads)  wt = Transpose <perm = [0,2,1,3]> (wh)
  scores = MatMul (qt, kt)  a = Softmax <axis = -1> (scores)  b = MatMul (a, wt)
  d = Transpose <perm = [0,2,1,3]> (b)  f = Reshape (d, joined)  r = Add (f, s)
  z = Gather <axis = 1> (r, first)  y = MatMul (z, wo) }"""

Arrays = dict[str, NDArray[Any]]


def parse(model_text: str) -> onnx.ModelProto:
    """ONNX text as a protobuf; without a header of its own it has opset 17 and onnxruntime's operators."""
    written = model_text.strip()
    return onnx.parser.parse_model(written if written.startswith("<") else f"{HEADER}\n{written}")


def text(model_text: str) -> caf.Model:
    """ONNX text as a loaded Model (see `parse`)."""
    return caf.load(parse(model_text))


def weighted(model_text: str) -> caf.Model:
    """ONNX text as a loaded Model; stored tensors without values (`<float[2,3] w, ...>`) get seeded ones."""
    head, declared, rest = model_text.partition("<")[0], *model_text.partition("<")[2].split(">", 1)
    parts = [p.strip() for p in re.split(r",(?![^\[]*\])(?![^{]*\})", declared)]
    rng = np.random.default_rng(0)
    own = {p.split()[1]: [int(d) for d in p[p.index("[") + 1 : p.index("]")].split(",")] for p in parts if "=" not in p}
    proto = parse(f"{head}<{', '.join(p for p in parts if '=' in p)}>{rest}")
    for name, shape in own.items():
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return caf.load(proto)


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
