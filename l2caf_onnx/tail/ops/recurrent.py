"""LSTM, GRU and RNN: ONNX's gate orders, activations and lengths do not fit torch's layers, so the loop is ours.

The projection of the input is one matmul for all steps; what remains in the loop is a matmul of the state. Nothing is
written in place and no tensor's content decides anything, so that torch.func.vmap runs through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everybody gives it
from numpy.typing import NDArray
from torch import Tensor

from .registry import Node, Outputs, ints, op

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_PLAIN: dict[str, Activation] = {
    "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softsign": F.softsign,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}  # fmt: skip
# Where alpha or beta is left out onnxruntime takes 0 for ThresholdedRelu, Affine and ScaledTanh; so do we.
_ALPHA: dict[str, tuple[float, Callable[[Tensor, float], Tensor]]] = {
    "leakyrelu": (0.01, lambda x, a: torch.where(x >= 0, x, a * x)),
    "thresholdedrelu": (0.0, lambda x, a: torch.where(x > a, x, torch.zeros_like(x))),
    "elu": (1.0, lambda x, a: torch.where(x >= 0, x, a * torch.expm1(x.clamp(max=0)))),
}
_BOTH: dict[str, tuple[float, float, Callable[[Tensor, float, float], Tensor]]] = {
    "affine": (0.0, 0.0, lambda x, a, b: a * x + b),
    "scaledtanh": (0.0, 0.0, lambda x, a, b: a * torch.tanh(b * x)),
    "hardsigmoid": (0.2, 0.5, lambda x, a, b: (a * x + b).clamp(0, 1)),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction: its weights as the loop wants them.

    Attributes:
        recurrent: R, (gates * hidden, hidden).
        inner: The bias that GRU's reset gate multiplies, (hidden,), where linear_before_reset asks for it.
        peepholes: P of LSTM, (3 * hidden,).
        activations: f, g, h.
        clip: The bound of what enters an activation; None where there is none.
        coupled: Whether LSTM's forget gate is 1 minus its input gate.
        linear_first: GRU's linear_before_reset.
    """

    recurrent: Tensor
    inner: Tensor | None
    peepholes: Tensor | None
    activations: tuple[Activation, ...]
    clip: float | None
    coupled: bool
    linear_first: bool

    def clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def _lstm(cell: Cell, x: Tensor, state: State) -> State:
    h, c = state
    f, g, out = cell.activations
    i_in, o_in, f_in, c_in = (x + h @ cell.recurrent.T).chunk(4, dim=-1)
    if cell.peepholes is not None:
        i_peep, o_peep, f_peep = cell.peepholes.chunk(3)
        i_in, f_in = i_in + i_peep * c, f_in + f_peep * c
    i = f(cell.clipped(i_in))
    forget = 1 - i if cell.coupled else f(cell.clipped(f_in))
    c = forget * c + i * g(cell.clipped(c_in))
    if cell.peepholes is not None:
        o_in = o_in + o_peep * c
    return f(cell.clipped(o_in)) * out(c), c


def _gru(cell: Cell, x: Tensor, state: State) -> State:
    (h,) = state
    f, g = cell.activations
    size = h.shape[-1]
    weights, weights_h = cell.recurrent[: 2 * size], cell.recurrent[2 * size :]
    z, r = f(cell.clipped(x[..., : 2 * size] + h @ weights.T)).chunk(2, dim=-1)
    if cell.linear_first:
        inner = h @ weights_h.T
        inner = r * (inner if cell.inner is None else inner + cell.inner)
    else:
        inner = (r * h) @ weights_h.T
    new = g(cell.clipped(x[..., 2 * size :] + inner))
    return ((1 - z) * new + z * h,)


def _rnn(cell: Cell, x: Tensor, state: State) -> State:
    (h,) = state
    return (cell.activations[0](cell.clipped(x + h @ cell.recurrent.T)),)


_STEPS: dict[str, Callable[[Cell, Tensor, State], State]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@op("LSTM", "GRU", "RNN", static=(4,))
def recurrent(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Any = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> Outputs:
    batch_first = node.get("layout", 0) == 1
    if batch_first:
        x = x.transpose(0, 1)
        initial_h, initial_c = (None if s is None else s.transpose(0, 1) for s in (initial_h, initial_c))
    steps, batch = x.shape[:2]
    hidden = r.shape[-1]
    direction = node.get("direction", "forward").lower()
    backwards = {"reverse": [True], "bidirectional": [False, True]}.get(direction, [False])
    lens = np.array(ints(lengths) if lengths is not None else [steps] * batch, np.int64)
    states = (initial_h, initial_c) if node.op == "LSTM" else (initial_h,)
    every, last = [], []
    for d, (backward, functions) in enumerate(zip(backwards, _activations(node, len(backwards)), strict=True)):
        bias, inner = _bias(node, None if b is None else b[d], hidden)
        cell = Cell(
            recurrent=r[d],
            inner=inner,
            peepholes=None if peepholes is None else peepholes[d],
            activations=functions,
            clip=node.get("clip"),
            coupled=node.get("input_forget", 0) == 1,
            linear_first=node.get("linear_before_reset", 0) != 0,
        )
        projected = x @ w[d].T
        projected = projected if bias is None else projected + bias
        zeros = projected.new_zeros(batch, hidden)
        y, state = _scan(node.op, cell, projected, tuple(zeros if s is None else s[d] for s in states), lens, backward)
        every.append(y)
        last.append(state)
    y = torch.stack(every, dim=1)
    ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
    if batch_first:
        y, ends = y.permute(2, 0, 1, 3), [e.transpose(0, 1) for e in ends]
    return y, *ends


def _bias(node: Node, b: Tensor | None, hidden: int) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the projected input, and what GRU adds before its reset gate."""
    if b is None:
        return None, None
    of_w, of_r = b.chunk(2)
    if node.op == "GRU" and node.get("linear_before_reset", 0):
        outer = torch.cat([of_r[: 2 * hidden], torch.zeros_like(of_r[2 * hidden :])])
        return of_w + outer, of_r[2 * hidden :]
    return of_w + of_r, None


def _scan(
    kind: str, cell: Cell, x: Tensor, state: State, lens: NDArray[np.int64], backward: bool
) -> tuple[Tensor, State]:
    """All hidden states (time, batch, hidden) and the last valid state; a sample rests after its own length."""
    steps, batch = x.shape[:2]
    ragged = bool((lens != steps).any())
    order = _reversal(lens, steps) if backward else None
    if order is not None:
        x = _reordered(x, order)
    states = []
    for t in range(steps):
        new = _STEPS[kind](cell, x[t], state)
        if t >= lens.min():
            rests = torch.from_numpy(t >= lens).to(x.device)[:, None]
            new = tuple(torch.where(rests, old, one) for old, one in zip(state, new, strict=True))
        state = new
        states.append(state[0])
    if not lens.all():  # onnxruntime gives zeros for an empty sample, not its initial state
        empty = torch.from_numpy(lens == 0).to(x.device)[:, None]
        state = tuple(torch.where(empty, torch.zeros_like(s), s) for s in state)
    y = torch.stack(states) if states else x.new_zeros(0, batch, state[0].shape[-1])
    if ragged:
        valid = torch.from_numpy(np.arange(steps)[:, None] < lens).to(x.device)[..., None]
        y = torch.where(valid, y, torch.zeros_like(y))
    return (y if order is None else _reordered(y, order)), state


def _reversal(lens: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """(steps, batch): each sample's valid steps backwards, the others where they are; its own inverse."""
    at = np.arange(steps)[:, None]
    return np.where(at < lens, lens - 1 - at, at)


def _reordered(x: Tensor, order: NDArray[np.int64]) -> Tensor:
    if (order == order[:, :1]).all():
        return x.index_select(0, torch.from_numpy(order[:, 0].copy()).to(x.device))
    return x[torch.from_numpy(order).to(x.device), torch.arange(order.shape[1], device=x.device)]


def _activations(node: Node, directions: int) -> list[tuple[Activation, ...]]:
    """f, g, h of each direction; alphas and betas go, in order, to the functions that use one (as in onnxruntime)."""
    count = len(_DEFAULTS[node.op])
    names = [str(n).lower() for n in node.get("activations") or _DEFAULTS[node.op] * directions]
    alphas, betas = iter(node.get("activation_alpha") or ()), iter(node.get("activation_beta") or ())
    functions = [_activation(name, alphas, betas) for name in names]
    return [tuple(functions[d * count : (d + 1) * count]) for d in range(directions)]


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _ALPHA:
        alpha, one = _ALPHA[name]
        a = next(alphas, alpha)
        return lambda x: one(x, a)
    if name in _BOTH:
        alpha, beta, two = _BOTH[name]
        a, b = next(alphas, alpha), next(betas, beta)
        return lambda x: two(x, a, b)
    raise NotImplementedError(f"The activation {name!r} of a recurrent node is unknown.")
