"""Which tails are affine in what they are fed: there the best filter is a closed form, and nothing need be iterated.

Affinity is no property of a tensor alone: a Mul is affine in either factor, and not in both. So each node is judged by
which of its inputs depend on the source; one sweep answers for many sources, bit b of a mask standing for source b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations
from string import ascii_lowercase

import onnx

from .model import Model, dtype_name
from .nodes import attribute, is_external
from .shapes import tensors

_T = onnx.TensorProto
_FLOATS = (_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE)  # rounding between them aside

# Operator -> one sign an input, in order; an operator without a row is affine in nothing.
#   +       affine in all of these together
#   a, b    factors of one product: inputs of the same letter together, but not of two letters
#   .       only its shape or type is read: what depends on the source ends here
#   -       not affine; so are inputs beyond the last sign
#   *       at the end: the sign before it is repeated
_SIGNS = {
    # arithmetic
    "Add": "++", "Sub": "++", "Sum": "+*", "Mean": "+*", "Neg": "+", "Identity": "+", "Mul": "ab",
    "Div": "+",
    "Where": "-++",
    "Cast": "+", "CastLike": "+.",
    "CumSum": "+", "ReduceSum": "+", "ReduceMean": "+",
    # products
    "MatMul": "ab", "Gemm": "ab+",
    "Einsum": ascii_lowercase,  # multilinear in its operands
    "Conv": "ab+", "ConvTranspose": "ab+",
    "DeformConv": "ab-+c",  # X, W, offset, B, mask
    "RotaryEmbedding": "abb",  # x cos + x' sin
    "Attention": "--+--+",  # the weights are held where only V (and its past) depends
    # inference alone, and in scale and shift too: a (X - mean) / sqrt(var) + B
    "BatchNormalization": "ab+a",
    # A norm is not affine in what it normalises, but in the scale and shift that a style network feeds it.
    "InstanceNormalization": "-++", "GroupNormalization": "-++", "LayerNormalization": "-++", "RMSNormalization": "-+",
    "Dropout": "+.",  # its ratio is not read at inference
    # pools and what picks places by constants
    "AveragePool": "+", "GlobalAveragePool": "+", "RoiAlign": "+",
    "MaxUnpool": "+",  # the places are an input of their own
    "Resize": "+", "Upsample": "+",  # the weights of any mode come from sizes, with exclude_outside and antialias too
    "GridSample": "+",  # in X; where the samples lie is not even piecewise affine in cubic mode
    "AffineGrid": "+",  # the grid is a matrix product with theta
    # places moved, repeated, left out
    "Reshape": "+", "Flatten": "+", "Transpose": "+", "Squeeze": "+", "Unsqueeze": "+", "Expand": "+", "Tile": "+",
    "Concat": "+*", "Split": "+", "Slice": "+", "Compress": "+", "Trilu": "+", "ReverseSequence": "+",
    "Gather": "+", "GatherElements": "+", "GatherND": "+", "DepthToSpace": "+", "SpaceToDepth": "+", "Col2Im": "+",
    "CenterCropPad": "+",
    "Pad": "+-+",  # the constant too; any mode
    "Scatter": "+-+", "ScatterElements": "+-+", "ScatterND": "+-+", "TensorScatter": "++",
    # spectra
    "DFT": "+",
    "STFT": "a-b",  # signal and window
    # sequences
    "SequenceConstruct": "+*", "SequenceInsert": "++", "SequenceErase": "+", "SequenceAt": "+", "SplitToSequence": "+",
    "ConcatFromSequence": "+", "Optional": "+", "OptionalGetElement": "+",
    # what only shapes decide
    "Shape": ".", "Size": ".", "EyeLike": ".", "SequenceLength": ".", "OptionalHasElement": ".",
    # onnxruntime's own
    "com.microsoft.FusedConv": "ab++", "com.microsoft.NhwcFusedConv": "ab++", "com.microsoft.FusedGemm": "ab+",
    "com.microsoft.FusedMatMul": "ab", "com.microsoft.TransposeMatMul": "ab", "com.microsoft.BiasAdd": "+++",
    "com.microsoft.Pad": "+-+",
}  # fmt: skip


def affine_obstacle(model: Model, source: str, outputs: Sequence[str] | None = None) -> onnx.NodeProto | None:
    """The first node (topological) on a path from `source` to `outputs` by which they are not affine in it.

    Args:
        model: Any; its other inputs and whatever does not depend on `source` are held.
        source: A tensor or graph input.
        outputs: Tensors; None: the graph's outputs.

    Returns:
        None where every operator in between is affine, by its definition: cancellations are not seen.

    Raises:
        TensorNotFoundError: there is no such tensor.
    """
    for name in (source, *(outputs or ())):
        if name not in model.stored:
            model.require(name)
    return next((node for node, _ in _obstacles(model, [source], outputs)), None)


def is_affine(model: Model, source: str, outputs: Sequence[str] | None = None) -> bool:
    """Whether `outputs` (None: all) are affine in `source`, all else being held; see `affine_obstacle`."""
    return affine_obstacle(model, source, outputs) is None


def affine_among(model: Model, sources: Sequence[str]) -> frozenset[str]:
    """Those of `sources` in which all outputs are affine."""
    refused = 0
    for _, bits in _obstacles(model, sources, None):
        refused |= bits
    return frozenset(name for b, name in enumerate(sources) if not refused >> b & 1)


def _obstacles(
    model: Model, sources: Sequence[str], outputs: Sequence[str] | None
) -> Iterator[tuple[onnx.NodeProto, int]]:
    """The nodes that lead to `outputs` and are not affine in some of the sources, and in which (as bits)."""
    nodes = model.proto.graph.node
    rules = [_rule(model, node, reads) for node, reads in zip(nodes, model.reads, strict=True)]
    live = _live(model, rules, outputs)
    depends = {name: 1 << b for b, name in enumerate(sources)}
    own = dict(depends)
    # Integers are neither scaled nor added without rounding: a quantised source is affine in nothing.
    rigid = sum(bit for name, bit in own.items() if not _may_be_float(model, name))
    for index, (node, (together, factors, no)) in enumerate(zip(nodes, rules, strict=True)):
        refused = _union(no, depends)
        parts = [_union(factor, depends) for factor in factors]
        for one, other in combinations(parts, 2):
            refused |= one & other
        mask = refused | _union(together, depends)
        for part in parts:
            mask |= part
        refused |= mask & rigid
        carrying = node.output[:1] if node.op_type == "Dropout" else node.output  # its mask is all ones
        for name in carrying:
            if name and (mask or name in own):
                depends[name] = mask | own.get(name, 0)
        if refused and index in live:
            yield node, refused


# Tensors in which a node is affine together, the factors of its product, and those in which it is not affine.
_Rule = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]


def _rule(model: Model, node: onnx.NodeProto, reads: tuple[str, ...]) -> _Rule:
    key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    signs = _SIGNS.get(key)
    if signs is None:
        return (), (), reads
    together: list[str] = []
    factors: dict[str, list[str]] = {}
    no: list[str] = []
    for name, sign in zip(node.input, _padded(signs, len(node.input)), strict=True):
        if not name or sign == ".":
            continue
        if sign == "+":
            together.append(name)
        elif sign == "-":
            no.append(name)
        else:
            factors.setdefault(sign, []).append(name)
    if key in _REFUSED and _REFUSED[key](model, node):
        return (), (), [*together, *no, *(name for factor in factors.values() for name in factor)]
    return together, tuple(factors.values()), no


@cache
def _padded(signs: str, count: int) -> str:
    if signs.endswith("*"):
        return signs[:-1].ljust(count, signs[-2])[:count]
    return signs.ljust(count, "-")[:count]


def _union(names: Iterable[str], depends: dict[str, int]) -> int:
    mask = 0
    for name in names:
        mask |= depends.get(name, 0)
    return mask


def _live(model: Model, rules: Sequence[_Rule], outputs: Sequence[str] | None) -> frozenset[int]:
    """Indices of the nodes whose values, not only whose shapes, reach `outputs`."""
    wanted = set(outputs) if outputs is not None else {o.name for o in model.outputs}
    found: set[int] = set()
    for index in range(len(rules) - 1, -1, -1):
        if any(o in wanted for o in model.proto.graph.node[index].output):
            found.add(index)
            together, factors, no = rules[index]
            wanted.update(together, no, *factors)
    return frozenset(found)


def _dtype(model: Model, name: str) -> str:
    """numpy's name of a tensor's type; "?" where the file does not tell."""
    if name in model.stored:
        return dtype_name(model.initialisers[name].data_type)
    given = next((i.dtype for i in model.inputs if i.name == name), None)
    return given if given is not None else tensors(model)[name].dtype


def _may_be_float(model: Model, name: str) -> bool:
    return _dtype(model, name) in ("?", *_float_names())


@cache
def _float_names() -> tuple[str, ...]:
    return tuple(dtype_name(kind) for kind in _FLOATS)


def _to_no_float(model: Model, node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return attribute(node, "to", 0) not in _FLOATS
    return _dtype(model, node.input[1]) not in _float_names()


def _training(model: Model, node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization or Dropout may be told to behave as in training."""
    opset = model.opset() or 0
    if opset < 7:
        return not attribute(node, "is_test", 0)
    if node.op_type == "BatchNormalization":
        if opset >= 14:
            return bool(attribute(node, "training_mode", 0))
        return sum(map(bool, node.output)) > 1  # statistics are asked for
    if len(node.input) < 3 or not node.input[2]:
        return False
    held = _held(model, node.input[2])
    return held is None or is_external(held) or bool(onnx.numpy_helper.to_array(held).any())


def _held(model: Model, name: str) -> onnx.TensorProto | None:
    """A stored tensor, or that of a Constant node."""
    if name in model.stored:
        return model.initialisers[name]
    if model.op_of(name) != "Constant":
        return None
    value: onnx.TensorProto | None = attribute(model.proto.graph.node[model.producers[name]], "value", None)
    return value


def _reduces(model: Model, node: onnx.NodeProto) -> bool:
    """Whether a scatter takes products, minima or maxima."""
    return attribute(node, "reduction", b"none") not in (b"none", b"add")


def _activated(model: Model, node: onnx.NodeProto) -> bool:
    return bool(attribute(node, "activation", b""))


# Operator -> whether this node, by its attributes or types, is affine in nothing after all.
_REFUSED: dict[str, Callable[[Model, onnx.NodeProto], bool]] = {
    "Cast": _to_no_float,
    "CastLike": _to_no_float,
    "BatchNormalization": _training,
    "Dropout": _training,
    "ScatterElements": _reduces,
    "ScatterND": _reduces,
    "RoiAlign": lambda model, node: attribute(node, "mode", b"avg") != b"avg",
    **dict.fromkeys(["com.microsoft.FusedConv", "com.microsoft.NhwcFusedConv", "com.microsoft.FusedGemm"], _activated),
}
