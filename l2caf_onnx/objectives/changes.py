"""Objectives about outputs of any kind: how far they moved, how alike two are, how large one is."""

from __future__ import annotations

import torch
from torch import Tensor

from l2caf_onnx.errors import InputError

from .objective import Objective, Outputs, rows, several


def _outputs_changed(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """Mean over the outputs of the mean over each output's elements of (NT - FT)^2."""
    means = []
    for name, before in several(normal, "outputs").items():
        difference = rows(name, before, samples) - rows(name, filtered[name], samples)
        means.append(difference.square().mean(1))
    return torch.stack(means).mean(0)


def _away_from(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """1 - cos(FT, NT), mean over the outputs."""
    found = [
        1 - torch.cosine_similarity(rows(name, filtered[name], samples), rows(name, before, samples), dim=1)
        for name, before in several(normal, "cosine").items()
    ]
    return torch.stack(found).mean(0)


def _unlike(filtered: Outputs, reference: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """-cos(FT, the other input's outputs), mean over the outputs."""
    theirs = several(reference, "similarity")
    for name, value in theirs.items():
        if value.shape != filtered[name].shape:
            raise InputError(
                f"Output {name!r} has shape {tuple(filtered[name].shape)} for the input and {tuple(value.shape)} for "
                "the reference.",
                how="Give a reference of the same size, one or as many as there are inputs.",
            )
    found = [
        -torch.cosine_similarity(rows(name, filtered[name], samples), rows(name, value, samples), dim=1)
        for name, value in theirs.items()
    ]
    return torch.stack(found).mean(0)


def _minus_value(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
    """Minus the sum over what is watched of the mean of each."""
    watched = several(filtered, "value")
    return -torch.stack([rows(name, value, samples).mean(1) for name, value in watched.items()]).sum(0)


OUTPUTS = Objective(
    name="outputs",
    formula="mean((NT - FT)^2)",
    source="Taha et al. 2020, equation 1 (class-oblivious; for embeddings the squared distance)",
    class_specific=False,
    form="squares",
    joins="mean",
    _losses=_outputs_changed,
)

COSINE = Objective(
    name="cosine",
    formula="1 - cos(NT, FT)",
    source="the distance of normalised embeddings (Schroff et al., FaceNet, CVPR 2015)",
    class_specific=False,
    joins="mean",
    _losses=_away_from,
)

SIMILARITY = Objective(
    name="similarity",
    formula="-cos(FT, R), R the outputs for the input `reference`",
    source="why two inputs match (Stylianou et al., Visualizing Deep Similarity Networks, WACV 2019)",
    class_specific=False,
    against="reference",
    joins="mean",
    _losses=_unlike,
)

VALUE = Objective(
    name="value",
    formula="-sum of the means of what is watched",
    source="activation maximisation of any unit (Erhan et al. 2009), by a filter in place of the input",
    class_specific=False,
    form="linear",
    joins="sum",
    _losses=_minus_value,
)
