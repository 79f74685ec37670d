"""RISE: the score's mean over random masks that leave a cell visible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from l2caf_onnx.filters import crops

from .case import Case, constant, finished, questions, scores


def rise(case: Case, *, masks: int = 500, p: float = 0.5, grid: int = 7) -> Tensor:
    """sum_i (S(A M_i) - mean S) M_i / (p masks) (Petsiuk et al. 2018, equation 6), the masks applied at S1.

    Taking away the mean score lowers the map by a constant, in expectation, which min-max scaling removes anyway. But
    it makes the map the same whatever is added to the score: else chance in how often a cell was visible would count
    as much as the score's size, which of a logit is arbitrary (the paper has probabilities).

    Args:
        case: What is asked. The masks hang on its seed alone and are the same for each sample.
        masks: How many. The paper has 4000 to 8000 on a picture of 224 x 224, S1 has fewer cells.
        p: How probable it is that a cell of the coarse grid is visible.
        grid: Cells of the coarse grid along an axis, as in the paper; where S1 has fewer than two cells for each, half
            of its cells.
    """
    activation, spatial = case.activation, case.spatial
    drawn = Masks(spatial, masks, p, grid, seed=case.seed)
    found = [
        scores(case, activation[samples.to(activation.device)] * drawn.of(numbers)[:, None].to(activation), samples)
        for samples, numbers in questions(case, masks)
    ]
    by_mask = torch.cat(found).reshape(case.samples, masks)
    gains = torch.where(constant(by_mask)[:, None], 0, by_mask - by_mask.mean(1, keepdim=True))
    maps = torch.zeros(case.samples, math.prod(spatial), dtype=torch.float64)
    for numbers in torch.arange(masks).tensor_split(math.ceil(masks / case.batch)):
        maps += gains[:, numbers] @ drawn.of(numbers).flatten(1).double()
    return finished((maps / (p * masks)).reshape(case.samples, *spatial).to(activation.device, torch.float32))


class Masks:
    """Random masks over S1: coarse grids of zeros and ones, enlarged linearly to more than S1, cropped at random.

    The crop makes the cells of the grid fall on other cells of S1 in each mask (section 3.2 of the paper).
    """

    def __init__(self, spatial: Sequence[int], count: int, p: float, grid: int, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = [min(grid, math.ceil(size / 2)) for size in spatial]
        self.grids = (torch.rand(count, *coarse, generator=generator) < p).float()
        self.crops = [crops(size, few) for size, few in zip(spatial, coarse, strict=True)]
        self.shifts = [torch.randint(len(places), (count,), generator=generator) for places in self.crops]

    def of(self, numbers: Tensor) -> Tensor:
        """The masks of those numbers (k,): (k, *spatial), on the CPU."""
        masks = self.grids[numbers]
        for places, shifts in zip(self.crops, self.shifts, strict=True):
            # linear along an axis at a time is multilinear
            masks = torch.einsum("ka...,kab->k...b", masks, places[shifts[numbers]])
        return masks
