"""Eigen-CAM: where the activation varies most. It asks no score: the map is the same for every class."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, finished


def eigencam(case: Case) -> Tensor:
    """ReLU of `projection` (Muhammad & Yeasin 2020).

    Centred, about half of the cells are negative; the ReLU is not the paper's, but that of the package grad-cam.
    """
    return finished(projection(case.activation).relu())


def projection(activation: Tensor) -> Tensor:
    """Of `activation` (N, C, *spatial), each cell's channels along their first principal direction: (N, *spatial).

    The channels are centred first over the cells, as in the package grad-cam: without it the first direction is mostly
    the mean. The singular value decomposition leaves the sign open, and the paper does not choose one; here the map
    correlates positively with the activation's energy, sum over the channels of A^2. A sample that is not finite gives
    NaN.
    """
    maps = []
    for sample in activation.detach():
        cells = sample.flatten(1).double().cpu().T
        if torch.isfinite(cells).all():
            centred = cells - cells.mean(0)
            u, s, _ = torch.linalg.svd(centred, full_matrices=False)
            first = u[:, 0] * s[0]
            sign = 1.0 if first @ cells.square().sum(1) >= 0 else -1.0
            maps.append((sign * first).reshape(sample.shape[1:]))
        else:  # LAPACK refuses it, and the other samples want their maps
            maps.append(torch.full(sample.shape[1:], torch.nan, dtype=torch.float64))
    return torch.stack(maps).to(activation.device, torch.float32)
