"""Operators of tail/ops/ against onnxruntime: attributes in every combination that real models use, at every opset.

`to_torch` itself compares value and slope with onnxruntime on the example; here the module is fed other numbers too.
Of CHAIN only onnx2torch, which ours extend, is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx.tail import convert
from tests.tail.single_op import check_model, one_node

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def only_onnx2torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "CHAIN", convert.CHAIN[:1])


def single(
    op: str,
    fed: Mapping[str, NDArray[Any]],
    further: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    outputs: int = 1,
    **attributes: Any,
) -> caf.Model:
    """A model of one node: `fed` are its first inputs, `further` its stored ones (None: omitted)."""
    names = [f"y{k}" for k in range(outputs)]
    stored = tuple(further or ())
    return one_node(op, {**fed, **(further or {})}, stored=stored, outputs=names, opset=opset, **attributes)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


AUTO = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
RANKS = {1: (7,), 2: (7, 6), 3: (5, 6, 4)}


def convolutions() -> Iterator[Any]:
    for rank, auto, stride, dilation, group in product(
        (1, 2, 3), ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"), (1, 2), (1, 2), (1, 2)
    ):
        if dilation > 1 and auto.startswith("SAME"):
            continue  # onnxruntime has no kernel for it
        yield pytest.param(rank, auto, stride, dilation, group, id=f"{rank}d-{auto}-s{stride}-d{dilation}-g{group}")


@pytest.mark.parametrize(("rank", "auto", "stride", "dilation", "group"), list(convolutions()))
def test_conv(rank: int, auto: str, stride: int, dilation: int, group: int) -> None:
    x, w = noise(2, 4, *RANKS[rank]), noise(6, 4 // group, *[2, 3, 2][:rank], seed=1)
    pads: dict[str, Any] = {"pads": [1, 0, 2, 0, 1, 1][: 2 * rank]} if auto == "NOTSET" else {}
    proto = single(
        "Conv", {"x": x}, {"w": w, "b": noise(6)}, auto_pad=auto, strides=[stride] * rank,
        dilations=[dilation] * rank, group=group, **pads,
    )  # fmt: skip
    check_model(proto, {"x": x})


@pytest.mark.parametrize(
    ("rank", "auto", "stride", "group"),
    list(product((1, 2, 3), AUTO, (1, 2), (1, 2))),
)
def test_conv_transpose(rank: int, auto: str, stride: int, group: int) -> None:
    x, w = noise(2, 4, *RANKS[rank]), noise(4, 3, *[3] * rank, seed=1)
    more: dict[str, Any] = {"pads": [1, 0, 1, 0, 1, 1][: 2 * rank]} if auto == "NOTSET" else {}
    if auto == "NOTSET" and stride == 2:
        more["output_padding"] = [1] * rank
    proto = single("ConvTranspose", {"x": x}, {"w": w}, auto_pad=auto, strides=[stride] * rank, group=group, **more)
    check_model(proto, {"x": x})


@pytest.mark.parametrize("wanted", [[16, 13], [14, 12], [13, 11]])
def test_conv_transpose_to_a_given_shape(wanted: list[int]) -> None:
    x = noise(1, 2, 7, 6)
    proto = single("ConvTranspose", {"x": x}, {"w": noise(2, 3, 3, 3)}, strides=[2, 2], output_shape=wanted)
    check_model(proto, {"x": x})


POOLS = list(product((1, 2, 3), ("MaxPool", "AveragePool", "LpPool"), (1, 2), (0, 1), (1, 2), (0, 1)))


@pytest.mark.parametrize(("rank", "op", "stride", "ceil", "dilation", "padded"), POOLS)
def test_pool(rank: int, op: str, stride: int, ceil: int, dilation: int, padded: int) -> None:
    if op == "LpPool" and (ceil or dilation > 1):
        pytest.skip("onnxruntime has no such LpPool at opset 17")
    x = noise(2, 3, *RANKS[rank])
    more: dict[str, Any] = {} if op == "LpPool" else {"ceil_mode": ceil}
    more |= {"dilations": [dilation] * rank} if op != "LpPool" else {}
    more |= {"pads": [1, 0, 1, 1, 0, 1][: 2 * rank]} if padded else {}
    more |= {"count_include_pad": padded} if op == "AveragePool" and stride == 2 else {}
    proto = single(op, {"x": x}, opset=19, kernel_shape=[2, 3, 2][:rank], strides=[stride] * rank, **more)
    check_model(proto, {"x": x})


@pytest.mark.parametrize(("op", "auto"), list(product(("MaxPool", "AveragePool"), AUTO[1:])))
def test_pool_pads_by_itself(op: str, auto: str) -> None:
    x = noise(2, 3, 7, 6)
    check_model(single(op, {"x": x}, kernel_shape=[3, 2], strides=[2, 2], auto_pad=auto), {"x": x})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pool(op: str, rank: int) -> None:
    x = noise(2, 3, *RANKS[rank])
    check_model(single(op, {"x": x}), {"x": x})


COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
HOW = [
    ("linear", "floor"),
    ("cubic", "floor"),
    *[("nearest", m) for m in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")],
]


@pytest.mark.parametrize("coordinates", [*COORDINATES, "half_pixel_symmetric", "tf_half_pixel_for_nn"])
@pytest.mark.parametrize(("mode", "nearest"), HOW)
@pytest.mark.parametrize("sizes", [(9, 13), (3, 4), (5, 2)])
def test_resize(coordinates: str, mode: str, nearest: str, sizes: tuple[int, int]) -> None:
    opset = 19 if coordinates == "half_pixel_symmetric" else 11
    if coordinates == "tf_half_pixel_for_nn" and mode != "nearest":
        pytest.skip("it is for nearest alone")
    if coordinates == "half_pixel_symmetric" and nearest == "floor" and mode == "nearest" and sizes != (9, 13):
        pytest.skip("onnxruntime's rounding of a coordinate that is exactly a whole number is its own: refused")
    x = noise(1, 2, 5, 6)
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.1], np.float32)
    stored = {
        "roi": roi if "crop" in coordinates else np.zeros(0, np.float32),
        "scales": np.zeros(0, np.float32),
        "sizes": np.array([1, 2, *sizes], np.int64),
    }
    more: dict[str, Any] = {"extrapolation_value": 3.0} if "crop" in coordinates else {}
    proto = single(
        "Resize", {"x": x}, stored, opset=opset, mode=mode, coordinate_transformation_mode=coordinates,
        nearest_mode=nearest, **more,
    )  # fmt: skip
    check_model(proto, {"x": x})


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 19])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 0.6])
def test_resize_by_scales(opset: int, mode: str, scale: float) -> None:
    x = noise(1, 2, 5, 6)
    scales = np.array([1, 1, scale, scale], np.float32)
    stored = {"scales": scales} if opset < 11 else {"roi": np.zeros(0, np.float32), "scales": scales}
    check_model(single("Resize", {"x": x}, stored, opset=opset, mode=mode), {"x": x})


@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(opset: int, mode: str) -> None:
    x = noise(1, 2, 5, 6)
    scales = [1.0, 1.0, 2.0, 3.0]
    proto = (
        single("Upsample", {"x": x}, opset=opset, mode=mode, scales=scales)
        if opset < 9
        else single("Upsample", {"x": x}, {"s": np.array(scales, np.float32)}, opset=opset, mode=mode)
    )
    check_model(proto, {"x": x})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6), (2, 3, 4, 3, 5)])
def test_pad(mode: str, shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    before, after = [k % 3 for k in range(len(shape))], [(k + 1) % 3 for k in range(len(shape))]
    check_model(single("Pad", {"x": x}, {"p": np.array(before + after, np.int64)}, opset=19, mode=mode), {"x": x})


def test_pad_by_negative_amounts() -> None:
    x = noise(4, 5)
    pads = {"p": np.array([-1, 2, 1, -2], np.int64), "v": np.array(0.5, np.float32)}
    check_model(single("Pad", {"x": x}, pads), {"x": x})


REDUCTIONS = ("Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [8, 11, 13, 18])
@pytest.mark.parametrize(("axes", "keepdims"), [(None, 1), ([1], 0), ([0, 2], 1), ([-1], 0)])
def test_reduce(op: str, opset: int, axes: list[int] | None, keepdims: int) -> None:
    if opset < 11 and axes is not None and axes[0] < 0:
        pytest.skip("negative axes came with opset 11")
    x = np.abs(noise(3, 4, 2)) + 0.1
    by_input = opset >= 18 or (op == "Sum" and opset >= 13)
    stored: Arrays = {"a": np.array(axes, np.int64)} if by_input and axes else {}
    more: dict[str, Any] = {"axes": axes} if axes and not by_input else {}
    check_model(single(f"Reduce{op}", {"x": x}, stored, opset=opset, keepdims=keepdims, **more), {"x": x})


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    for op, shape, axes in (("Squeeze", (1, 3, 1, 2), [0, -2]), ("Unsqueeze", (3, 2), [0, -1])):
        x = noise(*shape)
        stored: Arrays = {"a": np.array(axes, np.int64)} if opset >= 13 else {}
        more: dict[str, Any] = {} if opset >= 13 else {"axes": axes}
        check_model(single(op, {"x": x}, stored, opset=opset, **more), {"x": x})


@pytest.mark.parametrize("opset", [9, 10, 13])
def test_slice(opset: int) -> None:
    x = noise(5, 6, 4)
    starts, ends, axes = [1, -3], [2**31 - 1, -1], [0, 2]
    if opset < 10:
        check_model(single("Slice", {"x": x}, opset=opset, starts=starts, ends=ends, axes=axes), {"x": x})
        return
    for steps in ([1, 1], [2, 1]):
        parts = {"s": starts, "e": ends, "a": axes, "t": steps}
        check_model(
            single("Slice", {"x": x}, {k: np.array(v, np.int64) for k, v in parts.items()}, opset=opset), {"x": x}
        )


@pytest.mark.parametrize(("start", "end", "step"), [(-1, -(2**31), -1), (4, 0, -2), (10, -10, -1), (3, 1, 1)])
def test_slice_backwards_and_empty(start: int, end: int, step: int) -> None:
    x = noise(5, 3)
    parts = {"s": [start], "e": [end], "a": [0], "t": [step]}
    check_model(single("Slice", {"x": x}, {k: np.array(v, np.int64) for k, v in parts.items()}), {"x": x})


@pytest.mark.parametrize("opset", [2, 11, 13, 18])
def test_split(opset: int) -> None:
    x = noise(6, 5)
    stored: Arrays = {"s": np.array([2, 3, 1], np.int64)} if opset >= 13 else {}
    more: dict[str, Any] = {} if opset >= 13 else {"split": [2, 3, 1]}
    check_model(single("Split", {"x": x}, stored, opset=opset, outputs=3, axis=0, **more), {"x": x})
    more = {"num_outputs": 1} if opset >= 18 else {}
    check_model(single("Split", {"x": x}, opset=opset, outputs=1, axis=1, **more), {"x": x})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    x, updates = noise(4, 3, 2), noise(2, 3, 2, seed=1)
    nd = {"i": np.array([[1], [-1]], np.int64), "u": updates}
    check_model(single("ScatterND", {"x": x}, nd, opset=18, reduction=reduction), {"x": x})
    places = {"i": np.array([[[0, 1], [2, 3], [-1, 0]], [[1, 2], [3, 0], [2, 2]]], np.int64), "u": updates}
    check_model(single("ScatterElements", {"x": x}, places, opset=18, reduction=reduction, axis=0), {"x": x})


@pytest.mark.parametrize("opset", [8, 11, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_before_and_since_opset_13(op: str, opset: int, axis: int) -> None:
    x = noise(2, 3, 4)
    check_model(single(op, {"x": x}, opset=opset, axis=axis), {"x": x})


@pytest.mark.parametrize("opset", [6, 11, 12])
def test_clip(opset: int) -> None:
    x = noise(4, 5)
    if opset < 11:
        check_model(single("Clip", {"x": x}, opset=opset, min=-0.5, max=0.7), {"x": x})
        return
    low, high = np.array(-0.5, np.float32), np.array(0.7, np.float32)
    cases: tuple[dict[str, Any], ...] = ({"l": low, "h": high}, {"l": None, "h": high}, {"l": low}, {})
    for bounds in cases:
        check_model(single("Clip", {"x": x}, bounds, opset=opset), {"x": x})


@pytest.mark.parametrize("equation", ["bij, bjk -> bik", "...ij,...jk->...ik", "bij,bjk", "biI,bIk->bkI"])
def test_einsum(equation: str) -> None:
    x, y = noise(2, 3, 4), noise(2, 4, 5, seed=1)
    check_model(single("Einsum", {"x": x}, {"y": y}, equation=equation), {"x": x})


@pytest.mark.parametrize(("a", "b", "bias"), list(product((0, 1), (0, 1), (None, (5,), (1,), (3, 5), ()))))
def test_gemm(a: int, b: int, bias: tuple[int, ...] | None) -> None:
    x, w = noise(*((4, 3) if a else (3, 4))), noise(*((5, 4) if b else (4, 5)), seed=1)
    stored: dict[str, Any] = {"w": w} if bias is None else {"w": w, "c": np.array(noise(*bias, seed=2), np.float32)}
    check_model(single("Gemm", {"x": x}, stored, transA=a, transB=b, alpha=0.5, beta=2.0), {"x": x})


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    x = noise(2, 3, 5, 6)
    grid = {"g": (noise(2, 4, 5, 2, seed=1) * 0.8).astype(np.float32)}
    check_model(
        single("GridSample", {"x": x}, grid, opset=16, mode=mode, padding_mode=padding, align_corners=corners), {"x": x}
    )


@pytest.mark.parametrize("opset", [10, 16])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(opset: int, mode: str, ratio: int) -> None:
    x = noise(2, 3, 12, 10)
    boxes = np.array([[1, 2, 7, 9], [0.5, 0.5, 3, 4], [-2, 1, 12, 14]], np.float32)
    stored = {"r": boxes, "i": np.array([0, 1, 1], np.int64)}
    proto = single(
        "RoiAlign", {"x": x}, stored, opset=opset, mode=mode, sampling_ratio=ratio, output_height=3, output_width=2,
        spatial_scale=0.9,
    )  # fmt: skip
    check_model(proto, {"x": x})


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(opset: int) -> None:
    for shape in ((2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)):
        x = noise(*shape)
        stored = {k: np.abs(noise(3, seed=s)) + 0.1 for s, k in enumerate("sbmv")}
        check_model(single("BatchNormalization", {"x": x}, stored, opset=opset, epsilon=1e-3), {"x": x})


@pytest.mark.parametrize(("largest", "ordered"), list(product((0, 1), (0, 1))))
def test_top_k(largest: int, ordered: int) -> None:
    x = noise(3, 6)
    proto = single("TopK", {"x": x}, {"k": np.array([3], np.int64)}, outputs=2, largest=largest, sorted=ordered, axis=1)
    if ordered:
        check_model(proto, {"x": x})


@pytest.mark.parametrize("centred", [0, 1])
def test_non_max_suppression_gives_the_same_boxes(centred: int) -> None:
    rng = np.random.default_rng(3)
    boxes, scores = rng.uniform(0, 10, (2, 40, 4)).astype(np.float32), rng.uniform(0, 1, (2, 3, 40)).astype(np.float32)
    limits = {"m": np.array([7], np.int64), "o": np.array([0.3], np.float32), "s": np.array([0.2], np.float32)}
    feeds = {"boxes": boxes, "scores": scores}
    check_model(single("NonMaxSuppression", feeds, limits, center_point_box=centred), feeds)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    x = noise(2, 8, 3, 4)
    check_model(single("DepthToSpace", {"x": x}, blocksize=2, mode=mode), {"x": x})


def test_division_of_integers_rounds_towards_zero() -> None:
    x = noise(4)
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y) <int64[4] a = {-7, 7, -8, 8}, int64[4] b = {2, -2, 3, -3}> {
            q = Div (a, b)
            f = Cast <to = 1> (q)
            n = Shape (x)
            e = Expand (f, n)
            y = Mul (x, e)
        }
    """
    check_model(caf.load(onnx.parser.parse_model(text)), {"x": x})
