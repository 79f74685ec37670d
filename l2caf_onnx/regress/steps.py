"""What a quantised candidate rounds between the tensors that it is fed and one that it makes of them.

A twin that rounded more than the candidate does would hide a fault: a convolution whose inputs are fed as they are has
the rounding of its weights and no other, and a softmax in floats has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.quantised import scale_of
from l2caf_onnx.graph.segments import reads_of
from l2caf_onnx.graph.shapes import tensors
from l2caf_onnx.records import Aligned

from .probe import Probe

_BITS = ("int8", "uint8")
_STORED = tuple(getattr(onnx.TensorProto, n) for n in ("INT8", "UINT8", "INT4", "UINT4"))
_SEVEN_BITS, _MAJORITY = 64, 0.5
_ROUND = ("QuantizeLinear", "DynamicQuantizeLinear")
_CARRY = ("DequantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


@dataclass(frozen=True, slots=True)
class Steps:
    """What is rounded on the way to a tensor.

    Attributes:
        weights: The weights of a layer.
        inputs: What the layer reads.
        output: The tensor itself.
    """

    weights: bool = False
    inputs: bool = False
    output: bool = False

    @property
    def alone(self) -> bool:
        """Whether nothing but the weights is rounded, which is known to the last bit."""
        return self.weights and not (self.inputs or self.output)

    @property
    def none(self) -> bool:
        """Whether all is computed in floats."""
        return not (self.weights or self.inputs or self.output)


@dataclass(frozen=True, slots=True)
class Grain:
    """How fine most layers of a candidate hold their weights.

    Attributes:
        most: The largest integer: 127, or 64 where a bit was left free for processors that overflow.
        each: Whether each channel has a scale of its own.
    """

    most: int = 127
    each: bool = True


EIGHT_BITS = Grain()


def grain_of(model: Model) -> Grain:
    """That of the layers' majority: what a single layer has otherwise is no choice, but a fault."""
    return model.cache.get("grain", lambda: _grain(model))


def _grain(model: Model) -> Grain:
    most: list[float] = []
    each: list[bool] = []
    for name, tensor in model.initialisers.items():
        if len(tensor.dims) < 2 or tensor.data_type not in _STORED:
            continue
        scale = scale_of(model, name)
        if scale is None or scale.scale not in model.initialisers:
            continue
        stored = [tensor, *(model.initialisers[n] for n in (scale.zero_point,) if n in model.initialisers)]
        folder = str(model.base_dir) if model.base_dir is not None else ""
        values, *zero = (onnx.numpy_helper.to_array(t, folder).astype(np.int16) for t in stored)
        middle = int(zero[0].flat[0]) if zero and zero[0].size else 0
        most.append(float(np.abs(values - middle).max(initial=0)))
        each.append(int(np.prod(model.initialisers[scale.scale].dims, initial=1)) > 1)
    if not most:
        return EIGHT_BITS
    return Grain(_SEVEN_BITS if np.median(most) <= _SEVEN_BITS else 127, bool(np.mean(each) >= _MAJORITY))


def steps_of(candidate: Probe, pairs: Sequence[Aligned], beside: Iterable[str] = ()) -> dict[str, Steps]:
    """For the reference's tensor of each pair what is rounded where the candidate makes it of all the others, and of
    the tensors `beside`.
    """
    fed = frozenset(p.candidate for p in pairs) | frozenset(beside)
    return {p.reference: _steps(candidate.model, p.candidate, fed) for p in pairs}


def _steps(model: Model, end: str, fed: frozenset[str]) -> Steps:
    read, nodes = reads_of(model, [end], fed)
    last = _last(model, end, fed)
    rounding = {i for i in nodes if _rounds(model, i)}
    narrow = _narrow(model, read)
    return Steps(
        weights=any(_stored_in_bits(model, i) for i in nodes),
        inputs=bool(rounding - {last}) or any(n != last for n in narrow),
        output=last in rounding or last in narrow,
    )


def _last(model: Model, end: str, fed: frozenset[str]) -> int | str:
    """The node that rounds `end`, or the fed tensor that it merely carries; the node that makes it, if neither."""
    index: int = model.producers[end]
    while model.proto.graph.node[index].op_type in _CARRY:
        source: str = model.proto.graph.node[index].input[0]
        if source in fed:
            return source
        if source not in model.producers:
            break
        index = model.producers[source]
    return index


def _rounds(model: Model, index: int) -> bool:
    """Whether a node gives eight bits of what had more, or was a sum of such."""
    node = model.proto.graph.node[index]
    if all(r in model.initialisers for r in model.reads[index]):
        return False  # a weight, which is rounded once for all
    return node.op_type in _ROUND or (node.op_type not in _CARRY and bool(_narrow(model, node.output)))


def _narrow(model: Model, names: Iterable[str]) -> set[str]:
    infos = tensors(model)
    return {n for n in names if n in infos and infos[n].dtype in _BITS}


def _stored_in_bits(model: Model, index: int) -> bool:
    """Whether a node reads a stored matrix, or kernel, of eight bits or fewer."""
    stored = (model.initialisers[r] for r in model.reads[index] if r in model.initialisers)
    return any(len(t.dims) > 1 and t.data_type in _STORED for t in stored)
