"""Animated pictures: a clip with its attention, frame by frame; a filter while it is being found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from l2caf_onnx.records import write_atomic

from .page import FAINT, SHORT, blend, checked, font, shorten

_MS, _LAST_MS = 120, 1200  # a frame is shown so long; the last one so long
MOST = 120  # frames
_LINE = 24  # pixels of the line beneath


def animation(
    heatmaps: NDArray[np.floating],
    captions: Sequence[str],
    *,
    under: Sequence[Image.Image] | None = None,
) -> list[Image.Image]:
    """Frames of one size, each a heatmap over what the model saw there, with a line beneath.

    Args:
        heatmaps: (K, H, W) in [0, 1].
        captions: K.
        under: K pictures, drawn grey under the heat; None: nothing.

    Raises:
        InputError: the heatmaps are not of that form.
    """
    heat = checked(heatmaps, "K, H, W")
    count, high, wide = heat.shape
    factor = max(1, SHORT // max(high, wide))
    size = (wide * factor, high * factor)
    frames = []
    for k in range(count):
        fine = np.asarray(Image.fromarray(heat[k]).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
        ground = None if under is None else np.asarray(under[k].convert("L").resize(size, Image.Resampling.BICUBIC))
        frame = Image.new("RGB", (size[0], size[1] + _LINE), (255, 255, 255))
        frame.paste(Image.fromarray(blend(ground, fine)), (0, 0))
        text = shorten(captions[k], font("small"), size[0] - 12)
        ImageDraw.Draw(frame).text((6, size[1] + 5), text, FAINT, font("small"))
        frames.append(frame)
    return frames


def thinned(count: int) -> list[int]:
    """Which of `count` steps an animation shows: all, or 120 evenly spaced, the first and the last among them."""
    return list(range(count)) if count <= MOST else [round(k * (count - 1) / (MOST - 1)) for k in range(MOST)]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an endless GIF or WebP, by the name's ending, atomically.

    Raises:
        InputError: the folder cannot be written to.
    """
    durations = [_MS] * (len(frames) - 1) + [_LAST_MS]
    kind = "WEBP" if path.suffix.lower() == ".webp" else "GIF"
    write_atomic(
        path,
        lambda stream: frames[0].save(
            stream, kind, save_all=True, append_images=list(frames[1:]), duration=durations, loop=0
        ),
    )
