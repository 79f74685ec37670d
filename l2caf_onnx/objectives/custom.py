"""An objective of the user's: a function of a Python file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from l2caf_onnx.errors import InputError

from .objective import Objective, Outputs

_HOW = (
    "Write `def loss(filtered, normal, target)` that takes two {output name: tensor, batch first} and the classes (N,) "
    "or None, and returns the losses (N,)."
)


def custom(name: str) -> Objective:
    """The function that "file.py:function" names, as an objective. The file is run, as any Python program.

    It is called as function(filtered, normal, target), with {output name: tensor}, batch first, and the classes (N,)
    int64 or None, and returns a tensor (N,) to be minimised, each element from its own sample alone.

    Raises:
        InputError: no such file or function, or the file raises.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    where = f"File {file!r}."
    if not path.is_file():
        raise InputError("The file of the objective is not there.", where=where, how="Check its path.")
    spec = importlib.util.spec_from_file_location(f"l2caf_objective_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, for one, look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise InputError(f"The file of the objective fails: {type(e).__name__}: {e}.", where=where) from e
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"The file has no function {function!r}.", where=where, how=_HOW)
    return wrapped(found, name)


def wrapped(function: Callable[..., Any], name: str) -> Objective:
    """A function as an objective; what it returns is checked."""

    def losses(filtered: Outputs, normal: Outputs, samples: int, target: Tensor | None) -> Tensor:
        try:
            found = function(dict(filtered), dict(normal), target)
        except Exception as e:
            raise InputError(
                f"The objective {name!r} raises {type(e).__name__}: {e}.",
                where=f"Outputs { {k: tuple(v.shape) for k, v in filtered.items()} }.",
                how=_HOW,
            ) from e
        if not isinstance(found, Tensor) or found.shape != (samples,) or not found.is_floating_point():
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"The objective {name!r} returns {got}, not {samples} losses.", how=_HOW)
        return found

    return Objective(
        name=name,
        formula="the user's function",
        source=name,
        class_specific=False,
        may_have_target=True,
        _losses=losses,
    )
