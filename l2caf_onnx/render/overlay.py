"""One sample's heatmap on the picture that the model saw, with the plain picture beside it for comparison.

Colour and opacity are read off the saved heatmap, linearly and without a threshold, and the colour bar is blended in
the same way: what is seen is what is stored. Under the heat the photo is grey, so that all colour there is heat: on an
orange cat, an orange spot would otherwise say nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .page import FAINT, GAP, LONG, SHORT, blend, checked, colour_bar, font, save_png, scale_width, sheet, shorten

__all__ = ["overlay", "save_png", "shorten"]


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
    heat = checked(heatmap, "H, W")
    width, height = image.size if image else (heat.shape[1], heat.shape[0])
    size = _panel_size(width, height)
    heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    fineness = f"attention, {cells[0]} × {cells[1]} cells" if cells else "attention"
    if image is None:
        panels = [(Image.fromarray(blend(None, heat)), fineness)]
    else:
        photo = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        panels = [
            (photo, f"what the model saw, {height} × {width}"),
            (Image.fromarray(blend(np.asarray(photo.convert("L")), heat)), fineness),
        ]
    return _compose(panels, title, subtitle, cells, blended=image is not None)


def _panel_size(width: int, height: int) -> tuple[int, int]:
    """A whole multiple of (width, height) with a short side of at least SHORT; less where the long one passes LONG."""
    factor = min(-(-SHORT // min(width, height)), LONG // max(width, height))
    if factor >= 1:
        return width * factor, height * factor
    shrink = LONG / max(width, height)
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _compose(
    panels: list[tuple[Image.Image, str]], title: str, subtitle: str, cells: tuple[int, int] | None, *, blended: bool
) -> Image.Image:
    wide, high = panels[0][0].size
    content = len(panels) * wide + (len(panels) - 1) * GAP + scale_width()
    canvas, top = sheet((content, high), title, subtitle)
    draw = ImageDraw.Draw(canvas)
    left = (canvas.width - content) // 2
    for panel, caption in panels:
        canvas.paste(panel, (left, top))
        draw.text((left, top + high + 10), shorten(caption, font("small"), wide), FAINT, font("small"))
        left += wide + GAP
    if cells is not None:
        _ticks(draw, (left - wide - GAP, top, wide, high), cells)
    colour_bar(canvas, (left, top), high, blended=blended)
    return canvas


def _ticks(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], cells: tuple[int, int]) -> None:
    """Where one cell of the filter ends and the next begins; none where they would run together."""
    left, top, wide, high = box
    if min(high / cells[0], wide / cells[1]) < 4:
        return
    for row in range(cells[0] + 1):
        y = top + min(high - 1, round(row * high / cells[0]))
        draw.line((left - 5, y, left - 2, y), FAINT)
    for column in range(cells[1] + 1):
        x = left + min(wide - 1, round(column * wide / cells[1]))
        draw.line((x, top + high + 1, x, top + high + 4), FAINT)
