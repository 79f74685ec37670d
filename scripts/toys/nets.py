"""The toy networks: small, plain, and made so that what decides is seen where the digit is.

Early layers see little of the scene, the last ones not much more than a digit, and what they find is averaged over all
places (or read by a class token), so that no place is a shortcut. Each child of a network is a stop: its last tensor
bears its name in the `.onnx`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .scenes import CLIP_SIDE, FRAMES

CLASSES, EMBEDDED = 10, 32
PATCH, CELLS = 8, 64  # pixels of a ViT's token and of a detector's cell; how many a scene has


class Stem(nn.Module):
    """(N, 1, H, W) -> (N, width, H / 2, W / 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


class Block(nn.Module):
    """Two convolutions and what passes them by; `first` and `second` are their kernels' sides: with 1 it sees less."""

    def __init__(self, inside: int, outside: int, stride: int = 1, first: int = 3, second: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, first, stride, padding=first // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, second, padding=second // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module | None = None
        if stride > 1 or inside != outside:
            conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Seeing(nn.Module):
    """A network in two steps, so that training has a word in what lies between them, the last map."""

    def see(self, given: Tensor) -> Tensor:
        """The last map (N, C, h, w), nowhere negative, or the last tokens (N, T, C)."""
        raise NotImplementedError

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        raise NotImplementedError

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        return self.read(self.see(given))


class Trunk(Seeing):
    """Five residual blocks: (N, 1, 64, 64) -> (N, 64, 8, 8), by 32 x 32 and 16 x 16; a cell sees 35 x 35 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(16)
        self.block1 = Block(16, 16, second=1)
        self.block2 = Block(16, 32, stride=2)
        self.block3 = Block(32, 48, second=1)
        self.block4 = Block(48, 64, stride=2, second=1)
        self.block5 = Block(64, 64, first=1, second=1)

    def see(self, given: Tensor) -> Tensor:
        y = self.block2(self.block1(self.stem(given)))
        return self.block5(self.block4(self.block3(y)))  # type: ignore[no-any-return]


class Classifier(Trunk):
    """(N, 1, 64, 64) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, CLASSES)

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.pool(seen).flatten(1)),)


class Embedder(Trunk):
    """(N, 1, 64, 64) -> embedding (N, 32) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, EMBEDDED)

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        return (functional.normalize(self.head(self.pool(seen).flatten(1))),)


class Recurrent(Seeing):
    """Each frame by itself, then a GRU over the frames: (N, T, 1, 48, 48) -> embedding (N, 32) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(16)
        self.block1 = Block(16, 16, second=1)
        self.block2 = Block(16, 32, stride=2)
        self.block3 = Block(32, 48, second=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gru = nn.GRU(48, 48)
        self.head = nn.Linear(48, EMBEDDED)

    def see(self, given: Tensor) -> Tensor:
        y = self.stem(given.reshape(-1, 1, CLIP_SIDE, CLIP_SIDE))
        return self.block3(self.block2(self.block1(y)))  # type: ignore[no-any-return]

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        states, _ = self.gru(self.pool(seen).reshape(-1, FRAMES, 48).transpose(0, 1))
        return (functional.normalize(self.head(states.mean(0))),)


class Detector(Trunk):
    """(N, 1, 64, 64) -> boxes (N, 64, 4) in pixels x0, y0, x1, y1 and scores (N, 64, 10) in logits, a row a cell."""

    centres: Tensor
    signs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(64, CLASSES, 1)
        self.reach = nn.Conv2d(64, 4, 1)  # how far the box reaches left, up, right and down of the cell's centre
        nn.init.constant_(self.score.bias, -4.0)  # type: ignore[arg-type]  # nearly all cells are empty
        self.register_buffer("centres", cell_centres().repeat(1, 2), persistent=False)
        self.register_buffer("signs", torch.tensor([-1.0, -1.0, 1.0, 1.0]), persistent=False)

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        reach = PATCH * functional.softplus(self.reach(seen)).reshape(-1, 4, CELLS).transpose(1, 2)
        scores = self.score(seen).reshape(-1, CLASSES, CELLS).transpose(1, 2)
        return self.centres + self.signs * reach, scores


def cell_centres() -> Tensor:
    """(64, 2): x and y of each cell's centre, row by row."""
    at = torch.arange(8) * PATCH + PATCH / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


class Patches(nn.Module):
    """(N, 1, 64, 64) -> a token a patch, (N, 64, width), by small convolutions, which train faster than a large one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.stem = Stem(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm2(self.conv2(self.stem(x))))
        return self.conv3(y).reshape(-1, self.width, CELLS).transpose(1, 2)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A transformer's layer, norms first: (N, T, width) -> the same."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads, self.width, self.each = heads, width, width // heads

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        # The shapes are written out, and not asked of the tensors, so that no node of the .onnx computes them.
        parts = (p(y).reshape(-1, self.tokens, self.heads, self.each) for p in (self.query, self.key, self.value))
        query, key, value = (p.transpose(1, 2) for p in parts)
        looks = (query @ key.transpose(2, 3) * self.each**-0.5).softmax(-1)
        x = x + self.out((looks @ value).transpose(1, 2).reshape(-1, self.tokens, self.width))
        return x + self.narrow(functional.relu(self.widen(self.norm2(x))))  # type: ignore[no-any-return]


class Vit(Seeing):
    """A vision transformer, its class token read at the end: (N, 1, 64, 64) -> logits (N, 10).

    The class token looks at the others in the last layer alone (class attention: Touvron et al., ICCV 2021, CaiT): else
    it would know the answer before, and no other token would decide anything any more.
    """

    STOPS = 4  # the patches and three layers: where training hides tokens

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = Patches(width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, CELLS + 1, width))
        self.layer1, self.layer2, self.layer3 = (Layer(width, heads, CELLS) for _ in range(3))
        self.layer4 = Layer(width, heads, CELLS + 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        self.tells = nn.Linear(width, CLASSES + 1)  # for training alone: what a token holds, the last for nothing
        self.passed: list[Tensor] = []  # what training last saw behind each of the layers without the class token
        self.kept: Tensor | None = None  # what training hides: (STOPS, N, T, 1), 0 where a token is hidden

    def see(self, given: Tensor) -> Tensor:
        x = self.patches(given)
        if self.kept is not None:
            x = x * self.kept[0]
        first, x = (self.token + self.positions[:, :1]).expand(x.shape[0], -1, -1), x + self.positions[:, 1:]
        passed = []
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3), 1):
            x = layer(x)
            passed.append(x)
            if self.kept is not None:
                x = x * self.kept[number]
        self.passed = passed if self.training else []
        return self.layer4(torch.cat([first, x], 1))  # type: ignore[no-any-return]

    def read(self, seen: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.norm(seen)[:, 0]),)
