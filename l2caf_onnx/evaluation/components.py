"""Connected components of a mask and the boxes around them, by runs: without an image library, and without a loop over
pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scores import Region


def components(mask: Region) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The boxes (P, 4) as x0, y0, x1, y1 (ends outside) around the 8-connected components of (H, W), and their areas.

    A run is a stretch of a row. Runs of neighbouring rows that touch are linked, and each takes the least number among
    its links until none changes: the numbers of whole chains are jumped over, so that few rounds are needed.
    """
    padded = np.pad(np.asarray(mask, dtype=np.int8), ((0, 0), (1, 1)))
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    if not rows.size:
        return np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
    stride = mask.shape[1] + 2  # keys of one row lie before all of the next
    first = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts, side="left")
    last = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, side="right")
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(rows)), counts)
    below = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    label = np.arange(len(rows))
    while True:
        least = label.copy()
        np.minimum.at(least, label[above], label[below])
        np.minimum.at(least, label[below], label[above])
        while not np.array_equal(least, least[least]):
            least = least[least]
        joined = least[label]
        if np.array_equal(joined, label):
            break
        label = joined
    _, which = np.unique(label, return_inverse=True)
    number = int(which.max()) + 1
    boxes = np.empty((number, 4), np.int64)
    for column, (values, worst, pick) in enumerate(
        [(starts, mask.shape[1], np.minimum), (rows, mask.shape[0], np.minimum), (ends, 0, np.maximum),
         (rows + 1, 0, np.maximum)]
    ):  # fmt: skip
        found = np.full(number, worst)
        pick.at(found, which, values)
        boxes[:, column] = found
    return boxes, np.bincount(which, ends - starts).astype(np.int64)


def overlap(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union (P, Q) of boxes (P, 4) and (Q, 4)."""
    a, b = np.asarray(one, np.float64)[:, None], np.asarray(other, np.float64)[None]
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    common = np.maximum(wide, 0) * np.maximum(high, 0)
    areas = [(v[..., 2] - v[..., 0]) * (v[..., 3] - v[..., 1]) for v in (a, b)]
    found: NDArray[np.float64] = common / (areas[0] + areas[1] - common)
    return found
