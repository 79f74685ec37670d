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


def write(
    folder: Path, sample: Sample, found: Attention, classes: dict[int, str], *, trace: str | None = None
) -> dict[str, Any]:
    """The picture and the arrays of one result, and its row of the manifest."""
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
    kept = f"{found.constraint} at rho {found.radius[0]:.3g}"
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
    )
    save_png(drawn, folder / f"{stem}.png")
    save_arrays(folder / f"{stem}.npz", {"filter": found.filter[0], "heatmap": heatmap})
    files = [f"{stem}.png", f"{stem}.npz"]
    moving = _moving(sample, found, trace)
    if moving is not None:
        files.append(f"{stem}.{trace or 'gif'}")
        save_animation(moving, folder / files[-1])
    row = found.describe()
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


def _moving(sample: Sample, found: Attention, trace: str | None) -> list[Image.Image] | None:
    """The filter while it was being found, where that is asked for; else a clip's attention; None: nothing moves."""
    import numpy as np

    from l2caf_onnx.filters import traced
    from l2caf_onnx.render.animation import animation

    heatmap = found.heatmap[0]
    if trace is not None and found.trace is not None and found.filter.ndim == 3:
        maps = traced(found.trace[:, 0], found.heatmap.shape[1:])
        under = [sample.image] * len(maps) if sample.image is not None else None
        return animation(
            maps, [f"{found.at}: evaluation {k + 1} of {len(maps)}" for k in range(len(maps))], under=under
        )
    if found.frames and heatmap.ndim == 3:
        volume = _volume(sample, heatmap.shape)
        seen = None
        if volume is not None:
            low, high = float(volume.min()), float(volume.max())
            grey = ((volume - low) / (high - low or 1) * 255).round().astype(np.uint8)
            from PIL import Image

            seen = [Image.fromarray(frame) for frame in grey]
        return animation(
            heatmap, [f"{found.at}: frame {k + 1} of {len(heatmap)}" for k in range(len(heatmap))], under=seen
        )
    return None
