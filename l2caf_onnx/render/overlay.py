"""One sample's heatmap on the picture that the model saw, with the plain picture beside it for comparison.

Colour and opacity are read off the saved heatmap, linearly and without a threshold, and the colour bar is blended in
the same way: what is seen is what is stored. Under the heat the photo is grey, so that all colour there is heat: on an
orange cat, an orange spot would otherwise say nothing.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from l2caf_onnx.errors import InputError
from l2caf_onnx.records import write_atomic

COLOURS = "inferno"  # perceptually uniform: equal steps of heat look equal, in print without colour too
OPACITY = 0.8  # of the hottest cell: the photo still shows through
SHORT, LONG = 448, 2048  # pixels of a panel: enlarged until its shorter side has SHORT, never beyond LONG
_INK, _FAINT, _PAPER = (27, 30, 35), (98, 104, 112), (255, 255, 255)
_MARGIN, _GAP, _BAR = 24, 16, 14
_SIZES = {"title": 20, "subtitle": 15, "small": 13}
_LEGEND = "attention: 0 least, 1 most in this sample"


def overlay(
    image: Image.Image | None,
    heatmap: NDArray[np.floating],
    *,
    title: str,
    subtitle: str = "",
    cells: tuple[int, int] | None = None,
) -> Image.Image:
    """An RGB picture: photo, grey photo under `heatmap`, colour bar; without an `image` the heatmap alone.

    Args:
        image: What the model saw.
        heatmap: (H, W) in [0, 1], stretched (bilinear) over the image.
        title: Class and tensors; cut in the middle where it is too long.
        subtitle: A second, fainter line.
        cells: Rows and columns of the filter, marked by ticks along the edges: how fine the map really is.

    Raises:
        InputError: `heatmap` is not a matrix of numbers in [0, 1].
    """
    heat = np.asarray(heatmap, dtype=np.float32)
    if heat.ndim != 2 or heat.size == 0:
        raise InputError(f"A heatmap has the shape (H, W); this one has {heat.shape}.")
    if not (heat.min() >= -1e-6 and heat.max() <= 1 + 1e-6):  # so written, NaN is refused too
        raise InputError(f"A heatmap lies in [0, 1]; this one goes from {heat.min()} to {heat.max()}.")
    width, height = image.size if image else (heat.shape[1], heat.shape[0])
    size = _panel_size(width, height)
    heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    fineness = f"attention, {cells[0]} × {cells[1]} cells" if cells else "attention"
    if image is None:
        panels = [(Image.fromarray(_blend(None, heat)), fineness)]
    else:
        photo = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        panels = [
            (photo, f"what the model saw, {height} × {width}"),
            (Image.fromarray(_blend(np.asarray(photo.convert("L")), heat)), fineness),
        ]
    return _compose(panels, title, subtitle, cells, blended=image is not None)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, atomically; the same picture gives the same bytes.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_atomic(path, lambda stream: image.save(stream, "PNG"))


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` on one line of at most `width` pixels, its middle replaced by an ellipsis where needed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    low, high = 0, min(len(line), 2000)  # how many characters stay; a name of a megabyte is not measured whole
    if high == len(line) and font.getlength(line) <= width:
        return line
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(_middle_cut(line, middle)) <= width else (low, middle - 1)
    return _middle_cut(line, low)


def _middle_cut(line: str, count: int) -> str:
    tail = count // 2
    return line[: count - tail] + "…" + (line[-tail:] if tail else "")


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """A whole multiple of (width, height) with a short side of at least SHORT; less where the long one passes LONG."""
    factor = min(-(-SHORT // min(width, height)), LONG // max(width, height))
    if factor >= 1:
        return width * factor, height * factor
    shrink = LONG / max(width, height)
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _blend(ground: NDArray[np.uint8] | None, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of `heat` (H, W) over grey values `ground` (H, W), opaque where there are none."""
    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    if ground is None:
        return colours.round().astype(np.uint8)
    grey, alpha = ground[..., None].astype(np.float64), OPACITY * heat[..., None]
    return (grey + alpha * (colours - grey)).round().astype(np.uint8)


@lru_cache
def _font(kind: str) -> ImageFont.FreeTypeFont:
    """Matplotlib's own DejaVu: the same letters on every machine, and most alphabets."""
    name = "DejaVuSans-Bold.ttf" if kind == "title" else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), _SIZES[kind], layout_engine=ImageFont.Layout.BASIC)


def _compose(
    panels: list[tuple[Image.Image, str]], title: str, subtitle: str, cells: tuple[int, int] | None, *, blended: bool
) -> Image.Image:
    wide, high = panels[0][0].size
    scale_width = _GAP + _BAR + 6 + round(_font("small").getlength("0.5")) + 20
    content = len(panels) * wide + (len(panels) - 1) * _GAP + scale_width
    width = max(content, SHORT) + 2 * _MARGIN
    top = _MARGIN + 30 + (24 if subtitle else 0)
    canvas = Image.new("RGB", (width, top + high + 32 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    room = width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN - 4), shorten(title, _font("title"), room), _INK, _font("title"))
    draw.text((_MARGIN, _MARGIN + 25), shorten(subtitle, _font("subtitle"), room), _FAINT, _font("subtitle"))
    left = (width - content) // 2
    for panel, caption in panels:
        canvas.paste(panel, (left, top))
        draw.text((left, top + high + 10), shorten(caption, _font("small"), wide), _FAINT, _font("small"))
        left += wide + _GAP
    if cells is not None:
        _ticks(draw, (left - wide - _GAP, top, wide, high), cells)
    _colour_bar(canvas, (left, top), high, blended=blended)
    return canvas


def _ticks(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], cells: tuple[int, int]) -> None:
    """Where one cell of the filter ends and the next begins; none where they would run together."""
    left, top, wide, high = box
    if min(high / cells[0], wide / cells[1]) < 4:
        return
    for row in range(cells[0] + 1):
        y = top + min(high - 1, round(row * high / cells[0]))
        draw.line((left - 5, y, left - 2, y), _FAINT)
    for column in range(cells[1] + 1):
        x = left + min(wide - 1, round(column * wide / cells[1]))
        draw.line((x, top + high + 1, x, top + high + 4), _FAINT)


def _colour_bar(canvas: Image.Image, corner: tuple[int, int], high: int, *, blended: bool) -> None:
    """The scale, 1 at the top; over mid-grey where the heat is blended over a photo."""
    left, top = corner
    draw, font = ImageDraw.Draw(canvas), _font("small")
    ramp = np.repeat(np.linspace(1, 0, high, dtype=np.float32)[:, None], _BAR, axis=1)
    ground = np.full(ramp.shape, 128, dtype=np.uint8) if blended else None
    canvas.paste(Image.fromarray(_blend(ground, ramp)), (left, top))
    for value, label in ((1.0, "1"), (0.5, "0.5"), (0.0, "0")):
        y = top + round((1 - value) * (high - 1))
        draw.line((left + _BAR, y, left + _BAR + 3, y), _FAINT)
        anchor = {1.0: "lt", 0.5: "lm", 0.0: "lb"}[value]
        draw.text((left + _BAR + 6, y), label, _FAINT, font, anchor=anchor)
    legend = Image.new("RGB", (high, 18), _PAPER)
    ImageDraw.Draw(legend).text((high / 2, 9), shorten(_LEGEND, font, high), _FAINT, font, anchor="mm")
    canvas.paste(legend.rotate(90, expand=True), (canvas.width - _MARGIN - 18, top))
