"""Methods that weigh the activation by the score's gradient: one backward pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, finished, gradients

_EPS = 1e-6
"""What the package grad-cam adds to the denominator of Grad-CAM++'s alpha; it decides where gradients are small."""


def gradcam(case: Case) -> Tensor:
    """ReLU(sum_k a_k A_k), a_k the mean of the gradient over the cells (Selvaraju et al. 2017, equations 1 and 2)."""
    weights = gradients(case).flatten(2).mean(2)
    return finished(_weighted(weights, case.activation).relu())


def hirescam(case: Case) -> Tensor:
    """ReLU(sum_k G_k A_k), G the gradient, cell by cell (Draelos & Carin 2020).

    The paper's formula has no ReLU: it is that of Grad-CAM, and of the package grad-cam, which applies it to every map.
    """
    return finished((gradients(case) * case.activation.float()).sum(1).relu())


def gradcam_plus_plus(case: Case) -> Tensor:
    """ReLU(sum_k w_k A_k), w_k = sum over the cells of alpha ReLU(G) (Chattopadhay et al. 2018, equations 7 and 19).

    alpha = G^2 / (2 G^2 + (sum over the cells of A) G^3 + eps): the score itself stands for the paper's exponential of
    it, as in the package grad-cam 1.5. The paper too lets the denominator pass through zero.
    """
    gradient, activation = gradients(case), case.activation.float()
    square = gradient.square()
    total = activation.flatten(2).sum(2).reshape(*activation.shape[:2], *[1] * len(case.spatial))
    alpha = square / (2 * square + total * square * gradient + _EPS)
    weights = (alpha * gradient.relu()).flatten(2).sum(2)
    return finished(_weighted(weights, activation).relu())


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """The sum over the channels of `weights` (N, C) times `activation` (N, C, *spatial): (N, *spatial)."""
    return torch.einsum("nc,nc...->n...", weights, activation.float())
