"""Inputs as other tools store them: ONNX's `test_data_set_*/input_*.pb`, and the JSON that Polygraphy saves.

Who tests a model with those tools has its inputs in these files already, and need not convert them. One array is
decoded at a time; nothing outside the file is read, though a tensor may ask for it, and no pickle.
"""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .preprocess import reason_of
from .records import TensorInfo

_NUMBERED = re.compile(r"input_(\d+)\.pb")
_DAMAGED = (OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, RuntimeError, struct.error)
_HOW_JSON = 'Save it with Polygraphy: `save_json([{"input": array}, ...], file)`, --save-inputs or --save-outputs.'
_WRAPPED = ("values", "outputs")  # what Polygraphy wraps arrays and their tables in


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of a sample: `name` is what that is called, `number` its place in a JSON file, None of a `.pb`."""

    path: Path
    name: str
    number: int | None = None

    def __str__(self) -> str:
        return self.name

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Of the array for the input `tensor`."""
        return tuple(_proto(self.path).dims) if self.number is None else self.read(tensor).shape

    def read(self, tensor: str) -> NDArray[Any]:
        """The array for the input `tensor`.

        Raises:
            InputError: it is damaged, elsewhere (external data), or of a kind that is not read.
        """
        if self.number is None:
            return _tensor(self.path)
        return _array(_samples(self.path)[self.number][tensor], tensor, self.path)


def stored(path: Path, named: TensorInfo | None, inputs: Sequence[TensorInfo]) -> list[tuple[TensorInfo, Stored]]:
    """The arrays in the file or folder `path`, sample by sample, each with its input; [] where it is another thing.

    `path` is an `input_*.pb`, a folder of them (one sample), a folder of such folders called `test_data_set_*`, a
    `.json` of Polygraphy, or a folder of those. `named` is the input that the user says a `.pb` is for; without it its
    own name tells, else its number.

    Raises:
        InputError: it does not suit the model, or cannot be read.
    """
    if path.is_dir():
        sets = sorted((d for d in path.glob("test_data_set_*") if d.is_dir()), key=_order)
        found = [_set(folder, inputs) for folder in ([path] if any(path.glob("input_*.pb")) else sets)]
        if not found:
            found = [s for file in sorted(path.glob("*.json")) for s in _json(file, inputs)]
        where = f"Folder {str(path)!r}."
    elif path.suffix.lower() == ".json":
        found, where = list(_json(path, inputs)), f"File {str(path)!r}."
    elif path.suffix.lower() == ".pb":
        return [(named or _meant(path, inputs), Stored(path, str(path)))]
    else:
        return []
    if found and named is not None:
        raise InputError(f"Its arrays say themselves which inputs they are for, not {named.name!r}.", where=where,
                         how="Give it without NAME=.")  # fmt: skip
    for sample in found[1:]:
        if {t.name for t, _ in sample} != {t.name for t, _ in found[0]}:
            what = f"{str(sample[0][1])!r} has arrays for other inputs than {str(found[0][0][1])!r} has."
            raise InputError(what, where=where, how="Give each sample the same inputs.")
    return [part for sample in found for part in sample]


def _order(path: Path) -> tuple[int, str]:
    """`_10` after `_9`."""
    number = re.search(r"(\d+)(?=\D*$)", path.name)
    return (int(number.group()) if number else -1, path.name)


def _set(folder: Path, inputs: Sequence[TensorInfo]) -> list[tuple[TensorInfo, Stored]]:
    files = sorted(folder.glob("input_*.pb"), key=_order)
    if not files:
        raise InputError("The folder holds no input_*.pb.", where=f"Folder {str(folder)!r}.", how="Leave it out.")
    found = [(_meant(file, inputs), Stored(file, str(folder))) for file in files]
    if len({tensor.name for tensor, _ in found}) < len(found):
        raise InputError("Two of its files are for the same input.", where=f"Folder {str(folder)!r}.")
    return found


def _meant(file: Path, inputs: Sequence[TensorInfo]) -> TensorInfo:
    """The input that a `.pb` is for: by the name in it, else by the number in the file's, else the only one."""
    known = {i.name: i for i in inputs}
    if (own := _proto(file).name) in known:
        return known[own]
    number = _NUMBERED.fullmatch(file.name)
    place = int(number.group(1)) if number else 0 if len(inputs) == 1 else len(inputs)
    if place < len(inputs):
        return inputs[place]
    what = (
        f"Which input is this tensor for? It is called {own!r}; the model's inputs are {', '.join(map(repr, known))}."
    )
    raise InputError(what, where=f"File {str(file)!r}.", how="Write NAME=PATH.")


def _proto(file: Path) -> Any:
    from google.protobuf.message import DecodeError
    from onnx import TensorProto

    try:
        tensor = TensorProto.FromString(file.read_bytes())
    except (DecodeError, *_DAMAGED) as e:
        how = "It must hold one TensorProto, as in ONNX's own test data."
        raise InputError(f"The tensor cannot be read: {reason_of(e)}.", where=f"File {str(file)!r}.", how=how) from e
    if tensor.data_location == TensorProto.EXTERNAL:
        what, how = "The tensor's values are in another file, which is not opened.", "Store them in the .pb."
        raise InputError(what, where=f"File {str(file)!r}.", how=how)
    return tensor


def _tensor(file: Path) -> NDArray[Any]:
    from onnx import numpy_helper

    try:
        return np.asarray(numpy_helper.to_array(_proto(file)))
    except _DAMAGED as e:
        how = "It must hold one TensorProto, as in ONNX's own test data."
        raise InputError(f"The tensor cannot be read: {reason_of(e)}.", where=f"File {str(file)!r}.", how=how) from e


def _json(file: Path, inputs: Sequence[TensorInfo]) -> Iterator[list[tuple[TensorInfo, Stored]]]:
    known = {i.name: i for i in inputs}
    for number, sample in enumerate(_samples(file)):
        if not sample or not set(sample) <= set(known):
            what = f"Sample {number} holds {', '.join(map(repr, sample)) or 'nothing'}; the model's inputs are "
            how = "Its keys must be inputs of the model."
            raise InputError(f"{what}{', '.join(map(repr, known))}.", where=f"File {str(file)!r}.", how=how)
        yield [(known[key], Stored(file, f"{file}[{number}]", number)) for key in sample]


def _samples(file: Path) -> Sequence[Mapping[str, Any]]:
    """The samples of a JSON file: their arrays still as text, by name."""
    try:
        state = file.stat()
        return _parsed(str(file), state.st_mtime_ns, state.st_size)
    except _DAMAGED as e:
        what = f"This is not JSON that Polygraphy saved: {reason_of(e)}."
        raise InputError(what, where=f"File {str(file)!r}.", how=_HOW_JSON) from e


@lru_cache(maxsize=1)
def _parsed(file: str, changed: int, size: int) -> tuple[Mapping[str, Any], ...]:
    """The file parsed once for all of its samples, as long as it has not `changed`."""
    found = json.loads(Path(file).read_bytes())
    if isinstance(found, dict) and "lst" in found:  # results of runners: those of the first, as Polygraphy takes them
        found = found["lst"][0][1]
    samples = [s.get(_WRAPPED[1], s) if isinstance(s, dict) else s for s in (found if type(found) is list else [found])]
    if not samples or not all(isinstance(s, dict) for s in samples):
        raise ValueError("it holds no samples")
    return tuple({k: v for k, v in s.items() if not k.startswith("polygraphy_")} for s in samples)


def _array(value: Any, tensor: str, file: Path) -> NDArray[Any]:
    where = f"File {str(file)!r}, array {tensor!r}."
    try:
        while isinstance(value, dict) and _WRAPPED[0] in value:
            value = value[_WRAPPED[0]]
        if isinstance(value, dict) and "tensor" in value:
            raise ValueError("it is a torch tensor, which is a pickle")
        if not isinstance(value, dict) or not isinstance(value.get("array"), str):
            raise ValueError("there is no numpy array")
        loaded = np.load(io.BytesIO(base64.b64decode(value["array"], validate=True)), allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            raise ValueError("there is an archive in place of an array")
        return loaded
    except (EOFError, SyntaxError, *_DAMAGED) as e:
        raise InputError(f"The array cannot be read: {reason_of(e)}.", where=where, how=_HOW_JSON) from e
