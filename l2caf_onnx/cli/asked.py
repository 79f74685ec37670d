"""What the user's words mean for this model: globs, targets, class names; and the preprocessing that it states."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2caf_onnx.errors import InputError, TensorNotFoundError

if TYPE_CHECKING:
    from l2caf_onnx.graph.model import Model


def breakpoints_named(model: Model, patterns: list[str]) -> tuple[str, ...]:
    """The tensors that `--at` names: an exact name wins over a glob, which matches breakpoints."""
    from l2caf_onnx.graph.breakpoints import breakpoints

    found: list[str] = []
    for pattern in patterns:
        if pattern in model.names or not re.search(r"[*?\[]", pattern):
            found.append(model.require(pattern))
            continue
        known = [b.name for b in breakpoints(model)]
        matching = [name for name in known if fnmatchcase(name, pattern)]
        if not matching:
            raise TensorNotFoundError(pattern, known, where=f"No breakpoint of {model.name!r} matches this glob.")
        found += matching
    return tuple(dict.fromkeys(found))


def ranks_or_class(target: str | None) -> int | tuple[str, int] | None:
    """`--target`: a class index, or ("top", k) for the k likeliest classes of each input."""
    if target is None:
        return None
    top = re.fullmatch(r"top([1-9]\d*)", target)
    if top:
        return ("top", int(top.group(1)))
    if re.fullmatch(r"-?\d+", target):
        return int(target)
    raise InputError(f"There is no target {target!r}.", where="--target.", how="Give a class index, top1 or top3.")


def class_names(path: Path | None) -> dict[int, str]:
    """Class index -> name, from a file with a name a line, a JSON list, or a JSON object keyed by index."""
    if path is None:
        return {}
    where = f"File {str(path)!r}."
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
        if isinstance(found, list):
            return {i: _name(n) for i, n in enumerate(found)}
        return {int(i): _name(n) for i, n in found.items()}
    except OSError as e:
        raise InputError(
            f"The labels cannot be read: {e.strerror}.", where=where, how="Check the path of --labels."
        ) from e
    except (ValueError, AttributeError) as e:
        how = "Give a text file with a name a line, or JSON: a list, or an object keyed by class index."
        raise InputError("The labels are not in a form that can be read.", where=where, how=how) from e


def _name(value: object) -> str:
    """A name; of a list of synonyms, such as ["n02123045", "tabby"], the last."""
    return str(value[-1] if isinstance(value, list) and value else value)


def preprocess_stated(model: Model, path: Path) -> str | Mapping[str, object] | None:
    """What the model's metadata (`l2caf.preprocess`), or a `manifest.toml` beside it, says of its preprocessing."""
    for entry in model.proto.metadata_props:
        if entry.key == "l2caf.preprocess":
            return str(entry.value)
    manifest = path.parent / "manifest.toml"
    try:
        document = tomllib.loads(manifest.read_text(encoding="utf-8"))
        fetched = [f for p in document.get("package", []) for f in p.get("file", []) if f.get("to") == path.name]
        committed = [c for c in document.get("committed", []) if path.name in c.get("files", [])]
        stated = [f.get("preprocess") for f in (*fetched, *committed)]
    except (OSError, ValueError, AttributeError):
        return None  # a file of that name that is not ours says nothing
    found = stated[0] if stated and isinstance(stated[0], (str, dict)) else None
    return None if isinstance(found, dict) and "signal" in found else found  # audio and text come as arrays


def reference_feeds(text: str, model: Model, preprocess: str | Mapping[str, object] | None) -> Mapping[str, Any]:
    """`--reference`: the feeds of one other input, read as INPUT is."""
    from l2caf_onnx.graph.layout import layouts
    from l2caf_onnx.inputs import find_samples

    found = find_samples([text], model.inputs, layouts(model), preprocess)
    if len(found) != 1:
        raise InputError(f"--reference names {len(found)} inputs.", where=f"{text!r}.", how="Name one.")
    return found[0].read().feeds
