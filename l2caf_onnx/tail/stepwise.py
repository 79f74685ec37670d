"""Quantised models, node by node: each node of the torch form on the very inputs that onnxruntime gave it.

From end to end one rounding that falls the other way moves a logit by a hundredth, so that only nodes can be judged: to
one step of their output. Where onnxruntime's kernel itself is wrong, because it saturates, that is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx

from l2caf_onnx import runtime
from l2caf_onnx.graph.rewrite import Plain, with_outputs
from l2caf_onnx.records import Parity

from .saturation import difference, exact_when_unsigned

Arrays = Mapping[str, NDArray[Any]]

_QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention",
}  # fmt: skip

NO_SLOPE = "The slope is not judged: what a quantiser makes is constant between its steps."


def is_quantised(form: Plain) -> bool:
    """Whether data pass through integers that stand for real numbers."""
    return any(n.op_type in _QUANTISED or n.op_type.startswith("QLinear") for n in form.model.proto.graph.node)


class Stepwise:
    """What judges a quantised torch form."""

    def __init__(self, form: Plain, inner: torch.nn.Module) -> None:
        self.form, self.inner = form, inner
        self.observed = with_outputs(form.model, tuple(form.model.producers))

    def judged(self, found: Parity, feeds: Arrays) -> Parity:
        """`found`, which is of the whole from end to end, with the nodes' verdict in place of its own.

        Args:
            found: Values of torch against onnxruntime on `feeds`.
            feeds: The tail's inputs, under the names that it had before it was made plain.
        """
        if not isinstance(self.inner, fx.GraphModule) or not np.isfinite(found.max_rel):
            return found  # it cannot be taken apart, or is wrong in shape, type or NaN
        pairs = zip(self.form.model.inputs, self.form.inputs, strict=True)
        fed = {i.name: np.asarray(feeds[former]) for i, former in pairs}
        values = {**fed, **runtime.run(self.observed, fed)}
        steps = _Steps(self.form, self.inner, values)
        with torch.no_grad():
            steps.run(*[torch.from_numpy(np.array(fed[i.name])) for i in self.form.model.inputs])
        return replace(found, ok=not steps.wrong, findings=(*found.findings, *self._told(steps, found)))

    def _told(self, steps: _Steps, found: Parity) -> list[str]:
        if steps.wrong:
            node, what = steps.wrong[0]
            label, op, _ = self.form.nodes[node]
            return [f"Node {label!r} ({op}) is {what} from onnxruntime on identical inputs."]
        told = [
            f"Quantised: each of {steps.count} nodes is within 1 step of onnxruntime on identical inputs; "
            f"from end to end {found.max_rel:.2g} of the largest value."
        ]
        if steps.saturated:
            named = ", ".join(f"{self.form.nodes[n][0]!r} ({self.form.nodes[n][1]}, {d})" for n, d in steps.saturated)
            told.append(
                f"onnxruntime's kernels saturate on this processor at {named} from exact integers, which the same "
                "nodes give with uint8 weights: quantise weights to uint8, or with reduce_range."
            )
        return told


class _Steps(fx.Interpreter):
    """Runs every node on onnxruntime's values, compares what it gives, and passes on what onnxruntime gave."""

    def __init__(self, form: Plain, inner: fx.GraphModule, values: Arrays) -> None:
        super().__init__(inner)
        self.form, self.values = form, values
        self.index = {n.name: k for k, n in enumerate(form.model.proto.graph.node)}
        self.count = 0
        self.wrong: list[tuple[str, str]] = []
        self.saturated: list[tuple[str, str]] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = str(n.target).rpartition("/")[2]  # the library puts an operator's domain before its node's name
        if n.op != "call_module" or name not in self.index:
            return result
        self.count += 1
        outputs = self.form.model.proto.graph.node[self.index[name]].output
        parts = result if isinstance(result, tuple) else (result,)
        found = {o: p for o, p in zip(outputs, parts, strict=False) if o and p is not None}
        differing = [
            what for o, p in found.items() if (what := difference(self.values[o], p.cpu().numpy(), self._step(o)))
        ]
        if differing:
            exact = exact_when_unsigned(
                self.form.model, self.index[name], self.values, {o: p.cpu().numpy() for o, p in found.items()}
            )
            (self.saturated if exact else self.wrong).append((name, differing[0]))
        given = tuple(self._given(o, p) for o, p in zip(outputs, parts, strict=False))
        return given if isinstance(result, tuple) else given[0]

    def _step(self, name: str) -> float:
        """What one quantisation step is of a floating tensor that quantisers alone read; else 0."""
        model = self.form.model
        readers = [model.proto.graph.node[i] for i in model.consumers.get(name, ())]
        scales = [model.initialisers.get(r.input[1]) for r in readers if r.op_type == "QuantizeLinear"]
        if not readers or len(scales) < len(readers):
            return 0.0
        return min((float(onnx.numpy_helper.to_array(s).min()) if s is not None else 0.0) for s in scales)

    def _given(self, name: str, like: torch.Tensor | None) -> torch.Tensor | None:
        """onnxruntime's value, carried as torch carries it."""
        return None if like is None or not name else torch.from_numpy(np.array(self.values[name])).to(like)
