"""A loaded `.onnx` as one immutable value: checked once, sorted, with the index that every question about it needs.

onnxruntime accepts graphs that other tools do not (nodes out of order, initialisers listed as inputs); they are brought
into one form here, so that no other room has to know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar, cast

import onnx
from google.protobuf.message import DecodeError

from l2caf_onnx.errors import InputError, TensorNotFoundError, UnsupportedModelError
from l2caf_onnx.records import Shape, TensorInfo

from .dense import densify
from .nodes import is_external, label, node_reads, stored_tensors, subgraphs, walk
from .validate import check_external_data, check_inputs, check_nodes, check_text, sorted_nodes

T = TypeVar("T")

NO_TENSORS = ("map", "opaque", "optional", "sequence", "sparse_tensor")  # what `TensorInfo.dtype` says of other types
_PRODUCTS = range(4, 65)
_BUDGET = 2**28  # bytes of weights in products; a cut and its sessions hold them about three times over


class Cache:
    """What was made from a Model; it lives and dies with it.

    A key of one word is a fact about the Model (its layouts, its constants): small, and kept. Any other is a product
    with weights in it (a cut, a session, a converted tail): the `size` that were used last are kept.
    """

    def __init__(self, size: Callable[[], int]) -> None:
        """`size` is asked once, when the first product comes: counting the bytes of a large model takes long."""
        self._facts: dict[str, object] = {}
        self._products: OrderedDict[Hashable, object] = OrderedDict()
        self._size = cache(size)

    def __len__(self) -> int:
        return len(self._facts) + len(self._products)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The entry at `key`, made by `make` when it is not there."""
        if isinstance(key, str):
            if key not in self._facts:
                self._facts[key] = make()
            return cast(T, self._facts[key])
        found = self._products[key] if key in self._products else make()  # `make` may itself ask for other products
        self._products[key] = found
        self._products.move_to_end(key)
        while len(self._products) > self._size():
            self._products.popitem(last=False)
        return cast(T, found)


class Model:
    """An ONNX model. Make one with `load`; treat `proto` as read-only.

    Attributes:
        proto: The protobuf: nodes sorted and named, functions inlined, no initialiser among the inputs, nothing sparse,
            external data not read.
        base_dir: Where relative paths of external data start; None when nothing is external.
        name: What to call it in messages.
        path: Its file; None where it was made of something else.
        cache: What was made from it.
    """

    def __init__(
        self, proto: onnx.ModelProto, *, base_dir: Path | None = None, name: str = "model", path: Path | None = None
    ) -> None:
        self.proto = proto
        self.base_dir = base_dir
        self.name = name
        self.path = path
        self.cache = Cache(lambda: sorted((_PRODUCTS[0], _BUDGET // (proto.ByteSize() + 1), _PRODUCTS[-1]))[1])

    def __repr__(self) -> str:
        return f"<Model {self.name}: {len(self.proto.graph.node)} nodes, opset {self.opset()}>"

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that a run must be fed."""
        return tuple(value_to_info(v) for v in self.proto.graph.input)

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that a run returns."""
        return tuple(value_to_info(v) for v in self.proto.graph.output)

    @cached_property
    def initialisers(self) -> dict[str, onnx.TensorProto]:
        """Weights and other constants by name."""
        return {t.name: t for t in self.proto.graph.initializer}

    @cached_property
    def stored(self) -> frozenset[str]:
        """Names of all stored tensors."""
        return frozenset(self.initialisers)

    @cached_property
    def producers(self) -> dict[str, int]:
        """Tensor name -> index of the node that makes it."""
        return {o: i for i, n in enumerate(self.proto.graph.node) for o in n.output if o}

    @cached_property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """For each node, the tensors that it reads, those captured by its subgraphs included."""
        return tuple(node_reads(n) for n in self.proto.graph.node)

    @cached_property
    def consumers(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> indices of the nodes that read it."""
        found: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                found.setdefault(name, []).append(i)
        return {name: tuple(indices) for name, indices in found.items()}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Graph inputs and node outputs of the top level, in topological order."""
        return tuple(i.name for i in self.inputs) + tuple(self.producers)

    @property
    def has_external_data(self) -> bool:
        """Whether some weights lie in files beside the model."""
        return any(is_external(tensor) for _, tensor in stored_tensors(self.proto.graph))

    def opset(self, domain: str = "") -> int | None:
        """The imported version of a domain's operators; None when it is not imported."""
        aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((o.version for o in self.proto.opset_import if o.domain in aliases), None)

    def op_of(self, name: str) -> str:
        """The operator that makes a tensor; "Input" for a graph input, "Constant" for a stored one."""
        if name in self.producers:
            return str(self.proto.graph.node[self.producers[name]].op_type)
        return "Constant" if name in self.stored else "Input"

    def require(self, name: str) -> str:
        """`name`, if the top level of the graph has such a tensor.

        Raises:
            TensorNotFoundError: it has not; the nearest names are offered.
        """
        if name in self.producers or any(name == i.name for i in self.inputs):
            return name
        where = f"Model {self.name!r}."
        if name in self.stored:
            raise TensorNotFoundError(
                name,
                self.names,
                where=where,
                how="That name is a constant of the model: it does not depend on the input.",
            )
        inside = {o for n in self.proto.graph.node for g in subgraphs(n) for m in walk(g) for o in m.output}
        if name in inside:
            how = "That name is inside a subgraph (If, Loop or Scan); cut at a tensor of the top level."
            raise TensorNotFoundError(name, self.names, where=where, how=how)
        raise TensorNotFoundError(name, self.names, where=where)


def load(source: str | Path | bytes | onnx.ModelProto | Model) -> Model:
    """Read a model; check it; weights in external files stay on disk until they are used.

    Args:
        source: A path, the bytes of a `.onnx` file, a `ModelProto` (copied, never changed), or a Model (given back).

    Raises:
        InputError: no such file, not an ONNX protobuf, an invalid graph, external data missing or outside the folder.
        UnsupportedModelError: an IR version below 3, or an operator that its opset does not have.
    """
    if isinstance(source, Model):
        return source
    base_dir: Path | None = None
    path: Path | None = None
    if isinstance(source, onnx.ModelProto):
        proto, name = onnx.ModelProto(), "model"
        proto.CopyFrom(source)
    elif isinstance(source, bytes):
        proto, name = _parse(source, "Bytes handed over."), "model"
    else:
        path = Path(source)
        proto, name, base_dir = _parse(_read(path), f"File {str(path)!r}."), path.name, path.resolve().parent
    where = f"Model {name!r}."
    _check_header(proto, where)
    if proto.functions:
        proto = _inlined(proto, where)
    stored = {t.name for t in proto.graph.initializer}
    for value in [v for v in proto.graph.input if v.name in stored]:
        proto.graph.input.remove(value)
    check_text(proto.graph, where)
    check_inputs(proto.graph, where)
    densify(proto.graph, where)
    external = check_external_data(proto, base_dir, where)
    order = sorted_nodes(proto.graph, where)
    if order is not None:
        nodes = [onnx.NodeProto.FromString(proto.graph.node[i].SerializeToString()) for i in order]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    check_nodes(proto, where)
    _name_nodes(proto.graph)
    return Model(proto, base_dir=base_dir if external else None, name=name, path=path)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own: onnxruntime's messages tell a node by it alone, and it refuses one given twice.

    What has a name keeps it, the first of several that share it; the others are called after their output.
    """
    nodes = list(walk(graph))
    taken: set[str] = set()
    nameless = []
    for node in nodes:
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            node.name = ""
            nameless.append(node)
    for node in nameless:
        base = name = label(node)
        count = 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        taken.add(name)


def _read(path: Path) -> bytes:
    where = f"File {str(path)!r}."
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise InputError("There is no such model file.", where=where, how="Check the path.") from e
    except IsADirectoryError as e:
        raise InputError("The model is a directory, not a file.", where=where, how="Name the .onnx file in it.") from e
    except OSError as e:
        raise InputError(f"The model file cannot be read: {e.strerror}.", where=where) from e


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
        return proto
    except DecodeError as e:
        raise InputError(
            "This is not an ONNX model, or it is truncated: the protobuf cannot be decoded.",
            where=where,
            how="Export or copy it anew.",
        ) from e


def _check_header(proto: onnx.ModelProto, where: str) -> None:
    if not proto.HasField("graph") or not proto.graph.output:
        raise InputError(
            "This is not a whole ONNX model: it has no graph with outputs.", where=where, how="Export or copy it anew."
        )
    if proto.ir_version < 3:
        raise UnsupportedModelError(
            f"The model has IR version {proto.ir_version}; 3 is the oldest that can be read.",
            where=where,
            how="Export it with a newer exporter.",
        )
    if not proto.opset_import:
        raise InputError("The model imports no operator set.", where=where, how="Export or copy it anew.")


def _inlined(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    import onnx.inliner

    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(proto)
        return inlined
    except Exception as e:  # the inliner raises bare RuntimeErrors of several kinds
        raise InputError(f"The model's local functions cannot be inlined: {e}.", where=where) from e


def value_to_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """A protobuf value as a TensorInfo; a non-tensor type is named in `dtype`, with an unknown shape."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorInfo(value.name, kind.removesuffix("_type") if kind else "?", None)
    tensor = value.type.tensor_type
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or "?")
            for d in tensor.shape.dim
        )
    return TensorInfo(value.name, dtype_name(tensor.elem_type), shape)


def dtype_name(elem_type: int) -> str:
    """numpy's name of a protobuf element type; "?" where it is not declared."""
    if elem_type == onnx.TensorProto.STRING:
        return "str"
    if elem_type in onnx.helper.get_all_tensor_dtypes():
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    return "?"
