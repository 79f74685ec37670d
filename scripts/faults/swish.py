"""A small classifier of digits with Swish, which none of the committed models has: trained when first asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.toys import nets, scenes, scores
from scripts.toys.exporting import exported
from scripts.toys.training import Plan, present, train

SEED, HELD_OUT_SEED = 0, 1
WIDTHS = (16, 24, 32, 48, 64)
STRIDES = (2, 1, 2, 1, 2)


class Smooth(nets.Seeing):
    """Five convolutions, each with a batch norm and Swish: (N, 1, 64, 64) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for inside, outside, stride in zip((1, *WIDTHS), WIDTHS, STRIDES, strict=False):
            conv = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
            steps += [conv, nn.BatchNorm2d(outside), nn.SiLU()]
        self.features = nn.Sequential(*steps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(WIDTHS[-1], nets.CLASSES)

    def see(self, given: Tensor) -> Tensor:
        return self.features(given)  # type: ignore[no-any-return]

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.pool(seen).flatten(1)),)


PLAN = Plan(
    make=Smooth, draw=partial(scenes.training, "cnn"), held_out=partial(scenes.held_out, "cnn"), loss=present,
    score=scores.classes_right, outputs=("logits",), steps=600, calm=0,
)  # fmt: skip


def make(path: Path) -> None:
    """Train it, in some minutes, and write its `.onnx`."""
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = exported(PLAN, train(PLAN, SEED), HELD_OUT_SEED)
    path.write_bytes(data)
