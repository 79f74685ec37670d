"""The float16 form of a model, and an overflow in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

import l2caf_onnx as caf

from .fault import Fault
from .graphs import consumers, copied, layers, near, put, reconnect, settled, spread
from .subjects import rows

LARGEST = float(np.finfo(np.float16).max)
SHARE = 0.05  # of the inputs in which something overflows
PORTION = 25  # inputs at once


def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, with float32 at both ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of weights that are rounded to 0
            made: onnx.ModelProto = convert_float_to_float16(copied(proto), keep_io_types=True)
    finally:
        logging.disable(logging.NOTSET)
    return settled(made)


def overflowing(
    sound: onnx.ModelProto, reference: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]
) -> Iterator[Fault]:
    """A layer's result passes through a number too large for float16 in some inputs, as sums of squares and unscaled
    scores do.

    The large number passes an operator that computes nothing: onnxruntime's CPU kernels compute in float32, and it
    keeps what two of them hand over. Not before a Clip, which makes of infinity what it makes of the number.
    """
    nodes = sound.graph.node
    suited = [
        layer
        for layer in layers(sound)
        if layer.index < len(nodes) - 2
        and all(nodes[i].op_type != "Clip" for i in consumers(sound, nodes[layer.index].output[0]))
    ]
    places = list(spread(sound, suited, lambda layer: layer.index))
    tensors = [sound.graph.node[layer.index].output[0] for _, layer in places]
    for (place, layer), tensor, largest in zip(places, tensors, _maxima(reference, tensors, feeds), strict=True):
        made = copied(sound)
        where = made.graph.node[layer.index].name
        factor, axis = f"{tensor}_factor", f"{tensor}_axis"
        parts = [f"{tensor}_{part}" for part in ("large", "wide", "narrow", "back")]
        put(made, factor, np.array(LARGEST / np.quantile(largest, 1 - SHARE), np.float16))
        put(made, axis, np.array([0], np.int64))
        reconnect(made, tensor, parts[-1])
        added = [
            helper.make_node("Mul", [tensor, factor], [parts[0]], f"{where}_grown"),
            helper.make_node("Unsqueeze", [parts[0], axis], [parts[1]], f"{where}_wide"),
            helper.make_node("Squeeze", [parts[1], axis], [parts[2]], f"{where}_narrow"),
            helper.make_node("Div", [parts[2], factor], [parts[3]], f"{where}_shrunk"),
        ]
        for offset, node in enumerate(added, 1):
            made.graph.node.insert(layer.index + offset, node)
        yield Fault(
            family="fp16 overflow", strength="", place=place, where=where, proto=settled(made),
            tensors=near(made, parts), base="float16",
        )  # fmt: skip


def _maxima(
    proto: onnx.ModelProto, tensors: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.float64]]:
    """For each tensor (N,): the largest absolute value in each input."""
    probed = copied(proto)
    probed.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in tensors)
    model = caf.load(probed)
    found: list[list[float]] = [[] for _ in tensors]
    for portion in rows(feeds, PORTION):
        values = caf.run(model, portion)
        for maxima, tensor in zip(found, tensors, strict=True):
            maxima.extend(np.abs(values[tensor]).reshape(len(values[tensor]), -1).max(1).tolist())
    return [np.array(maxima) for maxima in found]
