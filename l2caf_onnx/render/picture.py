"""Which picture suits a heatmap: over a photo, as a strip, or slice by slice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .overlay import overlay
from .slices import slices
from .strip import strip


def picture(
    heatmap: NDArray[np.floating],
    *,
    title: str,
    subtitle: str = "",
    cells: tuple[int, ...] = (),
    image: Image.Image | None = None,
    volume: NDArray[np.floating] | None = None,
    frames: bool = False,
) -> Image.Image:
    """One sample's heatmap (L,), (H, W) or (D, H, W) in [0, 1] as a picture.

    Args:
        heatmap: What is drawn.
        title: Class and tensors.
        subtitle: A second, fainter line.
        cells: The filter's spatial shape.
        image: The photo that the model saw; drawn under a heatmap of its size.
        volume: (D, H, W), likewise.
        frames: Whether the first axis of (D, H, W) counts frames of a clip.

    Raises:
        InputError: the heatmap is of another shape, or not of numbers in [0, 1].
    """
    if heatmap.ndim == 1:
        return strip(heatmap, title=title, subtitle=subtitle, cells=cells[0] if len(cells) == 1 else None)
    if heatmap.ndim == 3:
        each = "frame" if frames else "slice"
        return slices(heatmap, title=title, subtitle=subtitle, seen=volume, each=each)
    under = image if image is not None and image.size[::-1] == heatmap.shape else None
    grid = (cells[0], cells[1]) if len(cells) == 2 else None
    return overlay(under, heatmap, title=title, subtitle=subtitle, cells=grid)
