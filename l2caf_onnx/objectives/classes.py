"""Objectives about one class, on its scores z = FT before the softmax."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from l2caf_onnx.errors import InputError

from .objective import Objective, Outputs, Places, Scores, Weights, checked, class_scores

STRONGEST = 20
"""Other classes that `contrast` sets the target against."""


def _others_and_minus_target(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """Sum_j s_j FT_j with s = -1 for the target and +1 for every other class."""
    scores = class_scores(filtered, samples=samples)
    return scores.sum(1) - 2 * score_of(target, scores)


def _minus_target(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """-FT_target."""
    return -score_of(target, class_scores(filtered, samples=samples))


def _strongest_others_and_minus_target(
    filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None
) -> Tensor:
    """Mean of the strongest others, as the unfiltered model ranks them, minus the target."""
    scores, before = class_scores(filtered, samples=samples), class_scores(normal, samples=samples)
    score_of(target, scores)  # what is wrong with the target is said first
    assert target is not None
    found = _strongest_terms(before.detach().cpu().numpy(), target.cpu().numpy())
    places, weights = (torch.from_numpy(v).to(scores.device) for v in found)
    return (scores.gather(1, places) * weights.to(scores.dtype)).sum(1)


def _one_term(scores: Scores | None, target: Places) -> tuple[Places, Weights]:
    """Minus the target's score."""
    return target[:, None], np.full((len(target), 1), -1, np.float32)


def _strongest_terms(scores: Scores | None, target: Places) -> tuple[Places, Weights]:
    """The strongest others, each with its share of the mean, and minus the target's score."""
    assert scores is not None
    wanted = target.astype(np.int64)[:, None]
    count = min(STRONGEST, scores.shape[1] - 1)
    others = scores.copy()
    np.put_along_axis(others, wanted, -np.inf, axis=1)
    strongest = np.argpartition(others, -count, axis=1)[:, -count:] if count else wanted[:, :0]
    places = np.concatenate([strongest, wanted], axis=1)
    weights = np.full(places.shape, 1 / max(count, 1), np.float32)
    weights[:, -1] = -1
    return places, weights


def _minus_log_softmax(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """-log softmax(FT)_target; of a single score, -log sigmoid."""
    scores = class_scores(filtered, samples=samples)
    own = score_of(target, scores)
    return torch.logsumexp(scores, 1) - own if scores.shape[1] > 1 else functional.softplus(-own)


def _minus_probability(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """-softmax(FT)_target; of a single score, -sigmoid."""
    return -torch.exp(-_minus_log_softmax(filtered, normal, samples, target))


TARGET = Objective(
    name="target",
    formula="-z_t",
    source="the class score of Grad-CAM (Selvaraju et al. 2017, equation 1)",
    class_specific=True,
    form="linear",
    _losses=_minus_target,
    _terms=_one_term,
)

CONTRAST = Objective(
    name="contrast",
    formula=f"mean of the {STRONGEST} largest other z of the unfiltered model, minus z_t",
    source="contrastive explanation (Prabhushankar et al., Contrastive explanations in neural networks, ICIP 2020)",
    class_specific=True,
    form="linear",
    ranks=True,
    _losses=_strongest_others_and_minus_target,
    _terms=_strongest_terms,
)

LOG_SOFTMAX = Objective(
    name="log-softmax",
    formula="-log softmax(z)_t (of a single score -log sigmoid(z))",
    source="cross-entropy, what classifiers are trained on",
    class_specific=True,
    _losses=_minus_log_softmax,
)

PROBABILITY = Objective(
    name="probability",
    formula="-softmax(z)_t (of a single score -sigmoid(z))",
    source="the score of RISE (Petsiuk et al. 2018, section 3.1)",
    class_specific=True,
    _losses=_minus_probability,
)

PAPER_CLASS = Objective(
    name="paper-class",
    formula="sum_j s_j z_j, s = -1 for the target, +1 for the others",
    source="Taha et al. 2020, equation 2, as in their code",
    class_specific=True,
    form="linear",
    _losses=_others_and_minus_target,
)


def score_of(target: Tensor | None, scores: Tensor) -> Tensor:
    """The score of each sample's target, (N,), from `scores` (N, K)."""
    samples, classes = scores.shape
    target = checked(target, classes)
    if target.shape != (samples,) or target.is_floating_point():
        raise InputError(
            f"The target of shape {tuple(target.shape)} and type {target.dtype} cannot be used.",
            how=f"Give {samples} class indices, one for each sample.",
        )
    return scores.gather(1, target.to(scores.device, torch.int64)[:, None])[:, 0]
