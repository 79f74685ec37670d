"""What tells tensors of two models apart: their values at a few seeded places, and how well one explains the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .feeding import Order, reordered
from .probe import Real

PLACES = 2048  # of a fingerprint
MOST = 8.0  # powers of ten of evidence: float32 tells no more
SCALED = 1.0  # that have to be better for a scale to be believed
LEAST_SCALE = 1.25  # or one over it: nearer to 1 it is what values have drifted by
VARIED = 8  # different values that a scale is told by
ORDERS: tuple[Order, ...] = (None, (0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1))
"""Of the candidate's axes, to be the reference's: as they are, NHWC as NCHW, NCHW as NHWC, tokens or time turned."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Tensors of one size, of each its values at the same places.

    Attributes:
        names: Of the tensors, one more than once where it is seen in several orders.
        orders: Of their axes.
        values: (tensors, places), not finite ones as 0.
    """

    names: tuple[str, ...]
    orders: tuple[Order, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much the tensors of one sheet explain those of another, (tensors, tensors).

    Attributes:
        evidence: Minus the power of ten of the share of the energy that is left unexplained, in [0, MOST]: 2 where a
            tenth of the values' size is left, 4 where a hundredth.
        correlation: Of the values, in [-1, 1].
        scale: What the second one's values are multiplied by; 1 where that explains as much or nearly so.
    """

    evidence: NDArray[np.float64]
    correlation: NDArray[np.float64]
    scale: NDArray[np.float64]


def sheets(values: Mapping[str, Real], *, turned: bool) -> dict[int, Sheet]:
    """By size; `turned`: in all orders in which a layout may have been turned."""
    by_size: dict[int, list[tuple[str, Order]]] = {}
    for name, array in values.items():
        by_size.setdefault(array.size, []).extend((name, order) for order in (_orders(array) if turned else (None,)))
    return {
        size: Sheet(
            tuple(n for n, _ in forms),
            tuple(o for _, o in forms),
            np.stack([_sampled(reordered(values[n], o)) for n, o in forms]),
        )
        for size, forms in by_size.items()
    }


def likeness(one: Sheet, other: Sheet) -> Likeness:
    """Of each tensor of `one` and each of `other`, which are of the same size."""
    a, b = one.values, other.values
    with np.errstate(all="ignore"):
        products, own, others = a @ b.T, (a * a).sum(1)[:, None], (b * b).sum(1)[None, :]
        scale = products / others
        left = np.stack([own - 2 * products + others, own - scale * products]) / own
        left = np.where((own == 0) & (others == 0), 0.0, np.where(np.isfinite(left), left, 1.0))
        plain, scaled = -np.log10(np.clip(left, 10**-MOST, 1.0))
        varied = np.array([len(np.unique(row)) >= VARIED for row in a])[:, None]  # any number is a multiple of another
        better = (
            (scaled - SCALED > plain) & varied & ((scale > LEAST_SCALE) | ((scale > 0) & (scale < 1 / LEAST_SCALE)))
        )
        centred = [v - v.mean(1, keepdims=True) for v in (a, b)]
        sizes = [np.linalg.norm(v, axis=1) for v in centred]
        correlation = (centred[0] @ centred[1].T) / np.outer(*sizes)
    correlation = np.where(np.isfinite(correlation), correlation, (plain >= MOST) * 1.0)
    return Likeness(
        np.where(better, scaled - SCALED, plain), np.clip(correlation, -1.0, 1.0), np.where(better, scale, 1.0)
    )


def _orders(values: Real) -> Iterator[Order]:
    """The orders of axes that a tensor may be seen in, each other sequence of its values once."""
    seen = set()
    for order in ORDERS:
        if order is None or (len(order) == values.ndim and prod(values.shape[1:]) > 1):
            wide = tuple(k for k in order or range(values.ndim) if values.shape[k] > 1)
            if wide not in seen:
                seen.add(wide)
                yield order


def _sampled(values: Real) -> NDArray[np.float64]:
    flat = values.reshape(-1)
    if flat.size > PLACES:
        flat = flat[np.random.default_rng(flat.size).integers(0, flat.size, PLACES)]
    return np.nan_to_num(flat.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
