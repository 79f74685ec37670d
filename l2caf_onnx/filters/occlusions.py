"""Random occlusions: filters between 0 and 1 that hide about half of S1, in patches, and are dealt evenly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

NODES = 7
_FEWEST = 3
_SEED = 0  # not the user's: what is hidden is part of the question, and the same for all who ask it


def occlusions(spatial: Sequence[int], count: int, *, frames: bool = False) -> Tensor:
    """(count, *spatial), values in [0, 1]; an even count, the second half of which hides what the first half shows.

    As in RISE (Petsiuk et al., BMVC 2018, arXiv 1806.07421, section 3.2): zeros and ones on a coarse grid of 7 nodes
    along an axis (on a small map of half its cells), enlarged linearly to more than the map and cropped at random, so
    that the patches lie elsewhere in each. But the zeros and ones are not drawn one by one: they are rows of a Hadamard
    matrix, its columns dealt at random to the nodes, with their complements. So each node is hidden in exactly half of
    the occlusions whatever their count, and any two nodes about as often together as apart, which makes a mean over
    them vary less (fold-over designs: Plackett & Burman, Biometrika 33, 1946; Box & Wilson 1951). They are always the
    same, so that a map does not hang on a seed.

    Args:
        spatial: Of the filter.
        count: How many.
        frames: Whether the first axis counts frames, each of which is hidden in patches of its own.
    """
    return _made(tuple(spatial), count, frames)


@lru_cache(maxsize=8)
def _made(spatial: tuple[int, ...], count: int, frames: bool) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    nodes = [s if frames and not axis else _nodes(s) for axis, s in enumerate(spatial)]
    shown = _dealt(count // 2, math.prod(nodes), generator).reshape(-1, *nodes)
    for axis, (size, few) in enumerate(zip(spatial, nodes, strict=True), 1):
        if few == size:
            continue
        places = crops(size, few)
        shifts = torch.randint(len(places), (len(shown),), generator=generator)
        shown = torch.einsum("ka...,kab->k...b", shown.movedim(axis, 1), places[shifts]).movedim(-1, axis)
    return torch.cat([shown, 1 - shown])


def _nodes(size: int) -> int:
    return min(NODES, max(math.ceil(size / 2), min(size, _FEWEST)))


def _dealt(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) of zeros and ones: rows and columns of the smallest Hadamard matrix that has so many of both.

    Element i, j of Sylvester's matrix is 1 where i and j, in binary, have an odd number of ones in common.
    """
    order = 1 << max(rows - 1, columns).bit_length()  # the first column is constant
    i = torch.randperm(order, generator=generator)[:rows, None]
    j = torch.randperm(order - 1, generator=generator)[:columns] + 1
    flipped = torch.randint(2, (columns,), generator=generator)
    odd, common = flipped.expand(rows, columns).clone(), i & j
    while bool(common.any()):
        odd ^= common & 1
        common = common >> 1
    return odd.float()


def crops(size: int, few: int) -> Tensor:
    """(shifts, few, size): for each shift, how `few` coarse cells along an axis make `size` cells of a mask."""
    cell = math.ceil(size / few)
    enlarged = functional.interpolate(torch.eye(few)[None], size=(few + 1) * cell, mode="linear", align_corners=False)[
        0
    ]
    return torch.stack([enlarged[:, shift : shift + size] for shift in range(cell)])
