"""Small pictures for a page: the map of the reference, that of the candidate, and where they differ, as data URIs.

One scale serves all pictures of all pages: heat from 0 to 1, differences from -1 to 1, so that a faint difference looks
faint. The photo under the heat is grey, so that all colour is heat.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .page import OPACITY, blend

PHOTO = "what the model saw"
SIDE = 256  # pixels of the longer side
_STRIP = 48  # pixels: height of a map along one axis
DIFFERENCES = "RdBu_r"  # white where there is none
_QUALITY = 88  # of JPEG, for photos; maps alone are PNG


@dataclass(frozen=True, slots=True)
class Panels:
    """Four pictures as data URIs, `photo` None where the input is none; `note` says what is shown of a volume."""

    photo: str | None
    reference: str
    candidate: str
    difference: str
    note: str


def panels(reference: NDArray[np.floating], candidate: NDArray[np.floating], image: NDArray[np.uint8] | None) -> Panels:
    """The maps of one input as data URIs; see `drawn`."""
    shown, note = drawn(reference, candidate, image)
    own = {name: _uri(pixels, photo=shown[0][0] == PHOTO) for name, pixels in shown}
    return Panels(
        photo=own.get(PHOTO),
        reference=own["reference"],
        candidate=own["candidate"],
        difference=own["difference"],
        note=note,
    )


def drawn(
    reference: NDArray[np.floating], candidate: NDArray[np.floating], image: NDArray[np.uint8] | None
) -> tuple[list[tuple[str, NDArray[np.uint8]]], str]:
    """(name, pixels) of each picture, and a note: the maps of one input, (L,), (H, W) or (D, H, W) in [0, 1].

    They are drawn over `image` (H, W, 3) where there is one. Of a volume the slice is shown in which they differ most.
    Maps of different shapes (an input of another size) are stretched alike.
    """
    one, other, note = np.nan_to_num(reference), np.nan_to_num(candidate), ""
    if one.ndim > 2:
        one = one.reshape(-1, *one.shape[-2:])
        other = other.reshape(-1, *other.shape[-2:])
        if one.shape == other.shape:
            place = int(np.abs(one - other).reshape(len(one), -1).max(1).argmax())
            note = f"slice {place} of {len(one)}, where they differ most"
            one, other = one[place], other[place]
        else:
            one, other, note = one[len(one) // 2], other[len(other) // 2], "the slice in the middle"
    one, other = np.atleast_2d(one), np.atleast_2d(other)
    high, wide = image.shape[:2] if image is not None else one.shape
    scale = SIDE / max(high, wide)
    size = (max(1, round(wide * scale)), _STRIP if one.shape[0] == 1 else max(1, round(high * scale)))
    first, second = _fine(one, size), _fine(other, size)
    shown: list[tuple[str, NDArray[np.uint8]]] = []
    grey = None
    if image is not None and one.shape[0] > 1:
        photo = Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        shown.append((PHOTO, np.asarray(photo)))
        grey = np.asarray(photo.convert("L"))
    shown += [("reference", blend(grey, first)), ("candidate", blend(grey, second)),
              ("difference", differing(grey, second - first))]  # fmt: skip
    return shown, note


def differing(ground: NDArray[np.uint8] | None, change: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of `change` (H, W) in [-1, 1]: red where the candidate has more, opaque where all of it."""
    colours = matplotlib.colormaps[DIFFERENCES]((change + 1) / 2)[..., :3] * 255
    if ground is None:
        return np.asarray(colours.round().astype(np.uint8))
    # A map's own colours fade to white near 0, and the photo is there: opacity grows with the difference alone.
    edge = np.sign(change)[..., None]
    full = matplotlib.colormaps[DIFFERENCES](np.where(edge > 0, 0.9, 0.1)[..., 0])[..., :3] * 255
    grey, alpha = ground[..., None].astype(np.float64), OPACITY * np.abs(change)[..., None]
    return np.asarray((grey + alpha * (full - grey)).round().clip(0, 255).astype(np.uint8))


def scales() -> tuple[str, str]:
    """The two colour scales as CSS gradients, blended over mid-grey as the pictures are over the photo."""
    steps = np.linspace(0, 1, 17, dtype=np.float32)[None]
    ground = np.full(steps.shape, 128, dtype=np.uint8)
    return _gradient(blend(ground, steps)[0]), _gradient(differing(ground, 2 * steps - 1)[0])


def _gradient(colours: NDArray[np.uint8]) -> str:
    return "linear-gradient(to right, " + ", ".join("#{:02x}{:02x}{:02x}".format(*map(int, c)) for c in colours) + ")"


def _fine(heat: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    grown = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grown).clip(0, 1)


def _uri(pixels: NDArray[np.uint8], *, photo: bool) -> str:
    kind = "jpeg" if photo else "png"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind.upper(), **({"quality": _QUALITY} if photo else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
