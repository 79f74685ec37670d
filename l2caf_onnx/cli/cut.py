"""`l2caf-onnx cut`: head and tail as `.onnx` files, and the check that together they equal the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import MANIFEST, digest, staged, versions
from .printing import print_json, remark

if TYPE_CHECKING:
    from l2caf_onnx.graph.cut import Cut
    from l2caf_onnx.graph.model import Model


def cut(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    at: Annotated[str, typer.Option("--at", metavar="T", help="The tensor to cut at (S1).", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for head.onnx and tail.onnx.", show_default=False),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="T", help="Where the tail ends (S2); may repeat. Default: all outputs."),
    ] = None,
    input_shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--input-shapes", metavar="NAME:[N,...]", help="Sizes for the check where the model leaves them open."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is in DIR.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Cut MODEL in two at a named tensor, and check by onnxruntime that head then tail equals the model.

    The check feeds seeded noise. Exit code 1 where the two differ.
    """
    from l2caf_onnx.graph.cut import cut as cut_model
    from l2caf_onnx.graph.cut import save
    from l2caf_onnx.graph.model import load
    from l2caf_onnx.records import save_manifest

    loaded = load(model)
    parts = cut_model(loaded, at, to or None)
    shapes = _shapes(loaded, input_shapes or [])
    agreement = _check(loaded, parts, shapes)
    document = {
        "at": parts.at,
        "to": list(parts.to),
        "bypass": list(parts.bypass),
        "head": {"file": "head.onnx", "outputs": [o.name for o in parts.head.outputs]},
        "tail": {"file": "tail.onnx", "inputs": [i.name for i in parts.tail.inputs]},
        "check": agreement,
    }
    folder = output
    with staged(folder, force=force) as stage:
        for name, part in (("head.onnx", parts.head), ("tail.onnx", parts.tail)):
            save(part, stage / name)
        stated = {"command": "cut", "model": {"name": model.name, "sha256": digest(model)}, "versions": versions()}
        save_manifest(stage / MANIFEST, {**stated, **document})
    if json:
        print_json(document)
    else:
        typer.echo(f"head  {folder / 'head.onnx'}  makes  {', '.join(o.name for o in parts.head.outputs)}")
        typer.echo(f"tail  {folder / 'tail.onnx'}  reads  {', '.join(i.name for i in parts.tail.inputs)}")
        if parts.bypass:
            typer.echo(f"{len(parts.bypass)} tensor(s) bypass the cut: {', '.join(parts.bypass)}")
        verdict = "equals the model bit for bit" if agreement["bitwise"] else f"differs by {agreement['max_rel']:.1e}"
        typer.echo(f"head then tail {verdict} (onnxruntime, optimisations off, inputs {agreement['inputs']})")
    if not agreement["ok"]:
        remark("Error: head then tail is not the model.")
        raise typer.Exit(1)


def _shapes(model: Model, given: list[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each input for the check: as declared, with the user's sizes, else 1 a batch and 224 a side."""
    from ast import literal_eval

    from l2caf_onnx.errors import InputError
    from l2caf_onnx.graph.layout import layouts

    found: dict[str, tuple[int, ...]] = {}
    known = {i.name: i for i in model.inputs}
    for text in given:
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in literal_eval(sizes))
        except (ValueError, SyntaxError, TypeError) as e:
            how = "Write it as image:[1,3,224,224]."
            raise InputError(f"The shape {text!r} cannot be read.", where="--input-shapes.", how=how) from e
        if name not in known:
            raise InputError(
                f"The model has no input {name!r}.", where="--input-shapes.", how=f"It has {', '.join(known)}."
            )
        found[name] = shape
    letters = layouts(model)
    sides = {"N": 1, "C": 3, "H": 224, "W": 224}
    for info in model.inputs:
        if info.name not in found:
            layout = letters.get(info.name, "")
            found[info.name] = tuple(
                d if isinstance(d, int) else sides.get(layout[k : k + 1], 16) for k, d in enumerate(info.shape or ())
            )
    return found


def _check(model: Model, parts: Cut, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Head then tail against the model, on noise."""
    import numpy as np

    from l2caf_onnx.agreement import compare
    from l2caf_onnx.errors import InputError
    from l2caf_onnx.graph.cut import extract
    from l2caf_onnx.graph.half import uses_half
    from l2caf_onnx.graph.model import NO_TENSORS
    from l2caf_onnx.runtime import run

    for info in model.inputs:
        if info.dtype in (*NO_TENSORS, "str", "?"):
            raise InputError(
                f"The check that head then tail equals the model has no value for input {info.name!r} ({info.dtype}).",
                where=f"Model {model.name!r}.",
                how="Cut from Python by l2caf_onnx.cut, and compare on feeds of your own.",
            )
    rng = np.random.default_rng(0)
    feeds = {
        i.name: (
            rng.uniform(-1, 1, shapes[i.name]) if i.dtype.startswith("float") else np.zeros(shapes[i.name])
        ).astype(i.dtype)
        for i in model.inputs
    }
    whole = run(extract(model, [i.name for i in model.inputs], parts.to), feeds)
    pool = {**feeds, **run(parts.head, feeds)}
    joined = run(parts.tail, {i.name: pool[i.name] for i in parts.tail.inputs})
    bitwise = all(np.array_equal(whole[n], joined[n], equal_nan=whole[n].dtype.kind == "f") for n in whole)
    worst = compare(whole, joined, provider="CPUExecutionProvider", level="disable")
    allowed = 5e-3 if uses_half(model) else 0.0
    return {
        "ok": bitwise or worst.max_rel <= allowed,
        "bitwise": bitwise,
        "max_rel": worst.max_rel,
        "inputs": {name: list(shape) for name, shape in shapes.items()},
    }
