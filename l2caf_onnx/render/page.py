"""What all pictures share: fonts, colours of heat, the colour bar, the two lines of heading.

Colour and opacity are read off the saved heatmap, linearly and without a threshold, and the colour bar is blended in
the same way: what is seen is what is stored.
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
INK, FAINT, PAPER = (27, 30, 35), (98, 104, 112), (255, 255, 255)
MARGIN, GAP, BAR = 24, 16, 14
SHORT, LONG = 448, 2048  # pixels of a panel: enlarged until its shorter side has SHORT, never beyond LONG
_SIZES = {"title": 20, "subtitle": 15, "small": 13}
_LEGEND = "attention: 0 least, 1 most in this sample"


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


def blend(ground: NDArray[np.uint8] | None, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of `heat` (H, W) over grey values `ground` (H, W), opaque where there are none."""
    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    if ground is None:
        return colours.round().astype(np.uint8)
    grey, alpha = ground[..., None].astype(np.float64), OPACITY * heat[..., None]
    return (grey + alpha * (colours - grey)).round().astype(np.uint8)


@lru_cache
def font(kind: str) -> ImageFont.FreeTypeFont:
    """Matplotlib's own DejaVu: the same letters on every machine, and most alphabets."""
    name = "DejaVuSans-Bold.ttf" if kind == "title" else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), _SIZES[kind], layout_engine=ImageFont.Layout.BASIC)


def checked(heatmap: NDArray[np.floating], axes: str) -> NDArray[np.float32]:
    """`heatmap` as float32.

    Raises:
        InputError: it has not as many axes as `axes`, such as "H, W", or is not of numbers in [0, 1].
    """
    heat = np.asarray(heatmap, dtype=np.float32)
    if heat.ndim != len(axes.split(",")) or heat.size == 0:
        raise InputError(f"A heatmap has the shape ({axes}); this one has {heat.shape}.")
    if not (heat.min() >= -1e-6 and heat.max() <= 1 + 1e-6):  # so written, NaN is refused too
        raise InputError(f"A heatmap lies in [0, 1]; this one goes from {heat.min()} to {heat.max()}.")
    return heat


def sheet(size: tuple[int, int], title: str, subtitle: str) -> tuple[Image.Image, int]:
    """An empty page with its heading around content of `size` (width, height), and where the content begins."""
    width, top = max(size[0], SHORT) + 2 * MARGIN, MARGIN + 30 + (24 if subtitle else 0)
    canvas = Image.new("RGB", (width, top + size[1] + 32 + MARGIN), PAPER)
    draw, room = ImageDraw.Draw(canvas), width - 2 * MARGIN
    draw.text((MARGIN, MARGIN - 4), shorten(title, font("title"), room), INK, font("title"))
    draw.text((MARGIN, MARGIN + 25), shorten(subtitle, font("subtitle"), room), FAINT, font("subtitle"))
    return canvas, top


def scale_width() -> int:
    """How much room the colour bar takes, with the gap before it."""
    return GAP + BAR + 6 + round(font("small").getlength("0.5")) + 20


def colour_bar(canvas: Image.Image, corner: tuple[int, int], high: int, *, blended: bool) -> None:
    """The scale, 1 at the top; over mid-grey where the heat is blended over a photo."""
    left, top = corner
    draw, letters = ImageDraw.Draw(canvas), font("small")
    ramp = np.repeat(np.linspace(1, 0, high, dtype=np.float32)[:, None], BAR, axis=1)
    ground = np.full(ramp.shape, 128, dtype=np.uint8) if blended else None
    canvas.paste(Image.fromarray(blend(ground, ramp)), (left, top))
    for value, label in ((1.0, "1"), (0.5, "0.5"), (0.0, "0")):
        y = top + round((1 - value) * (high - 1))
        draw.line((left + BAR, y, left + BAR + 3, y), FAINT)
        anchor = {1.0: "lt", 0.5: "lm", 0.0: "lb"}[value]
        draw.text((left + BAR + 6, y), label, FAINT, letters, anchor=anchor)
    legend = Image.new("RGB", (high, 18), PAPER)
    ImageDraw.Draw(legend).text((high / 2, 9), shorten(_LEGEND, letters, high), FAINT, letters, anchor="mm")
    canvas.paste(legend.rotate(90, expand=True), (canvas.width - MARGIN - 18, top))
