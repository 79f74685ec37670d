"""The least-squares loss of an affine tail as a value, in whichever form fits in memory.

The loss ||rows f - difference||^2 = f'Gf - 2q'f + c is all that a solver needs to know of a tail, with the weights of
a mean inside. G (cells, cells) is kept where it is small or there are as many outputs, `rows` alone where there are
fewer, and two functions where neither square would fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from l2caf_onnx.errors import InputError, SolverError

from .secular import EPS, Krylov, Matrix, Operator, Vector, bidiagonalise, length

LARGEST_SIDE = 11_180
"""A square float64 matrix of this side takes 1 GB; none is formed beyond."""


SMALL = 256
"""Up to so many cells G is kept whatever the number of outputs."""


def product(a: Vector | Matrix, b: Matrix) -> Any:
    """A @ b by torch, whose threads the caller governs: those of numpy wait spinning and hold up who computes next."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def spectrum(symmetric: Matrix) -> tuple[Vector, Matrix]:
    """Eigenvalues, ascending, and eigenvectors; by torch, as `product`."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    return values.numpy(), vectors.numpy()


@dataclass(frozen=True, slots=True, eq=False)
class LeastSquares:
    """f'Gf - 2q'f + c over filters f (cells,); built by one of the class methods.

    Attributes:
        q: (cells,) rows' difference.
        c: The loss at f = 0.
        gram: (cells, cells) G, or None where another form is kept.
        rows: (M, cells) sqrt(weights) J, or None where only G or two functions are known.
        difference: (M,) sqrt(weights) times what the outputs should move by, None where only G is known.
        centre: (cells,) a filter of loss 0, where one is known.
        multiply: f (cells,) -> rows f (M,), in the form of two functions.
        transpose: z (M,) -> rows' z (cells,), likewise.
    """

    q: Vector
    c: float
    gram: Matrix | None = None
    rows: Matrix | None = None
    difference: Vector | None = None
    centre: Vector | None = None
    multiply: Operator | None = None
    transpose: Operator | None = None
    _found: dict[str, tuple[Vector, Matrix]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_gram(cls, gram: ArrayLike, q: ArrayLike, c: float) -> LeastSquares:
        """From G (cells, cells), of which the symmetric part is taken, q (cells,) and c.

        G need not be positive semidefinite: what is solved is the quadratic as given, rounding and all.
        """
        g, q = np.asarray(gram, np.float64), np.asarray(q, np.float64)
        if q.ndim != 1 or g.shape != (q.size, q.size) or not q.size:
            raise InputError(f"G {g.shape} and q {q.shape} do not fit.", how="Give (cells, cells) and (cells,).")
        _finite(g, q, np.float64(c))
        return cls(q, float(c), gram=(g + g.T) / 2)

    @classmethod
    def from_jacobian(cls, jacobian: ArrayLike, difference: ArrayLike, weights: ArrayLike) -> LeastSquares:
        """From sum_j weights_j ((J f)_j - difference_j)^2 with J (M, cells), difference and weights >= 0 (M,).

        Whichever side is the smaller is decomposed: G where M >= cells, else J J', which keeps the cost at min(M,
        cells)^3; G too where it is small, for it is kinder to a J that is nearly singular. Where the smaller side
        would pass 1 GB, J is only multiplied by.
        """
        j = np.asarray(jacobian, np.float64)
        d, w = np.asarray(difference, np.float64), np.asarray(weights, np.float64)
        if j.ndim != 2 or not j.size or d.shape != j.shape[:1] or w.shape != d.shape:
            raise InputError(
                f"J {j.shape}, difference {d.shape} and weights {w.shape} do not fit.",
                how="Give (M, cells), (M,) and (M,).",
            )
        if (w < 0).any():
            raise InputError("A weight of the least squares is negative.", how="Give weights >= 0.")
        root = np.sqrt(w)
        rows, target = root[:, None] * j, root * d
        _finite(rows, target)
        q, c = product(target, rows), float(target @ target)
        if min(j.shape) > LARGEST_SIDE:
            return cls(q, c, difference=target, multiply=lambda f: rows @ f, transpose=lambda z: np.asarray(z @ rows))
        gram = product(rows.T, rows) if j.shape[1] <= max(j.shape[0], SMALL) else None
        return cls(q, c, gram=gram, rows=rows, difference=target)

    @classmethod
    def from_change(cls, jacobian: ArrayLike, weights: ArrayLike) -> LeastSquares:
        """From sum_j weights_j (J (f - 1))_j^2, how far f moves outputs from where f = 1 has them: J (M, cells).

        As `from_jacobian` has it for the difference J 1, and where G is small by G alone, without a pass over J more.
        """
        j, w = np.asarray(jacobian), np.asarray(weights, np.float64)
        if j.ndim != 2 or not 0 < j.shape[1] <= SMALL or w.shape != j.shape[:1] or (w < 0).any():
            return cls.from_jacobian(j, j.sum(axis=1, dtype=np.float64), w)
        rows = j.astype(np.float64)
        even = w[0] if w.size and (w == w[0]).all() else None
        if even is None:
            rows *= np.sqrt(w)[:, None]
        gram = product(rows.T, rows) * (1.0 if even is None else even)
        q = gram.sum(1)
        _finite(q)
        return cls(q, float(q.sum()), gram=gram, centre=np.ones(q.size))

    @classmethod
    def matrix_free(
        cls,
        multiply: Callable[[Vector], ArrayLike],
        transpose: Callable[[Vector], ArrayLike],
        difference: ArrayLike,
        cells: int,
    ) -> LeastSquares:
        """From the loss ||multiply(f) - difference||^2, for when both sides of the matrix are large.

        Args:
            multiply: f (cells,) -> sqrt(weights) J f (M,).
            transpose: z (M,) -> J' sqrt(weights) z (cells,), the adjoint of `multiply`.
            difference: (M,) with sqrt(weights) inside, as `multiply` gives.
            cells: How many.
        """
        d = np.asarray(difference, np.float64)
        q = np.asarray(transpose(d), np.float64)
        if d.ndim != 1 or q.shape != (cells,):
            raise InputError(
                f"The transpose of {d.shape} is {q.shape}, not {(cells,)}.", how="Give functions of flat vectors."
            )
        _finite(q, d)
        return cls(
            q,
            float(d @ d),
            difference=d,
            multiply=lambda f: np.asarray(multiply(f), np.float64),
            transpose=lambda z: np.asarray(transpose(z), np.float64),
        )

    @property
    def cells(self) -> int:
        return self.q.size

    def times(self, f: Vector) -> Vector:
        """G f (cells,), or one a row for f (K, cells)."""
        if self.gram is not None:
            return f @ self.gram
        if self.rows is not None:
            return (f @ self.rows.T) @ self.rows
        if f.ndim == 2:
            return np.stack([self.times(row) for row in f])
        assert self.multiply is not None
        assert self.transpose is not None
        return self.transpose(self.multiply(f))

    def loss(self, f: Vector) -> float:
        """The loss at f (cells,); as a sum of squares where the outputs are known, for that does not cancel."""
        if self.centre is not None:
            away = f - self.centre
            return float(away @ self.times(away))
        if self.difference is None:
            return float(f @ self.times(f) - 2 * (self.q @ f)) + self.c
        if self.rows is not None:
            off = np.einsum("ij,j->i", self.rows, f) - self.difference  # see `product`
        else:
            assert self.multiply is not None
            off = self.multiply(f) - self.difference
        return float(off @ off)

    def spectrum(self) -> tuple[Vector, Matrix]:
        """Eigenvalues, ascending, and eigenvectors of G, or of rows rows' where G is not kept; computed once."""
        if "eigh" not in self._found:
            assert self.gram is not None or self.rows is not None
            side = self.gram
            if side is None:
                assert self.rows is not None
                side = product(self.rows, self.rows.T)
            found = spectrum(side)
            self._found["eigh"] = np.asarray(found[0], np.float64), np.asarray(found[1], np.float64)
        return self._found["eigh"]

    def krylov(self, start: Vector, steps: int, enough: Callable[[Matrix, float], bool] | None = None) -> Krylov:
        """The Krylov space of G from `start` (cells,), for the form of two functions."""
        assert self.multiply is not None
        assert self.transpose is not None
        rounding = max(1e-14, 10 * self.noise())
        return bidiagonalise(self.multiply, self.transpose, start, steps=steps, rounding=rounding, enough=enough)

    def noise(self) -> float:
        """How far the products are from linear, relatively: 1e-16 for a matrix, about 1e-7 through float32."""
        if self.multiply is None:
            return EPS
        if "noise" not in self._found:
            v = np.random.default_rng(1).standard_normal(self.cells)
            whole, third = self.multiply(v), self.multiply(v / 3)
            off = length(3 * third - whole) / (length(whole) or 1.0)
            self._found["noise"] = np.array([max(off, EPS)]), np.zeros((0, 0))
        return float(self._found["noise"][0][0])

    def extremes(self) -> tuple[float, float]:
        """A lower bound of G's eigenvalues and the largest one in absolute value (from 30 Krylov steps, if need be).

        The bound is the lowest eigenvalue itself where G is kept or M < cells, and 0 in the form of two functions.
        """
        if self.multiply is not None:
            if "top" not in self._found:
                start = self.q + np.random.default_rng(0).standard_normal(self.cells) * (length(self.q) or 1.0) / 9
                top = float(np.linalg.eigvalsh(self.krylov(start, 30).projected)[-1])
                self._found["top"] = np.array([top]), np.zeros((0, 0))
            return 0.0, float(self._found["top"][0][0])
        values, _ = self.spectrum()
        if self.gram is None:
            return 0.0, max(float(values[-1]), 0.0)
        return float(values[0]), max(float(values[-1]), -float(values[0]))

    def refuse_constant(self) -> None:
        """Raise a SolverError where the loss is the same for every filter."""
        if not self.q.any() and self.extremes()[1] == 0:
            raise SolverError(
                "Every filter has the same loss: S2 does not depend on S1 here.",
                where="The tail's matrix is zero for this sample.",
                how="Choose another breakpoint, another output or another input.",
            )


def _finite(*arrays: Vector | np.float64) -> None:
    if not all(np.isfinite(a).all() for a in arrays):
        raise SolverError(
            "The least-squares loss has NaN or infinite coefficients.",
            where="They come from the tail's matrix and outputs.",
            how="Look for NaN or inf in the activations or the outputs of this input.",
        )
