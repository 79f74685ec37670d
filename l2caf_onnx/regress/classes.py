"""Which class each of two models finds likeliest on an input, and what the classes are called."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Classes

from .observation import Observation

Names = Mapping[int, str]
"""Class index -> name."""


def classes_of(ours: Observation, theirs: Observation, names: Names | None, notes: list[str]) -> Classes:
    """The classes of all inputs, with the names of those that occur; that none occurs is noted where names are given.

    The likeliest are told where both models return one vector of scores, and all of it was kept.
    """
    one, other = _likeliest(ours), _likeliest(theirs)
    if not one or not other:
        one = other = ()
    asked = () if ours.targets is None or not ours.filters else tuple(ours.targets.tolist())
    if names is not None and not (one or asked):
        notes.append("There is no class to name: the models do not return one vector of scores.")
    known = sorted({*one, *other, *asked})
    return Classes(
        reference=one, candidate=other, asked=asked, names={k: names[k] for k in known if names and k in names}
    )


def refuse_few(names: Names | None, seen: Observation | Model) -> None:
    """Raise InputError where a list of names is shorter than the scores; a mapping may leave classes without a name.

    Args:
        names: Of the classes; None says nothing.
        seen: What was seen of a model, or the model, whose graph may not tell how many classes there are.
    """
    count = _of_graph(seen) if isinstance(seen, Model) else _of_outputs(seen)
    if names is None or count is None or sorted(names) != list(range(len(names))) or len(names) >= count:
        return
    raise InputError(
        f"There {'is 1 class name' if len(names) == 1 else f'are {len(names)} class names'} for {count} classes.",
        where="`labels` (--labels FILE).",
        how="Give a name for each class, or JSON that is keyed by index.",
    )


def _likeliest(seen: Observation) -> tuple[int, ...]:
    count = _of_outputs(seen)
    values = next(iter(seen.outputs.values()), None)
    if count is None or values is None or values.shape[1] < count:  # of so many, only some were kept
        return ()
    return tuple(np.nan_to_num(values, nan=-np.inf).argmax(1).tolist())


def _of_outputs(seen: Observation) -> int | None:
    """How many classes there are, where one vector of scores is all that a model returns."""
    if list(seen.kinds.values()) != ["classes"]:
        return None
    return int(max(next(iter(seen.sizes.values()))))


def _of_graph(model: Model) -> int | None:
    """The same as far as the graph tells it."""
    if len(model.outputs) != 1 or not model.outputs[0].dtype.startswith("float"):
        return None
    sizes = [s for s in (model.outputs[0].shape or ())[1:] if s != 1]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None
