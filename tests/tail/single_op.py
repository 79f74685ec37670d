"""One operator as a model, proved: converted by onnx2torch with our operators, equal to onnxruntime twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.agreement import compare

Arrays = dict[str, NDArray[Any]]


def one_node(
    kind: str,
    inputs: Mapping[str, NDArray[Any] | None],
    *,
    stored: Sequence[str] = (),
    outputs: Sequence[str] = ("y",),
    opset: int = 22,
    domain: str = "",
    **attributes: Any,
) -> caf.Model:
    """A model of one node; inputs in order, None where omitted; those in `stored` are weights, the others are fed."""
    given = {k: v for k, v in inputs.items() if v is not None}
    node = onnx.helper.make_node(
        kind, [k if v is not None else "" for k, v in inputs.items()], list(outputs), domain=domain, **attributes
    )
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in given.items()
            if k not in stored
        ],
        [onnx.ValueInfoProto(name=o) for o in outputs if o],
        [onnx.numpy_helper.from_array(given[k], k) for k in stored if k in given],
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return caf.load(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))


def check(
    kind: str, inputs: Mapping[str, NDArray[Any] | None], *, stored: Sequence[str] = (), **how: Any
) -> caf.TorchTail:
    """Convert on `inputs` (value and slope are judged inside), then compare on other numbers of the same kind."""
    model = one_node(kind, inputs, stored=stored, **how)
    return check_model(model, {k: v for k, v in inputs.items() if v is not None and k not in stored})


def check_model(model: caf.Model, feeds: Arrays) -> caf.TorchTail:
    """Convert on `feeds` (value and slope are judged inside), then compare on other numbers of the same kind."""
    tail = caf.to_torch(model, feeds)
    assert tail.converter == "onnx2torch"
    rng = np.random.default_rng(1)
    other = {
        k: rng.permuted(v.ravel()).reshape(v.shape) * v.dtype.type(0.9) if v.dtype.kind == "f" else v
        for k, v in feeds.items()
    }
    with torch.no_grad():
        found = tail({k: torch.from_numpy(v) for k, v in other.items()})
    expected = caf.run(model, other)
    parity = compare(expected, {k: v.numpy() for k, v in found.items()}, provider="", level="disable")
    assert parity.ok, parity
    return tail


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    """Standard normal numbers, other ones for every shape."""
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.standard_normal(shape)).astype(np.float32)
