"""What flows through a model: its intermediate tensors on given inputs, as real numbers, a batch at a time.

All tensors of a batch come from one run at onnxruntime's reference level. Quantised tensors are read through the scale
that the graph gives them, so that an int8 model can be held against a float one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from l2caf_onnx import runtime
from l2caf_onnx.graph.breakpoints import FLOATS
from l2caf_onnx.graph.layout import layouts
from l2caf_onnx.graph.model import Model
from l2caf_onnx.graph.paths import reached
from l2caf_onnx.graph.quantised import scale_of
from l2caf_onnx.graph.segments import observed
from l2caf_onnx.graph.shapes import tensors
from l2caf_onnx.graph.static import from_shapes_of_inputs

Arrays = dict[str, NDArray[Any]]
Real = NDArray[np.float32]

_INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


class Probe:
    """A model whose tensors are looked at.

    Attributes:
        model: The model.
        names: The tensors that carry data as real numbers, in topological order, graph inputs left out.
    """

    def __init__(self, model: Model, providers: Sequence[str] | None = None) -> None:
        self.model, self.providers = model, providers
        live = frozenset().union(*(reached(model, i.name) for i in model.inputs))
        still = from_shapes_of_inputs(model)
        infos = tensors(model)
        self.names = tuple(
            name
            for name in model.producers
            if name in live and name not in still and self._is_real(name, infos[name].dtype)
        )

    @cached_property
    def depth(self) -> dict[str, float]:
        """How deep a tensor lies, by the longest way from an input: 0 is an input, 1 the deepest tensor."""
        found = {i.name: 0 for i in self.model.inputs}
        for node, reads in zip(self.model.proto.graph.node, self.model.reads, strict=True):
            own = 1 + max((found[r] for r in reads if r in found), default=-1)
            found |= {o: own for o in node.output if o}
        deepest = max(found.values(), default=0) or 1
        return {name: value / deepest for name, value in found.items()}

    @cached_property
    def before(self) -> dict[str, frozenset[str]]:
        """For each tensor the ones, and the graph inputs, that it is made of."""
        found: dict[str, frozenset[str]] = {i.name: frozenset() for i in self.model.inputs}
        for node, reads in zip(self.model.proto.graph.node, self.model.reads, strict=True):
            known = [r for r in reads if r in found]
            own = frozenset(known).union(*(found[r] for r in known))
            found |= {o: own for o in node.output if o}
        return found

    def values(self, feeds: Arrays, names: Sequence[str]) -> dict[str, Real]:
        """The tensors named, on one batch that the model takes at once."""
        wanted = [n for n in dict.fromkeys(names) if n not in feeds]
        found: Arrays = {n: feeds[n] for n in names if n in feeds}
        if wanted:
            found |= runtime.run(self._observed(tuple(wanted)), feeds, providers=self.providers)
        return {n: self.real(n, found[n]) for n in names}

    def by_sample(self, name: str, values: Real, count: int) -> Real:
        """A tensor with the `count` samples on its first axis; (1, ...) where it is one for all of them."""
        axis = self._letters.get(name, "N").find("N")
        if axis < 0 or axis >= values.ndim or values.shape[axis] != count:
            return values[None]
        return np.moveaxis(values, axis, 0)

    @cached_property
    def _letters(self) -> Mapping[str, str]:
        return layouts(self.model)

    def _observed(self, names: tuple[str, ...]) -> Model:
        return self.model.cache.get(("observed", names), lambda: observed(self.model, names))

    def real(self, name: str, array: NDArray[Any]) -> Real:
        """A tensor's values as real numbers."""
        if array.dtype.kind == "f":
            return np.asarray(array, np.float32)
        scale, zero = self._scale(name, array.ndim)
        return ((array.astype(np.float32) - zero) * scale).astype(np.float32)

    def stored(self, name: str, values: Real) -> NDArray[Any]:
        """Real numbers as the model holds them in that tensor."""
        kind = tensors(self.model)[name].dtype if name in tensors(self.model) else "float32"
        if kind not in _INTEGERS:
            with np.errstate(over="ignore"):
                return np.asarray(values, kind if kind in ("float16", "float64") else np.float32)
        scale, zero = self._scale(name, values.ndim)
        low, high = _INTEGERS[kind]
        return np.asarray(np.clip(np.rint(values / scale) + zero, low, high), kind)

    def _is_real(self, name: str, dtype: str) -> bool:
        return dtype in FLOATS or (dtype in _INTEGERS and self._described(name))

    def _described(self, name: str) -> bool:
        found = scale_of(self.model, name)
        return found is not None and all(n in self.model.initialisers for n in (found.scale, found.zero_point) if n)

    def _scale(self, name: str, rank: int) -> tuple[Real, Real]:
        """Scale and zero point of a quantised tensor, so that they broadcast."""
        found = scale_of(self.model, name)
        assert found is not None

        def along(stored: str, otherwise: float) -> Real:
            values = onnx.numpy_helper.to_array(self.model.initialisers[stored]) if stored else np.array(otherwise)
            values = values.astype(np.float32)
            if values.size == 1:
                return np.asarray(values.reshape(()))
            shape = [1] * rank
            shape[found.axis] = values.size
            return np.asarray(values.reshape(shape))

        return along(found.scale, 1.0), along(found.zero_point, 0.0)


def chunks(names: Sequence[str], sizes: dict[str, int], most: int) -> Iterator[list[str]]:
    """`names` in runs whose sizes together are at most `most`, or single ones beyond."""
    part: list[str] = []
    held = 0
    for name in names:
        if part and held + sizes[name] > most:
            yield part
            part, held = [], 0
        part.append(name)
        held += sizes[name]
    if part:
        yield part
