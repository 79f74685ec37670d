"""What is kept of a tensor for each input: its values at seeded places, and four statistics of all of it.

A few hundred places tell a relative error almost as well as all do, and let a baseline be small; the same places are
taken of whatever is compared with it, for they hang on the size alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STATISTICS = ("mean", "deviation", "least", "most")


def places(size: int, count: int) -> NDArray[np.intp]:
    """`count` seeded places among `size`, in order; all of them where there are no more."""
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.default_rng([size, count]).choice(size, count, replace=False))


def values_at(rows: NDArray[Any], count: int) -> NDArray[np.float32]:
    """(N, at most `count`): of each row (N, size) the values at the seeded places."""
    return np.ascontiguousarray(rows[:, places(rows.shape[1], count)], np.float32)


def statistics(rows: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 4): mean, standard deviation, least and largest of each row (N, size)."""
    if not rows.shape[1]:
        return np.zeros((len(rows), len(STATISTICS)), np.float32)
    with np.errstate(all="ignore"):
        mean = rows.mean(1, dtype=np.float32)
        square = np.einsum("ij,ij->i", rows, rows, dtype=np.float32) / rows.shape[1]
        spread = np.sqrt(np.maximum(square - mean * mean, 0))
        return np.stack([mean, spread, rows.min(1), rows.max(1)], axis=1).astype(np.float32)
