"""The chain of converters, each believed only when its module agrees with onnxruntime on the actual activations.

The tail is handed over folded and in plain form (graph/rewrite.py), which keeps the converters' defects out; parity
then judges the result. When none agrees, culprit.py finds the node.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from l2caf_onnx import runtime
from l2caf_onnx.agreement import compare
from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.contrib import is_onnxruntimes
from l2caf_onnx.graph.half import uses_half
from l2caf_onnx.graph.insert import FILTER_INPUT
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.nodes import walk
from l2caf_onnx.graph.rewrite import Plain, plain
from l2caf_onnx.records import Parity

from . import ops
from . import parity as judge
from .fold import fold
from .ops.registry import undotted
from .stepwise import NO_SLOPE, Stepwise, is_quantised
from .widen import widened, widened_arrays

Arrays = Mapping[str, NDArray[Any]]

_COURSES = 4  # tails that are kept of a model whose control flow inputs steer


class TorchTail(nn.Module):
    """A model as a torch module: called with {input name: Tensor}, it returns {output name: Tensor}.

    Weights are frozen buffers and parameters; inputs that the model does not read may be left out.

    Attributes:
        converter: The converter that made it.
        parity: Its agreement with onnxruntime on the example.
        reads: The inputs that it reads.
        writes: Its outputs.
        narrow: Of a float16 model, which is computed in float32 (see widen.py): its float16 outputs. Else None.
        types: Of its integer outputs, which a quantised model carries as floating point (see ops/quantising.py).
        stepwise: Of a quantised model, what judges it node by node; else None.
        fixed: Inputs whose values steer its control flow: it is true for these values alone.
    """

    parity: Parity
    stepwise: Stepwise | None = None

    def __init__(
        self,
        inner: nn.Module,
        *,
        converter: str,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        narrow: frozenset[str] | None = None,
        types: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.converter = converter
        self.reads = reads
        self.writes = writes
        self.narrow = narrow
        self.types = dict(types or {})
        self.fixed: Arrays = {}
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
        for name, value in self.fixed.items():
            if name in feeds and not np.array_equal(feeds[name].detach().cpu().numpy(), value):
                raise InputError(
                    f"The input {name!r} steers the control flow of this tail, which was made for another value of it.",
                    where=f"It was made for {_short(value)}.",
                    how="Convert again with this value in the example.",
                )
        inputs = [feeds[name] for name in self.reads]
        if self.narrow is not None:
            inputs = [t.float() if t.dtype == torch.float16 else t for t in inputs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say of their own code is not for the user
            result = self.inner(*inputs)
        values = list(result) if isinstance(result, (list, tuple)) else [result]
        outputs = dict(zip(self.writes, values, strict=True))
        outputs = {k: v.to(self.types[k]) if k in self.types else v for k, v in outputs.items()}
        return {k: v.half() if k in (self.narrow or ()) else v for k, v in outputs.items()}


@dataclass(frozen=True, slots=True)
class Converter:
    """A library that turns an ONNX model into a torch module."""

    name: str
    convert: Callable[[onnx.ModelProto], nn.Module]


def _onnx2torch(proto: onnx.ModelProto) -> nn.Module:
    import onnx2torch

    ops.install()
    for named in (*proto.opset_import, *walk(proto.graph)):
        named.domain = undotted(named.domain)
    made: nn.Module = onnx2torch.convert(proto)
    return made


def _onnx2pytorch(proto: onnx.ModelProto) -> nn.Module:
    from onnx2pytorch import ConvertModel

    made: nn.Module = ConvertModel(proto)
    return made


CHAIN = (Converter("onnx2torch", _onnx2torch), Converter("onnx2pytorch", _onnx2pytorch))


def to_torch(
    model: Model, example: Arrays, *, held: Collection[str] = (), providers: Sequence[str] | None = None
) -> TorchTail:
    """`model` as a torch module that agrees with onnxruntime on `example`, in value and in slope.

    Args:
        model: Usually the tail of a cut; any Model may be handed over.
        example: {input name: array}, the activations that it will see; their sizes are fixed in the module.
        held: Inputs that will always have the values of the example: control flow that they steer is taken apart.
        providers: onnxruntime's execution providers for the reference.

    Returns:
        A module; `.converter` says which converter made it, `.parity` how well it agrees.

    Raises:
        UnsupportedModelError: no converter knows a node; it is named with operator and opset.
        ParityError: every conversion disagrees with onnxruntime; node, tensor and worst element are named.
        InputError: the example does not fit the model's inputs.
    """
    arrays = runtime.check_feeds(model, example)
    sizes = tuple((n, a.shape, str(a.dtype)) for n, a in sorted(arrays.items()))
    known: list[TorchTail] = model.cache.get(("torch", sizes, tuple(sorted(held)), tuple(providers or ())), list)
    for tail in known:
        if all(np.array_equal(arrays[n], value) for n, value in tail.fixed.items()):
            return tail
    with torch.inference_mode(False):  # tensors made under it could never carry a gradient
        made = _to_torch(model, arrays, held, providers)
    known[:] = [*known[1 - _COURSES :], made]
    return made


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one converter: its error, or the parity that was not good enough."""

    converter: Converter
    error: Exception | None
    parity: Parity | None


def _to_torch(model: Model, example: Arrays, held: Collection[str], providers: Sequence[str] | None) -> TorchTail:
    from .culprit import blame

    expected = runtime.run(model, example, providers=providers)
    half = uses_half(model)
    source, given = (widened(model), widened_arrays(example)) if half else (model, example)
    narrow = frozenset(k for k, v in expected.items() if v.dtype == np.float16) if half else None
    folded = fold(source, given, held)
    form = replace(plain(folded.model), outputs=tuple(o.name for o in model.outputs))
    attempts: list[Attempt] = []
    for converter in CHAIN:
        try:
            tail = attempt(form, converter, expected, narrow=narrow)
            tail.fixed = {n: example[n] for n in sorted(folded.fixed)}
            tail.parity = measure(model, tail, example, expected, providers)
        except Exception as error:  # noqa: BLE001  # converters raise anything; the next is tried, and `blame` tells it if none agrees
            attempts.append(Attempt(converter, error, None))
            continue
        if tail.parity.ok:
            return tail
        attempts.append(Attempt(converter, None, tail.parity))
    raise blame(model, form, given, attempts)


def attempt(form: Plain, converter: Converter, expected: Arrays, *, narrow: frozenset[str] | None = None) -> TorchTail:
    """Convert; whatever the converter raises comes through. `expected`, onnxruntime's outputs, tells their types."""
    proto = onnx.ModelProto()
    proto.CopyFrom(form.model.proto)  # converters change what they are given
    if form.model.base_dir is not None:
        onnx.external_data_helper.load_external_data_for_model(proto, str(form.model.base_dir))
    _import_domains(proto)
    with quiet(), _sober():
        inner = converter.convert(proto)
    types = {k: torch.from_numpy(np.empty(0, v.dtype)).dtype for k, v in expected.items() if v.dtype.kind in "iu"}
    tail = TorchTail(
        inner, converter=converter.name, reads=form.inputs, writes=form.outputs, narrow=narrow, types=types
    )
    tail.stepwise = Stepwise(form, inner) if is_quantised(form) else None
    return tail


def _import_domains(proto: onnx.ModelProto) -> None:
    """Import every domain that is used, under one name: onnxruntime forgives what converters do not."""
    for imported in proto.opset_import:
        imported.domain = "" if imported.domain == "ai.onnx" else imported.domain
    opset = max((i.version for i in proto.opset_import if i.domain == ""), default=1)
    for node in walk(proto.graph):
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        if node.domain == "" and is_onnxruntimes(node, opset):
            node.domain = "com.microsoft"  # where our operators look for it
    for domain in sorted({n.domain for n in walk(proto.graph)} - {i.domain for i in proto.opset_import}):
        proto.opset_import.add(domain=domain, version=1)


def measure(
    model: Model, tail: TorchTail, example: Arrays, expected: Arrays, providers: Sequence[str] | None
) -> Parity:
    """Value and slope of `tail` against onnxruntime at reference semantics; `expected` is what that returned."""
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in example.items() if k in tail.reads}
    with torch.no_grad(), quiet():
        computed = {k: v.detach().cpu().numpy() for k, v in tail(tensors).items()}
    half = tail.narrow is not None
    found = compare(
        expected,
        computed,
        half=half,
        provider=runtime.session(model, providers=providers).get_providers()[0],
        level="disable",
    )
    if tail.stepwise is not None:
        found = tail.stepwise.judged(found, example)
    if half:
        found = replace(found, findings=(*found.findings, "Float16 is computed in float32, the slope too."))
    if tail.stepwise is not None:
        return replace(found, findings=(*found.findings, NO_SLOPE))
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


def _short(value: NDArray[Any]) -> str:
    return str(value.tolist()) if value.size <= 8 else f"an array of shape {value.shape}"


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
