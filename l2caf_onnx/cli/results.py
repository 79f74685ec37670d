"""What `attend` writes of one result: the picture, the arrays, an animation where there is something to move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from l2caf_onnx.inputs import Sample
    from l2caf_onnx.records import Attention

ANIMATIONS = ("gif", "webp")
_STILL = (
    "At {at!r} there is no search to animate ({by}). --solver lbfgs, adam or sgd, or a breakpoint further from the "
    "output, has one."
)


def write(
    folder: Path,
    sample: Sample,
    found: Attention,
    classes: dict[int, str],
    *,
    trace: str | None = None,
    absolute: bool = False,
) -> dict[str, Any]:
    """The picture and the arrays of one result, and its row of the manifest.

    Args:
        folder: Where.
        sample: What was explained.
        found: The answer.
        classes: Names by index.
        trace: "gif" or "webp": the search is animated too.
        absolute: Whether maps show |f|, as the paper's do.
    """
    from l2caf_onnx.records import save_arrays
    from l2caf_onnx.render.animation import save_animation
    from l2caf_onnx.render.names import file_stem
    from l2caf_onnx.render.overlay import save_png
    from l2caf_onnx.render.picture import picture

    target = found.target[0] if found.target else None
    named = classes.get(target, f"class {target}") if target is not None else None
    stem = file_stem(f"{Path(sample.name).stem} {found.at} {'' if target is None else target}", length=90)
    if (folder / f"{stem}.png").exists():  # two inputs of one name
        stem = file_stem(f"{sample.name} {found.at} {target}", length=90)
    heatmap = found.heatmap[0]
    kept = f"{found.constraint}{f', {found.basis}' if found.basis else ''} at rho {found.radius[0]:.3g}"
    asked = f"{found.objective}, {kept}, {found.solver}, loss {found.loss[0]:.5g}"
    if found.method != "l2caf":
        asked = f"{found.method}, {found.objective}"
    drawn = picture(
        heatmap,
        title=f"{named or ', '.join(found.to)} at {found.at}",
        subtitle=f"{asked}; proof {'ok' if found.proof.ok else 'FAILED'}",
        cells=found.filter.shape[1:],
        image=sample.image,
        volume=_volume(sample, heatmap.shape),
        frames=found.frames,
    )
    save_png(drawn, folder / f"{stem}.png")
    arrays = {"filter": found.filter[0], "heatmap": heatmap}
    if found.trace is not None:
        arrays["trace"] = found.trace[:, 0]
    save_arrays(folder / f"{stem}.npz", arrays)
    files = [f"{stem}.png", f"{stem}.npz"]
    moving = {"": _clip(sample, found), "-trace": _search(sample, found, absolute) if trace is not None else None}
    for kind, frames in moving.items():
        if frames is not None:
            files.append(f"{stem}{kind}.{trace or 'gif'}")
            save_animation(frames, folder / files[-1])
    row = found.describe()
    if trace is not None and found.trace is None:
        by = "blackbox" if found.solver == "blackbox" else "closed form" if found.method == "l2caf" else found.method
        row["notes"] = [*row["notes"], _STILL.format(at=found.at, by=by)]
    return {
        "input": sample.name,
        **row,
        "target": target,
        "class": named,
        "loss": row["loss"][0],
        "evaluations": row["evaluations"][0],
        "radius": row["radius"][0],
        "stop_reason": row["stop_reason"][0],
        "files": files,
    }


def _volume(sample: Sample, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """What the model saw at the cells of a map over a volume: the mean of the channels of an input that has them."""
    import numpy as np

    for array in sample.feeds.values():
        if len(shape) == 3 and array.ndim == 5 and array.shape[0] == 1 and array.dtype.kind in "fiu":
            for channel, own in ((1, array.shape[2:]), (4, array.shape[1:4]), (2, (array.shape[1], *array.shape[3:]))):
                if own == shape:
                    return np.asarray(array.mean(channel, dtype=np.float64)[0])
    return None


def _clip(sample: Sample, found: Attention) -> list[Image.Image] | None:
    """A clip with its attention, frame by frame; None where there is no clip."""
    import numpy as np
    from PIL import Image

    from l2caf_onnx.render.animation import animation, thinned

    heatmap = found.heatmap[0]
    if not found.frames or heatmap.ndim != 3:
        return None
    volume, seen = _volume(sample, heatmap.shape), None
    if volume is not None:
        low, high = float(volume.min()), float(volume.max())
        grey = ((volume - low) / (high - low or 1) * 255).round().astype(np.uint8)
        seen = [Image.fromarray(frame) for frame in grey]
    shown = thinned(len(heatmap))
    captions = [f"{found.at}: frame {k} of 0 to {len(heatmap) - 1}" for k in shown]
    return animation(heatmap[shown], captions, under=None if seen is None else [seen[k] for k in shown])


def _search(sample: Sample, found: Attention, absolute: bool) -> list[Image.Image] | None:
    """The filters that the solver tried, and at last the answer; None where none were kept."""
    import numpy as np

    from l2caf_onnx.filters import traced
    from l2caf_onnx.render.animation import animation, thinned
    from l2caf_onnx.render.picture import picture

    if found.trace is None:
        return None
    heatmap, tried = found.heatmap[0], found.trace[:, 0]
    count = len(tried)
    shown = thinned(count)
    maps = [*traced(tried[shown], heatmap.shape, absolute=absolute), heatmap]
    captions = [*(f"{found.at}: evaluation {k + 1} of {count}" for k in shown), f"{found.at}: the answer"]
    if heatmap.ndim == 2:
        return animation(np.stack(maps), captions, under=None if sample.image is None else [sample.image] * len(maps))
    volume, cells = _volume(sample, heatmap.shape), found.filter.shape[1:]
    return [
        picture(m, title=text, cells=cells, volume=volume, frames=found.frames)
        for m, text in zip(maps, captions, strict=True)
    ]
