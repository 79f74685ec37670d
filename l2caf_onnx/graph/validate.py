"""What makes a file that parses still no model: cycles, dangling names, unknown operators, external data astray.

Only what onnxruntime would refuse too is refused here: `onnx.checker` is stricter (it wants sorted nodes, declared
output shapes, a graph name), and real exports break its rules and run.
"""

from __future__ import annotations

import heapq
from functools import cache
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from l2caf_onnx.errors import InputError, UnsupportedModelError

from .contrib import is_onnxruntimes
from .nodes import graphs_in, is_external, label, node_reads, stored_tensors, subgraphs, walk

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def check_text(graph: onnx.GraphProto, where: str) -> None:
    """Check that all names are text: protobuf decodes them only when they are read.

    Raises:
        InputError: one is not.
    """
    try:
        for inner in graphs_in(graph):
            values = (*inner.input, *inner.output, *inner.value_info)
            names = [inner.name] + [v.name for v in values] + [t.name for t in inner.initializer]
            names += [d.dim_param for v in values for d in v.type.tensor_type.shape.dim]
            for node in inner.node:
                names += [node.name, node.op_type, node.domain, *node.input, *node.output]
                names += [a.name for a in node.attribute]
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(repr(name))
    except (UnicodeDecodeError, TypeError) as e:
        raise InputError(
            f"The model is damaged: a name in it is no text ({e}).", where=where, how="Copy it anew."
        ) from e


def check_inputs(graph: onnx.GraphProto, where: str) -> None:
    """Check that each graph input has a name of its own and a type.

    Raises:
        InputError: it has not.
    """
    seen: set[str] = set()
    for value in graph.input:
        fault = (
            "an input has no name"
            if not value.name
            else f"the input {value.name!r} is defined twice"
            if value.name in seen
            else f"the input {value.name!r} has no type"
            if value.type.WhichOneof("value") is None
            else ""
        )
        if fault:
            raise InputError(f"Invalid graph: {fault}.", where=where, how="Export the model anew.")
        seen.add(value.name)


def sorted_nodes(graph: onnx.GraphProto, where: str) -> list[int] | None:
    """A topological order of the top level's nodes that keeps the file's order where it can; None if already sorted.

    Raises:
        InputError: a name defined twice, a name that nothing defines, or a cycle.
    """
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    given.add("")
    makers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for out in filter(None, node.output):
            if out in makers or out in given:
                raise InputError(
                    f"Invalid graph: the tensor {out!r} is defined twice.", where=where, how="Export the model anew."
                )
            makers[out] = i
    reads = [node_reads(n) for n in graph.node]
    for i, names in enumerate(reads):
        for name in names:
            if name not in makers and name not in given:
                raise InputError(
                    f"Invalid graph: node {label(graph.node[i])!r} ({graph.node[i].op_type}) reads {name!r}, "
                    "which nothing defines.",
                    where=where,
                    how="Export the model anew.",
                )
    for value in graph.output:
        if value.name not in makers and value.name not in given:
            raise InputError(
                f"Invalid graph: nothing makes the output {value.name!r}.", where=where, how="Export the model anew."
            )
    for node in graph.node:
        for inner in subgraphs(node):
            own = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            own |= {o for n in inner.node for o in n.output}
            for value in inner.output:
                if value.name not in own:
                    raise InputError(
                        f"Invalid graph: the subgraph of node {label(node)!r} ({node.op_type}) does not itself make "
                        f"its output {value.name!r}.",
                        where=where,
                        how="Put an Identity node before that output.",
                    )
    waiting = [len({makers[n] for n in names if n in makers}) for names in reads]
    users: dict[int, list[int]] = {}
    for i, names in enumerate(reads):
        for maker in {makers[n] for n in names if n in makers}:
            users.setdefault(maker, []).append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for user in users.get(i, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(order) < len(graph.node):
        stuck = next(i for i, count in enumerate(waiting) if count > 0)
        raise InputError(
            f"Invalid graph: it has a cycle through node {label(graph.node[stuck])!r} ({graph.node[stuck].op_type}).",
            where=where,
            how="Export the model anew.",
        )
    return None if order == list(range(len(order))) else order


@cache  # onnx builds the attributes of a schema anew whenever they are asked for
def _schema(op_type: str, version: int, domain: str) -> tuple[onnx.defs.OpSchema, tuple[str, ...]]:
    """An operator's schema, and the attributes that it requires."""
    schema = onnx.defs.get_schema(op_type, version, domain)
    return schema, tuple(a.name for a in schema.attributes.values() if a.required)


def check_nodes(proto: onnx.ModelProto, where: str) -> None:
    """Check each node of a standard domain against its operator's schema: known, right counts, no attribute missing.

    Raises:
        UnsupportedModelError: an operator that the imported opset does not have.
        InputError: wrong number of inputs or outputs, or a required attribute missing.
    """
    versions = {o.domain: o.version for o in proto.opset_import}
    default = versions.get("", versions.get("ai.onnx"))
    for node in walk(proto.graph):
        if node.domain not in _KNOWN_DOMAINS:
            continue  # onnxruntime alone knows whether it has the operator
        if is_onnxruntimes(node, default or 0):
            continue
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = default if domain == "" else versions.get(domain)
        name = f"Node {label(node)!r} ({node.op_type}, opset {version})."
        if version is None:
            raise InputError(
                f"Invalid graph: the model imports no opset of domain {domain or 'ai.onnx'!r}.", where=f"{where} {name}"
            )
        try:
            schema, required = _schema(node.op_type, version, domain)
        except (onnx.defs.SchemaError, TypeError) as e:  # TypeError: a version beyond 32 bits
            raise UnsupportedModelError(
                f"ONNX has no operator {node.op_type!r} in opset {version}.",
                where=f"{where} {name}",
                how="Export the model with standard operators, or set the node's own domain.",
                node=label(node),
                op=node.op_type,
                opset=version,
            ) from e
        missing = [name for name in required if name not in {a.name for a in node.attribute}]
        wrong = (
            f"it lacks the attribute {missing[0]!r}"
            if missing
            else f"it has {len(node.input)} inputs"
            if not schema.min_input <= len(node.input) <= schema.max_input
            else f"it has {len(node.output)} outputs"
            if not schema.min_output <= len(node.output) <= schema.max_output
            else ""
        )
        if wrong:
            raise InputError(f"Invalid graph: {wrong}.", where=f"{where} {name}", how="Export the model anew.")


def check_external_data(proto: onnx.ModelProto, base_dir: Path | None, where: str) -> bool:
    """Whether weights lie in other files; they must be there, long enough, and inside the model's own folder.

    Raises:
        InputError: a file missing, too short, or outside the folder (absolute, with "..", or by a link).
    """
    found = False
    for name, tensor in stored_tensors(proto.graph):
        if not is_external(tensor):
            continue
        found = True
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        what = f"The weights of {name!r} lie in the file {location!r}"
        if base_dir is None:
            raise InputError(f"{what}, but the model came without a folder.", where=where, how="Load it by its path.")
        path = _inside(base_dir, location)
        if path is None:
            raise InputError(
                f"{what}, which is outside the model's folder.",
                where=where,
                how="Such a model is not opened; move the data beside the model and save it anew.",
            )
        if not path.is_file():
            raise InputError(f"{what}, which is missing.", where=where, how="Put the file beside the model.")
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or _bytes(tensor))
        except (ValueError, KeyError) as e:
            raise InputError(f"{what}, but at no place in it that can be told: {e}.", where=where) from e
        if offset < 0 or length < 0:
            raise InputError(f"{what}, at a negative place.", where=where, how="Export the model anew.")
        if path.stat().st_size < offset + length:
            raise InputError(
                f"{what}, which is too short: {offset + length} bytes are needed.", where=where, how="Copy it anew."
            )
    return found


def _inside(base_dir: Path, location: str) -> Path | None:
    """The file at `location`; None where that is not inside `base_dir` (absolute, with "..", or by a link)."""
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or PureWindowsPath(location).is_absolute() or ".." in pure.parts:
        return None
    try:
        return base_dir / location if (base_dir / location).resolve().is_relative_to(base_dir.resolve()) else None
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
        return None


def _bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor's values: what must be there where the model does not say it."""
    halves = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1)
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    cells = int(prod(tensor.dims))
    return (cells + 1) // 2 if tensor.data_type in halves else cells * itemsize
