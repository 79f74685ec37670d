"""ONNX's own node tests as tails: those in operators_right.txt stay right, none is ever silently wrong.

The same models at the earlier opsets of their operator, and, in double precision, the slopes.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.tail import convert
from scripts import operators

Arrays = dict[str, NDArray[Any]]
RIGHT = (Path(__file__).parent / "operators_right.txt").read_text().split()
CASES = {c.name: c for c in operators.cases()}


def test_the_list_is_of_cases_that_there_are() -> None:
    assert set(RIGHT) <= set(CASES)
    assert len(RIGHT) == len(set(RIGHT))


@pytest.mark.parametrize("name", sorted(CASES))
def test_node_test(name: str) -> None:
    case = CASES[name]
    if operators.by_onnxruntime(case) != "right":
        assert name not in RIGHT
        pytest.skip("onnxruntime does not run it, or differs from ONNX")
    verdict, why = operators.by_tail(case)  # anything but an L2cafError comes through
    assert verdict != "wrong"
    assert (verdict == "right") == (name in RIGHT), f"{verdict}: {why}"


VERSIONS: dict[str, set[int]] = defaultdict(set)
for schema in onnx.defs.get_all_schemas_with_history():
    if schema.domain == "":
        VERSIONS[schema.name].add(schema.since_version)


def _opset(proto: onnx.ModelProto) -> int:
    return next(int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx"))


def earlier() -> list[Any]:
    """(case, version): single nodes at each opset before their own at which the operator's meaning changed."""
    found = []
    for name in RIGHT:
        nodes = CASES[name].proto.graph.node if name in CASES else []
        if len(nodes) == 1 and not nodes[0].domain:
            found += [
                pytest.param(name, v, id=f"{name}-{v}")
                for v in sorted(VERSIONS[nodes[0].op_type])
                if 5 <= v < _opset(CASES[name].proto)
            ]
    return found


@pytest.mark.parametrize(("name", "version"), earlier())
def test_node_test_at_an_earlier_opset(name: str, version: int) -> None:
    case = CASES[name]
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    for imported in proto.opset_import:
        imported.version = version if imported.domain in ("", "ai.onnx") else imported.version
    proto.ir_version = min(proto.ir_version, 9)
    try:
        onnx.checker.check_model(proto)
        model = caf.load(proto)
        caf.run(model, case.feeds)
    except (onnx.checker.ValidationError, caf.L2cafError):
        pytest.skip("the node is none of that opset, or onnxruntime has no kernel")
    assert caf.to_torch(model, case.feeds).parity.ok


ROUGH = {"Round", "Floor", "Ceil", "Sign", "Hardmax", "OneHot", "ArgMax", "ArgMin", "Shape", "Size", "EyeLike", "Cast"}


def doubles() -> list[Any]:
    """Single differentiable nodes, as many as onnxruntime may have in double."""
    found = []
    for name in RIGHT:
        nodes = CASES[name].proto.graph.node if name in CASES else []
        kinds = {v.dtype for v in CASES[name].feeds.values()} if name in CASES else set()
        if len(nodes) == 1 and nodes[0].op_type not in ROUGH and np.dtype(np.float32) in kinds:
            found.append(name)
    return found


FLOAT_INSIDE = {"GroupNormalization", "Shrink"}  # onnxruntime computes these in float32 whatever the type


@pytest.mark.parametrize("name", doubles())
def test_slope_in_double(name: str) -> None:
    """u'J v by torch against onnxruntime's central difference: rtol 1e-5, where onnxruntime has the kernel."""
    case = CASES[name]
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    rng = np.random.default_rng(0)
    feeds = {
        k: v.astype(np.float64) * (1 + 0.01 * rng.uniform(0.5, 1, v.shape)) + 1e-3
        if v.dtype == np.float32 and v.ndim
        else v
        for k, v in case.feeds.items()
    }
    feeds = {k: np.asarray(v) for k, v in feeds.items()}
    feeds = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
    moved = next(k for k, v in feeds.items() if v.dtype == np.float64)
    try:
        model = caf.load(proto)
        expected = caf.run(model, feeds)
    except caf.L2cafError:
        pytest.skip("onnxruntime has no such kernel in double")
    outputs = {k: v for k, v in expected.items() if v.dtype == np.float64 and v.size and np.isfinite(v).all()}
    if not outputs:
        pytest.skip("no finite output in double")
    single = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feeds.items()}
    plain = caf.run(caf.load(case.proto), single)
    if any(not np.allclose(plain[k], v, rtol=1e-3, atol=1e-3) for k, v in outputs.items()):
        pytest.skip("onnxruntime's kernel in double computes something else than its kernel in float32")
    tail = caf.to_torch(model, feeds)
    if moved not in tail.reads:
        pytest.skip("its first input has no say")
    direction = rng.standard_normal(feeds[moved].shape)
    weights = {k: rng.standard_normal(v.shape) for k, v in outputs.items()}
    x = torch.from_numpy(feeds[moved]).requires_grad_(True)
    found = tail({**{k: torch.from_numpy(v) for k, v in feeds.items() if k in tail.reads}, moved: x})
    total = sum((found[k] * torch.from_numpy(np.asarray(w))).sum() for k, w in weights.items())
    assert isinstance(total, torch.Tensor)
    (gradient,) = torch.autograd.grad(total, x, allow_unused=True) if total.requires_grad else (None,)
    slope = 0.0 if gradient is None else float((gradient.numpy() * direction).sum())

    def along(t: float) -> float:
        y = caf.run(model, {**feeds, moved: feeds[moved] + t * direction})
        return float(sum((y[k] * w).sum() for k, w in weights.items()))

    steps = (1e-6, 1e-5, 1e-4, 1e-7, 1e-3)
    differences = [(along(h) - along(-h)) / (2 * h) for h in steps]
    scale = max(1e-3, abs(slope))
    tolerance = 2e-3 if proto.graph.node[0].op_type in FLOAT_INSIDE else 1e-5
    assert min(abs(d - slope) for d in differences) <= tolerance * scale, (slope, differences)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_extended_library_alone_gets_most_right() -> None:
    assert convert.CHAIN[0].name == "onnx2torch"
