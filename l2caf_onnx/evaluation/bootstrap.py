"""How sure a mean is: percentile intervals of the bootstrap (Efron & Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13), resampling photos, because two scores of one photo are not two independent findings.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


def interval(
    values: Sequence[float] | NDArray[np.floating],
    groups: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean, lower and upper end of the interval of `values`, whose `groups` are drawn again with replacement.

    Args:
        values: (N,) finite numbers.
        groups: N names, such as the photos behind the values.
        resamples: How often they are drawn.
        level: What part of the means of the draws lies between the ends.
        seed: Of the draws. Equal groups in equal order are drawn alike, whatever their values.

    Returns:
        (mean, low, high); the ends are NaN where there are fewer than two groups, from which nothing can be told.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        return (np.nan, np.nan, np.nan)
    names = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    which = np.array([names[g] for g in groups])
    if len(names) < 2:
        return (float(numbers.mean()), np.nan, np.nan)
    sums, counts = np.bincount(which, numbers), np.bincount(which)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return (float(numbers.mean()), float(low), float(high))
