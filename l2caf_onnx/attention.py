"""Attention at a breakpoint, from the `.onnx` and an input to the proof: the one module that knows the whole order.

Head once by onnxruntime; the tail as torch with the filter as an input; the solver; then onnxruntime again, running the
filtered `.onnx`, to confirm what torch found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from . import objectives, runtime
from .batches import batches, joined
from .errors import InputError
from .explanation import Explanation
from .graph.cut import extract
from .graph.half import uses_half
from .graph.model import Model, load
from .graph.shapes import tensors
from .query import Plan, Target, plan
from .records import Attention
from .stop import Stop

Arrays = dict[str, NDArray[Any]]


# The options are written once, below: the ignored "misc" is mypy wishing them in all three places.
@overload
def attend(
    model: Model | str | Path | bytes | onnx.ModelProto, feeds: Mapping[str, Any], *, at: str, **options: Any
) -> Attention: ...
@overload
def attend(
    model: Model | str | Path | bytes | onnx.ModelProto, feeds: Mapping[str, Any], *, at: Sequence[str], **options: Any
) -> tuple[Attention, ...]: ...
def attend(  # type: ignore[misc]
    model: Model | str | Path | bytes | onnx.ModelProto,
    feeds: Mapping[str, Any],
    *,
    at: str | Sequence[str],
    to: str | Sequence[str] | None = None,
    target: Target | None = None,
    objective: str | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    solver: str = "auto",
    preset: str | None = None,
    layout: str | None = None,
    proof: str = "tail",
    ort_level: str = "disable",
    device: str = "cpu",
    batch_size: int | None = None,
    providers: Sequence[str] | None = None,
    seed: int = 0,
) -> Attention | tuple[Attention, ...]:
    """Find which cells of the tensor `at` decide what arrives at `to` (L2-CAF, Taha et al., ECCV 2020).

    Args:
        model: What `load` takes.
        feeds: {input name: array}; N samples along the batch axis are N independent questions.
        at: S1, a breakpoint, or several (one head run serves all).
        to: S2, a name or names; None: all outputs that depend on S1.
        target: A class index, one index a sample, or "top1"; None: no class.
        objective: "outputs" (mean squared change of all outputs), "target" (minus the target's logit) or "paper-class"
            (the paper's: other logits minus the target's). None: "target" with a target, else "outputs".
        constraint: "l2", ||f|| = rho sqrt(cells), the only one yet.
        radius: rho, or "unit" for the paper's norm 1; None: 0.5 ("unit" with the preset).
        solver: "lbfgs", the authors' loops "sgd" and "adam", or "blackbox", which needs no gradient; "auto": lbfgs
            ("sgd" with the preset), and blackbox where no converter agrees with onnxruntime or has a gradient.
        preset: "paper": all as the authors had it, and the map shows |f| in place of max(f, 0).
        layout: One letter for each axis of `at`, and the grid of tokens in brackets, as in "NTC[1+14x14]" (one class
            token before it) or "NTC[]" (none); None, or without brackets: found from the graph.
        proof: "tail": onnxruntime runs the filtered tail on the recorded activations; "model": the whole filtered
            `.onnx` too.
        ort_level: The optimisation level at which you deploy ("basic", "extended", "all"): the whole filtered model is
            run there too, and how far it is from the answer is reported as `deployed`.
        device: "cpu" or "cuda", for the tail.
        batch_size: Samples at once; None: at most 16.
        providers: onnxruntime's execution providers; None: the CPU (CUDA's too where `device` is "cuda").
        seed: Of every random choice.

    Returns:
        An Attention; a tuple of them where `at` is a list.

    Raises:
        TensorNotFoundError, CutError: see `cut`.
        InputError: an input or option that cannot be used; NaN in an input or in the activations.
        UnsupportedModelError, ParityError: no converter makes a torch tail that agrees with onnxruntime.
        SolverError: the tail is dead there, or the question has only a trivial answer.
    """
    loaded = load(model)
    asked = plan(
        target=target, objective=objective, constraint=constraint, radius=radius, solver=solver, preset=preset,
        proof=proof, ort_level=ort_level, seed=seed,
    )  # fmt: skip
    names = (at,) if isinstance(at, str) else tuple(at)
    if not names:
        raise InputError("No tensor to break at was named.", where="`at` is empty.", how="Name one.")
    where = _device(device)
    if providers is None and where.type == "cuda":
        providers = [p for p in ("CUDAExecutionProvider",) if p in runtime.check_providers(None) or True]
    fed = {name: np.shape(array) for name, array in feeds.items()}
    stops = [Stop(loaded, name, to, layout, asked, fed) for name in names]
    with torch.inference_mode(False):
        parts = [
            _explain_batch(loaded, batch, stops, asked, picked, where, providers)
            for batch, picked in batches(loaded, feeds, asked.target, batch_size)
        ]
    found = tuple(joined([part[k] for part in parts]) for k in range(len(stops)))
    return found[0] if isinstance(at, str) else found


def _explain_batch(
    model: Model,
    feeds: Arrays,
    stops: Sequence[Stop],
    asked: Plan,
    target: tuple[int, ...] | str | None,
    device: torch.device,
    providers: Sequence[str] | None,
) -> list[Attention]:
    recorded = {**feeds, **_record(model, feeds, stops, providers)}
    return [Explanation(model, feeds, recorded, stop, asked, device, providers).attention(target) for stop in stops]


def _record(model: Model, feeds: Arrays, stops: Sequence[Stop], providers: Sequence[str] | None) -> Arrays:
    """All that the tails need, by one run of the head."""
    wanted = tuple(dict.fromkeys(n for s in stops for n in (s.at, *s.cut.bypass) if n not in feeds))
    if not wanted:
        return {}
    head = model.cache.get(("head", wanted), lambda: extract(model, [i.name for i in model.inputs], wanted))
    exact = uses_half(model) or any(i.dtype in ("int8", "uint8") for i in tensors(model).values())
    return runtime.run(head, feeds, level="disable" if exact else "all", providers=providers)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise InputError(f"There is no device {name!r}.", how="Choose 'cpu' or 'cuda'.") from e
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"The device {name!r} is not supported.", how="Choose 'cpu' or 'cuda'.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here.", how="Choose 'cpu'.")
    return device


def top_classes(
    model: Model,
    feeds: Arrays,
    count: int,
    *,
    at: str,
    to: str | Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
) -> list[list[int]]:
    """For each sample the `count` classes of largest score, best first, read where a target objective would watch."""
    stop = Stop(model, at, to, None, plan(target="top1"))
    whole = extract(model, [i.name for i in model.inputs], stop.cut.to)
    rows: list[list[int]] = []
    for part, _ in batches(model, feeds, None, None):
        outputs = {k: torch.from_numpy(np.array(v)) for k, v in runtime.run(whole, part, providers=providers).items()}
        scores = objectives.class_scores(outputs)
        rows += scores.topk(min(count, scores.shape[1]), dim=1).indices.tolist()
    return rows
