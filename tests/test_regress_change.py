"""Which class of change two graphs speak of: folding, faults, half precision, quantisers, another training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import l2caf_onnx as caf
from l2caf_onnx.regress.change import change_of
from tests.conftest import normal, weighted

NET = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8,32] w3, float[32,5] w4>
{ c0 = Conv (x, w0, b0)  r0 = Relu (c0)  c1 = Conv (r0, w1, b1)  r1 = Relu (c1)  c2 = Conv <pads = [1,1,1,1]> (r1, w2)
  p = GlobalAveragePool (c2)  f = Flatten (p)  h = MatMul (f, w3)  y = MatMul (h, w4) }"""
Edit = Callable[[onnx.ModelProto], None]


def changed(edit: Edit) -> caf.Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(weighted(NET).proto)
    edit(proto)
    return caf.load(proto)


def put(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def nothing(proto: onnx.ModelProto) -> None:
    pass


def renamed(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [n if n in "xy" else f"{n}_new" for n in names]
    for tensor in proto.graph.initializer:
        tensor.name += "_new"


def folded(proto: onnx.ModelProto) -> None:
    gain = np.exp(normal(8, seed=3)).reshape(-1, 1, 1, 1)
    for name in ("w0", "w1", "w2"):
        put(proto, name, lambda w: (w * gain).astype(np.float32))


def noised(proto: onnx.ModelProto) -> None:
    put(proto, "w1", lambda w: (w + 0.01 * normal(*w.shape, seed=4)).astype(np.float32))


def one_of_another_training(proto: onnx.ModelProto) -> None:
    put(proto, "w1", lambda w: normal(*w.shape, seed=5))


def trained_anew(proto: onnx.ModelProto) -> None:
    for k, tensor in enumerate(list(proto.graph.initializer)):
        put(proto, tensor.name, lambda w, k=k: normal(*w.shape, seed=10 + k))  # type: ignore[misc]


def without_residual(proto: onnx.ModelProto) -> None:
    del proto.graph.node[3]
    proto.graph.node[3].input[0] = "c1"


def half_weights(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "w3")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "w3_half"))
    proto.graph.node.insert(0, helper.make_node("Cast", ["w3_half"], ["w3"], to=TensorProto.FLOAT))


def quantised(proto: onnx.ModelProto) -> None:
    for name, value in (("scale", np.float32(0.1)), ("zero", np.uint8(3))):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    proto.graph.node.insert(1, helper.make_node("QuantizeLinear", ["c0", "scale", "zero"], ["q"]))
    proto.graph.node.insert(2, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]))
    proto.graph.node[3].input[0] = "d"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (nothing, "identical"),
        (renamed, "float32"),
        (folded, "float32"),
        (noised, "float32"),
        (one_of_another_training, "float32"),
        (without_residual, "float32"),
        (trained_anew, "retrained"),
        (half_weights, "float16"),
        (quantised, "int8"),
    ],
)
def test_the_class_is_read_from_the_graphs(edit: Edit, expected: str) -> None:
    found, why = change_of(weighted(NET), changed(edit))
    assert found == expected
    assert why.endswith(".")


def test_external_data(tmp_path: Path) -> None:
    onnx.save(changed(noised).proto, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    assert change_of(weighted(NET), caf.load(tmp_path / "m.onnx"))[0] == "float32"


def test_operators_that_compute_in_integers() -> None:
    model = weighted(
        """g (float[N,4] x) => (float[N,4] y) <float[1] u>
        { q, s, z = DynamicQuantizeLinear (x)  y = DequantizeLinear (q, s, z) }"""
    )
    assert change_of(weighted(NET), model)[0] == "int8"
