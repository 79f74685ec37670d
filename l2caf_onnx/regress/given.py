"""The inputs of a comparison, for both models: the same samples, each as its model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.errors import InputError
from l2caf_onnx.evaluation.data import Arrays, Data, Given, collect
from l2caf_onnx.explain.batches import batch_axis, cut_out, stacked
from l2caf_onnx.graph.model import Model
from l2caf_onnx.preprocess import Source
from l2caf_onnx.records import TensorInfo

_TURNS = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1))


@dataclass(frozen=True, slots=True)
class Both:
    """Samples for a reference and a candidate.

    Attributes:
        reference: As the reference takes them.
        candidate: As the candidate does.
    """

    reference: Data
    candidate: Data

    @property
    def names(self) -> tuple[str, ...]:
        """Of the samples."""
        return self.reference.names

    def __len__(self) -> int:
        return len(self.reference)

    def feeds(self, numbers: range | list[int]) -> tuple[Arrays, Arrays]:
        """The feeds of these samples, stacked, for both."""
        return stacked_of(self.reference, numbers), stacked_of(self.candidate, numbers)

    def pieces(self, size: int, numbers: list[int] | None = None) -> Iterator[tuple[list[int], Arrays, Arrays]]:
        """(numbers, feeds of the reference, feeds of the candidate), in batches that both models take at once."""
        wanted = list(range(len(self))) if numbers is None else numbers
        step = max(1, min(size, *(fixed_batch(d.model) or size for d in (self.reference, self.candidate))))
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            yield part, *self.feeds(part)


def stacked_of(data: Data, numbers: range | list[int]) -> Arrays:
    """The feeds of these samples as one batch."""
    return stacked(data.model, [data.read(k).feeds for k in numbers])


def fixed_batch(model: Model) -> int | None:
    """How many samples the model takes at once, where its file says so."""
    for info in model.inputs:
        axis = batch_axis(model, info.name)
        if axis >= 0 and info.shape and isinstance(info.shape[axis], int):
            return int(info.shape[axis])  # checked just before
    return None


def both(
    reference: Model,
    candidate: Model,
    inputs: Given,
    *,
    preprocess: Source | None,
    candidate_inputs: Given | None,
    candidate_preprocess: Source | None,
) -> Both:
    """`inputs` for both models.

    Paths are read for each model with its own preprocessing; arrays are handed on by name, else by position, with the
    axes turned where only the layout differs.

    Raises:
        InputError: inputs that either model does not take, or that are not as many for both.
    """
    ours = samples(reference, inputs, preprocess)
    if candidate_inputs is not None:
        theirs = samples(candidate, candidate_inputs, candidate_preprocess or preprocess)
    elif isinstance(inputs, Mapping):
        theirs = samples(candidate, adapted([i.name for i in reference.inputs], candidate, dict(inputs)), None)
    elif _renamed(ours, candidate):
        arrays = stacked_of(ours, range(len(ours)))
        theirs = samples(candidate, adapted([i.name for i in reference.inputs], candidate, arrays), None)
    else:
        theirs = collect(candidate, inputs, candidate_preprocess or preprocess)
    if len(ours) != len(theirs):
        raise InputError(
            f"The reference is given {len(ours)} samples, the candidate {len(theirs)}.", how="Give the same to both."
        )
    if not len(ours):
        raise InputError("There is no input.", how="Give one at least.")
    return Both(ours, theirs)


def _renamed(ours: Data, candidate: Model) -> bool:
    """Whether the samples are stored arrays, under names that the candidate's inputs have not."""
    names = {i.name for i in candidate.inputs}
    parts = [part for k in range(len(ours)) for part in ours.parts(k)]
    return all(how is None for _, _, how in parts) and any(tensor.name not in names for tensor, _, _ in parts)


def samples(model: Model, inputs: Given, preprocess: Source | None) -> Data:
    """`inputs` as samples of a model; arrays may hold more of them than the model takes at once.

    Raises:
        InputError: as `collect`.
    """
    if not isinstance(inputs, Mapping):
        return collect(model, inputs, preprocess)
    arrays = {name: np.asarray(a) for name, a in inputs.items()}
    along = {n: axis for n in arrays if (axis := batch_axis(model, n)) >= 0 and arrays[n].ndim > axis}
    size = fixed_batch(model)
    runtime.check_feeds(model, arrays if size is None else cut_out(arrays, along, slice(0, size)))
    return Data(model, arrays=arrays)


def adapted(names: Sequence[str], candidate: Model, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Arrays for inputs of a reference, in the order of those `names`, as the candidate takes them."""
    order = [name for name in names if name in arrays]
    found: dict[str, NDArray[Any]] = {}
    for k, info in enumerate(candidate.inputs):
        name = info.name if info.name in arrays else order[k] if k < len(order) else None
        if name is None:
            raise InputError(
                f"Nothing is given for the candidate's input {info.name!r}.",
                where=f"The arrays are for {', '.join(map(repr, arrays)) or 'nothing'}.",
                how="Name the arrays as the candidate does in `candidate_inputs`.",
            )
        found[info.name] = _fitted(np.asarray(arrays[name]), info)
    return found


def _fitted(array: NDArray[Any], info: TensorInfo) -> NDArray[Any]:
    """With its axes in the order in which they fit, and of the type that is declared; as it is where none fits."""
    turns = [None, *(t for t in _TURNS if len(t) == array.ndim)]
    for turn in turns:
        shape = array.shape if turn is None else tuple(array.shape[k] for k in turn)
        declared = info.shape
        fits = declared is None or (
            len(declared) == len(shape)
            and all(isinstance(d, str) or d == s for d, s in zip(declared, shape, strict=True))
        )
        if fits or _fits_but_batch(declared, shape):
            turned = array if turn is None else np.ascontiguousarray(array.transpose(turn))
            kinds = (info.dtype, str(array.dtype))
            floats = all(k in ("float16", "float32", "float64") for k in kinds)
            return turned.astype(info.dtype) if floats and kinds[0] != kinds[1] else turned
    return array


def _fits_but_batch(declared: tuple[int | str, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether all but the first axis fits: a model of batch 1 takes many samples one by one."""
    return (
        declared is not None
        and len(declared) == len(shape)
        and all(isinstance(d, str) or d == s for d, s in zip(declared[1:], shape[1:], strict=True))
    )
