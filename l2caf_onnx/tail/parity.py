"""Agreement with onnxruntime, in value and in slope; nothing else makes a converter's word believed.

Value: |d| <= rtol * max|y| over y's finite elements; NaN must meet NaN, an infinity the same one; integers, shapes and
types are equal. Slope: torch's directional derivative against onnxruntime's central difference, at the best of several
steps, since a large one crosses kinks and a small one drowns in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.shapes import tensors
from l2caf_onnx.records import Parity

RTOL = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}
SLOPE_RTOL = 2e-2
_STEPS = (1e-4, 3e-4, 3e-5, 1e-3, 1e-5, 3e-3, 1e-2, 3e-2, 1e-1)  # float32 resolves 1e-4 of most nets, kinks spoil 1e-3
_COARSE = 1e-2  # from here on a step may cross so many kinks that a wrong slope looks right
_CLEAR = 4  # times what rounding could do: a smaller motion can acquit but not convict; a larger needs no coarser step
_PIECEWISE_CONSTANT = {  # beside all that makes integers; the QLinear family has outputs whose type is not inferred
    "Round", "Floor", "Ceil", "Sign", "Hardmax", "OneHot", "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearConcat", "QGemm",
}  # fmt: skip
_STEPPED = ("int", "uint", "bool", "str")  # first letters of types; one that cannot be told may be a floating one

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Difference:
    tensor: str
    max_abs: float
    max_rel: float
    worst_index: tuple[int, ...] | None
    rtol: float
    ok: bool
    finding: str = ""

    @property
    def severity(self) -> tuple[bool, bool, float]:
        return not self.ok, bool(self.finding), self.max_rel / self.rtol if self.rtol else self.max_rel


def compare(reference: Arrays, computed: Arrays, *, half: bool = False, provider: str, level: str) -> Parity:
    """Values only: `computed` (torch) against `reference` (onnxruntime), tensor by tensor; the worst is reported.

    Args:
        reference: What onnxruntime returned.
        computed: What torch returned, under the same names.
        half: Whether float16 arithmetic is inside, so that its tolerance holds for float32 outputs too.
        provider: Of the reference.
        level: Of the reference.
    """
    found = [_difference(name, value, computed[name], half=half) for name, value in reference.items()]
    worst = max(found, key=lambda d: d.severity)
    return Parity(
        tensor=worst.tensor,
        max_abs=worst.max_abs,
        max_rel=worst.max_rel,
        worst_index=worst.worst_index,
        rtol=worst.rtol,
        atol=0.0,
        ok=all(d.ok for d in found),
        provider=provider,
        level=level,
        findings=tuple(d.finding for d in found if d.finding),
    )


def _difference(name: str, y: NDArray[Any], z: NDArray[Any], *, half: bool) -> _Difference:
    kind = str(y.dtype)
    rtol = max(RTOL.get(kind, 0.0), RTOL["float16"] if half and kind in RTOL else 0.0)
    if y.shape != z.shape or y.dtype != z.dtype:
        finding = f"{name!r} has type {z.dtype} and shape {z.shape} in torch, {y.dtype} and {y.shape} in onnxruntime."
        return _Difference(name, np.inf, np.inf, None, rtol, False, finding)
    if y.size == 0:
        return _Difference(name, 0.0, 0.0, None, rtol, True)
    if kind not in RTOL:
        unequal = np.asarray(y != z)
        at = _position(int(np.argmax(unequal)), y.shape)
        largest = (
            float(np.max(np.abs(y.astype(np.float64) - z.astype(np.float64))))
            if y.dtype.kind in "biu"
            else float(unequal.any())
        )
        return _Difference(name, largest, float(unequal.mean()), at, 0.0, not unequal.any())
    a, b = y.astype(np.float64), z.astype(np.float64)
    finite = np.isfinite(a)
    special = ~finite & ~((np.isnan(a) & np.isnan(b)) | (a == b)) | (finite & ~np.isfinite(b))
    if special.any():
        at = _position(int(np.argmax(special)), y.shape)
        finding = f"{name!r} at {at}: {b[at]} in torch, {a[at]} in onnxruntime."
        return _Difference(name, np.inf, np.inf, at, rtol, False, finding)
    d = np.where(finite, np.abs(np.where(finite, a, 0.0) - np.where(finite, b, 0.0)), 0.0)
    at = _position(int(np.argmax(d)), y.shape)
    scale = float(np.abs(a[finite]).max()) if finite.any() else 0.0
    largest = float(d[at])
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else np.inf)
    return _Difference(name, largest, relative, at, rtol, relative <= rtol)


def _position(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def unjudged(model: Model, source: str | None, outputs: Arrays) -> str:
    """Why the slope of `outputs` along the input `source` cannot be judged; "" where it can."""
    if source is None:
        return "The slope is not judged: no floating-point input reaches an output."
    moving = _moving(model, source)
    judged = [v for k, v in outputs.items() if k in moving and v.dtype.kind == "f"]
    if not judged:
        return "The slope is not judged: every path meets an operator that is constant between its steps."
    if not any(v.size and np.isfinite(v).all() for v in judged):
        return "The slope is not judged: no output is finite."
    return ""


def _moving(model: Model, source: str) -> set[str]:
    """The tensors that move with small changes of `source`: no integers come between, and no steps."""
    infos = tensors(model)
    found = {source}
    for node, reads in zip(model.proto.graph.node, model.reads, strict=True):
        if node.op_type not in _PIECEWISE_CONSTANT and any(r in found for r in reads):
            found.update(o for o in node.output if o and not infos[o].dtype.startswith(_STEPPED))
    return found


def slope(
    reference: Callable[[NDArray[Any]], Arrays],
    computed: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    base: NDArray[Any],
) -> float:
    """Relative difference between torch's and onnxruntime's directional derivative of all float outputs.

    The direction v is random in size, |N(0, 1)| for each element, and takes its signs from torch's own gradient of a
    random projection of the outputs: without them the derivative is a sum that nearly cancels, and rounding hides it.

    Args:
        reference: x -> onnxruntime's outputs.
        computed: The same in torch, differentiable.
        base: The x around which both move, by t * v * x; float16, whose steps are too coarse, becomes float32.

    Returns:
        | u'Jv - ||c|| | / ||c|| with c onnxruntime's central difference, u = c/||c||, Jv torch's derivative, in units
        of each output's largest element, or of each element's own size where the motion drowns in that; the least of
        several steps. 0 where neither moves, infinity where only one of them does.
    """
    wide = base.astype(np.promote_types(base.dtype, np.float32))
    centre = {k: v.astype(np.float64) for k, v in reference(wide).items() if v.dtype.kind == "f" and v.size}
    centre = {k: v for k, v in centre.items() if np.isfinite(v).all()}
    if not centre:
        return 0.0
    scale = {k: max(float(np.abs(v).max()), 1e-30) for k, v in centre.items()}
    # A saturated softmax moves by less than its largest probability is rounded by; each of the small ones is exact.
    own = {k: np.abs(v) + 1e-12 * scale[k] for k, v in centre.items()}
    rng = np.random.default_rng(0)
    projection = {k: rng.standard_normal(v.shape) / scale[k] for k, v in centre.items()}
    moving: list[float] = []
    resting: list[float] = []
    with torch.enable_grad():
        x = torch.from_numpy(np.array(wide)).requires_grad_(True)
        outputs = computed(x)
        signs = np.sign(_gradient(outputs, x, projection))
        signs = np.where(signs == 0, rng.choice([-1.0, 1.0], size=base.shape), signs)
        direction = np.abs(rng.standard_normal(base.shape)) * signs * base.astype(np.float64)
        for step in _STEPS:
            if moving and step >= _COARSE:
                break
            ends = [(wide + t * direction).astype(wide.dtype) for t in (step, -step)]
            way = ends[0].astype(np.float64) - ends[1].astype(np.float64)  # not 2 t v: the ends are rounded
            up, down = map(reference, ends)
            change = {k: up[k].astype(np.float64) - down[k].astype(np.float64) for k in centre}
            for unit in (scale, own):
                moved = {k: c / unit[k] for k, c in change.items()}
                size = float(np.sqrt(sum(float((m**2).sum()) for m in moved.values())))
                rounding = 16 * float(np.finfo(np.float32).eps) * float(np.sqrt(sum(m.size for m in moved.values())))
                still = size <= rounding or not np.isfinite(size)
                towards = {k: projection[k] if still else m / (size * unit[k]) for k, m in moved.items()}
                got = float((_gradient(outputs, x, towards) * way).sum())
                if not still and abs(got - size) <= SLOPE_RTOL * size:
                    return abs(got - size) / size
                if not still and size > _CLEAR * rounding:
                    moving.append(abs(got - size) / size)
                    break  # in the larger unit: the smaller one is for motions that drown in it
                resting.append(0.0 if abs(got) <= max(_CLEAR * rounding, 1e-4) else np.inf)
    return min(moving) if moving else max(resting)


def _gradient(outputs: Mapping[str, torch.Tensor], x: torch.Tensor, weights: Arrays) -> NDArray[np.float64]:
    """Gradient in x of the weighted sum of the outputs; zeros where none of them depends on x."""
    largest = max((float(np.abs(w).max()) for w in weights.values()), default=0.0) or 1.0  # float16 ends at 65504
    parts = [
        (outputs[k] * torch.from_numpy(np.asarray(w / largest)).to(outputs[k])).sum()
        for k, w in weights.items()
        if outputs[k].requires_grad
    ]
    gradient = (
        torch.autograd.grad(sum(parts[1:], parts[0]), x, retain_graph=True, allow_unused=True)[0] if parts else None
    )
    return np.zeros(x.shape) if gradient is None else gradient.detach().double().cpu().numpy() * largest
