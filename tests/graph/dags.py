"""Random small graphs with skip connections, and by definition what crosses a cut of one: an oracle without bits.

A tensor crosses the cut at S1 if some node reads it that S1 leads to and that leads to an output, while S1 does not
lead to the tensor itself. What stored values and the shapes of the inputs decide is no data, and graph inputs are fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from hypothesis import strategies as st

import l2caf_onnx as caf
from tests.conftest import Arrays, text

SHAPE = "float[N, 4, 2, 3]"
UNARY = ("Relu", "Neg", "Sigmoid", "Tanh", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")


@dataclass(frozen=True)
class Step:
    """A node: what it reads (captured tensors too), what it makes, and its line of text."""

    op: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Dag:
    """A graph as plain records."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    @cached_property
    def model(self) -> caf.Model:
        """The same as a Model."""
        inner = [m for m in self.maker if m.startswith("t") and m not in self.outputs]

        def declared(names: Sequence[str]) -> str:
            return ", ".join(f"{SHAPE} {name}" for name in names)

        stored = "float[1] w0 = {0.5}, float[1,4,1,1] w1 = {1, -1, 2, 0.5}, bool yes = {1}, int64 twice = {2}"
        known = ", ".join(filter(None, [stored, declared(inner)]))
        nodes = " ".join(step.line for step in self.steps)
        return text(f"g ({declared(self.inputs)}) => ({declared(self.outputs)}) <{known}> {{ {nodes} }}")

    @cached_property
    def feeds(self) -> Arrays:
        """Seeded values for the inputs, batch 2."""
        rng = np.random.default_rng(len(self.steps))
        return {name: rng.standard_normal((2, 4, 2, 3)).astype(np.float32) for name in self.inputs}

    @cached_property
    def maker(self) -> dict[str, Step]:
        """Tensor -> the step that makes it."""
        return {name: step for step in self.steps for name in step.makes}

    def before(self, name: str) -> set[str]:
        """All that a tensor is made from, itself included: backwards, edge by edge."""
        step = self.maker.get(name)
        return {name}.union(*(self.before(r) for r in step.reads)) if step else {name}

    def leads_to(self, source: str, target: str) -> bool:
        """Whether there is a path between two tensors."""
        return source in self.before(target)

    def decided(self, name: str) -> bool:
        """Whether stored values and the shapes of graph inputs alone decide a tensor."""
        step = self.maker.get(name)
        if step is None or step.op in ("If", "Loop"):
            return name in ("w0", "w1", "yes", "twice")
        of_input = step.op == "Shape" and step.reads[0] in self.inputs
        return of_input or all(self.decided(r) for r in step.reads)

    def static(self, name: str) -> bool:
        """Whether no value of an input changes a tensor, once the sizes of the inputs are given."""
        step = self.maker.get(name)
        if step is None or step.op in ("If", "Loop"):
            return name in ("w0", "w1", "yes", "twice")
        return self.sized(step.reads[0]) if step.op == "Shape" else all(map(self.static, step.reads))

    def sized(self, name: str) -> bool:
        """Whether the sizes of the inputs decide that of a tensor, without a branch or loop that may have its own."""
        step = self.maker.get(name)
        if step is None or step.op in ("If", "Loop"):
            return step is None
        by_value = step.reads[1:] if step.op in ("Reshape", "Expand") else ()
        return self.static(name) or (all(map(self.sized, step.reads)) and all(map(self.static, by_value)))

    def in_tail(self, step: Step, at: str) -> bool:
        """Whether a step lies on a way from `at` to an output."""
        starts = any(self.leads_to(at, r) for r in step.reads)
        return starts and any(self.leads_to(m, o) for m in step.makes for o in self.outputs)

    def crossing(self, at: str) -> set[str]:
        """All that the steps of the tail read from before the cut."""
        return {r for s in self.steps if self.in_tail(s, at) for r in s.reads if not self.leads_to(at, r)}

    def bypass(self, at: str) -> tuple[str, ...]:
        """What crosses the cut at `at`, in the order in which it is made."""
        crossing = self.crossing(at)
        return tuple(m for m in self.maker if m in crossing and not self.decided(m))

    def needed(self, at: str) -> set[str]:
        """The graph inputs that the tail reads, itself or to repeat what their shapes decide."""
        held = set(self.bypass(at))
        return {i for name in self.crossing(at) - held for i in self.before(name) if i in self.inputs and i != at}

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """Where it can be stopped: floats that some value of an input changes, and that lead to an output."""
        floats = [*self.inputs, *(m for m, s in self.maker.items() if s.op != "Shape")]
        return tuple(
            name for name in floats if not self.static(name) and any(self.leads_to(name, o) for o in self.outputs)
        )


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    """A random graph of element-wise nodes, splits, subgraphs that capture, shape arithmetic and dead ends."""
    inputs = tuple(f"x{k}" for k in range(draw(st.integers(1, 3))))
    data = list(inputs)
    steps: list[Step] = []

    def pick() -> str:
        return draw(st.sampled_from(data[-6:]))  # near ones, so that the graph is deep

    for k in range(draw(st.integers(2, 12))):
        kind = draw(st.sampled_from(["unary", "binary", "binary", "stored", "split", "if", "loop", "sized", "resized"]))
        a, b, out = pick(), pick(), f"t{k}"
        if kind == "unary":
            op = draw(st.sampled_from(UNARY))
            steps.append(Step(op, (a,), (out,), f"{out} = {op} ({a})"))
        elif kind == "binary":
            op = draw(st.sampled_from(BINARY))
            steps.append(Step(op, (a, b), (out,), f"{out} = {op} ({a}, {b})"))
        elif kind == "stored":
            w = f"k{k}"
            steps.append(Step("Add", ("w0", "w1"), (w,), f"{w} = Add (w0, w1)"))
            steps.append(Step("Mul", (a, w), (out,), f"{out} = Mul ({a}, {w})"))
        elif kind == "split":
            p, q = f"p{k}", f"q{k}"
            steps.append(Step("Split", (a,), (p, q), f"{p}, {q} = Split <axis = 1> ({a})"))
            first = draw(st.sampled_from([p, q]))
            steps.append(Step("Concat", (first, p), (out,), f"{out} = Concat <axis = 1> ({first}, {p})"))
        elif kind == "if":
            branches = f"then_branch = a{k} () => ({SHAPE} y{k}) {{ y{k} = Add ({a}, {b}) }}, "
            branches += f"else_branch = b{k} () => ({SHAPE} n{k}) {{ n{k} = Neg ({a}) }}"
            steps.append(Step("If", ("yes", a, b), (out,), f"{out} = If (yes) <{branches}>"))
        elif kind == "loop":
            body = f"body = l{k} (int64 i{k}, bool c{k}, {SHAPE} s{k}) => (bool d{k}, {SHAPE} e{k}) "
            body += f"{{ d{k} = Identity (c{k}) e{k} = Add (s{k}, {b}) }}"
            steps.append(Step("Loop", ("twice", "yes", a, b), (out,), f"{out} = Loop (twice, yes, {a}) <{body}>"))
        elif kind == "sized":  # a float that the shape of `b` decides: no data where `b` is a graph input
            steps.append(Step("Shape", (b,), (f"h{k}",), f"h{k} = Shape ({b})"))
            steps.append(Step("Expand", ("w1", f"h{k}"), (out,), f"{out} = Expand (w1, h{k})"))
        else:
            steps.append(Step("Shape", (b,), (f"h{k}",), f"h{k} = Shape ({b})"))
            steps.append(Step("Reshape", (a, f"h{k}"), (out,), f"{out} = Reshape ({a}, h{k})"))
        data.append(out)
    made = [name for name in data if name not in inputs]
    outputs = draw(st.lists(st.sampled_from(made[-4:]), min_size=1, max_size=3, unique=True))
    return Dag(inputs, tuple(steps), tuple(outputs))
