"""Comparisons and bisections made by hand, for the tests of what is drawn and printed of them."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from l2caf_onnx.records import Aligned, Bisection, Comparison, NodeError, Pair, Score, Subject, Threshold
from tests.conftest import MODELS

COSINE = Threshold(value=0.98, above=False, share=0.0, source="Calibrated: 4 x the noise of 3 harmless variations.")
ERROR = Threshold(value=1e-4, above=True, share=0.0, source="Bundled for the class float32.")
SNR = Threshold(value=60.0, above=False, share=0.1, source="Bundled for the class float32.")


def score(
    subject: Subject, name: str, metric: str, values: list[float], line: Threshold | None, *, ok: bool | None = None
) -> Score:
    """A score judged by its line as the record says: the share of inputs beyond it against the share allowed."""
    array = np.array(values)
    beyond = np.zeros(len(array), bool)
    if line is not None:
        beyond = array > line.value if line.above else array < line.value
    failing = float(beyond.mean())
    judged = line is None or failing <= line.share
    return Score(subject=subject, name=name, metric=metric, values=array, threshold=line, failing=failing,
                 ok=judged if ok is None else ok)  # fmt: skip


def bell(y: float, x: float, side: int = 224) -> NDArray[np.float32]:
    """A map with one hot place, in [0, 1]."""
    rows, columns = np.mgrid[:side, :side] / side
    heat = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.03)
    return np.asarray((heat - heat.min()) / (heat.max() - heat.min()), dtype=np.float32)


def pair(at: str, count: int, depth: float, moved: float) -> Pair:
    """The maps at one breakpoint, the candidate's hot places `moved` to the right."""
    places = np.random.default_rng(0).uniform(0.3, 0.6, (count, 2))
    one = np.stack([bell(y, x) for y, x in places])
    other = np.stack([bell(y, x + moved * (k % 5)) for k, (y, x) in enumerate(places)])
    cells = (np.ones((count, 7, 7), np.float32),) * 2
    return Pair(at=at, candidate_at=at, reference=cells[0], candidate=cells[1], reference_maps=one,
                candidate_maps=other, depth=depth)  # fmt: skip


def comparison(*, ok: bool = False, inputs: tuple[str, ...] = ("a.png", "b.png", "c.png"), at: str = "/conv",
               image: bool = True) -> Comparison:  # fmt: skip
    """Two models on three inputs; without `ok` the attention of the last one has moved, and a tensor is off."""
    count = len(inputs)
    cosine = [1 - (0.001 if ok else 0.02) * k for k in range(count)]
    error = [1e-5 * (k + 1) for k in range(count)]
    tensors = [100 - (1 if ok else 12) * k for k in range(6)]
    scores = (
        score("output", "logits", "max_rel", error, ERROR),
        score("output", "logits", "top1", [1.0] * count, None),
        score("attention", at, "cosine", cosine, COSINE),
        score("attention", at, "peak_shift", [float(k) for k in range(count)], None),
        score("attention", "/late", "cosine", [1.0] * count, COSINE),
        *(score("tensor", f"/t{k}", "snr", [v] * count, SNR) for k, v in enumerate(tensors)),
    )
    photo = None
    if image:
        photo = np.asarray(Image.open(MODELS / "photos" / "chelsea.png").convert("RGB").resize((224, 224)))
    return Comparison(
        kind="compare",
        reference={"name": "model.onnx", "sha256": "a" * 64},
        candidate={"name": "model-int8.onnx", "sha256": "b" * 64},
        change="float32",
        why="All 52 weight tensors are equal up to rounding, and both are float32.",
        inputs=inputs,
        scores=scores,
        alignment=tuple(
            Aligned(reference=f"/t{k}", candidate=f"t_{k}", how="activations", order=(0, 3, 1, 2), scale=1.0,
                    confidence=0.9 + 0.01 * k) for k in range(6)
        ),
        pairs=(pair(at, count, 0.6, 0.0 if ok else 0.06), pair("/late", count, 0.95, 0.0)),
        images=(photo,) * count,
        notes=("The breakpoints were chosen: the last affine one, and a clean one in the middle.",),
        settings={"at": [at, "/late"], "target": "top1", "preprocess": "lite", "seed": 0, "versions": {"onnx": "1.20"}},
    )  # fmt: skip


def bisection(*, ok: bool = False, name: str = "/layer") -> Bisection:
    """Forty nodes; without `ok` the one in the middle is at fault."""
    rng = np.random.default_rng(0)
    nodes = []
    for k in range(40):
        bad = not ok and k == 20
        nodes.append(
            NodeError(tensor=f"{name}.{k}", candidate=f"c{name}.{k}", node=f"Conv_{k}", op_type="Conv",
                      local=0.2 if bad else float(rng.uniform(1, 3)) * 1e-7, noise=1e-6,
                      inherited=(0.1 if not ok and k >= 20 else 1e-7) * float(rng.uniform(1, 2)),
                      attention=float(k) / 100 if k % 10 == 5 else None, ok=not bad)
        )  # fmt: skip
    made = comparison(ok=ok)
    return Bisection(
        reference=made.reference, candidate=made.candidate, change="float32", why=made.why,
        first=None if ok else nodes[20], nodes=tuple(nodes), alignment=made.alignment, unaligned=("fused_1",),
        inputs=made.inputs, notes=made.notes, settings=made.settings,
    )  # fmt: skip


def renamed(found: Comparison, name: str) -> Comparison:
    """The same with `name` wherever there is a name or a sentence."""
    return dataclasses.replace(
        found,
        reference={"name": name, "sha256": name},
        candidate={"name": name, "sha256": name},
        why=name,
        inputs=(name,) * len(found.inputs),
        scores=tuple(
            dataclasses.replace(s, name=name, metric=s.metric if k % 2 else name,
                                threshold=s.threshold and dataclasses.replace(s.threshold, source=name))
            for k, s in enumerate(found.scores)
        ),
        alignment=tuple(dataclasses.replace(a, reference=name, candidate=name, how=name) for a in found.alignment),
        pairs=tuple(dataclasses.replace(p, at=name, candidate_at=name + "2") for p in found.pairs),
        notes=(name,),
        settings={name: name, "list": [name]},
    )  # fmt: skip
