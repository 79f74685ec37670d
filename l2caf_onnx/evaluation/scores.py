"""Scores of one map: how much of it lies in a region that is known to be right, and how alike two maps are.

A map is an array of numbers >= 0 (a heatmap after min-max). A blank map, of zeros alone, prefers nothing: it scores as
a map drawn at random would, by the region's share of the area. Likewise where a score hangs on the order of equal
pixels: it is the mean over all their orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.floating]
Region = NDArray[np.bool_]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels: x0 <= x < x1

EXPONENTS = (1, 2, 4)
"""What a map is raised to before its energy is summed. Sharpening any map raises that score, so that every method is
scored at its own best exponent."""
TOP = (0.05, 0.10, 0.25)


def energy(heatmap: Map, region: Region, exponent: float = 1) -> float:
    """The share of sum(map^exponent) inside `region`: the energy-based pointing game (Wang et al., "Score-CAM", 2020).

    Args:
        heatmap: Of any shape, numbers >= 0.
        region: Of the same shape.
        exponent: See EXPONENTS.
    """
    sharpened = np.asarray(heatmap, dtype=np.float64) ** exponent
    total = float(sharpened.sum())
    return float(sharpened[region].sum()) / total if total > 0 else float(region.mean())


def top_share(heatmap: Map, region: Region, parts: Sequence[float] = TOP) -> float:
    """The share of the hottest pixels that lie in `region`: of the top 5%, 10% and 25%, averaged.

    No increasing transform of the map changes it, as energy is changed by sharpening.
    """
    values, inside = np.asarray(heatmap).ravel(), np.asarray(region).ravel()
    shares = []
    for part in parts:
        count = max(1, round(part * values.size))
        edge = np.partition(values, values.size - count)[values.size - count]
        above, tied = values > edge, values == edge
        chance = float(inside[tied].mean())
        shares.append((float(inside[above].sum()) + (count - int(above.sum())) * chance) / count)
    return float(np.mean(shares))


def hit(heatmap: Map, region: Region) -> float:
    """Whether the maximum is in `region`; of several equal maxima, the share of those that are."""
    values = np.asarray(heatmap)
    return float(np.asarray(region)[values == values.max()].mean())


def hit_box(heatmap: Map, boxes: Sequence[Box], tolerance: float = 0) -> float:
    """The pointing game of Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016).

    Args:
        heatmap: (H, W).
        boxes: Of the class, in pixels of the map.
        tolerance: In pixels: a hit is a maximum whose centre is at most that far from a box (there: 15).

    Returns:
        1.0 or 0.0; of several equal maxima the share of hits.
    """
    values = np.asarray(heatmap)
    rows, columns = np.nonzero(values == values.max())
    x, y = columns + 0.5, rows + 0.5
    good = np.zeros(len(x), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        aside = np.maximum(np.maximum(x0 - x, x - x1), 0)
        above = np.maximum(np.maximum(y0 - y, y - y1), 0)
        good |= np.hypot(aside, above) <= tolerance
    return float(good.mean())


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The ranks (from 0) of all `values`, flattened; equal ones share the mean of theirs."""
    _, which, counts = np.unique(np.asarray(values).ravel(), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: NDArray[np.float64] = (ends - counts + ends - 1) / 2
    return middle[which.ravel()]


def spearman(one: Map, other: Map) -> float:
    """Rank correlation of two maps; 0 where one is constant, which shares no order with anything."""
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def cosine(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays as vectors; 1 between two of zeros, 0 where only one is."""
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (one, other))
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not all(norms):
        return float(norms == (0, 0))
    return float(a / norms[0] @ (b / norms[1]))
