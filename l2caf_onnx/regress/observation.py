"""What was seen of a model on its inputs: small arrays, a row for each input, whatever the model was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2caf_onnx.errors import CutError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """What was seen of a model on N inputs.

    Attributes:
        outputs: {name in the comparison: (N, M) float32}, NaN behind the end of shorter ones.
        sizes: {name: (N,)} the number of elements, of which `outputs` may hold only some.
        kinds: {name: "classes" (one score for each), "integers" or "numbers"}.
        tensors: {name in the comparison: (N, K) values}.
        statistics: {name in the comparison: (N, 4)}.
        filters: {breakpoint: (N, *spatial)}.
        maps: {breakpoint: (N, *input spatial)}.
        targets: (N,) the classes asked about; None where none.
        notes: What a reader should know.
    """

    outputs: Mapping[str, Floats]
    sizes: Mapping[str, NDArray[np.int64]]
    kinds: Mapping[str, str]
    tensors: Mapping[str, Floats]
    statistics: Mapping[str, Floats]
    filters: Mapping[str, Floats]
    maps: Mapping[str, Floats]
    targets: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.sizes.values())))

    def part(self, numbers: Sequence[int]) -> Observation:
        """Of some of the inputs."""
        own = np.asarray(numbers, np.intp)
        return replace(
            self,
            outputs={k: v[own] for k, v in self.outputs.items()},
            sizes={k: v[own] for k, v in self.sizes.items()},
            tensors={k: v[own] for k, v in self.tensors.items()},
            statistics={k: v[own] for k, v in self.statistics.items()},
            filters={k: v[own] for k, v in self.filters.items()},
            maps={k: v[own] for k, v in self.maps.items()},
            targets=None if self.targets is None else self.targets[own],
        )


def stacked_rows(rows: Sequence[Floats]) -> Floats:
    """(n, m) arrays one under the other, NaN behind the end of the narrower ones."""
    widest = max(r.shape[1] for r in rows)
    return np.concatenate(
        [
            np.pad(r, ((0, 0), (0, widest - r.shape[1])), constant_values=np.nan) if r.shape[1] < widest else r
            for r in rows
        ]
    )


def kind_of(output: NDArray[Any]) -> str:
    """What an output (N, ...) holds."""
    if output.dtype.kind != "f":
        return "integers"
    return "classes" if sum(s != 1 for s in output.shape[1:]) == 1 else "numbers"


def joined(parts: Sequence[Observation]) -> Observation:
    """Observations of several batches as one.

    Raises:
        CutError: the filters differ in shape, because the inputs do.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for name in first.filters:
        if len({p.filters[name].shape[1:] for p in parts}) > 1:
            raise CutError(f"The filters at {name!r} differ in size among the inputs.", how="Give inputs of one size.")

    def each(pick: str, join: Callable[[list[Any]], Any] = np.concatenate) -> dict[str, Any]:
        return {k: join([getattr(p, pick)[k] for p in parts]) for k in getattr(first, pick)}

    return Observation(
        outputs=each("outputs", stacked_rows),
        sizes=each("sizes"),
        kinds=first.kinds,
        tensors=each("tensors", stacked_rows),
        statistics=each("statistics"),
        filters=each("filters"),
        maps=each("maps"),
        targets=None if first.targets is None else np.concatenate([p.targets for p in parts if p.targets is not None]),
        notes=tuple(dict.fromkeys(n for p in parts for n in p.notes)),
    )
