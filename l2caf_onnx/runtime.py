"""Running models: the only importer of onnxruntime. Sessions, providers, threads and optimisation levels live here.

Worker threads do not spin: torch computes between two runs, and a spinning pool takes a core from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .errors import InputError, UnsupportedModelError
from .graph.half import uses_bfloat16
from .graph.model import NO_TENSORS, Model
from .graph.nodes import walk
from .graph.product import matrices
from .records import TensorInfo

Level = Literal["disable", "basic", "extended", "all"]
Arrays = dict[str, NDArray[Any]]

CPU = "CPUExecutionProvider"
_LARGE = 2**18  # numbers of a matrix that is worth sharing
_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def run(
    model: Model,
    feeds: Mapping[str, NDArray[Any]],
    *,
    level: Level = "disable",
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    check: bool = True,
) -> Arrays:
    """Run `model` by onnxruntime: {output name: array}. "disable", the default, is the reference semantics.

    `threads` is how many compute; None: as onnxruntime chooses. `check=False` where the feeds are known to fit.

    Raises:
        InputError: a wrong input name, shape or type; an unknown level or provider.
        UnsupportedModelError: onnxruntime cannot load or run it; the node is named where onnxruntime says which.
    """
    given = check_feeds(model, feeds) if check else feeds
    chosen = session(model, level=level, providers=providers, threads=threads)
    names = [o.name for o in model.outputs]
    try:
        values = chosen.run(names, given)
    except Exception as e:  # onnxruntime's exceptions share no base class but Exception
        raise _refused(model, e, "onnxruntime failed while it ran the model") from e
    return dict(zip(names, values, strict=True))


def run_bound(
    model: Model,
    feeds: Mapping[str, Any],
    *,
    device: str,
    level: Level = "disable",
    providers: Sequence[str] | None = None,
) -> dict[str, ort.OrtValue]:
    """Run `model` with its outputs left on `device` ("cuda" or "cpu"), and inputs read where they are: IO binding.

    Args:
        model: Any.
        feeds: {input name: numpy array, or whatever has `__dlpack__`, such as a torch tensor on the device}.
        device: Where the outputs are wanted.
        level: As in `run`.
        providers: As in `run`.

    Returns:
        {output name: OrtValue}; `torch.from_dlpack` takes one without a copy.

    Raises:
        As `run`.
    """
    chosen = session(model, level=level, providers=providers)
    binding = chosen.io_binding()
    try:
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, ort.OrtValue.from_dlpack(value))
        for output in model.outputs:
            binding.bind_output(output.name, device)
        chosen.run_with_iobinding(binding)
        values = binding.get_outputs()
    except Exception as e:  # onnxruntime's exceptions share no base class but Exception
        raise _refused(model, e, "onnxruntime failed while it ran the model") from e
    return dict(zip([o.name for o in model.outputs], values, strict=True))


def shared_weights(model: Model) -> Mapping[str, NDArray[np.float32]]:
    """The large matrices of `model` by name, as arrays that its sessions at level "disable" on the CPU read in place.

    So whoever computes with the same numbers does not fetch them from memory a second time. Only sessions that are made
    after the first call read them; these do not pack matrices, which pays where each is multiplied by few rows.
    """
    kept: dict[str, tuple[NDArray[np.float32], ort.OrtValue]] = model.cache.get("shared weights", dict)
    if not kept and model.base_dir is None:
        for name, array in matrices(model, least=_LARGE).items():
            kept[name] = array, ort.OrtValue.ortvalue_from_numpy(array)
    return {name: array for name, (array, _) in kept.items()}


def session(
    model: Model, *, level: Level = "disable", providers: Sequence[str] | None = None, threads: int | None = None
) -> ort.InferenceSession:
    """The session for `model` at that level, made once."""
    if level not in _LEVELS:
        raise InputError(
            f"There is no optimisation level {level!r}.", where="`level`.", how=f"Choose one of {', '.join(_LEVELS)}."
        )
    wanted = check_providers(providers)
    key = ("session", level, wanted, threads) if threads else ("session", level, wanted)
    return model.cache.get(key, lambda: _session(model, level, wanted, threads))


def check_providers(providers: Sequence[str] | None) -> tuple[str, ...]:
    """The execution providers to ask for, the CPU always last.

    Raises:
        InputError: one that this onnxruntime does not have.
    """
    available = _available()
    for name in providers or ():
        if name not in available:
            raise InputError(
                f"This onnxruntime has no execution provider {name!r}.",
                where="`providers`.",
                how=f"It has {', '.join(available)}.",
            )
    return tuple(dict.fromkeys([*(providers or ()), CPU]))


_available: Callable[[], list[str]] = cache(ort.get_available_providers)


def _session(model: Model, level: str, providers: tuple[str, ...], threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.graph_optimization_level = _LEVELS[level]
    options.log_severity_level = 4  # errors come back as exceptions; warnings are about the model's style
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if model.base_dir is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.base_dir))
    if level == "disable" and providers == (CPU,):
        shared: dict[str, tuple[NDArray[np.float32], ort.OrtValue]] = model.cache.get("shared weights", dict)
        if shared:
            options.add_session_config_entry("session.disable_prepacking", "1")
        for name, (_, value) in shared.items():
            options.add_initializer(name, value)
    if providers[0] != CPU and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that came with torch
    try:
        return ort.InferenceSession(model.proto.SerializeToString(), options, providers=list(providers))
    except Exception as e:  # as above
        raise _refused(model, e, "onnxruntime cannot load the model") from e


def check_feeds(model: Model, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """`feeds` as arrays, if they fit the model's inputs.

    Raises:
        InputError: a missing or unknown name, a wrong type, rank or dimension.
    """
    expected = {i.name: i for i in model.inputs}

    def refused(what: str, how: str) -> InputError:
        signatures = ", ".join(map(_signature, model.inputs))
        return InputError(what, where=f"Inputs of model {model.name!r}: {signatures}.", how=how)

    for name in feeds:
        if name not in expected:
            raise refused(f"The model has no input {name!r}.", "Name the inputs as the model does.")
    for name in expected:
        if name not in feeds:
            raise refused(f"The input {name!r} is missing.", "Feed every input.")
    arrays = {name: v if expected[name].dtype in NO_TENSORS else np.asarray(v) for name, v in feeds.items()}
    for name, array in arrays.items():
        info = expected[name]
        if info.dtype in NO_TENSORS:
            continue
        if not (array.dtype.kind in "OSU" if info.dtype == "str" else info.dtype in ("?", _name(array.dtype))):
            raise refused(
                f"The input {name!r} has type {array.dtype}; the model wants {info.dtype}.", "Convert it first."
            )
        if info.shape is None:
            continue
        fits = len(info.shape) == array.ndim and all(
            isinstance(want, str) or want == have for want, have in zip(info.shape, array.shape, strict=True)
        )
        if not fits:
            raise refused(
                f"The input {name!r} has shape {array.shape}; the model wants {_signature(info)}.",
                "Resize or reshape it first.",
            )
    return arrays


_name: Callable[[np.dtype[Any]], str] = cache(str)  # numpy takes its time to spell a type
"""The name of a type of array."""


def _signature(info: TensorInfo) -> str:
    shape = "" if info.shape is None else "[" + ",".join(str(d) for d in info.shape) + "]"
    return f"{info.name} {info.dtype}{shape}"


def _refused(model: Model, error: Exception, what: str) -> UnsupportedModelError:
    """onnxruntime's exception as ours; it names the node in one of several phrases."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text)
    text = re.sub(r"/\S*onnxruntime/\S+:\d+ [^()]*\(.*?\) ", "", text)  # a place in its source
    node, op, domain = _blamed(model, text)
    how = "Check that the model runs in onnxruntime by itself, with these inputs."
    message = f"{what}: {text.rstrip('.')}."
    if "is not a registered" in text:
        message = f"{what}: it has no operator {op!r} of the domain {domain or 'ai.onnx'!r}."
        how = "Such an operator comes with a library of its own, which is not loaded: export with standard operators."
    elif "No corresponding Numpy type" in text:
        message = f"{what}: numpy has no type for the {text.split()[-1].rstrip('.')} values that cross here."
        how = "Break and watch at tensors of another type: behind the Cast that follows, for one."
    elif "Could not find an implementation" in text:
        kind = " (bfloat16 is inside, for which it has few)" if uses_bfloat16(model) else ""
        message = f"{what}: it has no kernel for the operator {op!r} on these types{kind}."
        how = "Convert the model to float32 or float16." if kind else how
    return UnsupportedModelError(
        message,
        where=f"Model {model.name!r}" + (f", node {node!r} ({op})." if node is not None else "."),
        how=how,
        node=node,
        op=op,
        opset=model.opset(domain),
    )


_NAMES_NODE = (r"In Node, \(\"(.+?)\",", r"Name:'(.+?)'", r"node with name '(.+?)'", r"[Nn]ode \((.+?)\)")


def _blamed(model: Model, text: str) -> tuple[str | None, str | None, str]:
    """(name, operator, domain) of the node that a message of onnxruntime is about; (None, None, "") if none is told."""
    nodes = [(n.name, n.op_type, n.domain) for n in walk(model.proto.graph)]
    unknown = re.search(r"([\w.]*):(\w+)\(-?\d+\) is not a registered", text)
    if unknown:
        return next((n for n in nodes if (n[2], n[1]) == unknown.groups()), (None, None, ""))
    names = {found.group(1) for pattern in _NAMES_NODE for found in re.finditer(pattern, text)}
    return next((n for n in nodes if n[0] in names), (None, None, ""))
