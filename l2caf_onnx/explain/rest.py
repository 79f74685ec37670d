"""Where the cells are merely pooled: the matrix of what follows the pool, and the activations that go into it.

Such a tail is z = z0 + W A f / cells, with W the same for all activations (Zhou et al., "Learning Deep Features for
Discriminative Localization", CVPR 2016), and what both torch and onnxruntime read of it lies in memory once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx import runtime
from l2caf_onnx.errors import L2cafError
from l2caf_onnx.graph.cut import extract
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.pooled import Pooled, pooled
from l2caf_onnx.graph.product import PRODUCT, ROWS, product
from l2caf_onnx.tail import to_torch

from .filtered import Filtered

_SAME = 1e-6  # of the largest weight: a stored one differs so much from what it comes out as, less the bias
_LARGEST = 2**28  # bytes of the matrix


@dataclass(frozen=True, slots=True)
class Rest:
    """What follows the pool: z = bias + unit matrix p, with p the sum over the cells; the same for all of a stop.

    Attributes:
        matrix: (M, C).
        bias: (M,).
        unit: 1, or 1 / cells where the pool is a mean.
        rows: The matrix on the host.
        offsets: The bias there.
        shapes: Of the outputs of a sample, by name.
    """

    matrix: Tensor
    bias: Tensor
    unit: float
    shapes: dict[str, tuple[int, ...]]
    rows: NDArray[np.float32]
    offsets: NDArray[np.float32]
    _models: list[Model] = field(default_factory=list)

    def times(self, share: Tensor) -> Tensor:
        """(N, M, cells), matrix times the activations (N, C, cells); on the CPU by onnxruntime, which is quicker."""
        if share.device.type != "cpu":
            return self.unit * (self.matrix @ share)
        if not self._models:
            self._models.append(product((self.unit * self.matrix).numpy()))
        rows = np.ascontiguousarray(share.numpy().transpose(0, 2, 1)).reshape(-1, share.shape[1])
        found = torch.from_numpy(runtime.run(self._models[0], {ROWS: rows}, level="all")[PRODUCT])
        return found.reshape(len(share), share.shape[2], -1).transpose(1, 2)


def pool_of(filtered: Filtered) -> tuple[Rest | None, Any]:
    """What follows the pool, where the cells are merely pooled, and the activations, (N, C, cells), where they are."""
    stop, onnx, places = filtered.stop, filtered.onnx, filtered.stop.axes
    if filtered.reads != (stop.at,) or places.batch is None:
        return None, None
    at = onnx.held[stop.at]
    plan: list[Any] = stop.opened.cache.get(
        ("rest", filtered.device, onnx.cells), lambda: [pooled(stop.opened, stop.axes), None]
    )
    pool, rest = plan
    if pool is None:
        return None, None
    order = (places.batch, *places.channel, *places.spatial)
    moved = at.permute(order) if isinstance(at, Tensor) else at.transpose(order)
    share = moved.reshape(onnx.samples, -1, onnx.cells)
    if rest is None:
        one = [1 if a == places.batch or a in places.spatial else at.shape[a] for a in range(places.rank)]
        shape = tuple(s for a, s in enumerate(one) if pool.keeps or a not in places.spatial)
        rest = plan[1] = _rest(filtered, pool, shape, onnx.cells)
    if rest is None:
        plan[0] = None
        return None, None
    return rest, share


def _rest(filtered: Filtered, pool: Pooled, shape: tuple[int, ...], cells: int) -> Rest | None:
    """The matrix of what follows the pool, made column by column; None where it does not stand alone or is too large.

    `is_affine` checks it with the rest of what is collapsed.
    """
    stop = filtered.stop
    try:
        part = extract(stop.opened, [pool.tensor], stop.own_names)
        channels = int(np.prod(shape))
        tail = to_torch(part, {pool.tensor: np.ones(shape, np.float32)}).to(filtered.device)

        def rows(p: Tensor) -> dict[str, Tensor]:
            outputs = tail({pool.tensor: p.reshape(shape)})
            found = {name: outputs[own] for name, own in zip(stop.cut.to, stop.own_names, strict=True)}
            return filtered.onnx.by_sample(found, 1)

        with torch.no_grad():
            zero = rows(torch.zeros(channels, device=filtered.device))
            bias = torch.cat([v.reshape(-1) for v in zero.values()])
            if bias.dtype != torch.float32 or 4 * bias.numel() * channels > _LARGEST:
                return None
            eye = torch.eye(channels, device=filtered.device)
            columns = [torch.cat([v.reshape(-1) for v in rows(e).values()]) - bias for e in eye]
    except (L2cafError, RuntimeError, ValueError):
        return None
    matrix = _stored(stop.opened, torch.stack(columns, 1))
    shapes = {n: tuple(v.shape[1:]) for n, v in zero.items()}
    host = matrix.cpu().numpy(), bias.cpu().numpy()
    return Rest(matrix, bias, 1 / cells if pool.mean else 1.0, shapes, *host)


def _stored(opened: Model, matrix: Tensor) -> Tensor:
    """`matrix`, in the place where onnxruntime reads it if it is one of the tail's: what one has read the other has at
    hand.
    """
    if matrix.device.type == "cpu":
        close = _SAME * float(matrix.abs().max())
        for array in runtime.shared_weights(opened).values():
            for there in (torch.from_numpy(array), torch.from_numpy(array).T):
                if there.shape == matrix.shape and torch.allclose(there, matrix, rtol=0, atol=close):
                    return there
    return matrix.contiguous()
