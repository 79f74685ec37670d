"""Agreement with onnxruntime in slope: beside that in value (agreement.py), what makes a converter's word believed.

Torch's directional derivative against onnxruntime's central difference, at the best of several steps, since a large one
crosses kinks and a small one drowns in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.shapes import tensors

SLOPE_RTOL = 2e-2
_STEPS = (1e-4, 3e-4, 3e-5, 1e-3, 1e-5, 3e-3, 1e-2, 3e-2, 1e-1)  # float32 resolves 1e-4 of most nets, kinks spoil 1e-3
_BESIDE = (0.02, 0.5)  # of each element: enough for most kinks; enough for the largest of thousands that are equal
_COARSE = 1e-2  # from here on a step may cross so many kinks that a wrong slope looks right
_CLEAR = 4  # times what rounding could do: a smaller motion can acquit but not convict; a larger needs no coarser step
_PIECEWISE_CONSTANT = {  # beside all that makes integers; the QLinear family has outputs whose type is not inferred
    "Round", "Floor", "Ceil", "Sign", "Hardmax", "OneHot", "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearConcat", "QGemm",
}  # fmt: skip
_STEPPED = ("int", "uint", "bool", "str")  # first letters of types; one that cannot be told may be a floating one

Arrays = Mapping[str, NDArray[Any]]


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
        several steps, and, where that is bad, at an x beside the first, off its kinks. 0 where neither
        moves, infinity where only one of them does.
    """
    wide = base.astype(np.promote_types(base.dtype, np.float32))
    found = _slope(reference, computed, wide)
    rng = np.random.default_rng(1)
    for far in _BESIDE:  # exactly on a kink or at equals, where there are several slopes: beside it there is one
        if found <= SLOPE_RTOL:
            break
        beside = wide * (1 - far * rng.uniform(0, 1, wide.shape)).astype(wide.dtype)
        near = _slope(reference, computed, beside)
        found = near if near <= SLOPE_RTOL else found
    return found


def _slope(
    reference: Callable[[NDArray[Any]], Arrays],
    computed: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    wide: NDArray[Any],
) -> float:
    """The slope's difference at one x; see `slope`."""
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
    trembling: dict[str, NDArray[Any]] = {}
    with torch.enable_grad():
        x = torch.from_numpy(np.array(wide)).requires_grad_(True)
        outputs = computed(x)
        signs = np.sign(_gradient(outputs, x, projection))
        signs = np.where(signs == 0, rng.choice([-1.0, 1.0], size=wide.shape), signs)
        direction = np.abs(rng.standard_normal(wide.shape)) * signs * wide.astype(np.float64)

        def noise(unit: Mapping[str, Any]) -> float:
            """How far the outputs move when x is rounded otherwise: deep nets add up more rounding than one of it."""
            if not trembling:
                ulps = rng.choice([-1, 1], wide.shape) * np.spacing(wide)
                trembling.update(reference((wide + ulps).astype(wide.dtype)))
            moved = [((trembling[k] - v) / unit[k]) if trembling[k].shape == v.shape else v for k, v in centre.items()]
            return float(np.sqrt(sum(float((m**2).sum()) for m in moved)))

        for step in _STEPS:
            if moving and step >= _COARSE:
                break
            ends = [(wide + t * direction).astype(wide.dtype) for t in (step, -step)]
            way = ends[0].astype(np.float64) - ends[1].astype(np.float64)  # not 2 t v: the ends are rounded
            up, down = map(reference, ends)
            if any(up[k].shape != v.shape or down[k].shape != v.shape for k, v in centre.items()):
                continue  # a number of outputs that depends on values: smaller steps may keep it
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
                if not still and size > _CLEAR * max(rounding, noise(unit)):
                    moving.append(abs(got - size) / size)
                    break  # in the larger unit: the smaller one is for motions that drown in it
                resting.append(0.0 if abs(got) <= max(_CLEAR * rounding, 1e-4) else np.inf)
    return min(moving) if moving else max(resting, default=0.0)


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
