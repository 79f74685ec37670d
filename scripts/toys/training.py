"""How the toys are trained: fresh scenes at every step, AdamW, one cycle of the learning rate.

What the last map finds outside of the digits costs, so that what a network saw is where its digit is: pooling alone
lets it note a digit in a cell beside it. For the same reason each token of the transformer is to tell which digit lies
at its place, if any (token labelling: Jiang et al., NeurIPS 2021); and tokens are hidden from it, behind any of its
layers, as a filter of zeros hides them: what it says then is to be of the digits that are left, and nothing where none
is, so that no other token can hold the answer.

Held-out scenes choose nothing here; they are only counted at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torchvision.ops
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from . import nets, scenes, scores
from .scenes import Clip, Scene

TEMPERATURE = 0.1
HIDDEN = 0.4  # how often a digit's tokens are hidden from the transformer
Arrays = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A toy: how it is made, taught and judged.

    `draw` gives scenes to train on, `loss` takes them with the network's outputs, `score` judges outputs on
    `held_out(count, seed)`.
    """

    make: Callable[[], nets.Seeing]
    draw: Callable[[int, np.random.Generator], Sequence[Scene | Clip]]
    loss: Callable[[tuple[Tensor, ...], Sequence[Scene | Clip]], Tensor]
    held_out: Callable[[int, int], Sequence[Scene | Clip]]
    score: Callable[[Arrays, Sequence[Scene | Clip]], float]
    outputs: tuple[str, ...]
    steps: int
    batch: int = 64
    rate: float = 4e-3
    calm: float = 0.5  # how much is paid for a last map that is not 0 outside of the digits
    labelled: float = 0.0  # how much is paid for tokens that do not tell what lies at their place
    input: str = "image"
    dynamic: bool = True  # whether the .onnx takes any batch, or one sample
    keeps_norms: bool = False  # whether batch norms stay nodes of their own in the .onnx


def train(plan: Plan, seed: int) -> nets.Seeing:
    """The trained network, ready to run."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([0, seed])
    net = plan.make().train()
    optimiser = torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.rate, total_steps=plan.steps, pct_start=0.15)
    start = time.perf_counter()
    losses: list[float] = []
    for step in range(1, plan.steps + 1):
        batch = plan.draw(plan.batch, rng)
        left = hide(net, [s for s in batch if isinstance(s, Scene)], rng) if isinstance(net, nets.Vit) else batch
        seen = net.see(torch.from_numpy(stacked(batch)))
        loss = plan.loss(net.read(seen), left)
        if plan.calm:
            loss = loss + plan.calm * straying(seen, batch)
        if isinstance(net, nets.Vit):
            loss = loss + plan.labelled * mislabelled(net, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        cycle.step()
        losses.append(loss.item())
        if step % 100 == 0:
            spent = time.perf_counter() - start
            print(f"  step {step} of {plan.steps}: loss {np.mean(losses[-100:]):.4f}, {spent:.0f} s", flush=True)
    if isinstance(net, nets.Vit):
        net.kept = None
    return net.eval()


def stacked(shown: Sequence[Scene | Clip]) -> NDArray[np.float32]:
    """(N, 1, H, W), or (N, T, 1, H, W) of clips."""
    return np.stack([s.clip if isinstance(s, Clip) else s.image for s in shown])


def straying(seen: Tensor, shown: Sequence[Scene | Clip]) -> Tensor:
    """Share of the last map that lies in cells whose centre is in no digit's box, mean over scenes and frames."""
    frames = [f for s in shown for f in (s.frames if isinstance(s, Clip) else (s,))]
    high, wide = seen.shape[2:]
    outside = np.ones((len(frames), high, wide), np.float32)
    for cells, frame in zip(outside, frames, strict=True):
        y, x = ((np.arange(n) + 0.5) * len(frame.canvas) / n for n in (high, wide))
        for box in frame.boxes:
            cells[np.ix_((y >= box.y0) & (y < box.y1), (x >= box.x0) & (x < box.x1))] = 0
    mass = seen.sum(1)
    return ((mass * torch.from_numpy(outside)).sum((1, 2)) / (mass.sum((1, 2)) + 1e-6)).mean()


def hide(net: nets.Vit, shown: Sequence[Scene], rng: np.random.Generator) -> list[Scene]:
    """Hide tokens at one stop of every other scene; gives the scenes as they can be seen then.

    Of each digit all tokens whose patch's centre is in its box or none, of the others a share that differs.
    """
    kept = torch.ones(nets.Vit.STOPS, len(shown), nets.CELLS, 1)
    left = list(shown)
    for number in range(0, len(shown), 2):
        scene = shown[number]
        owner = owners(scene)
        seen = torch.from_numpy(rng.random(nets.CELLS) < rng.random())
        gone = [n for n in range(len(scene.digits)) if rng.random() < HIDDEN]
        for n in range(len(scene.digits)):
            seen[owner == n] = n not in gone
        kept[rng.integers(nets.Vit.STOPS), number, :, 0] = seen.float()
        for n in reversed(gone):
            left[number] = left[number].without(n)
    net.kept = kept
    return left


def owners(scene: Scene | Clip) -> Tensor:
    """(64,): the number of the digit in whose box a patch's centre lies, -1 where in none."""
    centres = nets.cell_centres()
    owner = torch.full((nets.CELLS,), -1)
    for number, box in enumerate(scene.boxes):
        owner[(centres >= torch.tensor(box[1:3])).all(1) & (centres < torch.tensor(box[3:])).all(1)] = number
    return owner


def mislabelled(net: nets.Vit, shown: Sequence[Scene | Clip]) -> Tensor:
    """Cross-entropy of what tokens tell against the digit in whose box their patch's centre lies, behind each layer.

    What was hidden before is not asked.
    """
    labels = torch.stack([torch.tensor([*(b.label for b in s.boxes), nets.CLASSES])[owners(s)] for s in shown])
    known = torch.ones(len(shown), nets.CELLS, dtype=torch.bool)
    parts = []
    for number, tokens in enumerate(net.passed):
        if net.kept is not None:
            known = known & (net.kept[number, :, :, 0] > 0)
        parts.append(functional.cross_entropy(net.tells(tokens)[known], labels[known]))
    return torch.stack(parts).mean()


def present(outputs: tuple[Tensor, ...], shown: Sequence[Scene | Clip]) -> Tensor:
    """Cross-entropy against the classes present, or all if none is, each as likely as the other."""
    targets = torch.zeros(len(shown), nets.CLASSES)
    for row, scene in zip(targets, shown, strict=True):
        labels = list(scene.labels) or list(range(nets.CLASSES))
        row[labels] = 1 / len(labels)
    return functional.cross_entropy(outputs[0], targets)


def contrastive(outputs: tuple[Tensor, ...], shown: Sequence[Scene | Clip]) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): same classes near, all others far."""
    labels = torch.tensor([s.label for s in shown])
    itself = torch.eye(len(labels), dtype=torch.bool)
    likeness = (outputs[0] @ outputs[0].T / TEMPERATURE).masked_fill(itself, -torch.inf)
    chosen = likeness.log_softmax(1).masked_fill(itself, 0)
    same = (labels[:, None] == labels) & ~itself
    return -((chosen * same).sum(1) / same.sum(1).clamp(min=1)).mean()


def detection(outputs: tuple[Tensor, ...], shown: Sequence[Scene | Clip]) -> Tensor:
    """Focal loss of the scores, generalised IoU of the boxes. The cell of a digit's centre answers for it.

    What other cells within the box say of its class is left open: they see the digit too.
    """
    boxes, logits = outputs
    targets, counted = torch.zeros_like(logits), torch.ones_like(logits)
    centres = nets.cell_centres()
    rows, cells, wanted = [], [], []
    for row, scene in enumerate(shown):
        for box in (d.box for d in scene.digits):
            inside = (centres >= torch.tensor(box[1:3])).all(1) & (centres < torch.tensor(box[3:])).all(1)
            counted[row, inside, box.label] = 0
            cell = (box.y0 + box.y1) // 2 // nets.PATCH * 8 + (box.x0 + box.x1) // 2 // nets.PATCH
            rows.append(row)
            cells.append(cell)
            wanted.append(box)
    labels = [b.label for b in wanted]
    targets[rows, cells, labels] = 1
    counted[rows, cells, labels] = 1
    focal = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=1.5)
    true = torch.tensor([b[1:] for b in wanted], dtype=torch.float32)
    apart = torchvision.ops.generalized_box_iou_loss(boxes[rows, cells], true, reduction="mean")
    return (focal * counted).sum() / len(wanted) + apart  # type: ignore[no-any-return]


PLANS = {
    "cnn": Plan(
        make=nets.Classifier, draw=partial(scenes.training, "cnn"), held_out=partial(scenes.held_out, "cnn"),
        loss=present, score=scores.classes_right, outputs=("logits",), steps=1200, keeps_norms=True,
    ),
    "vit": Plan(
        make=nets.Vit, draw=partial(scenes.training, "vit"), held_out=partial(scenes.held_out, "vit"),
        loss=present, score=scores.classes_right, outputs=("logits",), steps=3600, rate=1.5e-3, calm=0, labelled=1.0,
    ),
    "embedding": Plan(
        make=nets.Embedder, draw=partial(scenes.training, "embedding"), held_out=partial(scenes.held_out, "embedding"),
        loss=contrastive, score=scores.recall_at_1, outputs=("embedding",), steps=1200, calm=2.0,
    ),
    "recurrent": Plan(
        make=nets.Recurrent, draw=scenes.training_clips, held_out=scenes.held_out_clips,
        loss=contrastive, score=scores.recall_at_1, outputs=("embedding",), steps=1100, batch=48, input="clip",
        dynamic=False,
    ),
    "detector": Plan(
        make=nets.Detector, draw=partial(scenes.training, "detector"), held_out=partial(scenes.held_out, "detector"),
        loss=detection, score=scores.detection_f1, outputs=("boxes", "scores"), steps=1200,
    ),
}  # fmt: skip
