"""What the blackbox solver asks of a tail: outputs as rows of numbers, and the objective's loss of such rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.objectives import Objective

from .filtered import Outputs
from .opened import Arrays, Opened

_SKETCHED = 2**16  # numbers of an output from which on differences are taken of a sketch of it
_SKETCH = 2**13  # numbers of the sketch


class Rows:
    """One objective on one batch, in numbers.

    Attributes:
        onnx: The filtered tail.
        objective: What is minimised.
        target: (N,) classes, or None.
    """

    def __init__(self, onnx: Opened, objective: Objective, target: Tensor | None, against: Outputs | None) -> None:
        self.onnx, self.objective, self.target = onnx, objective, target
        whole = onnx.normal()
        self.normal = torch.from_numpy(
            self._rows(whole if against is None else {k: v.cpu().numpy() for k, v in against.items()})
        )
        self.names, self.widths, self.shapes = [], [], []
        for name, value in whole.items():
            if value.dtype.kind == "f" and value.size:
                width = value.size // onnx.samples
                self.names.append(name)
                self.widths.append(_SKETCH if self._sketches(width) else width)
                shape = onnx.by_sample({name: torch.from_numpy(value)})[name].shape
                own = tuple(shape[1:]) if shape and shape[0] == onnx.samples else tuple(shape)
                self.shapes.append((_SKETCH,) if self._sketches(width) else own)

    def respond(self, filters: Tensor) -> Tensor:
        """Filters (K, N, *spatial) -> outputs (K, N, M), all floating outputs in a row, large ones sketched."""
        runs = self.onnx.many(filters.float().cpu().numpy())
        return torch.from_numpy(np.stack([self._rows(run) for run in runs]))

    def loss(self, rows: Tensor, sample: int) -> Tensor:
        """Rows (k, M) of a sample, as `respond` makes them -> losses (k,), differentiable."""
        usual = self.normal[sample].expand(len(rows), -1)
        filtered, unfiltered = (
            {
                name: part.reshape(len(r), *shape)
                for name, part, shape in zip(self.names, torch.split(r, self.widths, 1), self.shapes, strict=True)
            }
            for r in (rows, usual)
        )
        wanted = self.target[sample].cpu().expand(len(rows)) if self.target is not None else None
        return self.objective.losses(filtered, unfiltered, samples=len(rows), target=wanted)

    def _rows(self, outputs: Arrays) -> NDArray[np.float64]:
        """(N, M)."""
        rows, samples = [], self.onnx.samples
        for name, value in outputs.items():
            if value.dtype.kind != "f" or not value.size:
                continue
            axis = self.onnx.stop.batch[name]
            inside = axis > 0 and value.ndim > axis and value.shape[axis] == samples
            first = np.moveaxis(value, axis, 0) if inside else value
            flat = first.astype(np.float64).reshape(samples, -1)
            rows.append(_sketched(flat) if self._sketches(flat.shape[1]) else flat)
        return np.concatenate(rows, axis=1)

    def _sketches(self, width: int) -> bool:
        return self.objective.form == "squares" and width > _SKETCHED


def _sketched(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, M) -> (n, _SKETCH), linear, whose mean square is that of the rows but for noise.

    A count sketch: every number is added, with a random sign, to one of the sketch's (Charikar, Chen & Farach-Colton,
    2002); seeded, so that it is always the same.
    """
    width = rows.shape[1]
    rng = np.random.default_rng(width)
    places, signs = rng.integers(0, _SKETCH, width), rng.choice([-1.0, 1.0], width)
    added = np.stack([np.bincount(places, weights=row * signs, minlength=_SKETCH) for row in rows])
    scaled: NDArray[np.float64] = added * np.sqrt(_SKETCH / width)
    return scaled
