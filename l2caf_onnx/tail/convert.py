"""The chain of converters, each believed only when its module agrees with onnxruntime on the actual activations.

The tail is handed over folded and in plain form (graph/rewrite.py), which keeps the converters' defects out; parity
then judges the result. When none agrees, culprit.py finds the node.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.insert import FILTER_INPUT
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.paths import leads
from l2caf_onnx.graph.rewrite import Plain, plain
from l2caf_onnx.records import Parity

from . import parity as judge
from .fold import fold

Arrays = Mapping[str, NDArray[Any]]
Forward = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class TorchTail(nn.Module):
    """A model as a torch module: called with {input name: Tensor}, it returns {output name: Tensor}.

    Weights are frozen buffers and parameters; inputs that the model does not read may be left out.

    Attributes:
        converter: The converter that made it.
        parity: Its agreement with onnxruntime on the example.
        reads: The inputs that it reads.
        writes: Its outputs.
    """

    parity: Parity

    def __init__(self, inner: nn.Module, *, converter: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        super().__init__()
        self.inner = inner.eval().requires_grad_(False)
        self.converter = converter
        self.reads = reads
        self.writes = writes

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        missing = [name for name in self.reads if name not in feeds]
        if missing:
            raise InputError(
                f"The input {missing[0]!r} is missing.",
                where=f"This tail reads {', '.join(self.reads)}.",
                how="Feed every input.",
            )
        result = self.inner(*(feeds[name] for name in self.reads))
        values = list(result) if isinstance(result, (list, tuple)) else [result]
        return dict(zip(self.writes, values, strict=True))


@dataclass(frozen=True, slots=True)
class Converter:
    """A library that turns an ONNX model into a torch module."""

    name: str
    convert: Callable[[onnx.ModelProto], nn.Module]


def _onnx2torch(proto: onnx.ModelProto) -> nn.Module:
    import onnx2torch

    return onnx2torch.convert(proto)  # type: ignore[no-any-return]  # it has no annotations


def _onnx2pytorch(proto: onnx.ModelProto) -> nn.Module:
    from onnx2pytorch import ConvertModel

    return ConvertModel(proto)  # type: ignore[no-any-return]  # it has no annotations


CHAIN = (Converter("onnx2torch", _onnx2torch), Converter("onnx2pytorch", _onnx2pytorch))


def to_torch(model: Model, example: Arrays, *, providers: Sequence[str] | None = None) -> TorchTail:
    """`model` as a torch module that agrees with onnxruntime on `example`, in value and in slope.

    Args:
        model: Usually the tail of a cut; any Model may be handed over.
        example: {input name: array}, the activations that it will see; their sizes are fixed in the module.
        providers: onnxruntime's execution providers for the reference.

    Returns:
        A module; `.converter` says which converter made it, `.parity` how well it agrees.

    Raises:
        UnsupportedModelError: no converter knows a node; it is named with operator and opset.
        ParityError: every conversion disagrees with onnxruntime; node, tensor and worst element are named.
        InputError: the example does not fit the model's inputs.
    """
    arrays = runtime.check_feeds(model, example)
    key = ("torch", tuple((n, a.shape, str(a.dtype)) for n, a in sorted(arrays.items())), tuple(providers or ()))
    return model.cache.get(key, lambda: _to_torch(model, arrays, providers))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one converter: its error, or the parity that was not good enough."""

    converter: Converter
    error: Exception | None
    parity: Parity | None


def _to_torch(model: Model, example: Arrays, providers: Sequence[str] | None) -> TorchTail:
    from .culprit import blame

    form = plain(fold(model, example))
    attempts: list[Attempt] = []
    for converter in CHAIN:
        try:
            tail = attempt(form, converter)
            tail.parity = measure(model, tail, example, providers)
        except Exception as error:  # noqa: BLE001  # converters raise anything; the next is tried
            attempts.append(Attempt(converter, error, None))
            continue
        if tail.parity.ok:
            return tail
        attempts.append(Attempt(converter, None, tail.parity))
    raise blame(model, form, example, attempts)


def attempt(form: Plain, converter: Converter) -> TorchTail:
    """Convert; whatever the converter raises comes through."""
    proto = onnx.ModelProto()
    proto.CopyFrom(form.model.proto)  # converters change what they are given
    if form.model.base_dir is not None:
        onnx.external_data_helper.load_external_data_for_model(proto, str(form.model.base_dir))
    with quiet():
        inner = converter.convert(proto)
    return TorchTail(inner, converter=converter.name, reads=form.inputs, writes=form.outputs)


def measure(model: Model, tail: TorchTail, example: Arrays, providers: Sequence[str] | None) -> Parity:
    """Value and slope of `tail` against onnxruntime at reference semantics."""

    def reference(feeds: Arrays) -> dict[str, NDArray[Any]]:
        return runtime.run(model, feeds, providers=providers)

    tensors = {k: torch.from_numpy(np.array(v)) for k, v in example.items() if k in tail.reads}
    with torch.no_grad(), quiet():
        computed = {k: v.detach().cpu().numpy() for k, v in tail(tensors).items()}
    found = judge.compare(
        reference(example),
        computed,
        half=uses_half(model),
        provider=runtime.session(model, providers=providers).get_providers()[0],
        level="disable",
    )
    source = _moved(model, example, tail)
    if not found.ok or source is None:
        reason = "The slope is not judged: no floating-point input reaches an output."
        return found if not found.ok else replace(found, findings=(*found.findings, reason))
    if not leads(model, source, [o.name for o in model.outputs], avoiding=judge.lets_no_slope_through):
        reason = "The slope is not judged: every path meets an operator that is constant between its steps."
        return replace(found, findings=(*found.findings, reason))
    with quiet():
        relative = judge.slope(
            lambda x: reference({**example, source: x}), lambda x: tail({**tensors, source: x}), example[source]
        )
    return replace(found, slope_rel=relative, ok=relative <= judge.SLOPE_RTOL)


def _moved(model: Model, example: Arrays, tail: TorchTail) -> str | None:
    """The input along which the slope is taken: the filter where there is one, else the first floating-point one."""
    floats = [i.name for i in model.inputs if i.name in tail.reads and example[i.name].dtype.kind == "f"]
    return FILTER_INPUT if FILTER_INPUT in floats else next(iter(floats), None)


def uses_half(model: Model) -> bool:
    """Whether float16 weights, inputs or casts are inside."""
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    graph = model.proto.graph
    casts = (a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to")
    inputs = (v.type.tensor_type.elem_type for v in graph.input)
    return any(kind in half for kind in (*(t.data_type for t in graph.initializer), *casts, *inputs))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters warn about what parity decides; their words would only worry the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
