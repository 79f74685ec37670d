"""graph/atoms.py and graph/arithmetic.py: axes through Reshape and Transpose, against numpy and ONNX itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from l2caf_onnx.graph.arithmetic import computed
from l2caf_onnx.graph.atoms import Shaped, fresh, kind, letters_of, reshaped, sizes_of

SIZES = {"N": 2, "C": 6, "H": 4, "W": 8}


def coordinates(letter: str) -> NDArray[np.int64]:
    """(N, C, H, W), at each element its coordinate along that axis."""
    grid = np.indices([SIZES[k] for k in "NCHW"])
    found: NDArray[np.int64] = grid["NCHW".index(letter)]
    return found


def told(shaped: Shaped, letter: str) -> NDArray[np.int64]:
    """The same of a tensor with these axes, as the atoms tell it."""
    sizes = sizes_of(shaped)
    total = np.zeros(sizes, np.int64)
    for place, axis in enumerate(shaped):
        index = np.arange(sizes[place])
        for atom in reversed(axis):
            if atom.letter == letter:
                total += (index % atom.size * atom.stride).reshape([-1 if k == place else 1 for k in range(len(sizes))])
            index = index // atom.size
    return total


@pytest.mark.parametrize(
    "steps",
    [
        [(2, 6, 32)],
        [(2, 6, 32), "021"],
        [(2, 3, 2, 4, 8), "03412", (2, 32, 6)],
        [(2, 6, 2, 2, 4, 2), "024351", (16, 4, 6), (2, 2, 4, 2, 2, 6), "051324", (2, 6, 4, 8)],
        ["0231", (8, 8, 6), (2, 4, 48), (2, 4, 8, 2, 3), "03142", (4, 4, 24)],
        [(2, 6, 1, 32), (1, 2, 6, 4, 1, 8)],
        [(384,), (2, 6, 4, 8)],
    ],
    ids=str,
)
def test_atoms_tell_where_every_element_came_from(steps: list[Any]) -> None:
    shaped = fresh("NCHW", tuple(SIZES.values()))
    arrays = {letter: coordinates(letter) for letter in SIZES}
    for step in steps:
        if isinstance(step, str):
            perm = [int(p) for p in step]
            shaped, arrays = tuple(shaped[p] for p in perm), {k: a.transpose(perm) for k, a in arrays.items()}
        else:
            made = reshaped(shaped, step)
            assert made is not None
            shaped, arrays = made, {k: a.reshape(step) for k, a in arrays.items()}
    assert sizes_of(shaped) == next(iter(arrays.values())).shape
    for letter, array in arrays.items():
        np.testing.assert_array_equal(told(shaped, letter), array)


@pytest.mark.parametrize(("sizes"), [(2, 4, 48), (3, 128), (5, 5)])
def test_what_cuts_through_atoms_is_not_told(sizes: tuple[int, ...]) -> None:
    assert reshaped(fresh("NCHW", tuple(SIZES.values())), sizes) is None


@pytest.mark.parametrize(
    ("sizes", "letters"),
    [
        ((2, 6, 32), "NCT"),
        ((2, 2, 3, 4, 8), "NGCHW"),
        ((12, 4, 8), None),  # samples and channels
        ((2, 192), "NC"),
        ((2, 6, 2, 2, 8), "NCHTW"),
    ],
)
def test_letters(sizes: tuple[int, ...], letters: str | None) -> None:
    made = reshaped(fresh("NCHW", tuple(SIZES.values())), sizes)
    assert made is not None
    assert letters_of(made, None) == letters


def test_a_batch_of_one_that_stays_among_the_channels_is_no_mixture() -> None:
    made = reshaped(fresh("NCHW", (1, 6, 4, 8)), (6, 4, 8))
    assert made is not None
    assert [kind(axis) for axis in made] == ["C", "H", "W"]


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("y = Div (a, b)", {"a": np.array([7, -7, 6]), "b": np.array([2, 2, -4])}),
        ("y = Mod (a, b)", {"a": np.array([7, -7]), "b": np.array([3, 3])}),
        ("y = Gather (a, b)", {"a": np.array([7, 8, 9]), "b": np.array(-1)}),
        ("y = Slice (a, b, c)", {"a": np.arange(5), "b": np.array([-3]), "c": np.array([2**62])}),
        ("y = Slice (a, b, c, d, e)", {"a": np.arange(5), "b": np.array([-1]), "c": np.array([-(2**62)]),
                                       "d": np.array([0]), "e": np.array([-1])}),
        ("y = Concat <axis = 0> (a, b)", {"a": np.array([1]), "b": np.array([2, 3])}),
        ("y = Unsqueeze (a, b)", {"a": np.array(3), "b": np.array([0])}),
        ("y = Squeeze (a)", {"a": np.array([3])}),
        ("y = Cast <to = 7> (a)", {"a": np.array([2.7, -2.7], np.float32)}),
        ("y = ConstantOfShape <value = int64[1] {-1}> (a)", {"a": np.array([2, 3])}),
        ("y = Where (a, b, c)", {"a": np.array([True, False]), "b": np.array([1, 2]), "c": np.array([3, 4])}),
        ("y = Range (a, b, c)", {"a": np.array(1), "b": np.array(9), "c": np.array(3)}),
        ("y = Reshape (a, b)", {"a": np.arange(6), "b": np.array([2, -1])}),
        ("y = Transpose (a)", {"a": np.arange(6).reshape(2, 3)}),
        ("y = ReduceProd <keepdims = 0> (a)", {"a": np.array([2, 3, 4])}),
        ("y = Sqrt (a)", {"a": np.array([9.0], np.float32)}),
    ],
)  # fmt: skip
def test_arithmetic_is_onnxs_own(node: str, inputs: dict[str, NDArray[Any]]) -> None:
    names = ", ".join(inputs)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({names}) => (y) {{ {node} }}')
    made = computed(model.graph.node[0], list(inputs.values()))
    results: Any = ReferenceEvaluator(model).run(None, inputs)
    expected = np.asarray(results[0])
    assert made is not None
    np.testing.assert_array_equal(made, expected)
    assert made.dtype == expected.dtype


def test_what_is_large_or_broken_is_left() -> None:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (a, b) => (y) { y = Add (a, b) }')
    assert computed(model.graph.node[0], [np.arange(3), np.arange(4)]) is None
    assert computed(model.graph.node[0], [np.arange(3000), np.arange(3000)]) is None
    assert computed(model.graph.node[0], [np.arange(3), None]) is None
