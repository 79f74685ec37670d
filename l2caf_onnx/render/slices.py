"""A heatmap over a volume or a clip on one sheet, each slice or frame on what the model saw there, if it is known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .page import FAINT, GAP, LONG, blend, checked, colour_bar, font, scale_width, sheet

MOST = 64  # slices on a sheet
_TILE, _CAPTION = 144, 22  # pixels: the shorter side of a slice at least, and the line beneath it


def slices(
    heatmap: NDArray[np.floating],
    *,
    title: str,
    subtitle: str = "",
    seen: NDArray[np.floating] | None = None,
    each: str = "slice",
) -> Image.Image:
    """An RGB picture: the slices of `heatmap` along its first axis, row by row.

    Args:
        heatmap: (D, H, W) in [0, 1]. Of more than MOST slices, MOST are shown, evenly spaced, by their numbers.
        title: Class and tensors.
        subtitle: A second, fainter line.
        seen: (D, H, W), what the model saw; grey under the heat, from its least number to its greatest.
        each: What a slice is called.

    Raises:
        InputError: `heatmap` is not a volume of numbers in [0, 1].
    """
    heat = checked(heatmap, "D, H, W")
    grey = _grey(seen) if seen is not None and seen.shape == heat.shape else None
    depth, high, wide = heat.shape
    factor = max(1, -(-_TILE // min(high, wide)))
    factor = max(1, min(factor, LONG // max(high, wide)))
    size = (wide * factor, high * factor)
    shown = list(range(depth)) if depth <= MOST else [round(k * (depth - 1) / (MOST - 1)) for k in range(MOST)]
    columns = _columns_of(len(shown), size)
    rows = -(-len(shown) // columns)
    inner = (columns * (size[0] + GAP) - GAP, rows * (size[1] + _CAPTION))
    canvas, top = sheet((inner[0] + scale_width(), inner[1]), title, subtitle)
    draw = ImageDraw.Draw(canvas)
    left = (canvas.width - inner[0] - scale_width()) // 2
    for k, d in enumerate(shown):
        x, y = left + k % columns * (size[0] + GAP), top + k // columns * (size[1] + _CAPTION)
        fine = np.asarray(Image.fromarray(heat[d]).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
        ground = None
        if grey is not None:
            ground = np.asarray(Image.fromarray(grey[d]).resize(size, Image.Resampling.BICUBIC))
        canvas.paste(Image.fromarray(blend(ground, fine)), (x, y))
        draw.text((x + size[0] / 2, y + size[1] + 4), f"{each} {d}", FAINT, font("small"), anchor="ma")
    note = f"{len(shown)} of {depth} {each}s" if len(shown) < depth else f"all {depth} {each}s"
    draw.text((left, top + inner[1] + 8), f"{note}, {high} × {wide}", FAINT, font("small"))
    colour_bar(canvas, (left + inner[0] + GAP, top), max(inner[1] - _CAPTION, 120), blended=grey is not None)
    return canvas


def _columns_of(count: int, size: tuple[int, int]) -> int:
    """How many side by side: about as wide as high, within LONG pixels."""
    square = round(math.sqrt(count * (size[1] + _CAPTION) / (size[0] + GAP)))
    return max(1, min(count, max(square, 4 if count > 4 else count), (LONG + GAP) // (size[0] + GAP)))


def _grey(seen: NDArray[np.floating]) -> NDArray[np.uint8]:
    low, high = float(np.min(seen)), float(np.max(seen))
    return ((seen - low) / (high - low or 1) * 255).round().astype(np.uint8)
