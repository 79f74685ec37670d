"""What every axis of every tensor is made of, followed through the graph from the inputs on.

Open sizes get numbers of their own, large primes, so that the sums by which exporters compute shapes can be done, and a
Reshape taken apart. An operator that is not understood starts afresh, from the letters that `layout` found around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .arithmetic import computed, indices, small
from .atoms import (
    CONSTANT,
    Atom,
    Axis,
    Shaped,
    adapted,
    broadcast,
    concatenated,
    fresh,
    kind,
    letters_of,
    reshaped,
    resized,
    size_of,
    sizes_of,
    sliced,
    summed,
)
from .infer import inferred
from .model import Model
from .nodes import attribute
from .shapes import tensors
from .static import static_at_given_sizes

# Not so large that products of some overflow the 32 bits in which Paddle counts, far larger than a grid of tokens.
_PRIMES = (40009, 40013, 40031, 40037, 40039, 40063, 40087, 40093, 40099, 40111, 40123, 40127)
_RECURRENT = {"LSTM", "GRU", "RNN"}
# The result has the axes of the first input, whatever else is read.
_LIKE_FIRST = {
    "Attention", "BatchNormalization", "CumSum", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear",
    "GroupNormalization",
    "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "MultiHeadAttention",
    "QuantizeLinear", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Softmax", "RotaryEmbedding",
}  # fmt: skip
_BROADCAST = {
    "Abs", "Add", "And", "BiasGelu", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Expand", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul",
    "Neg", "Not", "Or", "PRelu", "Pow", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Trilu", "Where",
}  # fmt: skip
_RESIZES = {
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "FusedConv", "GlobalAveragePool",
    "GlobalMaxPool", "LpPool", "MaxPool", "Pad", "QLinearConv", "Resize", "Upsample", "Tile", "TopK",
}  # fmt: skip
_NEW_CHANNELS = {"Conv", "ConvInteger", "ConvTranspose", "DeformConv", "FusedConv", "QLinearConv"}

Array = NDArray[Any]


class Trace:
    """The axes of every tensor, and its layout.

    Attributes:
        axes: By name, where the sizes are known.
        letters: By name; none where an axis mixes the batch with places, or nothing says what it is.
    """

    def __init__(
        self,
        model: Model,
        base: Mapping[str, str],
        firm: Mapping[str, int],
        given: Mapping[str, str],
        fed: Mapping[str, tuple[int, ...]],
    ) -> None:
        """`base` are the letters found around each tensor, `firm` how sure (0 a guess, 2 what an operator demands).

        `given` are the user's letters, `fed` the shapes of inputs where the model leaves them open.
        """
        self.axes: dict[str, Shaped] = {}
        self.letters: dict[str, str] = {}
        self._model, self._base, self._firm, self._given = model, base, firm, given
        self._infos = tensors(model)
        self._constant = static_at_given_sizes(model)
        self._values: dict[str, Array] = {}
        self._numbers: dict[str, int] = {}
        for tensor in model.proto.graph.initializer:
            self.axes[tensor.name] = fresh(None, tuple(tensor.dims))
            value = small(tensor)
            if value is not None:
                self._values[tensor.name] = value
        for info in model.inputs:
            if info.shape is not None:
                letters, shape = base.get(info.name, ""), fed.get(info.name, ())
                sizes = tuple(
                    shape[k]
                    if isinstance(d, str) and len(shape) == len(info.shape) and letters[k : k + 1] != "N"
                    else self._number(d, f"{info.name}/{k}" if k else "batch")
                    for k, d in enumerate(info.shape)
                )
                self._settle(info.name, fresh(letters, sizes))
        for node in model.proto.graph.node:
            self._follow(node)
        for name, info in self._infos.items():
            if name not in self.axes and name in base:
                self.letters[name] = base[name]
            if info.shape is None or len(info.shape) != len(self.letters.get(name, "")):  # a file that lies
                self.letters.pop(name, None)

    def _number(self, size: int | str, otherwise: str) -> int:
        """A size; one of its own for each that is open."""
        if isinstance(size, int):
            return size
        name = otherwise if size == "?" else size
        return self._numbers.setdefault(name, _PRIMES[len(self._numbers) % len(_PRIMES)])

    def _settle(self, name: str, shaped: Shaped) -> None:
        base, firm = self._base.get(name), self._firm.get(name, 0)
        found = letters_of(shaped, base)
        ruled = self._given.get(name)
        if ruled is None and base is not None:
            vague = found is None or not set(found) - set("NCGK")
            mixed = any(_mixes(axis, letter) for axis, letter in zip(shaped, base, strict=len(base) == len(shaped)))
            ruled = base if not mixed and (firm == 2 or (firm == 1 and vague)) else None
        if ruled is not None and len(ruled) == len(shaped):
            shaped, found = adapted(shaped, ruled), ruled
        self.axes[name] = shaped
        if found is not None and len(shaped) <= (len(found) if name in self._given else 5):
            self.letters[name] = found

    def _follow(self, node: onnx.NodeProto) -> None:
        outputs = [o for o in node.output if o]
        value = self._value(node)
        if value is not None:
            self._values[outputs[0]] = value
            self._keep(outputs[0], value.shape)
            return
        try:
            made = self._made(node) if node.input and node.input[0] in self.axes else {}
        except (ArithmeticError, LookupError, StopIteration, TypeError, ValueError):  # axes that are not there
            made = {}
        rest = [o for o in outputs if o not in made]
        sizes = self._inferred(node) if rest else {}
        for name in outputs:
            if name in made:
                shaped = made[name]
            elif name in sizes:
                shaped = fresh(None if name in self._constant else self._base.get(name), sizes[name])
            else:
                continue
            if name in self._constant:
                self._keep(name, sizes_of(shaped))
            else:
                self._settle(name, shaped)

    def _keep(self, name: str, sizes: tuple[int, ...]) -> None:
        """A tensor that does not depend on what is fed, but for its sizes."""
        self.axes[name] = fresh(None, sizes)
        if name in self._base:
            self.letters[name] = self._base[name]

    def _value(self, node: onnx.NodeProto) -> Array | None:
        """What the node makes, where small constants and sizes decide it."""
        if node.op_type == "Constant":
            held = next((onnx.helper.get_attribute_value(a) for a in node.attribute), None)
            if isinstance(held, onnx.TensorProto):
                return small(held)
            return np.asarray(held) if isinstance(held, (int, float, list)) else None
        if node.op_type == "Shape":
            shaped = self.axes.get(node.input[0])
            if shaped is None:
                return None
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            return np.array(sizes_of(shaped)[start:end], np.int64)
        if not any(node.input):
            return None
        return computed(node, [self._values.get(i) for i in node.input if i])

    def _made(self, node: onnx.NodeProto) -> dict[str, Shaped]:
        """The axes of the outputs that can be told from those of the inputs."""
        op, first, out = node.op_type, self.axes[node.input[0]], node.output[0]
        found: Shaped | None = None
        if op in _BROADCAST:
            parts = [self.axes[i] for i in node.input if i in self.axes]
            if op == "Expand":
                wanted = self._values.get(node.input[1])
                parts = [first, fresh(None, [int(s) for s in wanted])] if wanted is not None else []
            if op == "Clip" or (parts and len(parts) == sum(bool(i) for i in node.input)):
                found = first if op == "Clip" else broadcast(parts)
        elif op in _LIKE_FIRST:
            found = first
        elif op == "Transpose":
            perm = attribute(node, "perm", list(range(len(first)))[::-1])
            found = tuple(first[p] for p in perm) if sorted(perm) == list(range(len(first))) else None
        elif op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            found = self._regrouped(node, first)
        elif op in ("MatMul", "MatMulInteger", "FusedMatMul", "Gemm", "FusedGemm"):
            found = self._product(node, first)
        elif op == "Einsum":
            parts = [self.axes[i] for i in node.input if i in self.axes]
            equation = attribute(node, "equation", b"").decode().replace(" ", "")
            found = summed(equation, parts, [i in self._constant for i in node.input])
        elif op in _RECURRENT:
            return self._recurrent(node, first)
        elif op == "Gather":
            found = self._gathered(node, first)
        elif op == "Slice":
            found = self._slice(node, first)
        elif op == "Concat":
            found = self._concat(node, first)
        elif op == "Split":
            sizes = self._inferred(node)
            return {o: resized(first, s) for o, s in sizes.items() if len(s) == len(first)}
        elif op in _RESIZES or op.startswith("Reduce"):
            sizes = self._inferred(node)
            found = resized(first, sizes[out]) if len(sizes.get(out, ())) == len(first) else self._reduced(node, first)
            if found is not None and op in _NEW_CHANNELS:
                found = (found[0], (Atom("C", size_of(found[1])),), *found[2:])
        return {out: found} if found is not None else {}

    def _regrouped(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        sizes = sizes_of(first)
        if node.op_type == "Reshape":
            asked = self._values.get(node.input[1])
            if asked is None:
                return None
            keep = not attribute(node, "allowzero", 0)
            wanted = [sizes[k] if s == 0 and keep and k < len(sizes) else int(s) for k, s in enumerate(asked.ravel())]
            if -1 in wanted:
                others = int(np.prod([s for s in wanted if s != -1], dtype=object))
                wanted[wanted.index(-1)] = int(np.prod(sizes, dtype=object)) // others if others else 0
            if min(wanted, default=1) < 1:
                return None
            return reshaped(first, wanted)
        if node.op_type == "Flatten":
            axis = attribute(node, "axis", 1) % (len(sizes) + 1)
            halves = [int(np.prod(part, dtype=object)) for part in (sizes[:axis], sizes[axis:])]
            return reshaped(first, halves)
        axes = self._values.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes", None)
        if node.op_type == "Squeeze":
            gone = {int(a) % len(first) for a in np.ravel(axes)} if axes is not None else None
            return tuple(axis for k, axis in enumerate(first) if (size_of(axis) > 1 if gone is None else k not in gone))
        if axes is None:
            return None
        rank = len(first) + np.size(axes)
        new, rest = {int(a) % rank for a in np.ravel(axes)}, iter(first)
        return tuple(() if k in new else next(rest) for k in range(rank))

    def _product(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        other = self.axes.get(node.input[1])
        if other is None or len(first) < 2 or len(other) < 2 or attribute(node, "transA", 0):
            return None
        if attribute(node, "transB", 0):
            other = (*other[:-2], other[-1], other[-2])
        stacked = broadcast([first[:-2], other[:-2]]) if len(first) > 2 or len(other) > 2 else ()
        if stacked is None:
            return None
        rows, columns = first[-2], other[-1]
        if node.input[1] in self._constant:  # a dense layer along the last axis, that mixes what lies there
            columns = (Atom(kind(first[-1]) or "C", size_of(columns)),)
        if node.input[0] in self._constant:
            rows = (Atom(kind(other[-2]) or CONSTANT, size_of(rows)),)
        return (*stacked, rows, columns)

    def _recurrent(self, node: onnx.NodeProto, first: Shaped) -> dict[str, Shaped]:
        if len(first) != 3 or attribute(node, "hidden_size", None) is None:
            return {}
        first = adapted(first, "NTC" if attribute(node, "layout", 0) else "TNC")
        ways: Axis = (Atom("C", 2 if attribute(node, "direction", b"") == b"bidirectional" else 1),)
        width: Axis = (Atom("C", attribute(node, "hidden_size", 1)),)
        if attribute(node, "layout", 0):
            shapes: list[Shaped] = [(first[0], first[1], ways, width), (first[0], ways, width)]
        else:
            shapes = [(first[0], ways, first[1], width), (ways, first[1], width)]
        return {o: shapes[min(k, 1)] for k, o in enumerate(node.output) if o}

    def _gathered(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        wanted, axis = self.axes.get(node.input[1]), attribute(node, "axis", 0) % max(1, len(first))
        if wanted is None or not first or node.input[0] in self._constant:  # a lookup by value: an embedding
            return None
        if not wanted:
            return (*first[:axis], *first[axis + 1 :])
        if len(wanted) > 1:
            return None
        some: Axis = (Atom(kind(first[axis]) or CONSTANT, size_of(wanted[0])),)
        return (*first[:axis], some, *first[axis + 1 :])

    def _slice(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        parts = [self._values.get(i) for i in node.input[1:]]
        if not parts:  # opset 9 and before
            parts = [np.array(attribute(node, n, [])) for n in ("starts", "ends", "axes") if attribute(node, n, [])]
        if any(p is None for p in parts):
            return None
        made: list[Axis] = []
        for axis, part in zip(first, indices(len(first), [p for p in parts if p is not None]), strict=True):
            taken = range(*part.indices(size_of(axis)))
            straight = taken.step == 1 and len(taken)
            made.append(
                sliced(axis, taken.start, taken.stop) if straight else (Atom(kind(axis) or CONSTANT, len(taken)),)
            )
        return tuple(made)

    def _concat(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        names = list(node.input)
        parts = [self.axes[i] for i in names if i in self.axes]
        if len(parts) < len(names) or any(len(p) != len(first) for p in parts):
            return None
        at = attribute(node, "axis", 1) % len(first)
        joined = concatenated([p[at] for p in parts], [n in self._constant for n in names])
        beside = broadcast([(*p[:at], (), *p[at + 1 :]) for p in parts])
        return (*beside[:at], joined, *beside[at + 1 :]) if beside is not None else None

    def _reduced(self, node: onnx.NodeProto, first: Shaped) -> Shaped | None:
        """Without the axes that are reduced away."""
        if not node.op_type.startswith("Reduce") or attribute(node, "keepdims", 1):
            return None
        axes = self._values.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes", None)
        if axes is None:
            return None
        gone = {int(a) % len(first) for a in np.ravel(axes)}
        return tuple(axis for k, axis in enumerate(first) if k not in gone)

    def _inferred(self, node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
        """Sizes of the outputs by ONNX's inference for this node alone; else as the file tells them."""
        sizes = {i: sizes_of(self.axes[i]) for i in node.input if i in self.axes}
        found = inferred(node, self._model, sizes, self._values)
        for name in node.output:
            shape = self._infos[name].shape if name in self._infos else None
            if name not in found and shape is not None and "?" not in shape:
                found[name] = tuple(self._number(d, "") for d in shape)
        return {n: s for n, s in found.items() if all(s)}


def _mixes(axis: Axis, demanded: str) -> bool:
    """Whether heads, frames or windows lie among the samples: so that a convolution takes them for samples, too."""
    k = kind(axis)
    return k is None or (demanded == "N" and k not in ("N", "") and any(a.letter == "N" for a in axis))
