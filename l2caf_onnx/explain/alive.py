"""What shows by itself that a tail is not dead: outputs that moved by more than parity leaves open.

Within parity's tolerance onnxruntime's outputs moved too, so that it need not be asked (`Scene.dead` asks it).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from l2caf_onnx.agreement import RTOL

from .collapsed import Collapsed
from .filtered import Outputs
from .opened import Arrays

CLEARLY = 10 * RTOL["float32"]  # of the largest output


@dataclass(slots=True)
class Seen:
    """What the tail gave while a solver searched.

    Attributes:
        first: The outputs at the first filters.
        best: The filter of the lowest loss so far, its outputs and its loss, where there is one sample.
    """

    first: Outputs = field(default_factory=dict)
    best: tuple[Tensor, Outputs, float] | None = None

    def note(self, f: Tensor, outputs: Outputs, losses: Tensor) -> None:
        """An evaluation of all samples."""
        given = {name: v.detach() for name, v in outputs.items()}
        self.first = self.first or given
        if len(f) == 1 and (self.best is None or float(losses) < self.best[2]):
            self.best = f.detach().clone(), given, float(losses)

    def at(self, f: Tensor) -> Outputs | None:
        """The outputs at `f`, if it is the best."""
        return self.best[1] if self.best is not None and torch.equal(self.best[0], f.to(self.best[0])) else None


def clearly_apart(a: Outputs, b: Outputs, normal: Outputs, samples: int) -> bool:
    """Whether, for each sample, two filters of a size give what differs by more than parity leaves open.

    Then the tail is not dead: within parity's tolerance, onnxruntime's outputs moved too.
    """
    apart: list[Tensor] = []
    for name, x in a.items():
        y = b[name]
        if x.dtype != torch.float32 or x.shape != y.shape or not x.numel() or x.shape[:1] != (samples,):
            continue
        rows, others = x.reshape(samples, -1), y.reshape(samples, -1)
        scale = torch.maximum(torch.maximum(rows.abs(), others.abs()).amax(1), normal[name].abs().max().to(rows.dtype))
        apart.append((rows - others).abs().amax(1) > CLEARLY * scale)
    return bool(apart) and bool(torch.stack(apart).any(0).all())


def moved_from_zero(tail: Collapsed, outputs: Arrays) -> bool:
    """Whether the outputs of an affine tail are clearly others than those of the filter 0, for each sample.

    Then they are others at f and at -f, f and other filters: it is not dead.
    """
    moved = np.zeros(tail.samples, bool)
    start = 0
    for size, found in zip(tail.sizes, outputs.values(), strict=True):
        new, old = found.reshape(tail.samples, size), tail.zero[:, start : start + size]
        start += size
        most = CLEARLY * np.maximum(np.abs(new).max(axis=1), np.abs(old).max())
        moved |= np.abs(new - old).max(axis=1) > most
    return bool(moved.all())
