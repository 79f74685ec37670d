"""Sound int8 models by onnxruntime's quantiser, and faults in one layer of them: clipping, per-tensor, four bits.

Activations are uint8, weights int8 with a scale for each channel, written as QuantizeLinear and DequantizeLinear. Batch
norms are folded first, as onnxruntime asks for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

from .fault import Arrays, Fault
from .graphs import LAYERS, array, consumers, copied, near, producer, put, settled, spread
from .rewrites import by_onnxruntime
from .subjects import Subject, rows

DIVISORS = (2, 4)  # of a scale: what of the range is left
PORTION = 5  # inputs that the calibration runs at once
BITS, FOUR_BITS = 127, 7


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
    """Inputs as the quantiser asks for them."""

    def __init__(self, feeds: Arrays) -> None:
        self.portions = rows(feeds, PORTION)

    def get_next(self) -> Any:
        return next(self.portions, None)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A layer with quantised weights: the index of its node, of the node that widens its weights, and their name."""

    index: int
    widening: int
    weight: str


def folded(subject: Subject) -> onnx.ModelProto:
    """What is quantised: the reference without batch norms."""
    return by_onnxruntime(subject.proto, "basic")


def quantised(
    subject: Subject,
    method: CalibrationMethod = CalibrationMethod.MinMax,
    form: QuantFormat = QuantFormat.QDQ,
) -> onnx.ModelProto:
    """The sound int8 model.

    Integer operators get weights of seven bits: with eight, onnxruntime's kernels saturate on processors without VNNI,
    and the model is not sound there.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(folded(subject), source)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
                quantization.quantize_static(
                    source, target, Reader(subject.calibrating), quant_format=form, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, per_channel=True, calibrate_method=method,
                    reduce_range=form == QuantFormat.QOperator,
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(target)


def clipped(sound: onnx.ModelProto) -> Iterator[Fault]:
    """The scale of what a layer gives is too small: the largest values are cut off."""
    for place, layer in _spread(sound):
        for divisor in DIVISORS:
            made = copied(sound)
            node = made.graph.node[layer.index]
            index = _quantiser_behind(made, layer.index)
            if index is None:
                continue
            narrowing = made.graph.node[index]
            ends = [index, *consumers(made, narrowing.output[0])]
            name = f"{narrowing.input[1]}_clipped"
            put(made, name, (array(made, narrowing.input[1]) / divisor).astype(np.float32))
            for end in ends:
                made.graph.node[end].input[1] = name
            seen = [node.output[0], narrowing.input[0], narrowing.output[0]]
            yield _done(made, "int8 scale too small", f"/{divisor}", place, node.name, seen)


def per_tensor(sound: onnx.ModelProto, floats: onnx.ModelProto) -> Iterator[Fault]:
    """One scale for all channels of a layer's weights."""
    yield from _requantised(sound, floats, "int8 per tensor for per channel", "", BITS, each=False)


def four_bits(sound: onnx.ModelProto, floats: onnx.ModelProto) -> Iterator[Fault]:
    """A layer's weights have four bits, a scale for each channel all the same."""
    yield from _requantised(sound, floats, "4-bit weights", "", FOUR_BITS, each=True)


def _requantised(
    sound: onnx.ModelProto, floats: onnx.ModelProto, family: str, strength: str, most: int, *, each: bool
) -> Iterator[Fault]:
    for place, layer in _spread(sound):
        made = copied(sound)
        node, widening = made.graph.node[layer.index], made.graph.node[layer.widening]
        weight = array(floats, layer.weight.removesuffix("_quantized"))
        axis = next((a.i for a in widening.attribute if a.name == "axis"), 1) % weight.ndim
        scale, values = _rounded(weight, axis, most, each=each)
        put(made, widening.input[0], values)
        put(made, widening.input[1], scale)
        if len(widening.input) > 2:
            put(made, widening.input[2], np.zeros(scale.shape, np.int8))
        yield _done(made, family, strength, place, node.name, [node.output[0]])


def _rounded(weight: NDArray[Any], axis: int, most: int, *, each: bool) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scale () or (channels,), and the weights in its steps."""
    others = tuple(a for a in range(weight.ndim) if a != axis or not each)
    scale = np.maximum(np.abs(weight).max(others, keepdims=True), 1e-12) / most
    values = np.clip(np.round(weight / scale), -most, most).astype(np.int8)
    return scale.reshape(-1 if each else ()).astype(np.float32), values


def quantised_layers(proto: onnx.ModelProto) -> list[Quantised]:
    """Layers whose weights are stored as int8 and widened by a DequantizeLinear."""
    known = {t.name for t in proto.graph.initializer}
    found = []
    for index, node in enumerate(proto.graph.node):
        widening = producer(proto, node.input[1]) if node.op_type in LAYERS else None
        if widening is not None and proto.graph.node[widening].input[0] in known:
            found.append(Quantised(index, widening, proto.graph.node[widening].input[0]))
    return found


def _quantiser_behind(proto: onnx.ModelProto, index: int) -> int | None:
    """The next QuantizeLinear on the only way from a node."""
    while True:
        after = consumers(proto, proto.graph.node[index].output[0])
        narrowing = [i for i in after if proto.graph.node[i].op_type == "QuantizeLinear"]
        if narrowing:
            return narrowing[0]
        if len(after) != 1:
            return None
        (index,) = after


def _spread(proto: onnx.ModelProto) -> Iterator[tuple[str, Quantised]]:
    suited = [q for q in quantised_layers(proto) if _quantiser_behind(proto, q.index) is not None]
    return spread(proto, suited, lambda layer: layer.index)


def _done(made: onnx.ModelProto, family: str, strength: str, place: str, where: str, tensors: list[str]) -> Fault:
    """What runs as one node (dequantise, compute, quantise) is one node here too."""
    seen = _with_quantisers(made, near(made, _with_quantisers(made, tensors)))
    return Fault(
        family=family, strength=strength, place=place, where=where, proto=settled(made), tensors=seen, base="int8"
    )


def _with_quantisers(proto: onnx.ModelProto, tensors: Sequence[str]) -> tuple[str, ...]:
    """The tensors, and their narrowed and widened forms."""
    seen = list(tensors)
    for tensor in seen:  # grows on the way
        for index in consumers(proto, tensor):
            node = proto.graph.node[index]
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in seen:
                seen.append(node.output[0])
    return tuple(seen)
