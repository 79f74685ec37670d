"""render/: pixels against the heatmap that they show, and names that try to break titles and paths."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from l2caf_onnx.errors import InputError
from l2caf_onnx.render import page
from l2caf_onnx.render.names import file_stem
from l2caf_onnx.render.overlay import overlay
from l2caf_onnx.render.page import save_png, shorten
from l2caf_onnx.render.picture import picture
from l2caf_onnx.render.slices import slices
from l2caf_onnx.render.strip import strip

HOSTILE = ["", "x" * 10_000, "m" * 1_000_000, "a\nb\t\x00c", "\udcff", "猫 γάτα 🐱 קאט e\u0301", "../../x", "%s{0}<b>&"]


def photo(width: int = 56, height: int = 56) -> Image.Image:
    """A colourful picture without the colours of the heat."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([60 + 0 * rows, 90 + rows * 100 // height, 90 + columns * 100 // width], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def panels(picture: Image.Image, wide: int, high: int, top: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The left and the right panel (high, wide, 3), from where the layout puts them."""
    pixels = np.asarray(picture)
    right = 24 + wide + 16
    return pixels[top : top + high, 24 : 24 + wide], pixels[top : top + high, right : right + wide]


def test_size_and_panels() -> None:
    """56 pixels are enlarged eightfold to 448; the left panel is the photo, bicubic."""
    picture = overlay(photo(), np.zeros((56, 56), np.float32), title="t")
    assert picture.mode == "RGB"
    left, _ = panels(picture, 448, 448, 54)
    np.testing.assert_array_equal(left, np.asarray(photo().resize((448, 448), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(
    ("size", "panel"),
    [((224, 224), (448, 448)), ((299, 200), (897, 600)), ((1000, 600), (1000, 600)), ((4000, 3000), (2048, 1536)),
     ((5000, 2), (2048, 1)), ((3, 3), (450, 450))],
)  # fmt: skip
def test_panels_are_enlarged_by_a_whole_number(size: tuple[int, int], panel: tuple[int, int]) -> None:
    drawn = overlay(photo(*size), np.zeros((2, 2), np.float32), title="t")
    alone = overlay(None, np.zeros((size[1], size[0]), np.float32), title="t")
    assert drawn.width - alone.width == panel[0] + 16
    assert drawn.height == alone.height == panel[1] + 54 + 32 + 24


def test_a_heatmap_of_zeros_leaves_the_photo() -> None:
    """The overlay's photo is grey, so that all colour there is heat."""
    _, right = panels(overlay(photo(), np.zeros((56, 56)), title="t"), 448, 448, 54)
    grey = np.asarray(photo().resize((448, 448), Image.Resampling.BICUBIC).convert("L"))
    np.testing.assert_array_equal(right, np.repeat(grey[..., None], 3, -1))


def test_every_pixel_is_the_colour_of_its_heat() -> None:
    """The displayed colour is recomputed from the saved array, by the documented rule."""
    heat = np.random.default_rng(0).random((56, 56)).astype(np.float32)
    heat[0, 0], heat[-1, -1] = 0, 1
    _, right = panels(overlay(photo(), heat, title="t", subtitle="s"), 448, 448, 78)
    grey = np.asarray(photo().resize((448, 448), Image.Resampling.BICUBIC).convert("L"), dtype=float)[..., None]
    coordinates = ((np.arange(448) + 0.5) / 8 - 0.5).clip(0, 55)
    low = coordinates.astype(int).clip(0, 54)
    part = coordinates - low
    rows = heat[low] * (1 - part[:, None]) + heat[low + 1] * part[:, None]
    fine = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    colour = matplotlib.colormaps["inferno"](fine)[..., :3] * 255
    expected = grey + 0.8 * fine[..., None] * (colour - grey)
    np.testing.assert_allclose(right, expected, rtol=0, atol=2.5)  # 256 steps of the colour map, and rounding


def test_hot_pixels_are_where_the_heat_is() -> None:
    heat = np.zeros((56, 56), np.float32)
    heat[10:20, 30:45] = 1
    _, right = panels(overlay(photo(), heat, title="t", cells=(7, 7)), 448, 448, 54)
    coloured = np.ptp(right.astype(int), axis=-1) > 40
    inside = np.zeros((448, 448), dtype=bool)
    inside[80:160, 240:360] = True
    assert coloured[inside].mean() > 0.95
    near = np.zeros_like(inside)
    near[72:168, 232:368] = True
    assert not coloured[~near].any()


def test_a_heatmap_without_a_picture() -> None:
    heat = np.linspace(0, 1, 448 * 448, dtype=np.float32).reshape(448, 448)
    pixels = np.asarray(overlay(None, heat, title="t"))[54 : 54 + 448, 24 : 24 + 448]
    expected = (matplotlib.colormaps["inferno"](heat)[..., :3] * 255).round()
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("alone", [False, True])
def test_the_colour_bar_is_blended_like_the_map(alone: bool) -> None:
    """Of a mid-grey photo with all of its heat, the bar shows the very colours."""
    middle = Image.new("RGB", (448, 448), (128, 128, 128))
    ramp = np.repeat(np.linspace(1, 0, 448, dtype=np.float32)[:, None], 448, 1)
    pixels = np.asarray(overlay(None if alone else middle, ramp, title="t"))[54 : 54 + 448]
    left = 24 if alone else 24 + 448 + 16
    np.testing.assert_array_equal(pixels[:, left + 448 + 16], pixels[:, left])


@pytest.mark.parametrize("cells", [None, (7, 7), (2, 448), (500, 500)])
@pytest.mark.parametrize("text", HOSTILE)
def test_titles_neither_crash_nor_overflow(text: str, cells: tuple[int, int] | None) -> None:
    picture = overlay(photo(), np.zeros((7, 7), np.float32), title=text, subtitle=text, cells=cells)
    pixels = np.asarray(picture)
    margin = pixels[:, -22:]  # 24 less what a letter may lean over
    assert (margin == 255).all()
    font = page.font("title")
    assert font.getlength(shorten(text, font, 300)) <= 300


def test_long_names_keep_both_ends() -> None:
    font = page.font("small")
    short = shorten("efficientnet/" + "block/" * 100 + "Conv_197:0", font, 200)
    assert re.fullmatch(r"effici.*….*Conv_197:0", short)
    assert shorten("plain name", font, 200) == "plain name"


@pytest.mark.parametrize(
    "heat", [np.zeros(4), np.zeros((0, 4)), np.full((4, 4), np.nan), np.full((4, 4), 1.1), np.full((4, 4), -0.1)]
)
def test_what_is_no_heatmap_is_refused(heat: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="heatmap"):
        overlay(photo(), heat, title="t")


def test_the_same_bytes_each_time_and_no_rest(tmp_path: Path) -> None:
    heat = np.random.default_rng(1).random((7, 7))
    for name in ("a.png", "b.png"):
        save_png(overlay(photo(), heat, title="282 tiger cat", cells=(7, 7)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(InputError, match="cannot be written"):
        save_png(photo(), tmp_path / "no" / "a.png")


@given(st.text(st.characters()) | st.sampled_from(HOSTILE), st.integers(14, 80))
def test_file_stem_is_a_clean_name(name: str, length: int) -> None:
    stem = file_stem(name, length=length)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-[0-9a-f]{12}", stem)
    assert len(stem) <= length
    assert ".." not in stem.split("/")
    assert Path("d", stem).resolve().parent == Path("d").resolve()


@given(st.lists(st.text(), unique=True, max_size=30))
def test_file_stems_differ_as_names_do(names: list[str]) -> None:
    assert len({file_stem(n).casefold() for n in names}) == len(names)


@pytest.mark.parametrize("name", ["CON", "con.txt", "NUL", "com1.x.y", "LPT9"])
def test_file_stem_is_no_device(name: str) -> None:
    assert file_stem(name).startswith("_" + name[:3])


def test_file_stem_reads_well() -> None:
    assert re.fullmatch(r"onnx_Conv_197-[0-9a-f]{12}", file_stem("onnx::Conv_197"))
    assert re.fullmatch(r"x-[0-9a-f]{12}", file_stem("../../x"))
    assert len(file_stem("n" * 500)) == 60
    assert file_stem("A") != file_stem("a") != file_stem("a ") != file_stem("a:")
    with pytest.raises(ValueError, match="at least 14"):
        file_stem("a", length=13)


@pytest.mark.parametrize("length", [2, 5, 172, 960, 2048])
def test_every_column_of_a_strip_is_the_colour_of_its_cell(length: int) -> None:
    heat = np.random.default_rng(0).random(length).astype(np.float32)
    heat[[0, -1]] = 0, 1
    drawn = np.asarray(strip(heat, title="t"))
    wide = length * max(1, min(-(-960 // length), 2048 // length))
    band = drawn[54 + 20, 54 : 54 + wide]
    expected = matplotlib.colormaps["inferno"](np.repeat(heat, wide // length))[:, :3] * 255
    np.testing.assert_allclose(band, expected, rtol=0, atol=1)


def test_the_curve_of_a_strip_is_as_high_as_its_cells() -> None:
    heat = np.array([0, 1, 0.25, 0.5], np.float32)
    drawn = np.asarray(strip(heat, title="t").convert("L"))
    floor = 54 + 72 + 10 + 200
    for k, value in enumerate(heat):
        column = drawn[54 + 72 + 5 : floor + 3, 54 + k * 240 + 120]
        assert abs(int(column.argmin()) + 54 + 72 + 5 - (floor - value * 200)) <= 1


def test_a_long_strip_shows_the_largest_of_what_falls_on_a_pixel() -> None:
    heat = np.zeros(44100, np.float32)
    heat[30000] = 1
    drawn = np.asarray(strip(heat, title="t", cells=172))
    row = drawn[54 + 20, 54 : 54 + 2048].astype(int).sum(1)
    assert row.argmax() == 30000 * 2048 // 44100
    assert np.sum(row > row.min()) == 1


@pytest.mark.parametrize("seen", [False, True])
def test_every_slice_is_its_own(seen: bool) -> None:
    """16 pixels a side are enlarged ninefold; in the middle of a slice's pixel is the colour of its heat."""
    heat = np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32)[:, None, None], (5, 16, 16))
    ground = np.broadcast_to(np.linspace(3, 7, 5)[:, None, None], (5, 16, 16)) if seen else None
    drawn = np.asarray(slices(heat, title="t", seen=ground))
    for d in range(5):
        x, y = 24 + d % 4 * 160 + 70, 54 + d // 4 * 166 + 70
        colour = np.array(matplotlib.colormaps["inferno"](heat[d, 0, 0])[:3]) * 255
        grey = np.linspace(0, 255, 5)[d]
        expected = grey + 0.8 * heat[d, 0, 0] * (colour - grey) if seen else colour
        np.testing.assert_allclose(drawn[y, x], expected, rtol=0, atol=1.5)


def test_a_deep_volume_shows_some_slices_and_says_so() -> None:
    small, large = (slices(np.zeros((n, 8, 8)), title="t").size for n in (64, 500))
    assert small == large


def test_a_volume_of_another_size_is_not_drawn_beneath() -> None:
    heat = np.random.default_rng(0).random((2, 8, 8)).astype(np.float32)
    plain, other = slices(heat, title="t"), slices(heat, title="t", seen=np.ones((4, 8, 8)))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(other))


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5)])
def test_a_picture_for_every_shape(shape: tuple[int, ...]) -> None:
    heat = np.random.default_rng(0).random(shape)
    assert picture(heat, title="t", cells=shape).mode == "RGB"
    with pytest.raises(InputError, match="lies in"):
        picture(heat + 1, title="t")


@pytest.mark.parametrize("shape", [(), (2, 2, 2, 2), (0,)])
def test_no_picture_for_others(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="has the shape"):
        picture(np.zeros(shape), title="t")
