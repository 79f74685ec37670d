"""From a trained toy to its `.onnx`: named so that a stop is found by its name, and confirmed by onnxruntime.

torch's TorchScript exporter writes it: in its mode PRESERVE it leaves batch norms as nodes of their own, which it
otherwise folds into the convolutions, and it writes a GRU as one node.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from .nets import Seeing
from .training import Plan, stacked

OPSET = 17
MAX_REL = 1e-4  # of the largest element: the tolerance that this project sets torch against onnxruntime in float32
LIMIT = 1_000_000  # bytes: the toys are committed
SAMPLES = (1, 3)  # batches that are confirmed, where the batch is open


def exported(plan: Plan, net: Seeing, seed: int) -> bytes:
    """The network's `.onnx`.

    Raises:
        ValueError: onnxruntime does not give what torch gives, or the file is too large.
    """
    shown = [torch.from_numpy(stacked(plan.held_out(n, seed))) for n in SAMPLES]
    open_axes = {name: {0: "N"} for name in (plan.input, *plan.outputs)} if plan.dynamic else {}
    mode = torch.onnx.TrainingMode.PRESERVE if plan.keeps_norms else torch.onnx.TrainingMode.EVAL
    with tempfile.TemporaryDirectory(prefix="l2caf-") as folder, warnings.catch_warnings(), torch.no_grad():
        path = Path(folder) / "toy.onnx"
        warnings.simplefilter("ignore")  # the exporter warns that it is the old one
        torch.onnx.export(
            net, (shown[0],), str(path), input_names=[plan.input], output_names=list(plan.outputs), opset_version=OPSET,
            dynamic_axes=open_axes, dynamo=False, training=mode,
        )  # fmt: skip
        proto = onnx.load(path)
    name_stops(proto, [name for name, _ in net.named_children()])
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    if len(data) >= LIMIT:
        raise ValueError(f"The network takes {len(data)} bytes, {LIMIT} or more.")
    for given in shown if plan.dynamic else shown[:1]:
        _confirm(data, plan, net, given)
    return data


def name_stops(proto: onnx.ModelProto, children: list[str]) -> None:
    """Give the last tensor of each child of the network the child's name; keep the names of inputs and outputs."""
    graph = proto.graph
    kept = {v.name for v in (*graph.input, *graph.output)}
    last = {m[1]: n.output[0] for n in graph.node if (m := re.match(r"/([^/]+)/", n.name)) and n.output[0]}
    names = {last[c]: c for c in children if c in last and last[c] not in kept}
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(t, t) for t in tensors]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def run(data: bytes, plan: Plan, given: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """The outputs, by onnxruntime; one by one where the batch is fixed at 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    parts = [given] if plan.dynamic else [given[i : i + 1] for i in range(len(given))]
    rows = [session.run(list(plan.outputs), {plan.input: part}) for part in parts]
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def _confirm(data: bytes, plan: Plan, net: Seeing, given: torch.Tensor) -> None:
    with torch.no_grad():
        expected = net(given)
    for name, found, true in zip(plan.outputs, run(data, plan, given.numpy()), expected, strict=True):
        off = float((torch.from_numpy(found) - true).abs().max() / true.abs().max())
        if not off <= MAX_REL:
            raise ValueError(f"{name!r} at batch {len(given)} is off by {off:.1e} of its largest element.")
