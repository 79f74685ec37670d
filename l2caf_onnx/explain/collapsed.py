"""A tail that is affine in the filter, as a matrix: z = z0 + J f, made once for a batch and asked ever after.

The graph says that the tail is affine; one numeric check confirms it before anything is built on it. J is made by the
cheapest way: a backward pass for each output, a batched forward over the cells, and, where the cells are merely pooled,
a forward over the cells of what follows the pool alone. A question that needs one row of J takes one backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.errors import L2cafError

from .filtered import Filtered, Outputs, as_tensor
from .rest import pool_of
from .threads import one_thread

Vectors = NDArray[np.float64]

LARGEST = 2**30  # bytes of a Jacobian
CELLS = 4096  # beyond, no matrix of cells x cells is made
_AFFINE = 1e-4  # of the largest output: what a combination of filters may differ from that of their outputs
_CHUNK = 2**28  # bytes of activations that are run at once
_BACKWARD = 3  # forwards that a backward pass costs


class Collapsed:
    """z = z0 + J f of one batch.

    Attributes:
        filtered: The tail.
        lean: Whether a question about few outputs is answered on the host without torch, each of whose functions costs
            more than what it computes where there is one sample.
    """

    def __init__(self, filtered: Filtered, arrived: Mapping[str, NDArray[Any]] | None = None) -> None:
        self.filtered, self.onnx, self._arrived = filtered, filtered.onnx, arrived
        self.samples, self.cells = self.onnx.samples, self.onnx.cells
        self._rest, self._pooled = pool_of(filtered)
        self.shapes: dict[str, tuple[int, ...]] = dict(self._rest.shapes) if self._rest is not None else {}
        self.lean = self._rest is not None and self.samples == 1 and filtered.device.type == "cpu"

    @cached_property
    def origin(self) -> Tensor:
        """z0: (N, M)."""
        if self._rest is not None:
            return self._rest.bias[None].expand(self.samples, -1)
        with one_thread(), torch.no_grad():
            return self.row_of(self.filtered(self._zeros()))

    @cached_property
    def zero(self) -> NDArray[np.float32]:
        """z0 on the host: (N, M)."""
        if self._rest is not None:
            return np.repeat(self._rest.offsets[None], self.samples, axis=0)
        found: NDArray[np.float32] = self.origin.cpu().numpy()
        return found

    @cached_property
    def _share(self) -> Tensor:
        """Where the cells are pooled, the activations: (N, C, cells)."""
        pooled = self._pooled
        return (pooled if isinstance(pooled, Tensor) else as_tensor(pooled)).to(self.filtered.device)

    @property
    def size(self) -> int:
        """M, outputs of a sample."""
        return self._rest.offsets.size if self._rest is not None else self.origin.shape[1]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of each output, how many numbers a sample has."""
        return tuple(math.prod(s) for s in self.shapes.values())

    @property
    def passes(self) -> int:
        """How many runs of the tail, for each sample, make J."""
        return self.size if self._rest is None and _BACKWARD * self.size < self.cells else self.cells

    @property
    def fits(self) -> bool:
        """Whether J may be made."""
        return self.samples * self.size * self.cells * 4 <= LARGEST

    @cached_property
    def jacobian(self) -> Tensor:
        """J: (N, M, cells) float32."""
        if self._rest is not None:
            return self._rest.times(self._share)
        return self._by_rows() if self.passes == self.size else self._by_columns()

    @property
    def pooled(self) -> bool:
        """Whether the cells are merely pooled, so that no question runs the tail."""
        return self._rest is not None

    @property
    def made(self) -> bool:
        """Whether J is there already."""
        return "jacobian" in self.__dict__

    @cached_property
    def normal(self) -> Outputs:
        """What the filter 1 gives."""
        with torch.no_grad():
            return self.outputs(torch.ones(self.onnx.shape, device=self.origin.device))

    @property
    def classes(self) -> int | None:
        """K, where there is one output and it holds a score for each of K classes."""
        shapes = list(self.shapes.values())
        return self.size if len(shapes) == 1 and sum(s != 1 for s in shapes[0]) <= 1 and shapes[0] else None

    @cached_property
    def scores(self) -> NDArray[np.floating[Any]]:
        """(N, K) what the filter 1 gives, where there are `classes`."""
        batch_first = all(self.onnx.stop.batch[name] == 0 for name in self.shapes)
        unfiltered = self._arrived if self._arrived is not None and batch_first else None
        (found,) = (unfiltered or self.at(np.ones(self.onnx.shape, np.float32))).values()
        return found.reshape(self.samples, -1)

    def combined(self, places: NDArray[np.int64], weights: NDArray[np.float32]) -> Vectors:
        """J' w: (N, cells), where w has for each sample the weights (N, k) at the places (N, k) and is 0 elsewhere."""
        if self.lean and not self.made:
            assert self._rest is not None
            row = np.einsum("k,kc->c", weights[0], self._rest.rows[places[0]])
            found: Vectors = self._rest.unit * np.einsum("ck,c->k", self._pooled[0], row).astype(np.float64)[None]
            return found
        with torch.no_grad():
            return host(self._combined(*(torch.from_numpy(v).to(self.filtered.device) for v in (places, weights))))

    def _combined(self, places: Tensor, weights: Tensor) -> Tensor:
        if self.made:
            return torch.stack([w @ j[p] for w, j, p in zip(weights, self.jacobian, places, strict=True)])
        if self._rest is None:
            dense = torch.zeros(self.samples, self.size, device=self.origin.device)
            return self.gradient(dense.scatter_add_(1, places, weights))
        rows = torch.einsum("nkc,nk->nc", self._rest.matrix[places], self._rest.unit * weights)
        return torch.bmm(rows[:, None], self._share)[:, 0]

    def at(self, f: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """z0 + J f under the names of S2, batch first, for filters (N, *spatial); on the host."""
        if self.lean:
            assert self._rest is not None
            mean = np.einsum("ck,k->c", self._pooled[0], np.float32(self._rest.unit) * f.reshape(-1))
            z = self._rest.offsets + np.einsum("mc,c->m", self._rest.rows, mean)
            parts = np.split(z, np.cumsum(self.sizes)[:-1]) if len(self.sizes) > 1 else [z]
            return {n: p.reshape(1, *s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        with one_thread(), torch.no_grad():
            found = self.outputs(torch.from_numpy(f).to(self.filtered.device))
            return {name: v.cpu().numpy() for name, v in found.items()}

    def gradient(self, weights: Tensor) -> Tensor:
        """J' w: (N, cells), for weights (N, M) of the outputs."""
        if self.made:
            return torch.einsum("nmc,nm->nc", self.jacobian, weights)
        if self._rest is not None:
            return torch.einsum("nck,nc->nk", self._share, weights @ self._rest.matrix) * self._rest.unit
        with torch.enable_grad():
            leaf = self._zeros().requires_grad_(True)
            z = self.row_of(self.filtered(leaf))
            (gradient,) = torch.autograd.grad((z * weights).sum(), leaf)
        return gradient.reshape(self.samples, -1)

    def move(self, f: Tensor, samples: Tensor | None = None) -> Tensor:
        """J f: (k, M), for filters (k, *spatial) of the samples named (None: all)."""
        flat = f.reshape(len(f), -1)
        if self.made:
            jacobian = self.jacobian if samples is None else self.jacobian.index_select(0, samples.to(f.device))
            return torch.einsum("nmc,nc->nm", jacobian, flat)
        if self._rest is not None:
            share = self._share if samples is None else self._share.index_select(0, samples.to(f.device))
            return torch.einsum("nck,nk->nc", share, self._rest.unit * flat) @ self._rest.matrix.T
        return self.row_of(self.filtered(f, samples)) - self._origin(samples)

    def outputs(self, f: Tensor, samples: Tensor | None = None) -> Outputs:
        """z0 + J f under the names of S2, batch first, differentiable."""
        return self.named(self._origin(samples) + self.move(f, samples))

    def named(self, rows: Tensor) -> Outputs:
        """Rows (k, M) as outputs."""
        if len(self.shapes) == 1:
            ((name, shape),) = self.shapes.items()
            return {name: rows.reshape(len(rows), *shape)}
        parts = torch.split(rows, list(self.sizes), dim=1)
        return {n: p.reshape(len(rows), *s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def is_affine(self) -> bool:
        """The numeric check: the output of a combination of filters is that combination of their outputs.

        Taken of the whole tail, so that it also tells whether what was made of its pool is right.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (self.samples, *self.onnx.spatial)
        f, g = (torch.rand(shape, generator=generator).to(self.filtered.device) for _ in range(2))
        with torch.no_grad():
            whole = self.row_of(self.filtered(1.5 * f - 0.75 * g))
            parts = self.origin + 1.5 * self.move(f) - 0.75 * self.move(g)
        if not bool(torch.isfinite(whole).all()):
            return False
        return bool((whole - parts).abs().max() <= _AFFINE * torch.maximum(whole.abs().max(), parts.abs().max()))

    def _by_rows(self) -> Tensor:
        """A backward pass for each output, all samples at once."""
        with torch.enable_grad():
            leaf = self._zeros().requires_grad_(True)
            z = self.row_of(self.filtered(leaf))
            rows = [
                torch.autograd.grad(z[:, m].sum(), leaf, retain_graph=True)[0].reshape(self.samples, -1)
                for m in range(self.size)
            ]
        return torch.stack(rows, dim=1)

    def _by_columns(self) -> Tensor:
        """A forward for each cell, in batches that bound memory."""
        held = self.onnx.held[self.onnx.stop.at]
        step = max(_CHUNK // (4 * max(held.nbytes // self.samples, 1)), 1)
        found = []
        with torch.no_grad():
            eye = torch.eye(self.cells, device=self.filtered.device).reshape(self.cells, *self.onnx.spatial)
            for n in range(self.samples):
                columns = []
                for k in range(0, self.cells, step):
                    part = eye[k : k + step]
                    numbers = torch.full((len(part),), n)
                    columns.append(self.row_of(self.filtered(part, numbers)) - self.origin[n])
                found.append(torch.cat(columns).T)
        return torch.stack(found)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.samples, *self.onnx.spatial, device=self.filtered.device)

    def _origin(self, samples: Tensor | None) -> Tensor:
        return self.origin if samples is None else self.origin.index_select(0, samples.to(self.origin.device))

    def row_of(self, outputs: Outputs) -> Tensor:
        """Outputs, batch first, in a row."""
        if not self.shapes:
            self.shapes = {n: tuple(v.shape[1:]) for n, v in outputs.items()}
        rows = [v.reshape(len(v), -1).float() for v in outputs.values()]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def collapsed(filtered: Filtered, arrived: Mapping[str, NDArray[Any]] | None = None) -> Collapsed | None:
    """The tail as a matrix; None where it is not affine, by the graph or by the numeric check.

    `arrived` is what is known to be at S2, unfiltered.
    """
    stop = filtered.stop
    if stop.obstacle is not None or stop.integers or filtered.tail.narrow is not None:
        return None
    if any(o.dtype != "float32" for o in stop.opened.outputs):
        return None
    samples = filtered.onnx.samples
    try:
        found = Collapsed(filtered, arrived)
        rows = found.pooled or found.origin.shape[0] == samples
        rows = rows and all(len(s) < 8 for s in found.shapes.values())
        verdict: list[bool | None] = stop.opened.cache.get("affine", lambda: [None])
        if verdict[0] is None:
            verdict[0] = rows and found.is_affine()
    except (L2cafError, RuntimeError, IndexError):
        return None  # outputs that are not one row a sample
    return found if verdict[0] and rows else None


def host(values: Tensor) -> Vectors:
    """In double precision, as the exact solver takes them."""
    found: Vectors = values.double().cpu().numpy()
    return found
