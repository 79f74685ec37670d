"""Other methods on the same cut: what each draws at S1, from the activation there and the score that the tail gives."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.filters import heatmap
from l2caf_onnx.methods import Case, Method
from l2caf_onnx.objectives import Objective

from .filtered import Filtered, Outputs
from .scene import Scene

_AT_ONCE = 32


def attributed(
    method: Method,
    scene: Scene,
    filtered: Filtered,
    objective: Objective,
    target: Tensor | None,
    reference: Outputs | None,
    seed: int,
) -> NDArray[np.float32]:
    """The method's raw maps (N, *spatial).

    The score is minus the objective's loss; where the objective only asks how far the outputs moved ("outputs",
    "cosine"), which has no slope at f = 1, it is the product of the outputs with the unfiltered model's.
    """
    samples = scene.onnx.samples
    with torch.no_grad():
        normal = reference or filtered(torch.ones(scene.onnx.shape, device=scene.device))
    cells = _Cells(filtered)

    def score(activations: Tensor, numbers: Tensor) -> Tensor:
        ones = torch.ones(len(numbers), *scene.onnx.spatial, device=scene.device)
        outputs = filtered(ones, numbers, cells.placed(activations, numbers))
        own = {k: v.index_select(0, numbers.to(v.device)) for k, v in normal.items()}
        if objective.name in ("outputs", "cosine"):
            products = [(v.flatten(1) * own[k].flatten(1)).sum(1) for k, v in outputs.items() if v.is_floating_point()]
            return torch.stack(products).sum(0)
        classes = target[numbers.to(target.device)] if target is not None else None
        return -objective.losses(outputs, own, samples=len(numbers), target=classes)

    case = Case(activation=cells.taken(), score=score, batch=max(_AT_ONCE, samples), seed=seed)
    found: NDArray[np.float32] = method.function(case).cpu().numpy()
    return found


def drawn(maps: NDArray[np.float32], size: tuple[int, ...]) -> tuple[NDArray[np.float32], list[bool]]:
    """The maps as `heatmap` draws filters, from the lowest value up: a method's own zero is not known."""
    lowest = maps.reshape(len(maps), -1).min(axis=1).reshape(-1, *[1] * (maps.ndim - 1))
    return heatmap(maps - lowest, size, absolute=False)


class _Cells:
    """S1 as (N, C, *spatial), and back."""

    def __init__(self, filtered: Filtered) -> None:
        stop = filtered.stop
        self.places, self.whole = stop.axes, filtered.held[stop.at].float()
        batch = [self.places.batch] if self.places.batch is not None else []
        self.order = [*batch, *self.places.channel, *self.places.spatial]
        self.front = self.whole.permute(self.order) if batch else self.whole.permute(self.order)[None]
        self.channels = tuple(self.front.shape[1 : 1 + len(self.places.channel)])

    def taken(self) -> Tensor:
        """The activation; of tokens the cells of the grid alone, as a grid."""
        flat = self.front.reshape(len(self.front), -1, *self.front.shape[1 + len(self.channels) :])
        grid = self.places.grid
        if grid is None:
            return flat
        inside = flat[:, :, grid.prefix : flat.shape[2] - grid.suffix]
        return inside.reshape(*flat.shape[:2], *grid.sizes)

    def placed(self, activations: Tensor, numbers: Tensor) -> Tensor:
        """(k, C, *spatial) in the layout of S1; tokens around the grid are those of the samples."""
        grid = self.places.grid
        front = activations
        if grid is not None:
            own = self.front[numbers.to(self.front.device)].reshape(len(numbers), activations.shape[1], -1)
            parts = [own[:, :, : grid.prefix], activations.flatten(2), own[:, :, own.shape[2] - grid.suffix :]]
            front = torch.cat(parts, 2)
        front = front.reshape(len(front), *self.channels, *front.shape[2:])
        if self.places.batch is None:
            return front.permute(0, *[1 + a for a in np.argsort(self.order).tolist()])
        return front.permute(np.argsort(self.order).tolist())
