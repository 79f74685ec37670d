"""What the model says: class probabilities, by onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.explain.batches import batches
from l2caf_onnx.explain.stop import stop_at
from l2caf_onnx.graph.model import Model
from l2caf_onnx.objectives import class_scores

from .contest import Contest, samples


class Classifier:
    """The model up to the class scores that a breakpoint's outputs are, before any softmax.

    Attributes:
        model: The whole.
        at: The breakpoint whose outputs are meant.
        to: S2, as given.
        providers: onnxruntime's.
    """

    def __init__(
        self, model: Model, at: str, to: Sequence[str] | None = None, *, providers: Sequence[str] | None = None
    ) -> None:
        self.model, self.at, self.to, self.providers = model, at, to, providers

    def probabilities(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """(N, K): the softmax of the class scores of N samples.

        At all of onnxruntime's optimisations: many forward runs are made here, and nothing is proved by them.

        Raises:
            InputError: the outputs are not one vector of class scores for each sample.
        """
        stop = stop_at(self.model, self.at, self.to, logits=True, fed={k: np.shape(v) for k, v in feeds.items()})
        whole = stop.whole(self.model)
        found = []
        for batch in batches(self.model, feeds, None)[1]:
            for piece in batch.pieces:
                values = runtime.run(whole, piece, level="all", providers=self.providers)
                scores = class_scores({k: torch.from_numpy(np.array(v)) for k, v in values.items()}).double()
                found.append(torch.softmax(scores, dim=1).numpy())
        return np.concatenate(found)

    def scores_classes(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the outputs are class scores."""
        try:
            self.probabilities(feeds)
        except InputError:
            return False
        return True


def targets_of(contest: Contest, feeds: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """The classes asked about where the data know none: the user's, else the likeliest; None without classes."""
    if not contest.asks_class:
        return None
    if isinstance(contest.target, int):
        return [contest.target] * samples(contest.model, feeds)
    if not contest.class_specific:
        return None
    return [int(k) for k in classifier(contest).probabilities(feeds).argmax(1)]


def classifier(contest: Contest) -> Classifier:
    """That of a contest."""
    return Classifier(contest.model, contest.at[0], contest.to, providers=contest.providers)
