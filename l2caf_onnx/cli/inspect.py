"""`l2caf-onnx inspect`: where a model can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import print_json, print_table

if TYPE_CHECKING:
    from l2caf_onnx.records import Breakpoint


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the breakpoints of MODEL: tensors with two spatial cells or more, which a filter can multiply.

    "affine" marks a tail that is affine in the tensor: the best filter is found without search. "clean" marks a cut
    that nothing bypasses; "<- last" the last tensor with spatial axes, a good first --at.
    """
    from l2caf_onnx.graph.breakpoints import breakpoints
    from l2caf_onnx.graph.model import load

    found = breakpoints(load(model))
    if json:
        print_json({"breakpoints": [_row(b, last=b is found[-1]) for b in found]})
        return
    if not found:
        typer.echo("This model has no breakpoint: no floating-point tensor with two spatial cells or more.")
        return
    rows = [
        (
            b.name,
            b.op_type + (" (quantised)" if b.quantised else ""),
            "x".join(str(d) for d in b.shape),
            b.layout + (f"[{b.grid}]" if b.grid else ""),
            "affine" if b.affine else "",
            ("clean" if b.clean else "bypass: " + ", ".join(b.bypass)) + (" <- last" if b is found[-1] else ""),
        )
        for b in found
    ]
    print_table(("tensor", "op", "shape", "layout", "tail", "cut"), rows)
    clean, affine = sum(b.clean for b in found), sum(b.affine for b in found)
    typer.echo(
        f"{len(found)} breakpoints, {clean} of them clean, {affine} with an affine tail. "
        f"Break at one: l2caf-onnx attend {model} INPUT --at TENSOR"
    )


def _row(b: Breakpoint, *, last: bool) -> dict[str, object]:
    return {
        "name": b.name,
        "op_type": b.op_type,
        "shape": list(b.shape),
        "layout": b.layout,
        "grid": b.grid,
        "bypass": list(b.bypass),
        "affine": b.affine,
        "quantised": b.quantised,
        "clean": b.clean,
        "last": last,
    }
