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
from l2caf_onnx.graph.rewrite import Plain, plain
from l2caf_onnx.records import Parity

from . import parity as judge
from .fold import fold
from .widen import widened, widened_arrays

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
        narrow: Of a float16 model, which is computed in float32 (see widen.py): its float16 outputs. Else None.
    """

    parity: Parity

    def __init__(
        self,
        inner: nn.Module,
        *,
        converter: str,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        narrow: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.converter = converter
        self.reads = reads
        self.writes = writes
        self.narrow = narrow
        self.eval()

    def train(self, mode: bool = True) -> TorchTail:
        """Stay in evaluation mode whatever is asked: what is shared from the cache must remain the deployed model."""
        return super().train(False)

    def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        missing = [name for name in self.reads if name not in feeds]
        if missing:
            raise InputError(
                f"The input {missing[0]!r} is missing.",
                where=f"This tail reads {', '.join(self.reads)}.",
                how="Feed every input.",
            )
        inputs = [feeds[name] for name in self.reads]
        if self.narrow is not None:
            inputs = [t.float() if t.dtype == torch.float16 else t for t in inputs]
        result = self.inner(*inputs)
        values = list(result) if isinstance(result, (list, tuple)) else [result]
        outputs = dict(zip(self.writes, values, strict=True))
        return {k: v.half() if k in (self.narrow or ()) else v for k, v in outputs.items()}


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
    with torch.inference_mode(False):  # tensors made under it could never carry a gradient
        return model.cache.get(key, lambda: _to_torch(model, arrays, providers))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one converter: its error, or the parity that was not good enough."""

    converter: Converter
    error: Exception | None
    parity: Parity | None


def _to_torch(model: Model, example: Arrays, providers: Sequence[str] | None) -> TorchTail:
    from .culprit import blame

    expected = runtime.run(model, example, providers=providers)
    half = uses_half(model)
    source, given = (widened(model), widened_arrays(example)) if half else (model, example)
    narrow = frozenset(k for k, v in expected.items() if v.dtype == np.float16) if half else None
    form = replace(plain(fold(source, given)), outputs=tuple(o.name for o in model.outputs))
    attempts: list[Attempt] = []
    for converter in CHAIN:
        try:
            tail = attempt(form, converter, narrow=narrow)
            tail.parity = measure(model, tail, example, expected, providers)
        except Exception as error:  # noqa: BLE001  # converters raise anything; the next is tried
            attempts.append(Attempt(converter, error, None))
            continue
        if tail.parity.ok:
            return tail
        attempts.append(Attempt(converter, None, tail.parity))
    raise blame(model, form, given, attempts)


def attempt(form: Plain, converter: Converter, *, narrow: frozenset[str] | None = None) -> TorchTail:
    """Convert; whatever the converter raises comes through."""
    proto = onnx.ModelProto()
    proto.CopyFrom(form.model.proto)  # converters change what they are given
    if form.model.base_dir is not None:
        onnx.external_data_helper.load_external_data_for_model(proto, str(form.model.base_dir))
    with quiet(), _sober():
        inner = converter.convert(proto)
    return TorchTail(inner, converter=converter.name, reads=form.inputs, writes=form.outputs, narrow=narrow)


def measure(
    model: Model, tail: TorchTail, example: Arrays, expected: Arrays, providers: Sequence[str] | None
) -> Parity:
    """Value and slope of `tail` against onnxruntime at reference semantics; `expected` is what that returned."""
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in example.items() if k in tail.reads}
    with torch.no_grad(), quiet():
        computed = {k: v.detach().cpu().numpy() for k, v in tail(tensors).items()}
    half = tail.narrow is not None
    found = judge.compare(
        expected,
        computed,
        half=half,
        provider=runtime.session(model, providers=providers).get_providers()[0],
        level="disable",
    )
    if half:
        found = replace(found, findings=(*found.findings, "Float16 is computed in float32, the slope too."))
    if not found.ok:
        return found
    source = _moved(model, example, tail)
    reason = judge.unjudged(model, source, expected)
    if source is None or reason:
        return replace(found, findings=(*found.findings, reason))

    def reference(x: NDArray[Any]) -> Arrays:
        feeds = {**example, source: x}
        if half:
            return runtime.run(widened(model), widened_arrays(feeds), providers=providers)
        return runtime.run(model, feeds, providers=providers)

    with quiet():
        relative = judge.slope(reference, lambda x: tail({**tensors, source: x}), example[source])
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
    stored = (a.t.data_type for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value")
    inputs = (v.type.tensor_type.elem_type for v in graph.input)
    return any(kind in half for kind in (*(t.data_type for t in graph.initializer), *stored, *casts, *inputs))


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


@contextlib.contextmanager
def _sober() -> Iterator[None]:
    """Converters make layers before they fill them in, with the caller's default type and random numbers."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(dtype)
