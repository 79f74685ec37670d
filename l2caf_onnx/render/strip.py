"""A heatmap along one axis, time or tokens: a band of colours and the curve of the same numbers, over cell numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .page import FAINT, INK, LONG, MARGIN, blend, checked, colour_bar, font, scale_width, sheet

WIDE = 960  # pixels, at least
_BAND, _CURVE, _BETWEEN, _LABELS = 72, 200, 10, 24
_SIDE = 30  # for the curve's scale


def strip(
    heatmap: NDArray[np.floating], *, title: str, subtitle: str = "", cells: int | None = None, axis: str = "cell"
) -> Image.Image:
    """An RGB picture: `heatmap` as colours, beneath it as a curve from 0 to 1.

    Where there are more numbers than pixels, each column shows the largest of its own.

    Args:
        heatmap: (L,) in [0, 1].
        title: Class and tensors.
        subtitle: A second, fainter line.
        cells: Length of the filter, which the axis counts; None: as `heatmap`.
        axis: What a cell is called.

    Raises:
        InputError: `heatmap` is not a row of numbers in [0, 1].
    """
    heat = checked(heatmap, "L")
    count, length = cells or len(heat), len(heat)
    wide = length * max(1, min(-(-WIDE // length), LONG // length)) if length <= LONG else LONG
    columns = _columns(heat, wide)
    high = _BAND + _BETWEEN + _CURVE + _LABELS
    canvas, top = sheet((_SIDE + wide + scale_width(), high), title, subtitle)
    left, draw = MARGIN + _SIDE, ImageDraw.Draw(canvas)
    band = np.broadcast_to(columns, (_BAND, wide)).astype(np.float32)
    canvas.paste(Image.fromarray(blend(None, band)), (left, top))
    floor = top + _BAND + _BETWEEN + _CURVE
    for value in (0.0, 0.5, 1.0):
        y = floor - round(value * _CURVE)
        draw.line((left, y, left + wide - 1, y), (224, 226, 230))
        draw.text((left - 6, y), f"{value:g}", FAINT, font("small"), anchor="rm")
    heights = floor - columns.clip(0, 1) * _CURVE
    draw.line([(left + x, float(y)) for x, y in enumerate(heights)], INK, width=2)
    step = _step(count, wide)
    for cell in range(0, count, step):
        x = left + (cell + 0.5) * wide / count
        draw.line((x, floor + 1, x, floor + 5), FAINT)
        draw.text((x, floor + 8), str(cell), FAINT, font("small"), anchor="ma")
    over = "" if count == length else f", stretched over {length} positions of the input"
    note = f"{axis} 0 to {count - 1}{over}"
    draw.text((left + wide / 2, floor + _LABELS + 8), note, FAINT, font("small"), anchor="ma")
    colour_bar(canvas, (left + wide + 16, top), high - _LABELS, blended=False)
    return canvas


def _columns(heat: NDArray[np.float32], wide: int) -> NDArray[np.float32]:
    """One number a pixel: repeated, or the largest of those that fall on it."""
    if wide % len(heat) == 0:
        return np.repeat(heat, wide // len(heat))
    edges = np.linspace(0, len(heat), wide + 1)[:-1].astype(int)
    return np.maximum.reduceat(heat, edges)


def _step(count: int, wide: int) -> int:
    """1, 2 or 5 times a power of ten, so that the labels stand apart."""
    room = 56 * count / wide
    steps = (m * int(10**k) for k in range(12) for m in (1, 2, 5))
    return next(s for s in steps if s >= room)
