"""The sets that filters live on.

A filter is one number per spatial cell of S1, shared by all channels, one filter per sample: a tensor (N, *spatial).
The constraint ||f|| = r makes it choose (Taha et al., "A Generic Visualization Approach for Convolutional Neural
Networks", ECCV 2020, arXiv 2007.09748, section 3): without it f = 1 changes nothing and is the trivial answer. The
names of the sphere's operations are those of Absil, Mahony & Sepulchre, "Optimization Algorithms on Matrix Manifolds"
(Princeton, 2008), examples 3.5.1, 4.1.1 and section 3.6.1.
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from l2caf_onnx.errors import InputError


def norm_of(rho: float, cells: int) -> float:
    """The norm r = rho * sqrt(cells), so that rho = 1 is the norm of the filter that is 1 in each of its `cells`."""
    return rho * math.sqrt(cells)


def parse_radius(radius: float | str, cells: int) -> float:
    """Rho from what a user writes: a positive number, or "unit" for the paper's norm 1 (rho = 1 / sqrt(cells)).

    Raises:
        InputError: neither of them.
    """
    if radius == "unit":
        return 1 / math.sqrt(cells)
    try:
        if isinstance(radius, bool) or not isinstance(radius, (str, numbers.Real)):
            raise ValueError
        rho = float(radius)
    except (ValueError, OverflowError):
        rho = math.nan
    if not (math.isfinite(rho) and rho > 0):
        raise InputError(
            f"The radius {radius!r} cannot be used.",
            how='Give a positive number, the norm of the filter divided by sqrt(cells), or "unit" for norm 1.',
        )
    return rho


class ConstraintSet(Protocol):
    """A set of filters, one for each sample of a batch (N, *spatial), whose size a radius r gives."""

    @property
    def name(self) -> str:
        """As `attend(constraint=...)` takes it."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the points that it makes."""
        ...

    @property
    def device(self) -> torch.device | str:
        """Where it makes them."""
        ...

    def radii(self, samples: int) -> Tensor:
        """R of each sample, (samples,)."""
        ...

    def take(self, samples: Tensor) -> ConstraintSet:
        """The same for the `samples` (k,) int64 of the batch."""
        ...

    def retract(self, w: Tensor) -> Tensor:
        """The point of the set that belongs to any `w` (N, *spatial) but 0, differentiable by w."""
        ...

    def uniform_point(self, shape: tuple[int, ...]) -> Tensor:
        """The filter of shape (N, *spatial) with one positive value in all cells, that has no preference."""
        ...

    def random_point(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A point of the set drawn at random, the same but for its radius for each sample of `shape`."""
        ...

    def normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws from N(0, 1), the same for each sample of `shape`: a sample's answer must not hang on its batch."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Scaled:
    """What the constraint sets share: a radius, and points made from draws by `retract`.

    Attributes:
        radius: r (not rho), one for all samples or a tensor (N,).
        dtype: Of the points that it makes.
        device: Where it makes them.
    """

    radius: float | Tensor
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Raises InputError: a radius that is not a positive finite number, or neither a number nor a vector."""
        if isinstance(self.radius, float) and 0 < self.radius < math.inf:
            return
        radius = torch.as_tensor(self.radius)
        if radius.ndim > 1 or not bool((torch.isfinite(radius) & (radius > 0)).all()):
            raise InputError(f"The norm {self.radius!r} cannot be that of a filter.", how="Give positive finite norms.")

    def radii(self, samples: int) -> Tensor:
        """R of each sample, (samples,)."""
        return torch.as_tensor(self.radius, dtype=self.dtype, device=self.device).expand(samples)

    def take(self, samples: Tensor) -> Self:
        """The same for the `samples` (k,) int64 of the batch."""
        radius = torch.as_tensor(self.radius)
        return self if radius.ndim == 0 or len(radius) == 1 else replace(self, radius=radius[samples.to(radius.device)])

    @abstractmethod
    def retract(self, w: Tensor) -> Tensor:
        """See `ConstraintSet.retract`."""

    def uniform_point(self, shape: tuple[int, ...]) -> Tensor:
        """The filter of shape (N, *spatial) with one positive value in all cells, that has no preference."""
        return self.retract(torch.ones(shape, dtype=self.dtype, device=self.device))

    def random_point(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The point of a draw from N(0, 1), the *same* for each sample of `shape` (N, *spatial) but for its radius."""
        return self.retract(self.normal(shape, generator))

    def normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws from N(0, 1), the same for each sample of `shape`: a sample's answer must not hang on its batch."""
        draw = torch.randn(shape[1:], generator=generator, dtype=self.dtype, device=generator.device)
        return draw.to(self.device).expand(shape).clone()


@dataclass(frozen=True, slots=True, eq=False)
class Sphere(_Scaled):
    """The constraint set "l2": {f : ||f|| = r}. Its random points are spread uniformly over it."""

    name = "l2"

    def retract(self, w: Tensor) -> Tensor:
        """The point r w / ||w|| for each sample of `w` (N, *spatial), differentiable; zero, that has none, stays so."""
        norm = lengths(w).clamp_min(torch.finfo(w.dtype).tiny)
        return w * (column(self.radii(len(w)).to(w), w.ndim) / norm)

    def project_tangent(self, f: Tensor, g: Tensor) -> Tensor:
        """The part of `g` tangent to the sphere at `f`: g - f <f, g> / <f, f>; both (N, *spatial)."""
        f_, g_ = f.double(), g.double()  # the difference cancels where g is nearly radial
        axes = tuple(range(1, f.ndim))
        inner = (f_ * g_).sum(axes, keepdim=True) / (f_ * f_).sum(axes, keepdim=True)
        return (g_ - f_ * inner).to(g.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class NonnegSphere(_Scaled):
    """The constraint set "l2-nonneg": {f : f >= 0, ||f|| = r}, the part of the sphere that inverts no cell.

    A minimum obeys the conditions of Karush, Kuhn and Tucker (Nocedal & Wright, "Numerical Optimization", 2nd edition,
    theorem 12.1): with t = g - f <f, g> / r^2, t = 0 where f > 0 and t >= 0 where f = 0.
    """

    name = "l2-nonneg"

    def retract(self, w: Tensor) -> Tensor:
        """The point r |w| / ||w||, differentiable but where a cell is 0; zero, that has none, stays so.

        Folded, not cut off at 0: a cell that max(w, 0) has set to 0 gets no gradient that could bring it back.
        """
        norm = lengths(w).clamp_min(torch.finfo(w.dtype).tiny)
        return w.abs() * (column(self.radii(len(w)).to(w), w.ndim) / norm)


@dataclass(frozen=True, slots=True, eq=False)
class Simplex(_Scaled):
    """The constraint set "softmax": {f : f > 0, sum f = s}, as f = s softmax(w) over all cells, s = r sqrt(cells).

    The uniform filter then has norm r as on the sphere, and at rho = 1 it is the filter of ones. The softmax that Taha
    et al. compare with has total 1, which is r = 1 / sqrt(cells), rho = 1 / cells; r = 1 ("unit") has total
    sqrt(cells). The set is open: an infimum at a single cell is approached as w grows, and not attained.
    """

    name = "softmax"

    def retract(self, w: Tensor) -> Tensor:
        """The point s softmax(w) for each sample of `w` (N, *spatial), differentiable."""
        totals = self.radii(len(w)).to(w) * math.sqrt(math.prod(w.shape[1:]))
        return column(totals, w.ndim) * torch.softmax(w.flatten(1), dim=1).reshape(w.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Free(_Scaled):
    """No constraint: coordinates that something else turns into a filter. Its radius says nothing."""

    name = "free"

    def retract(self, w: Tensor) -> Tensor:
        """`w` itself."""
        return w


_SETS: dict[str, type[Sphere | NonnegSphere | Simplex | Free]] = {
    kind.name: kind for kind in (Sphere, NonnegSphere, Simplex, Free)
}

SETS: tuple[str, ...] = ("l2", "l2-nonneg", "softmax")
"""The names of the sets of filters."""

CONSTRAINTS: tuple[str, ...] = (*SETS, "gaussian")
"""What a user may ask for; the last is made of few coordinates (see lifts.py)."""


def constraint_set(
    name: str, norm: float | Tensor, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ConstraintSet:
    """The constraint set of that name, of which the uniform filter has the `norm` (not rho), one or (N,).

    Raises:
        InputError: there is none of that name, or the norm is not positive and finite.
    """
    if name not in _SETS:
        raise InputError(f"There is no constraint {name!r}.", how=f"Choose one of {', '.join(_SETS)}.")
    return _SETS[name](norm, dtype=dtype, device=device)


def lengths(w: Tensor) -> Tensor:
    """The norm of each sample of `w` (N, *spatial), as (N, 1, ..., 1)."""
    return column(torch.linalg.vector_norm(w.flatten(1), dim=1), w.ndim)


def column(values: Tensor, rank: int) -> Tensor:
    """(N,) as (N, 1, ..., 1) of `rank` axes."""
    return values.reshape(-1, *[1] * (rank - 1))
