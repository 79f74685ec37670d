"""Options that the regression commands share, each declared once, and what their text means."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2caf_onnx.errors import InputError, TensorNotFoundError

if TYPE_CHECKING:
    from l2caf_onnx.graph.model import Model

_INPUTS = "Pictures, folders of them, .npy, .npz, ONNX's test_data_set_* or input_*.pb, Polygraphy's .json; NAME=PATH."

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
Reference = Annotated[Path, typer.Argument(metavar="REF", help="The .onnx file that is right.", show_default=False)]
Candidate = Annotated[Path, typer.Argument(metavar="CAND", help="The .onnx file in question.", show_default=False)]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help=_INPUTS, show_default=False)]
OptionalInputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help=f"{_INPUTS} None with --input-shapes.", show_default=False),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to", metavar="T", help="The tensor to watch (S2); may repeat. Default: all outputs.", show_default=False
    ),
]
Target = Annotated[
    str | None,
    typer.Option(metavar="282|top1", help="The class to explain. Default: all outputs together.", show_default=False),
]
Objective = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="As of attend. Default: by the other options.", show_default=False),
]
Constraint = Annotated[
    str | None, typer.Option(metavar="NAME", help="l2, l2-nonneg, softmax or gaussian.", show_default=False)
]
Radius = Annotated[
    str | None, typer.Option(metavar="unit|auto|RHO", help="Norm of the filter / sqrt(cells).", show_default=False)
]
Basis = Annotated[
    str | None, typer.Option(metavar="BASIS", help="As of attend: 7, 4>7>full, smooth, 4+smooth.", show_default=False)
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NCHW", help="The axes of the breakpoints. Default: found from the graph.", show_default=False
    ),
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="PRESET|TOML",
        help="imagenet, tf, lite, unit, raw, or a TOML file. Default: as the model says.",
        show_default=False,
    ),
]
CandidatePreprocess = Annotated[
    str | None,
    typer.Option(
        "--candidate-preprocess",
        metavar="PRESET|TOML",
        help="The same for CAND. Default: as --preprocess, or as CAND says, or as REF.",
        show_default=False,
    ),
]
Align = Annotated[
    list[str] | None,
    typer.Option(
        "--align", metavar="REF_NAME=CAND_NAME", help="Two tensors that are the same; may repeat.", show_default=False
    ),
]
Change = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="float32, float16, int8 or retrained: what kind of change it is. Default: read from both graphs.",
        show_default=False,
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shapes",
        metavar="NAME:[1,3,224,224]",
        help="In the place of INPUT: random numbers of that shape, whose first axis counts samples; may repeat.",
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="SUBJECT.METRIC[@T]=VALUE",
        help="Such as attention.cosine=0.9, of one tensor output.max_rel@logits=1e-3; wins over all; may repeat.",
        show_default=False,
    ),
]
Thresholds = Annotated[
    Path | None, typer.Option(metavar="TOML", help="A file of thresholds; see the README.", show_default=False)
]
Atol = Annotated[
    list[str] | None,
    typer.Option(
        "--atol",
        metavar="[NAME:]VALUE",
        help="As Polygraphy has it: --threshold output.max_abs=VALUE, or output.max_abs@NAME=VALUE.",
        show_default=False,
    ),
]
Rtol = Annotated[
    list[str] | None,
    typer.Option(
        "--rtol",
        metavar="[NAME:]VALUE",
        help="Of the largest value: --threshold output.max_rel=VALUE, or output.max_rel@NAME=VALUE.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Inputs at once. Default: as suits the memory.", show_default=False),
]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Class names: a line each, or JSON.", show_default=False)
]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the tail runs.")]
Providers = Annotated[
    str | None, typer.Option(metavar="A,B", help="onnxruntime's execution providers.", show_default=False)
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of every random choice.")]
Format = Annotated[
    str, typer.Option("--format", metavar="NAME", help="What is printed: text, github, junit, markdown or json.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with the maps.", show_default=False)
]
JUnit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, as --format json.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those left open are left to the API's own defaults."""
    return {name: value for name, value in options.items() if value not in (None, [], ())}


def target_of(text: str | None) -> int | str | None:
    """`--target` of a command that compares one map an input: a class, or "top1".

    Raises:
        InputError: it is neither.
    """
    from .asked import ranks_or_class

    found = ranks_or_class(text)
    if isinstance(found, tuple):
        if found[1] > 1:
            raise InputError("One class an input is compared.", where=f"--target {text}.", how="Give top1 or a class.")
        return "top1"
    return found


def thresholds_of(
    file: Path | None, single: Sequence[str] | None, atol: Sequence[str] | None, rtol: Sequence[str] | None
) -> dict[str, float] | str | None:
    """What the user says of thresholds: a file alone as its path, else by "subject.metric[@tensor]", options winning.

    Raises:
        InputError: an option without a number, or a file that cannot be used.
    """
    stated: dict[str, float] = {}
    for option, metric, texts in (("--atol", "max_abs", atol), ("--rtol", "max_rel", rtol)):
        for text in texts or ():
            name, _, value = text.rpartition(":")  # a tensor's name may hold colons; a number does not
            stated[f"output.{metric}@{name}" if name else f"output.{metric}"] = _number(value, f"{option} {text}")
    for text in single or ():
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            how = "Write SUBJECT.METRIC=VALUE, such as attention.cosine=0.9."
            raise InputError(f"{text!r} says no threshold.", where="--threshold.", how=how)
        stated[name] = _number(value, f"--threshold {text}")
    if file is None:
        return stated or None
    if not stated:
        return str(file)
    from l2caf_onnx.regress.thresholds import given as lines_of

    return {**{name: line.value for name, line in lines_of(file).items()}, **stated}


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(f"{text!r} is not a number.", where=f"{where}.", how="Write it as 0.9 or 1e-4.")
    return value


def aligned_by(texts: Sequence[str] | None, reference: Model | None, candidate: Model) -> dict[str, str] | None:
    """`--align`: which '=' divides a pair is told by the names that the models have, as far as they are at hand.

    Raises:
        InputError: no '='; TensorNotFoundError: no such tensors.
    """
    found: dict[str, str] = {}
    theirs = set(candidate.names)
    for text in texts or ():
        places = [k for k, c in enumerate(text) if c == "="]
        if not places:
            raise InputError(f"{text!r} is no pair.", where="--align.", how="Write REF_NAME=CAND_NAME.")
        ours = set(reference.names) if reference is not None else {text[:k] for k in places}
        fits = [k for k in places if text[:k] in ours and text[k + 1 :] in theirs]
        if not fits:
            left, right = text[: places[0]], text[places[0] + 1 :]
            if reference is not None and left not in ours:
                raise TensorNotFoundError(left, ours, where=f"--align {text}, model {reference.name!r}.")
            raise TensorNotFoundError(right, theirs, where=f"--align {text}, model {candidate.name!r}.")
        found[text[: fits[0]]] = text[fits[0] + 1 :]
    return found or None


def change_of(text: str | None) -> str | None:
    """`--change`, checked.

    Raises:
        InputError: no such class.
    """
    from typing import get_args

    from l2caf_onnx.records import Change as Class

    classes = get_args(Class)
    if text is not None and text not in classes:
        raise InputError(
            f"There is no class of change {text!r}.", where="--change.", how=f"Choose {', '.join(classes)}."
        )
    return text


def inputs_or_random(
    paths: Sequence[str] | None, shapes: Sequence[str] | None, model: Model, seed: int
) -> list[str] | dict[str, Any]:
    """The INPUT arguments, or the random arrays that `--input-shapes` asks for: in [0, 1), integers 0 or 1.

    Raises:
        InputError: both, neither, or a shape that the model does not take.
    """
    if paths and shapes:
        raise InputError("Inputs and --input-shapes are both given.", how="Leave one out.")
    if paths:
        return list(paths)
    if not shapes:
        raise InputError("There is no input.", how="Give INPUT, or --input-shapes NAME:[1,3,224,224].")
    import numpy as np

    known = {i.name: i for i in model.inputs}
    sizes: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, _, value = text.rpartition(":")
        if name not in known:
            raise TensorNotFoundError(name, known, where=f"--input-shapes {text}, among the model's inputs.")
        sizes[name] = _shape(value, text)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, info in known.items():
        static = tuple(d for d in info.shape or () if isinstance(d, int))
        size = sizes.get(name, static)
        if name not in sizes and (info.shape is None or len(static) < len(info.shape)):
            raise InputError(f"The shape of input {name!r} is open.", where="--input-shapes.", how=f"Add {name}:[...].")
        if info.dtype == "bool" or np.issubdtype(np.dtype(info.dtype), np.integer):
            arrays[name] = rng.integers(0, 2, size).astype(info.dtype)
        else:
            arrays[name] = rng.random(size).astype(info.dtype)
    return arrays


def _shape(text: str, where: str) -> tuple[int, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(type(d) is int and 0 < d < 2**31 for d in found):
        how = "Write NAME:[1,3,224,224]."
        raise InputError(f"{text!r} is not a shape.", where=f"--input-shapes {where}.", how=how)
    return tuple(found)


def preprocessings(
    stated: str | None, of_candidate: str | None, reference: tuple[Model, Path], candidate: tuple[Model, Path]
) -> tuple[Any, Any]:
    """How pictures become numbers for both models: as the user says, else as each model says, else as the reference."""
    from .asked import preprocess_stated

    ours = stated or preprocess_stated(*reference)
    return ours, of_candidate or stated or preprocess_stated(*candidate) or ours
