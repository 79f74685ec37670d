"""One element in, one element out: arithmetic, activations, comparisons, logic, types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .registry import Node, Outputs, op, positive, torch_type

_UNARY: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "Relu": torch.relu, "Softsign": functional.softsign, "Mish": functional.mish, "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not, "IsNaN": torch.isnan,
}  # fmt: skip

_BINARY: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


@op(*_UNARY)
def unary(node: Node, x: Tensor) -> Outputs:
    return _UNARY[node.op](x)


@op(*_BINARY)
def binary(node: Node, a: Tensor, b: Tensor) -> Outputs:
    return _BINARY[node.op](a, _aligned(node, a, b))


@op("Div", replace=True)  # the library's rounds towards minus infinity where integers are divided
def div(node: Node, a: Tensor, b: Tensor) -> Outputs:
    b = _aligned(node, a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@op("Pow", replace=True)  # the library's lacks the rule for types: the result has the base's
def pow_(node: Node, a: Tensor, b: Tensor) -> Outputs:
    b = _aligned(node, a, b)
    if not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.double(), b.double()).to(a.dtype)
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b).to(a.dtype)


@op("Mod", replace=True)  # the library's lacks opset 28
def mod(node: Node, a: Tensor, b: Tensor) -> Outputs:
    if not node.get("fmod", 0):
        return torch.remainder(a, b)
    return torch.fmod(a, b)


def _aligned(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Before opset 7 the second operand was broadcast from a given axis."""
    if node.version >= 7 or not node.get("broadcast", 0) or "axis" not in node.attributes:
        return b
    axis = positive(node.get("axis"), a.ndim)
    return b.reshape([*b.shape, *[1] * (a.ndim - axis - b.ndim)])


@op("BitShift")
def bit_shift(node: Node, a: Tensor, b: Tensor) -> Outputs:
    kind = a.dtype
    wide, by = a.long(), b.long()
    bits = torch.iinfo(kind).bits
    moved = wide << by if node.get("direction") == "LEFT" else (wide & ((1 << bits) - 1 if bits < 64 else -1)) >> by
    return moved.to(kind)


@op("Min", "Max", "Sum", "Mean", replace=True)  # the library's stack their operands: what differs in shape fails
def several(node: Node, *operands: Tensor) -> Outputs:
    result = operands[0]
    for x in operands[1:]:
        step = {"Min": torch.minimum, "Max": torch.maximum}.get(node.op, torch.add)
        result = step(result, x)
    return result / len(operands) if node.op == "Mean" else result


@op("Clip", baked=(1, 2), replace=True)  # the library's needs bounds that are stored
def clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Outputs:
    low = low if low is not None else node.get("min")
    high = high if high is not None else node.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):  # computed: the gradient may pass through them
        x = x if low is None else torch.maximum(x, torch.as_tensor(low).to(x).reshape(()))
        return x if high is None else torch.minimum(x, torch.as_tensor(high).to(x).reshape(()))
    if low is None and high is None:
        return x
    return torch.clamp(x, *(None if v is None else np.asarray(v).item() for v in (low, high)))


@op("Where")
def where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Outputs:
    return torch.where(condition, a, b)


@op("PRelu", replace=True)  # the library's lacks slopes of several axes, and opsets below 9
def prelu(node: Node, x: Tensor, slope: Tensor) -> Outputs:
    if node.version < 7 and slope.ndim == 1 and x.ndim > 2:
        slope = slope.reshape([-1, *[1] * (x.ndim - 2)])
    return torch.where(x < 0, x * slope, x)


@op("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Outputs:
    return torch.where(x < 0, x * node.get("alpha", 0.01), x)


@op("Elu")
def elu(node: Node, x: Tensor) -> Outputs:
    return functional.elu(x, node.get("alpha", 1.0))


@op("Celu", replace=True)  # the library's has no alpha
def celu(node: Node, x: Tensor) -> Outputs:
    return functional.celu(x, node.get("alpha", 1.0))


@op("Selu", replace=True)  # the library's takes no gamma and alpha
def selu(node: Node, x: Tensor) -> Outputs:
    old = node.version < 6
    alpha = node.get("alpha", 1.6732 if old else 1.67326319217681884765625)
    gamma = node.get("gamma", 1.0507 if old else 1.05070102214813232421875)
    return torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0))).mul(gamma)


@op("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Outputs:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@op("HardSigmoid", replace=True)  # the library's knows no alpha and beta but torch's own
def hard_sigmoid(node: Node, x: Tensor) -> Outputs:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@op("HardSwish", replace=True)  # one form for all versions
def hard_swish(node: Node, x: Tensor) -> Outputs:
    return functional.hardswish(x)


@op("Softplus")
def softplus(node: Node, x: Tensor) -> Outputs:
    return torch.logaddexp(x, torch.zeros_like(x))


@op("Shrink")
def shrink(node: Node, x: Tensor) -> Outputs:
    bias, threshold = node.get("bias", 0.0), node.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, zero)).to(x.dtype)


@op("Gelu", replace=True)  # the library's lacks the approximation
def gelu(node: Node, x: Tensor) -> Outputs:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


@op("Swish")
def swish(node: Node, x: Tensor) -> Outputs:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@op("SwiGLU")
def swiglu(node: Node, x: Tensor, *_: Any) -> Outputs:
    a, b = x.chunk(2, dim=-1)
    return a * torch.sigmoid(node.get("alpha", 1.0) * a) * b


@op("Softmax", "LogSoftmax", "Hardmax", replace=True)  # before opset 13 what follows the axis is one axis
def softmax(node: Node, x: Tensor) -> Outputs:
    form = _SOFTMAXES[node.op]
    if node.version >= 13:
        return form(x, node.get("axis", -1))
    axis = positive(node.get("axis", 1), x.ndim)
    return form(x.reshape([*x.shape[:axis], -1]), axis).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    best = x.argmax(axis, keepdim=True)
    places = torch.arange(x.shape[axis], device=x.device)
    places = places.reshape([-1 if k == positive(axis, x.ndim) else 1 for k in range(x.ndim)])
    return (places == best).to(x.dtype)


@op("IsInf", replace=True)  # the library's lacks opset 20
def is_inf(node: Node, x: Tensor) -> Outputs:
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_positive", 1):
        found = found | (x == float("inf"))
    if node.get("detect_negative", 1):
        found = found | (x == -float("inf"))
    return found


def _guarded(form: Callable[[Tensor, int], Tensor], x: Tensor, axis: int) -> Tensor:
    """A softmax whose rows of -inf alone (all masked) are NaN, as they are, but have the slope 0 and not NaN.

    Exporters write IsNaN and Where after a softmax to put such rows aside; a NaN slope would come through the Where.
    """
    if x.shape[axis] == 0:
        return form(x, axis)
    empty = x.detach().amax(axis, keepdim=True) == -float("inf")
    return form(x.masked_fill(empty, 0.0), axis).masked_fill(empty, float("nan"))


_SOFTMAXES: dict[str, Callable[..., Tensor]] = {
    "Softmax": lambda x, axis: _guarded(torch.softmax, x, axis),
    "LogSoftmax": lambda x, axis: _guarded(torch.log_softmax, x, axis),
    "Hardmax": _hardmax,
}


_CODES = {"UNDEFINED": 0, "FLOAT": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "BOOL": 9,
          "FLOAT16": 10, "DOUBLE": 11, "UINT32": 12, "UINT64": 13}  # fmt: skip


@op("Cast", replace=True)  # the library's lacks opset 19 on, and reads no name of a type
def cast_(node: Node, x: Tensor) -> Outputs:
    to = node.get("to")
    return _cast(x, torch_type(_CODES[to] if isinstance(to, str) else to))


@op("CastLike")
def cast_like(node: Node, x: Tensor, like: Tensor) -> Outputs:
    return _cast(x, like.dtype)


@op("BitCast")
def bit_cast(node: Node, x: Tensor) -> Outputs:
    return x.view(torch_type(node.get("to")))


def _cast(x: Tensor, kind: torch.dtype) -> Tensor:
    if kind == torch.bool or not x.is_floating_point() or kind.is_floating_point:
        return x.to(kind)
    return torch.trunc(x).to(torch.int64).to(kind)  # towards zero, and wrapped where it does not fit


@op("Constant", replace=True)  # what remains of them after folding holds no tensor
def constant(node: Node) -> Outputs:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            value = node.attributes[name]
            kind = np.float32 if "float" in name else np.int64
            return torch.from_numpy(np.array(value if name == "value" else np.array(value, kind)))
    raise NotImplementedError("a constant of strings or a sparse one has no torch tensor")
