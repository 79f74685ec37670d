"""Faults in the weights of one layer: noised, from another checkpoint, permuted, flipped, transposed, a bias dropped.

Another checkpoint is another toy of the same trunk where there is one; else the next layer of the same shape serves,
as if the loader had counted wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .fault import Fault
from .graphs import Layer, array, copied, layers, near, own, put, reconnect, settled, spread

NOISES = (0.01, 0.03, 0.1, 0.3)  # of the layer's standard deviation
SHARES = (0.02, 0.1, 1.0)  # of the layer's channels
Weights = NDArray[Any]


def noised(proto: onnx.ModelProto, seed: int = 0) -> Iterator[Fault]:
    """Gaussian noise on the weights of one layer."""
    for place, layer in _spread(proto):
        for share in NOISES:
            rng = np.random.default_rng([seed, layer.index])
            weight = array(proto, layer.weight)
            change = partial(np.add, rng.standard_normal(weight.shape) * weight.std() * share)
            yield _planted(proto, layer, "weights noised", f"{share:.0%}", place, change)


def permuted(proto: onnx.ModelProto, seed: int = 0) -> Iterator[Fault]:
    """Some of a layer's output channels change places; at least two, and each of them moves."""
    for place, layer in _spread(proto):
        count = array(proto, layer.weight).shape[layer.channels]
        for share in SHARES:
            rng = np.random.default_rng([seed, layer.index, count])
            moving = rng.permutation(count)[: max(2, round(share * count))]
            order = np.arange(count)
            order[moving] = np.roll(moving, 1)
            strength = "all" if share == 1 else f"{share:.0%}"
            change = partial(np.take, indices=order, axis=layer.channels)
            fault = _planted(proto, layer, "channels permuted", strength, place, change)
            if layer.bias is not None and layer.added is None:  # what is the node's own moves with it
                name = own(fault.proto, layer.index, 2)
                put(fault.proto, name, array(fault.proto, name)[order])
            yield fault


def flipped(proto: onnx.ModelProto) -> Iterator[Fault]:
    """A kernel turned by 180 degrees: a convolution where a correlation was meant."""
    for place, layer in _spread(proto, lambda layer, w: w.ndim == 4 and min(w.shape[2:]) > 1):
        yield _planted(proto, layer, "kernel flipped", "", place, _flip)


def transposed(proto: onnx.ModelProto) -> Iterator[Fault]:
    """Height and width of a kernel exchanged; of a matrix (or a kernel of one pixel) inputs and outputs."""

    def fits(layer: Layer, weight: Weights) -> bool:
        sides = weight.shape[:2] if weight.ndim == 2 or min(weight.shape[2:]) == 1 else weight.shape[2:]
        return len(set(sides)) == 1

    for place, layer in _spread(proto, fits):
        yield _planted(proto, layer, "kernel transposed", "", place, _transpose)


def another(proto: onnx.ModelProto, donor: onnx.ModelProto | None = None) -> Iterator[Fault]:
    """One layer's weights are those of another checkpoint."""
    taken: dict[int, tuple[str, Weights]] = {}
    for layer in layers(proto):
        found = _of_donor(proto, layer, donor) if donor is not None else _of_sibling(proto, layer)
        if found is not None:
            taken[layer.index] = found
    for place, layer in _spread(proto, lambda layer, w: layer.index in taken):
        source, weight = taken[layer.index]
        fault = _planted(proto, layer, "weights of another checkpoint", "", place, partial(_replaced, by=weight))
        fault.proto.graph.doc_string = f"weights of {source}"
        yield fault


def biasless(proto: onnx.ModelProto) -> Iterator[Fault]:
    """A bias left out: the node's own, the Add behind a MatMul, or the shift of the batch norm behind."""
    graph = proto.graph
    norms = [i for i, n in enumerate(graph.node) if n.op_type == "BatchNormalization"]
    for place, index in spread(proto, norms, lambda i: i):
        made = copied(proto)
        name = own(made, index, 2)
        put(made, name, np.zeros_like(array(made, name)))
        node = made.graph.node[index]
        yield _done(made, "bias dropped", "", place, node.name, [node.output[0]])
    with_bias = [] if norms else [layer for layer in layers(proto) if layer.bias is not None]
    for place, layer in spread(proto, with_bias, lambda layer: layer.index):
        made = copied(proto)
        node = made.graph.node[layer.index]
        where, tensor = node.name, node.output[0]
        if layer.added is None:
            del node.input[2:]
        else:
            reconnect(made, made.graph.node[layer.added].output[0], tensor)
            del made.graph.node[layer.added]
        yield _done(made, "bias dropped", "", place, where, [tensor])


def _spread(
    proto: onnx.ModelProto, fits: Callable[[Layer, Weights], bool] = lambda layer, w: True
) -> Iterator[tuple[str, Layer]]:
    suited = [layer for layer in layers(proto) if fits(layer, array(proto, layer.weight))]
    return spread(proto, suited, lambda layer: layer.index)


def _planted(
    proto: onnx.ModelProto, layer: Layer, family: str, strength: str, place: str, change: Callable[[Weights], Weights]
) -> Fault:
    made = copied(proto)
    name = own(made, layer.index, 1)
    weight = array(made, name)
    put(made, name, np.asarray(change(weight), weight.dtype))
    node = made.graph.node[layer.index]
    return _done(made, family, strength, place, node.name, [node.output[0]])


def _done(made: onnx.ModelProto, family: str, strength: str, place: str, where: str, tensors: list[str]) -> Fault:
    seen = near(made, tensors)
    return Fault(family=family, strength=strength, place=place, where=where, proto=settled(made), tensors=seen)


def _replaced(weight: Weights, by: Weights) -> Weights:
    return by


def _flip(weight: Weights) -> Weights:
    return weight[:, :, ::-1, ::-1]


def _transpose(weight: Weights) -> Weights:
    return weight.swapaxes(0, 1) if weight.ndim == 2 or min(weight.shape[2:]) == 1 else weight.swapaxes(2, 3)


def _of_donor(proto: onnx.ModelProto, layer: Layer, donor: onnx.ModelProto) -> tuple[str, Weights] | None:
    """The weights of the node of that name, each channel as large as ours: the donor's may have swallowed a norm."""
    name, weight = proto.graph.node[layer.index].name, array(proto, layer.weight)
    for other in layers(donor):
        found = array(donor, other.weight)
        if donor.graph.node[other.index].name == name and found.shape == weight.shape:
            axes = tuple(a for a in range(weight.ndim) if a != layer.channels)
            sizes = [np.sqrt((w.astype(np.float64) ** 2).sum(axes, keepdims=True)) for w in (weight, found)]
            return f"{donor.graph.name}: {name}", (found * sizes[0] / np.maximum(sizes[1], 1e-12)).astype(np.float32)
    return None


def _of_sibling(proto: onnx.ModelProto, layer: Layer) -> tuple[str, Weights] | None:
    shape = array(proto, layer.weight).shape
    same = [o for o in layers(proto) if o.index != layer.index and array(proto, o.weight).shape == shape]
    same.sort(key=lambda o: (o.index < layer.index, abs(o.index - layer.index)))
    return (proto.graph.node[same[0].index].name, array(proto, same[0].weight)) if same else None
