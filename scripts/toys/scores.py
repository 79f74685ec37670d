"""How good a toy is on scenes whose answer is known: numbers from arrays, for training and tests alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scenes import Box, Clip, Scene

Floats = NDArray[np.floating[Any]]
Outputs = tuple[Floats, ...]
SURE = 0.0  # the logit from which a cell holds a digit
SAME = 0.5  # intersection over union from which two boxes are the same


def classes_right(outputs: Outputs, shown: Sequence[Scene | Clip]) -> float:
    """Share of scenes whose n highest logits are the n classes present; outputs: logits (N, 10)."""
    (logits,) = outputs
    order = np.argsort(-logits, axis=1)
    right = [set(row[: len(s.labels)]) == set(s.labels) for row, s in zip(order.tolist(), shown, strict=True)]
    return float(np.mean(right))


def recall_at_1(outputs: Outputs, shown: Sequence[Scene | Clip]) -> float:
    """Share of scenes whose nearest among those of other glyphs is of their class; outputs: embeddings (N, C)."""
    (embeddings,) = outputs
    digits = [s.digits[0] for s in shown]
    labels, glyphs = np.array([d.label for d in digits]), np.array([d.glyph for d in digits])
    likeness = embeddings @ embeddings.T
    likeness[glyphs[:, None] == glyphs] = -np.inf
    return float(np.mean(labels[likeness.argmax(1)] == labels))


def detected(boxes: Floats, scores: Floats) -> list[tuple[int, Floats]]:
    """Classes and boxes of a scene, the surest first, after non-maximum suppression; (64, 4) and (64, 10)."""
    best = scores.max(1)
    found: list[tuple[int, Floats]] = []
    for cell in np.argsort(-best):
        if best[cell] > SURE and all(overlap(boxes[cell], other) < SAME for _, other in found):
            found.append((int(scores[cell].argmax()), boxes[cell]))
    return found


def detection_f1(outputs: Outputs, shown: Sequence[Scene | Clip]) -> float:
    """Harmonic mean of precision and recall: a find is right on a digit of its class that no surer one has taken.

    Outputs: boxes (N, cells, 4) and scores (N, cells, classes).
    """
    finds = right = digits = 0
    for box, score, scene in zip(*outputs, shown, strict=True):
        left: list[Box] = [d.box for d in scene.digits]
        digits += len(left)
        for label, found in detected(box, score):
            finds += 1
            hit = next((b for b in left if b.label == label and overlap(found, np.array(b[1:])) >= SAME), None)
            if hit is not None:
                left.remove(hit)
                right += 1
    return 2 * right / (finds + digits)


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)
