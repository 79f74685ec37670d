"""Attention at a breakpoint, from the `.onnx` and an input to the proof: the one module that knows the whole order.

Head once by onnxruntime; the tail as torch with the filter as an input; the solver; then onnxruntime again, running the
filtered `.onnx`, to confirm what torch found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnx
import torch

from . import objectives, runtime
from .errors import InputError
from .explain.batches import batches
from .explain.explanation import Explanation
from .explain.joining import joined
from .explain.query import OURS, Plan, Query, Target, planned
from .explain.scene import Scene, record
from .explain.stop import stop_at
from .graph.model import Model, load
from .records import Attention

_CPU = torch.device("cpu")


@overload
def attend(
    model: Model | str | Path | bytes | onnx.ModelProto, feeds: Mapping[str, Any], *, at: str, **options: Any
) -> Attention: ...
@overload
def attend(
    model: Model | str | Path | bytes | onnx.ModelProto, feeds: Mapping[str, Any], *, at: Sequence[str], **options: Any
) -> tuple[Attention, ...]: ...
def attend(  # type: ignore[misc]  # mypy wishes the options in all three places; they are written once
    model: Model | str | Path | bytes | onnx.ModelProto,
    feeds: Mapping[str, Any],
    *,
    at: str | Sequence[str],
    to: str | Sequence[str] | None = None,
    target: Target | None = None,
    objective: str | Callable[..., Any] | None = None,
    constraint: str | None = None,
    radius: float | str | None = None,
    basis: str | int | None = None,
    solver: str = "auto",
    preset: str | None = None,
    layout: str | None = None,
    select: str | Sequence[str] | None = None,
    reference: Mapping[str, Any] | None = None,
    method: str = OURS,
    proof: str = "tail",
    ort_level: str = "disable",
    device: str = "cpu",
    batch_size: int | None = None,
    providers: Sequence[str] | None = None,
    seed: int = 0,
    trace: bool = False,
) -> Attention | tuple[Attention, ...]:
    """Find which cells of the tensor `at` decide what arrives at `to` (L2-CAF, Taha et al., ECCV 2020).

    Args:
        model: What `load` takes.
        feeds: {input name: array}; N samples along the batch axis are N independent questions.
        at: S1, a breakpoint, or several (one head run serves all).
        to: S2, a name or names; None: all outputs that depend on S1.
        target: A class index, one index a sample, or "top1"; None: no class.
        objective: What is minimised, by name (each with its formula and source in l2caf_onnx/objectives/): "outputs",
            the mean squared change of all outputs; "cosine", their change of direction; "similarity" to the outputs for
            `reference`; "value", minus what is watched; about a class: "target", minus its logit, "contrast",
            "log-softmax", "probability", "paper-class" (the paper's: other logits minus the target's); a function of
            yours, (filtered, normal, target) -> losses (N,), or "file.py:function". None: "similarity" with a
            reference, "value" with a selection, without a target "outputs"; with one "contrast" where constraint,
            radius and solver are left open too, else "target".
        constraint: "l2", ||f|| = rho sqrt(cells); "l2-nonneg", and f >= 0; "softmax", f = rho cells softmax(w);
            "gaussian", one bell of learned mean and covariance. Of frames, each has a filter of its own. None: "l2",
            but "l2-nonneg" where objective, radius and solver are left open too.
        radius: rho; "unit" for the paper's norm 1; "auto": see l2caf_onnx/explain/radius.py. None: "auto" where
            objective, constraint and solver are left open too, else 0.5 ("unit" with the preset).
        basis: What the filter is made of: nodes between which it is interpolated (7, "7x7", coarse to fine "4>7>full"),
            "smooth" for one that is blurred ("smooth:0.05"), "4+smooth" for the average of two, "full" for one that is
            free in every cell. None: "full", but "smooth" where "exact" is asked about a class, on a map of two
            axes or more and at most 1,024 cells (where "slope" is, 64), and objective, constraint, radius and solver
            are left open too.
        solver: "exact" (closed form, with a certificate), "slope" (the minimum of the loss's mean slope under
            occlusions), "lbfgs", the authors' loops "sgd" and "adam", or "blackbox", which needs no gradient; "auto":
            exact where the tail is affine and the question has a closed form, else slope where objective, constraint,
            radius and basis are left open, lbfgs otherwise ("sgd" with the preset), and blackbox where no
            converter agrees with onnxruntime or has a gradient.
        preset: "paper": all as the authors had it, and the map shows |f| in place of max(f, 0).
        layout: One letter for each axis of `at`, and the grid of tokens in brackets, as in "NTC[1+14x14]" (one class
            token before it) or "NTC[]" (none); None, or without brackets: found from the graph.
        select: What of S2 is watched, as numpy writes it: "boxes[0, 12, 4]", "0.5 * scores[:, :, 7].max()"; or several.
        reference: Feeds of another input, one or one a sample: why does the input match it?
        method: "l2caf", or another method on the same cut ("gradcam", "hirescam", "rise", ...: l2caf_onnx/methods/).
        proof: "tail": onnxruntime runs the filtered tail on the recorded activations; "model": the whole filtered
            `.onnx` too.
        ort_level: The optimisation level at which you deploy ("basic", "extended", "all"): the whole filtered model is
            run there too, and how far it is from the answer is reported as `deployed`.
        device: "cpu" or "cuda", for the tail.
        batch_size: Samples at once; None: as a quarter of the free memory allows, at most 32.
        providers: onnxruntime's execution providers; None: the CPU (CUDA's too where `device` is "cuda").
        seed: Of every random choice.
        trace: Keep the filters that the solver tries, as `trace`.

    Returns:
        An Attention; a tuple of them where `at` is a list.

    Raises:
        TensorNotFoundError, CutError: see `cut`.
        InputError: an input or option that cannot be used; NaN in an input or in the activations.
        UnsupportedModelError, ParityError: no converter makes a torch tail that agrees with onnxruntime.
        SolverError: the tail is dead there, or the question has only a trivial answer.
    """
    names = (at,) if isinstance(at, str) else tuple(at)
    if not names:
        raise InputError("No tensor to break at was named.", where="`at` is empty.", how="Name one.")
    queries = [
        Query(
            at=name, to=to, target=target, objective=objective, constraint=constraint, radius=radius, solver=solver,
            preset=preset, layout=layout, basis=basis, select=select, reference=reference, method=method,
        )
        for name in names
    ]  # fmt: skip
    found = attend_many(
        model, feeds, queries, proof=proof, ort_level=ort_level, device=device,
        batch_size=batch_size, providers=providers, seed=seed, trace=trace,
    )  # fmt: skip
    return found[0] if isinstance(at, str) else found


def attend_many(
    model: Model | str | Path | bytes | onnx.ModelProto,
    feeds: Mapping[str, Any],
    queries: Sequence[Query],
    *,
    proof: str = "tail",
    ort_level: str = "disable",
    device: str = "cpu",
    batch_size: int | None = None,
    providers: Sequence[str] | None = None,
    seed: int = 0,
    trace: bool = False,
) -> tuple[Attention, ...]:
    """The answers to several questions about the same feeds, from one run of the head for each batch.

    Questions about one breakpoint share all that does not hang on the question: cut, torch tail and its parity, and,
    where the tail is affine, its matrix.

    Args:
        model: What `load` takes.
        feeds: {input name: array}; N samples along the batch axis are N independent questions.
        queries: Each as the arguments of `attend`, which explains these and the others.
        proof: See `attend`, and so on.
        ort_level: As there.
        device: As there.
        batch_size: As there.
        providers: As there.
        seed: As there.
        trace: As there.

    Returns:
        An Attention for each query.

    Raises:
        As `attend`.
    """
    loaded = load(model)
    if not queries:
        raise InputError("There is no question.", where="`queries` is empty.", how="Give a Query at least.")
    plans = [
        planned(
            target=q.target, objective=q.objective, constraint=q.constraint, radius=q.radius, solver=q.solver,
            preset=q.preset, basis=q.basis, select=q.select, reference=q.reference, method=q.method, proof=proof,
            ort_level=ort_level, seed=seed, trace=trace,
        )
        for q in queries
    ]  # fmt: skip
    where, providers = placed(device, providers)
    fed = {name: np.shape(array) for name, array in feeds.items()}
    stops = [
        stop_at(loaded, q.at, q.to, q.layout, logits=p.logits, fed=fed) for q, p in zip(queries, plans, strict=True)
    ]
    scored = [s for s, p in zip(stops, plans, strict=True) if isinstance(p.target, str) or p.objective.ranks]
    on_gpu = where if where.type == "cuda" else None
    total, parts = batches(loaded, feeds, batch_size)
    _check_targets(plans, total)
    found: list[list[Attention]] = [[] for _ in queries]
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
        for batch in parts:
            start = batch.samples.start
            for pieces, recorded in record(loaded, batch.pieces, stops, providers, on_gpu, scored):
                scenes: dict[int, Scene] = {}
                for stop in stops:
                    if id(stop) not in scenes:
                        scenes[id(stop)] = Scene(loaded, pieces, recorded, stop, where, providers)
                for q, (stop, asked) in enumerate(zip(stops, plans, strict=True)):
                    scene = scenes[id(stop)]
                    own = _targets(asked, start, scene.onnx.samples)
                    found[q].append(Explanation(scene, asked, own).attention())
                start += scenes[id(stops[0])].onnx.samples
    return tuple(joined(answers) for answers in found)


def _check_targets(plans: Sequence[Plan], total: int) -> None:
    for asked in plans:
        if isinstance(asked.target, tuple) and len(asked.target) not in (1, total):
            raise InputError(
                f"There are {len(asked.target)} targets for {total} samples.",
                where="`target`.",
                how="Give one, or one a sample.",
            )


def _targets(asked: Plan, start: int, count: int) -> tuple[int, ...] | str | None:
    """The classes asked about of `count` samples from `start` on."""
    if isinstance(asked.target, int):
        return (asked.target,)
    if isinstance(asked.target, tuple) and len(asked.target) > 1:
        return asked.target[start : start + count]
    return asked.target


def placed(device: str, providers: Sequence[str] | None) -> tuple[torch.device, Sequence[str] | None]:
    """Where the tail runs, and onnxruntime's providers: CUDA's too where none are given and the tail is on a GPU.

    Raises:
        InputError: a device that there is not, or not here.
    """
    where = _CPU if device == "cpu" else _device(device)
    return where, ["CUDAExecutionProvider"] if providers is None and where.type == "cuda" else providers


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
    feeds: Mapping[str, Any],
    count: int,
    *,
    at: str,
    to: str | Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
) -> list[list[int]]:
    """For each sample the `count` classes of largest score, best first, read where a target objective would watch."""
    stop = stop_at(model, at, to, logits=True, fed={name: np.shape(array) for name, array in feeds.items()})
    whole = stop.whole(model)
    rows: list[list[int]] = []
    for batch in batches(model, feeds, None)[1]:
        for part in batch.pieces:
            values = runtime.run(whole, part, providers=providers)
            scores = objectives.class_scores({k: torch.from_numpy(np.array(v)) for k, v in values.items()})
            rows += scores.topk(min(count, scores.shape[1]), dim=1).indices.tolist()
    return rows
