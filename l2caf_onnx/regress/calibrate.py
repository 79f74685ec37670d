"""The noise of harmless variations on a model and its inputs, by every metric that is judged.

What is measured on some of the inputs (evenly spread) holds for all of them by the factor that thresholds.toml has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from l2caf_onnx.errors import L2cafError
from l2caf_onnx.evaluation.data import Data
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Change

from .measure import Key, Values, measured
from .metrics import METRICS
from .observation import Observation, joined
from .observe import CPU, Observer
from .observed import pieces
from .thresholds import Noise, bundled
from .variants import Variant, variants
from .watch import Watch

INPUTS = 24
"""On which variations are tried."""

Told = Callable[[float], None]


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spread."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most))})


def noise_of(
    model: Model,
    change: Change,
    watch: Watch,
    data: Data,
    seen: Observation,
    *,
    batch: int,
    providers: Sequence[str] | None,
    device: torch.device = CPU,
    told: Told | None = None,
) -> tuple[dict[str, Noise], list[str]]:
    """The noise by "subject.metric@tensor", and what a reader should know.

    Args:
        model: The reference.
        change: Which class of variations.
        watch: What is looked at in it.
        data: Its inputs.
        seen: What was seen of it on all of them.
        batch: Inputs at once.
        providers: onnxruntime's.
        device: Where the torch tails run.
        told: Called with the part that is done.
    """
    numbers = spread(len(data), INPUTS)
    judged = set(bundled(change))
    plain = seen.part(numbers)
    found: dict[Key, list[tuple[str, Values]]] = {}
    notes: list[str] = []
    tried = variants(model, change, pieces(data, numbers, batch), attention=bool(watch.at))
    for k, variant in enumerate(tried):
        try:
            varied = _seen(variant, watch, data, numbers, plain, batch, providers, device)
        except L2cafError as e:
            notes.append(f"The variation {variant.name!r} has no attention to tell: {e.what}")
            varied = _seen(variant, replace(watch, at={}), data, numbers, plain, batch, providers, device)
        for key, values in measured(plain, varied).items():
            if f"{key[0]}.{key[2]}" in judged and (key[0] == "attention" or not variant.attention):
                found.setdefault(key, []).append((variant.name, values))
        if told is not None:
            told((k + 1) / len(tried))
    return {f"{s}.{m}@{n}": _noise(m, own, len(numbers)) for (s, n, m), own in found.items()}, notes


def _seen(
    variant: Variant,
    watch: Watch,
    data: Data,
    numbers: Sequence[int],
    plain: Observation,
    batch: int,
    providers: Sequence[str] | None,
    device: torch.device,
) -> Observation:
    question = replace(watch.question, seed=watch.question.seed + variant.seed)
    observer = Observer(
        variant.model, replace(watch, question=question), level=variant.level, threads=variant.threads,
        providers=providers, device=device,
    )  # fmt: skip
    found, done = [], 0
    for feeds in pieces(data, numbers, batch):
        size = observer.count(feeds)
        targets = None if plain.targets is None else plain.targets[done : done + size].tolist()
        found.append(observer.see(variant.feeds(feeds), targets, batch_size=batch))
        done += size
    return joined(found)


def _noise(metric: str, tried: Sequence[tuple[str, Values]], inputs: int) -> Noise:
    signs = 1.0 if METRICS[metric].above else -1.0
    worst = max(
        tried, key=lambda t: float(np.nanmax(signs * t[1], initial=-np.inf)) if not np.isnan(t[1]).all() else -np.inf
    )
    values = np.concatenate([v for _, v in tried])
    return Noise(values=values, worst=worst[0], variations=len(tried), inputs=inputs)


def merged(*parts: Mapping[str, Noise]) -> dict[str, Noise]:
    """Of several classes of variations the noise of all together."""
    found: dict[str, Noise] = {}
    for part in parts:
        for key, own in part.items():
            before = found.get(key)
            found[key] = own if before is None else Noise(
                values=np.concatenate([before.values, own.values]), worst=own.worst,
                variations=before.variations + own.variations, inputs=max(before.inputs, own.inputs),
            )  # fmt: skip
    return found
