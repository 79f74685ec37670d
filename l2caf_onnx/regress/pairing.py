"""Which output of a candidate answers the question that an output of the reference does."""

from __future__ import annotations

from collections.abc import Sequence

from l2caf_onnx.errors import InputError
from l2caf_onnx.graph.model import Model
from l2caf_onnx.records import Aligned

from .watch import Seen


def outputs_of(
    reference: Sequence[str], candidate: Model, alignment: Sequence[Aligned] = ()
) -> list[tuple[Seen, Seen]]:
    """Each output of the reference as it is seen in both, paired by name, by alignment, or else by position.

    Raises:
        InputError: the candidate lacks one.
    """
    theirs = numeric_outputs(candidate)
    aligned = {a.reference: a for a in alignment if a.candidate in theirs}
    found = []
    for k, name in enumerate(reference):
        pair = aligned.get(name)
        other = name if name in theirs else pair.candidate if pair else None
        if other is None and len(reference) == len(theirs):
            other = theirs[k]
        if other is None:
            raise InputError(
                f"The candidate has no output that does the work of {name!r}.",
                where=f"Its outputs: {', '.join(theirs) or 'none of numbers'}.",
                how="Give the pair by hand (--align), or compare models that answer the same question.",
            )
        order = pair.order if pair is not None and pair.candidate == other else None
        found.append((Seen(name=name, own=name), Seen(name=name, own=other, order=order)))
    return found


def numeric_outputs(model: Model) -> list[str]:
    """The outputs that hold numbers, as far as the file tells."""
    kinds = ("float", "bfloat", "int", "uint", "bool", "?")
    return [o.name for o in model.outputs if o.dtype.startswith(kinds)]
