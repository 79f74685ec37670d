"""Failures of a comparison as plain PNG files, for who has no browser at hand: a CI's artefacts, a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from l2caf_onnx.records import Bisection, Comparison, Pair

from .page import FAINT, GAP, INK, MARGIN, PAPER, font, save_png, shorten
from .sidebyside import drawn
from .verdict import beyond, number, worst_inputs

MOST = 6  # rows
_CAPTION = 24  # pixels above a row, and below the heading


def save_sheets(found: Comparison | Bisection, folder: Path, stem: str) -> list[Path]:
    """Write `stem`-1.png, ... into `folder`: a sheet for each breakpoint whose attention fails; their paths.

    Raises:
        InputError: the folder cannot be written to.
    """
    if isinstance(found, Bisection):
        return []
    files: list[Path] = []
    for pair in found.pairs:
        if any(not s.ok for s in found.scores if s.subject == "attention" and s.name == pair.at):
            files.append(folder / f"{stem}-{len(files) + 1}.png")
            save_png(sheet_of(found, pair), files[-1])
    return files


def sheet_of(found: Comparison, pair: Pair) -> Image.Image:
    """The worst inputs at one breakpoint, a row each: photo, reference, candidate, difference."""
    own = [s for s in found.scores if s.subject == "attention" and s.name == pair.at]
    rows: list[tuple[str, Sequence[tuple[str, NDArray[np.uint8]]]]] = []
    for k in worst_inputs(found, pair.at)[:MOST]:
        image = found.images[k] if k < len(found.images) else None
        told = ", ".join(f"{s.metric} {number(float(s.values[k]))}" for s in own if s.threshold is not None)
        mark = "beyond" if any(not s.ok and beyond(s, k) for s in own) else "within"
        rows.append(
            (f"{found.inputs[k]}: {told} ({mark})", drawn(pair.reference_maps[k], pair.candidate_maps[k], image)[0])
        )
    wide = max(sum(p.shape[1] + GAP for _, p in panels) for _, panels in rows)
    high = sum(panels[0][1].shape[0] + 2 * _CAPTION for _, panels in rows)
    canvas = Image.new("RGB", (wide + 2 * MARGIN, high + 2 * MARGIN + _CAPTION), PAPER)
    pen, y = ImageDraw.Draw(canvas), MARGIN
    pen.text((MARGIN, y - 6), shorten(f"attention at {pair.at}", font("title"), wide), INK, font("title"))
    y += _CAPTION + 8
    for title, panels in rows:
        pen.text((MARGIN, y), shorten(title, font("small"), wide), INK, font("small"))
        x = MARGIN
        for name, pixels in panels:
            canvas.paste(Image.fromarray(pixels), (x, y + _CAPTION - 4))
            pen.text((x, y + _CAPTION + pixels.shape[0]), name, FAINT, font("small"))
            x += pixels.shape[1] + GAP
        y += panels[0][1].shape[0] + 2 * _CAPTION
    return canvas
