"""The zoo in small: fresh exports with random weights, by each exporter, at breakpoints over their depth.

scripts/export_zoo.py makes the files, scripts/zoo.py asks the same of the large networks.
"""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import l2caf_onnx as caf
from tests.conftest import MODELS, normal, real

ENCODER = "/encoder/layers/encoder_layer_0"
WINDOW = "/features/features.1/features.1.1"

# Model -> breakpoint -> its layout, and the cells of its filter.
ZOO: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "small-crnn-ts11": {
        "input": ("NCHW", (32, 64)),
        "/features/features.4/Conv_output_0": ("NCHW", (16, 32)),
        "/Reshape_output_0": ("NCT", (16,)),
        "/lstm/LSTM_output_0": ("TGNC", (16,)),
    },
    "small-crnn-ts17": {
        "/features/features.2/Relu_output_0": ("NCHW", (32, 64)),
        "/Transpose_output_0": ("TNC", (16,)),
        "/lstm/Transpose_output_0": ("TNGC", (16,)),
        "189": ("WNC", (16,)),
    },
    "small-crnn-ts17-ort-extended": {
        "/features/features.6/Relu_output_0": ("NCHW", (16, 32)),  # FusedConv
        "/Transpose_output_0": ("TNC", (16,)),
        "/lstm/Reshape_output_0": ("WNC", (16,)),
    },
    "small-crnn-dynamo20": {
        "input": ("NCHW", (32, 64)),
        "max_pool2d": ("NCHW", (16, 32)),
        "permute": ("TNC", (16,)),
        "val_147": ("WNC", (16,)),
    },
    "small-swin-ts17": {
        "/features/features.0/features.0.0/Conv_output_0": ("NCHW", (16, 16)),
        f"{WINDOW}/attn/Concat_4_output_0": ("NHWC", (16, 16)),  # shifted by half a window
        f"{WINDOW}/mlp/mlp.1/Erf_output_0": ("NHWC", (16, 16)),
        "/norm/LayerNormalization_output_0": ("NHWC", (8, 8)),
    },
    "small-swin-ts17-ort-extended": {
        f"{WINDOW}/attn/Reshape_20_output_0": ("NHWC", (16, 16)),
        f"{WINDOW}/mlp/mlp.1/Mul_1_output_0": ("NHWC", (16, 16)),  # BiasGelu
        "/permute/Transpose_output_0": ("NCHW", (8, 8)),
    },
    "small-vit-ts17": {
        "input": ("NCHW", (32, 32)),
        "/encoder/Add_output_0": ("NTC[1+4x4]", (4, 4)),
        f"{ENCODER}/self_attention/MatMul_2_output_0": ("NGTC[1+4x4]", (4, 4)),
        f"{ENCODER}/Add_1_output_0": ("NTC[1+4x4]", (4, 4)),
    },
    "small-vit-dynamo20": {
        "conv2d": ("NCHW", (4, 4)),
        "val_85": ("NGTS", (17, 17)),  # scores of each token with each
        "linear_1": ("TC[1+4x4]", (4, 4)),
        "add_2": ("NTC[1+4x4]", (4, 4)),
    },
    "small-video-dynamo20": {
        "input": ("NCDHW", (4, 16, 16)),
        "getitem_3": ("NCDHW", (4, 8, 8)),
        "relu_3": ("NCDHW", (2, 4, 4)),
    },
}


def halves(model: caf.Model, at: str, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs by way of head, then tail."""
    cut = caf.cut(model, at)
    given = {**feeds, **caf.run(cut.head, {i.name: feeds[i.name] for i in cut.head.inputs})}
    return caf.run(cut.tail, {i.name: given[i.name] for i in cut.tail.inputs})


@pytest.mark.parametrize("name", ZOO)
def test_every_breakpoint_is_explained_and_proved(name: str) -> None:
    model = real(f"{name}.onnx")
    (only,) = model.inputs
    feeds = {only.name: normal(*(d if isinstance(d, int) else 2 for d in only.shape or ()))}
    whole = caf.run(model, feeds)
    for at, (layout, cells) in ZOO[name].items():
        joined = halves(model, at, feeds)
        assert joined.keys() == whole.keys()
        for output, value in joined.items():
            np.testing.assert_array_equal(value, whole[output], err_msg=f"{output} cut at {at}")
        found = caf.attend(model, feeds, at=at, solver="lbfgs")
        assert (found.layout + (f"[{found.grid}]" if found.grid else "")) == layout, at
        assert found.filter.shape[1:] == cells, at
        assert found.parity is not None
        assert found.parity.ok
        assert found.parity.slope_rel is not None
        assert found.proof.ok
        lengths = np.linalg.norm(found.filter.reshape(len(found.filter), -1), axis=1)
        np.testing.assert_allclose(lengths, found.radius * np.sqrt(np.prod(cells)), rtol=1e-4)


def test_all_that_is_committed_is_tried() -> None:
    files = sorted(MODELS.glob("small-*.onnx"))
    assert {p.stem for p in files} == set(ZOO)
    listed = tomllib.loads((MODELS / "manifest.toml").read_text(encoding="utf-8"))["committed"]
    assert sorted(name for entry in listed for name in entry["files"] if name.startswith("small-")) == [
        p.name for p in files
    ]
    for path in files:
        assert path.stat().st_size < 1_000_000
        data = path.read_bytes()
        assert b"site-packages" not in data, "the exporter's stack traces name folders of the machine"
        assert b"/scripts/" not in data
