"""Where a solver looks for filters: a constraint, a size for each sample, and what the filters are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .lifts import Basis, Bell, Grid, Lift, Smooth, sized
from .sets import ConstraintSet, constraint_set, norm_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """Filters (N, *spatial) of one constraint.

    Attributes:
        constraint: Its name.
        rho: (N,) the size of each sample's filter: its norm is rho sqrt(cells).
        spatial: Of a filter.
        frames: Whether each index of the first axis is a frame, with a size of its own.
        inner: The set on which a solver moves; its points are filters where there is no lift.
        lift: What makes filters of coordinates; None: the cells themselves.
    """

    constraint: str
    rho: Tensor
    spatial: tuple[int, ...]
    frames: bool
    inner: ConstraintSet
    lift: Lift | None

    @property
    def plain(self) -> bool:
        """Whether the solver's points are the filters."""
        return self.lift is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the solver moves, (N, ...)."""
        return (len(self.rho), *(self.spatial if self.lift is None else self.lift.shape))

    def filters(self, w: Tensor, samples: Tensor | None = None) -> Tensor:
        """Points of the inner set -> filters (k, *spatial), for the samples named (None: all), differentiable."""
        if self.lift is None:
            return w
        rho = self.rho if samples is None else self.rho[samples.to(self.rho.device)]
        return sized(self.lift.values(w), rho, frames=self.frames, total=self.constraint == "softmax")

    def start(self, f: Tensor | None = None) -> Tensor | None:
        """Where the solver starts, at or near the filters `f`; None: where it does by itself."""
        if self.lift is None:
            return f
        if f is None:
            f = torch.ones(len(self.rho), *self.spatial)
        return self.lift.start(f)

    def points(self, seed: int, count: int = 3) -> list[Tensor]:
        """Seeded filters (N, *spatial) of it."""
        generator = torch.Generator().manual_seed(seed)
        return [self.filters(self.inner.random_point(self.shape, generator)) for _ in range(count)]

    def take(self, samples: Tensor) -> Space:
        """The same for the `samples` (k,) int64 of the batch."""
        return replace(self, rho=self.rho[samples.to(self.rho.device)], inner=self.inner.take(samples))


def made_of(basis: Basis, spatial: tuple[int, ...], *, frames: bool = False) -> Smooth | Grid | None:
    """What makes filters of a basis; None: a filter is its own coordinates."""
    if isinstance(basis, float):
        return Smooth(spatial=spatial, sigma=basis, frames=frames)
    if frames or (basis is not None and basis != spatial):
        return Grid(spatial=spatial, nodes=basis or spatial)
    return None


def space(
    constraint: str,
    rho: Tensor,
    spatial: Sequence[int],
    *,
    basis: Basis = None,
    frames: bool = False,
    device: torch.device | str = "cpu",
) -> Space:
    """The space of a constraint.

    Args:
        constraint: Its name.
        rho: (N,).
        spatial: Of a filter.
        basis: What it is made of; None: free in every cell.
        frames: Whether the first axis counts frames, each with its own size.
        device: Where filters are made.

    Raises:
        InputError: a constraint that there is not, or a size that is not positive.
    """
    cells = tuple(spatial)
    lift = Bell(spatial=cells, frames=frames) if constraint == "gaussian" else made_of(basis, cells, frames=frames)
    inner = "free" if constraint == "gaussian" else constraint
    count = int(torch.tensor(cells).prod())
    norm: float | Tensor = 1.0
    if lift is None:
        norms = [norm_of(float(r), count) for r in rho]
        norm = norms[0] if len(set(norms)) == 1 else torch.tensor(norms)
    chosen = constraint_set(inner, norm, device=device)
    return Space(constraint=constraint, rho=rho, spatial=cells, frames=frames, inner=chosen, lift=lift)
