"""Whose fault it is when no converter agrees: each node alone, on the very inputs that onnxruntime gave it.

A node whose own conversion fails or differs there is the culprit; a difference downstream of it is only inherited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import L2cafError, ParityError, UnsupportedModelError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.rewrite import Plain, plain, single_node, with_outputs
from l2caf_onnx.records import Parity

from .parity import SLOPE_RTOL

if TYPE_CHECKING:
    from .convert import Attempt, Converter

Kind = Literal["error", "value", "slope"]

_HOW = "Break at a later tensor, so that the node is in the head, or watch an earlier one."


def blame(model: Model, form: Plain, example: Mapping[str, NDArray[Any]], attempts: Sequence[Attempt]) -> L2cafError:
    """The error to raise for `model`, with the node that is to blame under each converter."""
    values = _intermediates(form, example)
    verdicts = [_culprit(form, a, values) for a in attempts]
    differing = [(a, v) for a, v in zip(attempts, verdicts, strict=True) if a.parity is not None]
    if differing:
        attempt, verdict = differing[0]
        assert attempt.parity is not None
        return _parity_error(model, form, attempt, attempt.parity, verdict)
    node, op, opset = next((form.nodes[v.node] for v in verdicts if v is not None), (None, None, None))
    reasons = "; ".join(f"{a.converter.name}: {_reason(form, a, v)}" for a, v in zip(attempts, verdicts, strict=True))
    named = f"node {node!r} ({op}, opset {opset})" if node is not None else "no single node is to blame"
    return UnsupportedModelError(
        f"No converter can turn this part into torch: {named}.",
        where=f"The {model.name!r}; {reasons}.",
        how=_HOW,
        node=node,
        op=op,
        opset=opset,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a node did when it was alone."""

    node: str
    kind: Kind
    what: str


def _culprit(form: Plain, attempt: Attempt, values: Mapping[str, NDArray[Any]]) -> Verdict | None:
    """The first node that fails alone in the way that the whole did.

    A node that merely differs explains an error too (a wrong shape, say, that breaks what follows), but no node is
    blamed for a value or slope that is right: its own small fault, of another kind, is not what was seen.
    """
    whole: Kind = "error" if attempt.parity is None else _kind(attempt.parity)
    other = None
    for index in range(len(form.model.proto.graph.node)):
        verdict = _alone(form, index, attempt.converter, values)
        if verdict is not None and verdict.kind == whole:
            return verdict
        if verdict is not None and verdict.kind == "value":
            other = other or verdict
    return other if whole == "error" else None


def _alone(form: Plain, index: int, converter: Converter, values: Mapping[str, NDArray[Any]]) -> Verdict | None:
    """What is wrong with the node at `index` under `converter`, on the inputs that it had in the whole, if anything."""
    from .convert import attempt, measure

    name = form.model.proto.graph.node[index].name
    fed = {r: values[r] for r in form.model.reads[index] if r in values and r not in form.model.stored}
    try:
        alone = single_node(form.model, index, values)
        expected = runtime.run(alone, fed)
        found = measure(alone, attempt(plain(alone), converter, expected), fed, expected, None)
    except Exception as error:  # noqa: BLE001  # converters raise anything; it is told of the node, not lost
        return Verdict(name, "error", _first_line(error))
    return None if found.ok else Verdict(name, _kind(found), f"{_size(found)} from onnxruntime on identical inputs")


def _kind(parity: Parity) -> Kind:
    return "value" if parity.slope_rel is None else "slope"


def _parity_error(model: Model, form: Plain, attempt: Attempt, parity: Parity, verdict: Verdict | None) -> ParityError:
    node, op, opset = form.nodes[verdict.node] if verdict is not None else (None, None, None)
    local = f" Node {node!r} ({op}, opset {opset}) is to blame: {verdict.what}." if verdict is not None else ""
    worst = (
        f", tensor {parity.tensor!r}, element {parity.worst_index}, allowed {parity.rtol:g} of the largest value"
        if _kind(parity) == "value"
        else f", allowed {SLOPE_RTOL:g} of itself"
    )
    return ParityError(
        f"The torch form of this part disagrees with onnxruntime: {_size(parity)}.{local}",
        where=f"The {model.name!r}{worst} (converter {attempt.converter.name}).",
        how=_HOW,
        tensor=parity.tensor,
        worst_index=parity.worst_index,
        rtol=parity.rtol,
        node=node,
        op=op,
        opset=opset,
    )


def _size(parity: Parity) -> str:
    if parity.findings and not np.isfinite(parity.max_rel):
        return parity.findings[0].rstrip(".")
    if parity.slope_rel is not None:
        return f"its slope is off by {parity.slope_rel:.2g} of itself"
    return f"off by {parity.max_rel:.2g} of the largest value"


def _reason(form: Plain, attempt: Attempt, verdict: Verdict | None) -> str:
    if verdict is not None:
        label, op, _ = form.nodes[verdict.node]
        return f"{label!r} ({op}): {verdict.what}"
    return _first_line(attempt.error) if attempt.error is not None else "disagrees with onnxruntime"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _intermediates(form: Plain, example: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every tensor of the plain form on the example, by onnxruntime."""
    feeds = {i.name: np.asarray(example[old]) for i, old in zip(form.model.inputs, form.inputs, strict=True)}
    return {**feeds, **runtime.run(with_outputs(form.model, tuple(form.model.producers)), feeds)}
