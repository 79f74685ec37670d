"""Frozen results of looking at one model: its breakpoints, agreements, attentions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import plain

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its graph declares it: `dtype` is numpy's name, `shape` has a str where a dimension is symbolic.

    `shape` is None where the graph does not even tell the rank; an unnamed dimension is `"?"`.
    """

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakpoint:
    """A tensor that a filter can multiply (S1).

    Attributes:
        name: The tensor.
        op_type: The operator that makes it, or "Input" for a graph input.
        shape: Dimensions, symbolic ones as str.
        layout: One letter an axis, such as "NCHW": N batch, C channel, the others spatial.
        grid: Of tokens that stand for the cells of a grid, which: "14x14", or "1+14x14" after one class token; else "".
        bypass: The other tensors that cross the cut there, held at their recorded values; empty for a clean cut.
        affine: Whether every operator from here to all outputs that it reaches is affine in this tensor, by the graph.
        quantised: Whether it holds quantised integers whose scale and zero point the graph gives.
    """

    name: str
    op_type: str
    shape: Shape
    layout: str
    bypass: tuple[str, ...]
    affine: bool
    grid: str = ""
    quantised: bool = False

    @property
    def clean(self) -> bool:
        """Whether the cut separates the graph: nothing bypasses it."""
        return not self.bypass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Agreement of two computations of the same tensors, the second by onnxruntime.

    Attributes:
        tensor: The output that differs most, relative to its tolerance.
        max_abs: Largest absolute difference there.
        max_rel: The same, divided by the largest finite |onnxruntime value| of that tensor.
        worst_index: Where in that tensor; None where it has no elements.
        rtol: Allowed `max_rel`.
        atol: Allowed absolute difference for a tensor of zeros (0: none).
        ok: Whether values, NaN, infinities, shapes, types and (where judged) the slope agree.
        provider: The onnxruntime execution provider that computed the reference.
        level: Its optimisation level.
        slope_rel: Relative difference of the directional derivative; None where it is not judged.
        findings: Sentences that a reader should know, such as why the slope is not judged.
    """

    tensor: str
    max_abs: float
    max_rel: float
    worst_index: tuple[int, ...] | None
    rtol: float
    atol: float
    ok: bool
    provider: str
    level: str
    slope_rel: float | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    """What is proved of the optimality of a filter, for each of N samples (l2caf_onnx/solvers/exact.py says how).

    Attributes:
        kind: "global" where every sample has the global optimum, else "gap".
        kinds: N of them.
        multiplier: (N,) mu of (G + mu I) f = q, or of g + mu f = 0; NaN where there is none.
        residuals: (N,) the largest relative residual of the conditions of optimality.
        gap: (N,) how far the loss may be above the optimum at most.
    """

    kind: str
    kinds: tuple[str, ...]
    multiplier: NDArray[np.float64]
    residuals: NDArray[np.float64]
    gap: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """Which cells of the tensor `at` decide what arrives at `to`, for each of N samples, with its proof.

    Attributes:
        filter: (N, *spatial) float32, on the constraint set; (N, H, W) for tokens that form a grid.
        heatmap: (N, *input spatial) float32 in [0, 1], what a picture of it shows.
        loss: (N,) the objective at `filter`.
        evaluations: (N,) how often the tail was evaluated with gradient; by the solver blackbox, how often it was run.
        radius: (N,) norm of the filter divided by sqrt(cells), rho.
        target: N class indices, or None.
        stop_reason: N sentences, why the solver stopped.
        at: The tensor that the filter multiplies (S1).
        to: The tensors where the change is measured (S2).
        objective: The objective's name.
        constraint: The constraint's name.
        layout: The axes of `at`, one letter each.
        grid: Of tokens that stand for the cells of a grid, which: "14x14", or "1+14x14" after one class token; else "".
        solver: The solver that ran; never "auto".
        converter: What turned the tail into torch; "" for the solver blackbox.
        parity: Agreement of the torch tail with onnxruntime; None for the solver blackbox.
        proof: Agreement of the filtered torch tail with onnxruntime running the filtered `.onnx`.
        proof_kind: "tail" (the tail on recorded activations) or "model" (also the whole filtered model).
        deployed: Agreement with the whole filtered model at the optimisation level asked for (`ort_level`), which is
            reported, not judged; None where that is the reference, "disable".
        certificate: Proof of optimality, of the exact solver; None for the others.
        seed: Of every random choice.
        notes: Sentences that the user should read, such as an output replaced by its logits.
        method: "l2caf", or the other method whose raw maps `filter` then holds; `loss` and `proof` are those of the map
            as a filter of rho 0.5.
        basis: What the filter is made of, by the name by which it is asked for; None: free in every cell. By default
            "smooth" where a class is asked about in closed form, or on a map of few cells.
        watched: What of `to` is watched, as it was asked for; () for all.
        frames: Whether the first axis of `filter` counts frames, each with a constraint of its own.
        trace: (evaluations, N, *spatial) the filters that the solver tried, where that was asked for.
        seconds: What finding the filters took ("solve"), proving them ("proof") and making the maps ("map"); not saved,
            for two runs never agree.
    """

    filter: NDArray[np.float32]
    heatmap: NDArray[np.float32]
    loss: NDArray[np.float64]
    evaluations: NDArray[np.int64]
    radius: NDArray[np.float64]
    target: tuple[int, ...] | None
    stop_reason: tuple[str, ...]
    at: str
    to: tuple[str, ...]
    objective: str
    constraint: str
    layout: str
    solver: str
    converter: str
    parity: Parity | None
    proof: Parity
    proof_kind: str
    deployed: Parity | None = None
    grid: str = ""
    certificate: Certificate | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    method: str = "l2caf"
    basis: str | None = None
    watched: tuple[str, ...] = ()
    frames: bool = False
    trace: NDArray[np.float32] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """All but the large arrays, as JSON-ready values."""
        return {
            f.name: plain(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("filter", "heatmap", "trace", "seconds")
        }
