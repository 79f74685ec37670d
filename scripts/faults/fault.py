"""What a planted fault is: a model, where it is wrong, and what it would be if it were sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

Base = Literal["float32", "float16", "int8"]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fault:
    """A candidate with one fault.

    Attributes:
        family: Of the list of faults, such as "weights noised".
        strength: Such as "3%"; "" where there is only one.
        place: "first", "middle" or "last" third of the network; "input" where it is in the preprocessing.
        where: The node, as the graph calls it, or what is done to the input.
        base: Which sound model the fault was planted in: the reference itself, its float16 or its int8 form.
        proto: The model.
        tensors: What the planted node makes and what its direct consumers make, as the candidate calls them. Where a
            node was taken out: what is now read in its place, and what those make who read it.
        feeds: What the candidate is given instead, where the fault is in the preprocessing.
    """

    family: str
    strength: str
    place: str
    where: str
    proto: onnx.ModelProto
    tensors: tuple[str, ...]
    base: Base = "float32"
    feeds: Mapping[str, NDArray[Any]] | None = None

    @property
    def name(self) -> str:
        """Of this fault among those of a model."""
        return "@".join(part for part in (f"{self.family} {self.strength}".strip(), self.place) if part)
