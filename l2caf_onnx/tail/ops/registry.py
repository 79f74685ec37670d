"""How a function becomes an operator of onnx2torch: one decorator, one module that calls the function.

An operator's function gets a `Node` and its inputs by position: a tensor, None where omitted, and, at the positions
that it declares `static` (shapes, axes, pads), a numpy array. It returns a tensor or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx2torch.node_converters import registry
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OnnxToTorchModule, OperationConverterResult
from torch import Tensor, nn

Outputs = Tensor | tuple[Tensor | None, ...]
Function = Callable[..., Outputs]


@dataclass(frozen=True, slots=True)
class Node:
    """What an operator's function may know of its node.

    Attributes:
        op: The operator's type.
        version: The opset version at which its meaning was last changed.
        attributes: Plain values; tensors as numpy arrays.
        wanted: For each output, whether it has a name.
        memo: What the function computed from attributes and static inputs, to be used again by the next call.
    """

    op: str
    version: int
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...]
    memo: dict[Any, Any] = field(default_factory=dict, compare=False)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the specification's default for it."""
        return self.attributes.get(name, default)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, computed at the first call with that key."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def op(
    *names: str,
    domain: str = "",
    static: Iterable[int] = (),
    baked: Iterable[int] = (),
    since: int = 1,
    replace: bool = False,
) -> Callable[[Function], Function]:
    """Register a function for operators `names`, at every version from `since` that the installed onnx knows.

    What onnx2torch has at a version stays, but for `replace`: it is wrong or too narrow there. Inputs at the positions
    `static` come as numpy arrays, at `baked` too where they are stored; but as tensors, with gradient, where computed.
    """
    positions, kept = frozenset(static), frozenset(baked)

    def register(function: Function) -> Function:
        for name in names:
            for version in _versions(name, domain):
                key = registry.OperationDescription(domain=undotted(domain), operation_type=name, version=version)
                if version < since or (key in registry._CONVERTER_REGISTRY and not replace):
                    continue
                registry._CONVERTER_REGISTRY[key] = _converter(function, name, version, positions, kept)
        return function

    return register


def undotted(domain: str) -> str:
    """A domain as the library can take it: it makes it a part of a module's name, which holds no dot."""
    return domain.replace(".", "_")


def _versions(name: str, domain: str) -> list[int]:
    if domain:
        return [1]  # onnxruntime's own operators have one version
    return sorted({s.since_version for s in _history() if s.name == name and s.domain == domain})


_HISTORY: list[Any] = []


def _history() -> list[Any]:
    if not _HISTORY:
        _HISTORY.extend(onnx.defs.get_all_schemas_with_history())
    return _HISTORY


def _converter(
    function: Function, name: str, version: int, static: frozenset[int], baked: frozenset[int]
) -> registry.TConverter:
    def convert(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
        attributes = {a.name: _value(a) for a in node.proto.attribute}
        wanted = tuple(bool(o) for o in node.output_values)
        described = Node(op=name, version=version, attributes=attributes, wanted=wanted)
        stored = {
            k: _stored(graph, value)
            for k, value in enumerate(node.input_values)
            if value and value in graph.initializers
        }
        fed = {k: v for k, v in enumerate(node.input_values) if v and k not in stored}
        arrays = {k: v.numpy() for k, v in stored.items() if k in static | baked}
        tensors = {k: v for k, v in stored.items() if k not in arrays}
        module = Apply(function, described, len(node.input_values), arrays, tensors, tuple(fed), static)
        mapping = OnnxMapping(inputs=tuple(fed.values()), outputs=tuple(node.output_values))
        return OperationConverterResult(torch_module=module, onnx_mapping=mapping)

    return convert


def _stored(graph: OnnxGraph, name: str) -> Tensor:
    """An initialiser as a tensor, the same one for all who read it."""
    shared: dict[str, Tensor] = graph.__dict__.setdefault("_l2caf_shared", {})
    if name not in shared:
        shared[name] = graph.initializers[name].to_torch()
    return shared[name]


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [v.decode() for v in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


class Apply(nn.Module, OnnxToTorchModule):  # type: ignore[misc]  # the latter has no annotations
    """An operator's function with its node's attributes and stored inputs."""

    def __init__(
        self,
        function: Function,
        node: Node,
        inputs: int,
        arrays: Mapping[int, NDArray[Any]],
        stored: Mapping[int, Tensor],
        fed: tuple[int, ...],
        static: frozenset[int],
    ) -> None:
        super().__init__()
        self.function, self.node, self.inputs, self.fed, self.static = function, node, inputs, fed, static
        self.arrays, self.places = arrays, tuple(stored)
        for k in self.places:
            self.register_buffer(f"input{k}", stored[k])

    def forward(self, *tensors: Tensor) -> Any:
        arguments: list[Any] = [None] * self.inputs
        for k, array in self.arrays.items():
            arguments[k] = array
        for k in self.places:
            arguments[k] = getattr(self, f"input{k}")
        for k, tensor in zip(self.fed, tensors, strict=True):
            arguments[k] = tensor.detach().cpu().numpy() if k in self.static else tensor
        result = self.function(self.node, *arguments)
        if len(self.node.wanted) == 1:
            return result[0] if isinstance(result, tuple) else result
        outputs = result if isinstance(result, tuple) else (result,)
        return (*outputs, *[None] * (len(self.node.wanted) - len(outputs)))

    def extra_repr(self) -> str:
        return f"{self.node.op}-{self.node.version}"


def ints(array: Any) -> list[int]:
    """A static input (or an attribute's list) as Python integers; [] where there is none."""
    return [] if array is None else [int(v) for v in np.asarray(array).ravel()]


def positive(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def torch_type(code: int) -> torch.dtype:
    """ONNX's element type as torch's."""
    return _TYPES[code]


_T = onnx.TensorProto
_TYPES: dict[int, torch.dtype] = {
    _T.FLOAT: torch.float32, _T.DOUBLE: torch.float64, _T.FLOAT16: torch.float16, _T.BFLOAT16: torch.bfloat16,
    _T.INT8: torch.int8, _T.INT16: torch.int16, _T.INT32: torch.int32, _T.INT64: torch.int64, _T.UINT8: torch.uint8,
    _T.UINT16: torch.uint16, _T.UINT32: torch.uint32, _T.UINT64: torch.uint64, _T.BOOL: torch.bool,
    _T.FLOAT8E4M3FN: torch.float8_e4m3fn, _T.FLOAT8E5M2: torch.float8_e5m2,
    _T.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz, _T.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}  # fmt: skip
