"""One root for the mistakes that a user can mend.

Each error says what is wrong, where, and how to mend it. The command line prints the three sentences and exits with 2;
anything that is not an `L2cafError` is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class L2cafError(Exception):
    """A mistake that the user can mend: `what` happened, `where`, and `how` to mend it (one sentence each)."""

    def __init__(self, what: str, *, where: str = "", how: str = "") -> None:
        self.what, self.where, self.how = what, where, how
        super().__init__(" ".join(part for part in (what, where, how) if part))


class InputError(L2cafError):
    """A file, array, option or setting that cannot be used."""


class TensorNotFoundError(L2cafError):
    """No tensor of that name in the graph; `nearest` are the names most like it."""

    def __init__(self, name: str, known: Iterable[str], *, where: str = "", how: str = "") -> None:
        self.name = name
        self.nearest = nearest(name, known)
        hint = f"Did you mean {', '.join(repr(n) for n in self.nearest)}?" if self.nearest else ""
        super().__init__(
            f"There is no tensor {name!r}.",
            where=where,
            how=" ".join(p for p in (hint, how or "`l2caf-onnx inspect MODEL` lists the tensors.") if p),
        )


class CutError(L2cafError):
    """The graph cannot be cut there: S2 is not downstream of S1, or S1 has no cells to filter."""


class UnsupportedModelError(L2cafError):
    """A node that cannot be run or converted, by name (`node`), operator (`op`) and `opset`."""

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        how: str = "",
        node: str | None = None,
        op: str | None = None,
        opset: int | None = None,
    ) -> None:
        self.node, self.op, self.opset = node, op, opset
        super().__init__(what, where=where, how=how)


class ParityError(L2cafError):
    """Torch and onnxruntime disagree at `tensor`, most at element `worst_index`, beyond `rtol` of the largest value."""

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        how: str = "",
        tensor: str | None = None,
        worst_index: tuple[int, ...] | None = None,
        rtol: float | None = None,
        node: str | None = None,
        op: str | None = None,
        opset: int | None = None,
    ) -> None:
        self.tensor, self.worst_index, self.rtol = tensor, worst_index, rtol
        self.node, self.op, self.opset = node, op, opset
        super().__init__(what, where=where, how=how)


class SolverError(L2cafError):
    """No filter can be found: the tail is dead there, or the objective has only a trivial answer."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> tuple[str, ...]:
    """The `count` names most like `name`, best first (case and path prefixes forgiven)."""
    names = list(dict.fromkeys(known))
    folded = {n.casefold(): n for n in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.5)
    inside = [n for n in names if name and name.casefold() in n.casefold()]
    return tuple(dict.fromkeys([folded[c] for c in close] + inside))[:count]
