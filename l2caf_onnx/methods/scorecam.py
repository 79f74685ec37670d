"""Score-CAM: a channel weighs as much as what the tail makes of the activation seen through that channel."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, along, finished, questions, scores

CHANNELS = 256
"""So many channels are asked about by default: each costs a forward pass of the tail."""


def scorecam(case: Case, *, channels: int | None = CHANNELS) -> Tensor:
    """ReLU(sum_k w_k A_k) with the weights of `channel_weights` (Wang et al. 2020, algorithm 1).

    Args:
        case: What is asked.
        channels: Only so many channels take part, those of the highest energy (sum of A_k^2), which the paper does not
            do; None: all.
    """
    order, weights = channel_weights(case, channels=channels)
    return finished(torch.einsum("nk,nk...->n...", weights, _maps(case.activation, order).double()).relu())


def channel_weights(case: Case, *, channels: int | None = CHANNELS) -> tuple[Tensor, Tensor]:
    """Which channels take part, (N, K) int64, and their weights (N, K) float64 that sum to 1.

    A channel's map, min-max scaled over its cells, masks the whole activation at S1, all channels alike. The paper
    enlarges the map and masks the picture, for it cannot multiply at S1; the cut can, and spares the head's passes.
    The weights are the softmax over the channels of the increase of the score over a baseline, as in the paper's
    algorithm and in grad-cam (the authors' program leaves the softmax out). Which baseline does not matter, as the
    softmax does not see what is taken from all channels: none is run. A constant channel shows no place and weighs
    nothing, as in the authors' program.
    """
    activation = case.activation
    total = activation.float().square().flatten(2).sum(2)
    order = total.argsort(dim=1, descending=True, stable=True)[:, :channels]
    maps = _maps(activation, order)
    low, high = maps.flatten(2).amin(2), maps.flatten(2).amax(2)
    span = high - low
    masks = (maps - along(low, maps.ndim)) / along(torch.where(span > 0, span, torch.inf), maps.ndim)
    found = []
    for samples, numbers in questions(case, order.shape[1]):
        here = samples.to(activation.device)
        found.append(scores(case, activation[here] * masks[here, numbers.to(activation.device)][:, None], samples))
    increases = torch.cat(found).reshape(order.shape).to(activation.device)
    return order, increases.masked_fill(span <= 0, -torch.inf).softmax(1)


def _maps(activation: Tensor, order: Tensor) -> Tensor:
    """The channels `order` (N, K) of `activation` (N, C, *spatial): (N, K, *spatial)."""
    return activation.take_along_dim(along(order, activation.ndim), 1)
