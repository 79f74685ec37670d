"""Filters made of fewer or other coordinates than their cells: a coarse basis, one filter a frame, a Gaussian.

A lift takes coordinates to a filter of the right size, whatever their own size: the solver moves on a set that is
simple (a sphere, its part f >= 0, the softmax of logits, all vectors), and the size is restored behind it, as in
"L-BFGS on f/||f||". Each group of cells, all of them or those of a frame, has a size of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from l2caf_onnx.errors import InputError

from .sets import column

Nodes = tuple[int, ...]
Basis = Nodes | float | None
"""Nodes of a grid, the blur of a smooth filter as a part of each side, or nothing: free in every cell."""

SIGMA = 0.12
_FLOOR = 0.05
_LONG = 2048  # cells of an axis, beyond which no matrix of cells x cells is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Coordinates are the filter's values at the nodes of a coarse grid, linearly interpolated between them.

    The interpolation is that of a picture's resizing (half-pixel centres), so that values that are nowhere negative
    stay so.

    Attributes:
        spatial: Of the filter.
        nodes: Along each axis, at most as many as cells.
    """

    spatial: tuple[int, ...]
    nodes: Nodes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the coordinates of a sample."""
        return self.nodes

    def values(self, w: Tensor) -> Tensor:
        """Coordinates (k, *nodes) -> (k, *spatial), linear."""
        for axis, (size, count) in enumerate(zip(self.spatial, self.nodes, strict=True)):
            if count != size:
                w = torch.tensordot(w, _stretched(count, size).to(w), dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return w

    def start(self, f: Tensor) -> Tensor:
        """Coordinates near those of the filters `f` (N, *spatial): the mean over the cells of each node."""
        for axis, (size, count) in enumerate(zip(self.spatial, self.nodes, strict=True)):
            if count != size:
                weights = _stretched(count, size).T.to(f)
                weights = weights / weights.sum(1, keepdim=True)
                f = torch.tensordot(f, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return f


@dataclass(frozen=True, slots=True, kw_only=True)
class Smooth:
    """Coordinates, one a cell, are blurred by a Gaussian: a filter that is smooth, and tied to no grid of nodes.

    Values that are nowhere negative stay so. Zeros lie around the map: were values means over the cells that there are,
    a maximum beside a border would move to it.

    Attributes:
        spatial: Of the filter.
        sigma: The Gaussian's, as a part of each axis.
        frames: Whether the first axis counts frames, which are not blurred into one another.
    """

    spatial: tuple[int, ...]
    sigma: float
    frames: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the coordinates of a sample."""
        return self.spatial

    def values(self, w: Tensor) -> Tensor:
        """Coordinates (k, *spatial) -> (k, *spatial), linear."""
        for axis in range(self.frames, len(self.spatial)):
            if self.spatial[axis] > _LONG:
                w = _convolved(w.movedim(axis + 1, -1), self.sigma).movedim(-1, axis + 1)
                continue
            blur = _blurred(self.spatial[axis], self.sigma).to(w)
            w = torch.tensordot(w, blur, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return w

    def start(self, f: Tensor) -> Tensor:
        """The filters themselves."""
        return f


@dataclass(frozen=True, slots=True, kw_only=True)
class Bell:
    """A Gaussian over the map, or over each frame of it: mean and covariance are the coordinates (Taha et al. 2020).

    f(x) = exp(-||L'(x - m)||^2 / 2) for x in [-1, 1] along each axis, L lower triangular: of d axes m (d), the
    logarithms of L's diagonal (d), and what is below it (d (d - 1) / 2). It starts in the middle, as wide as the map.

    Attributes:
        spatial: Of the filter.
        frames: Whether each index of the first axis has a Gaussian of its own.
    """

    spatial: tuple[int, ...]
    frames: bool = False

    @property
    def axes(self) -> int:
        """D."""
        return len(self.spatial) - self.frames

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the coordinates of a sample."""
        d = self.axes
        own = 2 * d + d * (d - 1) // 2
        return (self.spatial[0], own) if self.frames else (own,)

    def values(self, w: Tensor) -> Tensor:
        """Coordinates (k, ..., P) -> (k, *spatial)."""
        d = self.axes
        lines = [torch.linspace(-1 + 1 / s, 1 - 1 / s, s, dtype=w.dtype) for s in self.spatial[self.frames :]]
        cells = torch.stack([g.flatten() for g in torch.meshgrid(*lines, indexing="ij")], 1).to(w.device)
        flat = w.reshape(-1, w.shape[-1])
        lower = torch.diag_embed(flat[:, d : 2 * d].exp())
        if d > 1:
            below = torch.tril_indices(d, d, -1)
            lower = lower.index_put((torch.arange(len(flat))[:, None], below[0], below[1]), flat[:, 2 * d :])
        away = (cells[None] - flat[:, None, :d]) @ lower
        return torch.exp(-away.square().sum(-1) / 2).reshape(len(w), *self.spatial)

    def start(self, f: Tensor) -> Tensor:
        """The middle, for any filters."""
        return torch.zeros(len(f), *self.shape, dtype=f.dtype, device=f.device)


Lift = Grid | Smooth | Bell


def sized(values: Tensor, rho: Tensor, *, frames: bool, total: bool) -> Tensor:
    """Values (k, *spatial), brought to the size `rho` (k,), each frame (index of the first axis) by itself if asked.

    `total`: the sum of f is rho times the cells; else the norm is rho times their root.
    """
    axes = tuple(range(1 + frames, values.ndim))
    cells = math.prod(values.shape[a] for a in axes)
    if total:
        size, wanted = values.sum(axes, keepdim=True), rho * cells
    else:
        size, wanted = torch.linalg.vector_norm(values, dim=axes, keepdim=True), rho * math.sqrt(cells)
    return values * (column(wanted.to(values), values.ndim) / size.clamp_min(torch.finfo(values.dtype).tiny))


@lru_cache(maxsize=64)
def parse_basis(
    basis: str | int | None, spatial: tuple[int, ...], *, frames: bool = False
) -> tuple[tuple[Basis, ...], ...]:
    """What a filter is to be made of: chains of bases, each basis starting where the one before it ended.

    Args:
        basis: "smooth", blurred by a Gaussian of .12 of each side, "smooth:0.05" of another part; nodes along each
            axis: 7, "7x7"; coarse to fine: "4>7>full"; several of these, whose filters are averaged: "4+smooth"; None,
            "full": free in every cell.
        spatial: Of the filter; an axis that is shorter keeps its cells.
        frames: Whether the first axis counts frames, which a basis leaves as they are.

    Raises:
        InputError: none of them.
    """
    chains = str(basis if basis is not None else "full").split("+")
    return tuple(tuple(_stage(part, basis, spatial, frames) for part in chain.split(">")) for chain in chains)


def _stage(part: str, basis: str | int | None, spatial: Sequence[int], frames: bool) -> Basis:
    own = tuple(spatial[frames:])
    name, _, number = part.strip().partition(":")
    if name == "full" and not number:
        return None
    if name == "smooth":
        return _sigma(number or str(SIGMA), part)
    match = re.fullmatch(r"\s*(\d+(?:x\d+)*)\s*", part)
    counts = tuple(int(n) for n in match.group(1).split("x")) if match else ()
    counts = counts * len(own) if len(counts) == 1 else counts
    if len(counts) != len(own) or min(counts) < 2:
        raise InputError(
            f"The basis {basis!r} cannot be used.",
            where=f"The filter has the cells {'x'.join(map(str, spatial))}.",
            how='Give "smooth", nodes along each axis, from 2, as 7 or "7x7", "4>7>full" for coarse to fine, or '
            '"4+smooth" for the average of two.',
        )
    return (*spatial[:frames], *(min(n, s) for n, s in zip(counts, own, strict=True)))


def averaged(filters: Sequence[Tensor], rho: Tensor, *, frames: bool, constraint: str) -> Tensor:
    """One filter (N, *spatial) of several of the same size: what they agree on.

    The geometric mean, to each of which 5% of the uniform value is added so that one alone cannot veto a cell; of
    filters with signs the arithmetic mean.
    """
    if len(filters) == 1:
        return filters[0]
    stacked = torch.stack(list(filters))
    if constraint == "l2":
        mean = stacked.mean(0)
    else:
        floor = _FLOOR * column(rho.to(stacked), stacked.ndim - 1)
        mean = torch.exp(torch.log(stacked.clamp_min(0) + floor).mean(0))
    return sized(mean, rho, frames=frames, total=constraint == "softmax")


def _sigma(text: str, part: str) -> float:
    try:
        sigma = float(text)
    except ValueError:
        sigma = math.nan
    if not 0 < sigma <= 1:
        raise InputError(f"The basis {part!r} cannot be used.", how='Give a part of the side: "smooth:0.1".')
    return sigma


def _blurred(size: int, sigma: float) -> Tensor:
    """(size, size): a Gaussian about each cell, the same in all; its weights add up to 1 in the middle cell."""
    cells = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-((cells[:, None] - cells) / (sigma * size)).square() / 2)
    return weights / weights.sum(1).max()


def _convolved(w: Tensor, sigma: float) -> Tensor:
    """`_blurred` along the last axis, by Fourier transforms; roundings below 0 are cut off where `w` has none."""
    size = w.shape[-1]
    kernel = torch.exp(-(torch.arange(1 - size, size, dtype=torch.float64) / (sigma * size)).square() / 2).to(w.device)
    whole = 3 * size
    rows = torch.stack([torch.ones_like(kernel[:size]), *w.double().reshape(-1, size)])
    spread = torch.fft.irfft(torch.fft.rfft(rows, whole) * torch.fft.rfft(kernel, whole), whole)[
        :, size - 1 : -size - 1
    ]
    found: Tensor = (spread[1:] / spread[:1].max()).reshape(w.shape).to(w)
    return found.clamp_min(0) if not bool((w < 0).any()) else found


def _stretched(count: int, size: int) -> Tensor:
    """(size, count): linear interpolation of `count` nodes to `size` cells, half-pixel centres."""
    return functional.interpolate(torch.eye(count, dtype=torch.float64)[None], size=size, mode="linear")[0].T
