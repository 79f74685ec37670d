"""Matrix products and what is made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .registry import Node, Outputs, op


@op("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Outputs:
    return torch.matmul(a, b)


@op("Gemm", replace=True)  # the library's refuses a bias that is computed
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Outputs:
    a = a.mT if node.get("transA", 0) else a
    b = b.mT if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = torch.matmul(a, b)
    if alpha != 1:
        product = alpha * product
    return product if c is None or beta == 0 else product + (c if beta == 1 else beta * c)


@op("Einsum", replace=True)  # the library's keeps the spaces and capitals that torch refuses
def einsum(node: Node, *operands: Tensor) -> Outputs:
    result: Tensor = torch.einsum(node.get("equation").replace(" ", ""), *operands)
    return result


@op("Det")
def det(node: Node, x: Tensor) -> Outputs:
    result: Tensor = torch.linalg.det(x)
    return result


@op("NegativeLogLikelihoodLoss")
def nll_loss(node: Node, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Outputs:
    return _picked(node, scores, labels, weight)


@op("SoftmaxCrossEntropyLoss")
def cross_entropy(node: Node, scores: Tensor, labels: Tensor, weight: Tensor | None = None) -> Outputs:
    logs = torch.log_softmax(scores, 1)
    return _picked(node, logs, labels, weight), logs


def _picked(node: Node, logs: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    ignored: Any = node.get("ignore_index")
    kept = torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored
    safe = torch.where(kept, labels, torch.zeros_like(labels)).long()
    factor = (weight[safe] if weight is not None else torch.ones_like(safe, dtype=logs.dtype)) * kept
    losses = -logs.gather(1, safe[:, None])[:, 0] * factor
    how = node.get("reduction", "mean")
    if how == "none":
        return losses
    return losses.sum() if how == "sum" else losses.sum() / factor.sum()
