"""The floor: what the parts of an attention at the last convolution cost, without the program around them.

Head in onnxruntime; the closed form (one row of the last layer times the activation; for "outputs" the whole matrix by
onnxruntime, its Gram matrix and the eigenvalues); the filtered tail in onnxruntime, which reads the last layer where
torch reads it too, for the proof; the heatmap. No program that gives the same answer with the same proof from these
libraries is much quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch.nn.functional import interpolate

import l2caf_onnx as caf

from .cases import LAST_CONV, PLACES
from .table import Row
from .timing import Feeds, interleaved, plain_forward

SOLVER = "the bare parts"


def floor(model: Path, feeds: Feeds, repeats: int) -> Iterator[Row]:
    """A row for each question at the last convolution."""
    forward = plain_forward(model, feeds)
    place = next(name for name, at in PLACES.items() if at == LAST_CONV)
    for question, work in _parts(model, feeds).items():
        work()
        timed = interleaved(work, forward, repeats)
        yield Row(
            place=place, images=1, question=question, solver=SOLVER, ratio=timed.ratio, ms=timed.ms, ratios=timed.ratios
        )


def _parts(model: Path, feeds: Feeds) -> dict[str, Callable[[], object]]:
    cut = caf.cut(caf.load(model), LAST_CONV)
    uniform = np.ones((7, 7), np.float32)
    head = _session(cut.head.proto, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    tail = _session(caf.insert_filter(cut.tail, LAST_CONV, uniform).proto, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    (last,) = (t for t in cut.tail.proto.graph.initializer if len(t.dims) == 2)
    weights = torch.from_numpy(onnx.numpy_helper.to_array(last).copy())
    weights = weights if len(weights) == 1000 else weights.T.contiguous()

    def common(activation: np.ndarray, f: torch.Tensor) -> None:
        """Proof and picture."""
        z = torch.mv(weights, torch.mv(torch.from_numpy(activation).reshape(-1, 49), f)).numpy()
        y = tail.run(None, {LAST_CONV: activation})[0]
        float(np.abs(y[0] - z).max() / np.abs(y).max())
        shown = interpolate(f.reshape(1, 1, 7, 7).clamp_min(0), (224, 224), mode="bilinear")
        shown.sub_(shown.amin()).div_(shown.amax())

    def target() -> None:
        (activation,) = head.run(None, dict(feeds))
        g = torch.mv(torch.from_numpy(activation).reshape(-1, 49).T, weights[282])
        common(activation, g / g.norm())

    def outputs() -> None:
        (activation,) = head.run(None, dict(feeds))
        jacobian = weights @ torch.from_numpy(activation).reshape(-1, 49)
        values, vectors = torch.linalg.eigh((jacobian.T @ jacobian).double())
        common(activation, (vectors @ (1 / (values + 1))).float())

    threads = torch.get_num_threads()

    def alone(work: Callable[[], None]) -> Callable[[], None]:
        def single() -> None:
            torch.set_num_threads(1)
            work()
            torch.set_num_threads(threads)

        return single

    return {"target, unit": alone(target), "outputs, unit": outputs}


def _session(model: onnx.ModelProto, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
