"""LSTM, GRU and RNN against onnxruntime: directions, lengths, activations, clips, peepholes, states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2caf_onnx.tail.ops.recurrent import recurrent
from l2caf_onnx.tail.ops.registry import Node, Outputs
from tests.tail.single_op import check, normal

T, N, SIZE, H = 4, 3, 2, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STORED = ("w", "r", "b", "lens", "p")


def inputs(kind: str, directions: int = 1, *extra: str, lens: tuple[int, ...] = (4, 2, 3)) -> dict[str, Any]:
    """The node's inputs; those in `extra` beside x, w, r."""
    gates = GATES[kind]
    known: dict[str, NDArray[Any]] = {
        "x": normal(T, N, SIZE),
        "w": normal(directions, gates * H, SIZE),
        "r": normal(directions, gates * H, H, seed=1),
        "b": normal(directions, 2 * gates * H),
        "lens": np.array(lens, np.int32),
        "h": normal(directions, N, H, seed=2),
        "c": normal(directions, N, H, seed=3),
        "p": normal(directions, 3 * H),
    }
    names = list(known) if kind == "LSTM" else list(known)[:6]
    return {k: known[k] if k in ("x", "w", "r", *extra) else None for k in names}


def tensors(result: Outputs) -> list[Tensor]:
    return [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]


def outputs(kind: str) -> tuple[str, ...]:
    return ("y", "yh", "yc") if kind == "LSTM" else ("y", "yh")


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", list(GATES))
def test_directions_with_everything(kind: str, direction: str, opset: int) -> None:
    given = inputs(kind, 2 if direction == "bidirectional" else 1, "b", "lens", "h", "c", "p")
    check(kind, given, stored=STORED, outputs=outputs(kind), opset=opset, hidden_size=H, direction=direction)


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("extra", [(), ("b",), ("lens",), ("h",), ("h", "c"), ("p",), ("b", "p")])
def test_optional_inputs(kind: str, extra: tuple[str, ...]) -> None:
    if kind != "LSTM" and {"c", "p"} & set(extra):
        pytest.skip("LSTM's own")
    check(kind, inputs(kind, 1, *extra), stored=STORED, outputs=outputs(kind), hidden_size=H)


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_each_output_alone(kind: str, kept: int) -> None:
    if kept == 2 and kind != "LSTM":
        pytest.skip("LSTM's own")
    names = tuple(o if k == kept else "" for k, o in enumerate(outputs(kind)))[: kept + 1]
    check(kind, inputs(kind, 1, "b"), stored=STORED, outputs=names, hidden_size=H)


@pytest.mark.parametrize(
    ("function", "alpha", "beta"),
    [
        ("Relu", None, None), ("Tanh", None, None), ("Sigmoid", None, None), ("Softsign", None, None),
        ("Softplus", None, None), ("LeakyRelu", None, None), ("LeakyRelu", 0.3, None), ("ThresholdedRelu", None, None),
        ("ThresholdedRelu", 0.2, None), ("Elu", None, None), ("Elu", 0.7, None), ("HardSigmoid", None, None),
        ("HardSigmoid", 0.3, 0.4), ("Affine", 0.5, 0.25), ("Affine", None, None), ("ScaledTanh", 0.8, 0.6),
        ("ScaledTanh", None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", list(GATES))
def test_activations(kind: str, function: str, alpha: float | None, beta: float | None) -> None:
    rest = {"LSTM": ["Sigmoid", function, "Tanh"], "GRU": ["Sigmoid", function], "RNN": [function]}[kind]
    more = {k: [v] for k, v in (("activation_alpha", alpha), ("activation_beta", beta)) if v is not None}
    check(kind, inputs(kind, 1, "b"), stored=STORED, outputs=outputs(kind), hidden_size=H, activations=rest, **more)


@pytest.mark.parametrize("kind", list(GATES))
def test_alphas_go_to_those_that_use_them(kind: str) -> None:
    each = {
        "LSTM": ["HardSigmoid", "Tanh", "ScaledTanh", "Sigmoid", "LeakyRelu", "Elu"],
        "GRU": ["HardSigmoid", "LeakyRelu", "Sigmoid", "Affine"],
        "RNN": ["ScaledTanh", "LeakyRelu"],
    }[kind]
    alpha = {"LSTM": [0.25, 0.9, 0.05, 0.8], "GRU": [0.25, 0.1, 0.6], "RNN": [0.9, 0.1]}[kind]
    beta = {"LSTM": [0.4, 0.7], "GRU": [0.4, 0.2], "RNN": [0.7]}[kind]
    check(
        kind, inputs(kind, 2, "b"), stored=STORED, outputs=outputs(kind), hidden_size=H, direction="bidirectional",
        activations=each, activation_alpha=alpha, activation_beta=beta,
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("extra", [("b",), ("b", "p")])
def test_clip(kind: str, extra: tuple[str, ...]) -> None:
    if kind != "LSTM" and "p" in extra:
        pytest.skip("LSTM's own")
    check(kind, inputs(kind, 1, *extra), stored=STORED, outputs=outputs(kind), hidden_size=H, clip=0.5)


@pytest.mark.parametrize("extra", [("b",), ("b", "p")])
def test_input_forget(extra: tuple[str, ...]) -> None:
    check("LSTM", inputs("LSTM", 1, *extra), stored=STORED, outputs=outputs("LSTM"), hidden_size=H, input_forget=1)


@pytest.mark.parametrize("extra", [(), ("b",), ("b", "lens", "h")])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("opset", [7, 22])
def test_linear_before_reset(extra: tuple[str, ...], direction: str, opset: int) -> None:
    given = inputs("GRU", 2 if direction == "bidirectional" else 1, *extra)
    check(
        "GRU", given, stored=STORED, outputs=outputs("GRU"), opset=opset, hidden_size=H, direction=direction,
        linear_before_reset=1,
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_empty_sample(kind: str, direction: str) -> None:
    given = inputs(kind, 1, "b", "lens", "h", "c", lens=(4, 0, 2))
    check(kind, given, stored=STORED, outputs=outputs(kind), hidden_size=H, direction=direction)


@pytest.mark.parametrize("kind", list(GATES))
def test_weights_may_be_fed(kind: str) -> None:
    check(kind, inputs(kind, 1, "b", "lens"), outputs=outputs(kind), hidden_size=H)


@pytest.mark.parametrize("kind", list(GATES))
def test_batch_first(kind: str) -> None:
    """layout 1, which onnxruntime refuses, is layout 0 with the axes exchanged."""
    given = {
        k: None if v is None else v if k == "lens" else torch.from_numpy(v)
        for k, v in inputs(kind, 2, "b", "lens", "h", "c").items()
    }
    wanted = (True,) * len(outputs(kind))
    node = Node(kind, 22, {"direction": "bidirectional"}, wanted)
    turned = Node(kind, 22, {"direction": "bidirectional", "layout": 1}, wanted)
    other = {k: v.transpose(0, 1) if k in "xhc" and v is not None else v for k, v in given.items()}
    y, *ends = tensors(recurrent(node, *given.values()))
    y1, *ends1 = tensors(recurrent(turned, *other.values()))
    assert torch.equal(y.permute(2, 0, 1, 3), y1)
    assert all(torch.equal(a.transpose(0, 1), b) for a, b in zip(ends, ends1, strict=True))


@pytest.mark.parametrize("kind", list(GATES))
def test_vmap_equals_a_loop(kind: str) -> None:
    tail = check(
        kind, inputs(kind, 2, "b", "lens"), stored=STORED, outputs=outputs(kind), hidden_size=H,
        direction="bidirectional",
    )  # fmt: skip
    xs = torch.from_numpy(normal(5, T, N, SIZE))
    together = torch.func.vmap(lambda x: tail({"x": x})["y"])(xs)
    torch.testing.assert_close(together, torch.stack([tail({"x": x})["y"] for x in xs]))
