"""What L-BFGS remembers: steps, and the changes of the gradient that they made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

_CURVED = 1e-8
"""A pair whose s'y is below this part of |s| |y| has no positive curvature to speak of."""


class History:
    """The last `memory` pairs (s, y), oldest first, tangent where the search stands: rows of (m, cells).

    The inverse Hessian H that they stand for is formed in its compact form (Byrd, Nocedal & Schnabel, Mathematical
    Programming 63, 1994, equation 3.1), which is the two-loop recursion (Nocedal & Wright, "Numerical Optimization",
    2nd edition, algorithm 7.4) in a few products of small matrices.
    """

    def __init__(self, memory: int, cells: int) -> None:
        self.memory = memory
        self._none = np.empty((0, cells))
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self.s = self.y = self._none
        self.scale = 1.0

    def __len__(self) -> int:
        return len(self.s)

    def remember(self, s: Vector, y: Vector) -> None:
        """Add a pair, forget the oldest and all without positive curvature: they would make H indefinite."""
        both = np.vstack([self.s, s])[-self.memory :], np.vstack([self.y, y])[-self.memory :]
        self.s, self.y, sy = _curved(*both)
        if len(self):
            self.scale = float(sy[-1] / (self.y[-1] @ self.y[-1]))

    def direction(self, gradient: Vector, free: Mask | None = None, metric: Vector | float = 1.0) -> Vector:
        """-H g over the `free` cells (None: all), 0 in the others; -D g where that does not fall, and all is forgotten.

        H starts from D s'y / y'Dy of the last pair (Nocedal & Wright, equation 7.20), D the diagonal `metric`.
        """
        g = gradient if free is None else np.where(free, gradient, 0.0)
        s, y = (self.s, self.y) if free is None else _curved(self.s * free, self.y * free)[:2]
        if not len(s):
            return -self.scale * metric * g
        products = s @ y.T
        first = metric * float(products[-1, -1] / (y[-1] @ (metric * y[-1])))
        upper = np.triu(products)
        p = np.linalg.solve(upper, s @ g)
        back = first * (y.T @ p - g)
        d: Vector = back - s.T @ np.linalg.solve(upper.T, np.diag(products) * p + y @ back)
        if float(d @ g) < -1e-8 * float(np.linalg.norm(d) * np.linalg.norm(g)):
            return d
        if np.any(g):
            self.clear()
        return -metric * g


def _curved(s: Vector, y: Vector) -> tuple[Vector, Vector, Vector]:
    """The pairs of positive curvature, and their s'y."""
    sy = np.einsum("mc,mc->m", s, y)
    kept = sy > _CURVED * np.sqrt(np.einsum("mc,mc->m", s, s) * np.einsum("mc,mc->m", y, y))
    return (s, y, sy) if kept.all() else (s[kept], y[kept], sy[kept])
