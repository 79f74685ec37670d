"""Who may import whom, what a start costs, and that the public names are there: design.md's tables, kept by machine."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx.parser
import pytest

import l2caf_onnx as caf

PACKAGE = Path(caf.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LONGEST = 350  # lines


@dataclass(frozen=True)
class Room:
    """What a room may import beside the standard library, numpy, errors, records and itself."""

    layer: int
    rooms: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()  # only inside functions or under TYPE_CHECKING, not when it is imported
    only: dict[str, frozenset[str]] = field(default_factory=dict)  # package -> the files of the room that may have it


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BELOW_RENDER = names(
    "inputs preprocess stored graph agreement runtime filters objectives solvers tail methods explain attention"
)
REWRITES = names("graph/cut.py graph/insert.py graph/rewrite.py graph/surgeon.py graph/unroll.py graph/sequences.py")
ROOMS = {
    "errors": Room(0),
    "records": Room(0),
    "preprocess": Room(0),
    "stored": Room(0, rooms=names("preprocess"), later=names("onnx google")),  # to read a tensor's protobuf
    "inputs": Room(0, rooms=names("preprocess stored"), packages=names("PIL")),
    # protobuf and ml_dtypes come with onnx: its exceptions, its types
    "graph": Room(1, packages=names("onnx onnx_ir google ml_dtypes"), only={"onnx_ir": REWRITES}),
    "agreement": Room(2),
    "runtime": Room(2, rooms=names("graph"), packages=names("onnxruntime")),
    "filters": Room(2, packages=names("torch")),
    "objectives": Room(2, packages=names("torch")),
    "solvers": Room(2, rooms=names("filters"), packages=names("torch")),
    "tail": Room(
        3, rooms=names("graph runtime agreement"), packages=names("torch torchvision onnx onnx2torch onnx2pytorch")
    ),
    "methods": Room(3, rooms=names("filters"), packages=names("torch")),
    "render": Room(3, packages=names("PIL matplotlib jinja2")),
    "explain": Room(
        4, rooms=names("graph agreement runtime filters objectives solvers tail methods"), packages=names("torch onnx")
    ),
    "attention": Room(5, rooms=BELOW_RENDER - {"attention"}, packages=names("torch onnx")),
    "evaluation": Room(5, rooms=BELOW_RENDER | {"methods"}, packages=names("PIL torch onnx")),
    "regress": Room(5, rooms=BELOW_RENDER | {"evaluation"}, packages=names("PIL torch onnx")),
    "cli": Room(
        6, rooms=BELOW_RENDER | {"render", "evaluation", "regress"}, packages=names("typer rich"), later=names("PIL")
    ),
    "pytest_plugin": Room(6, rooms=names("render"), packages=names("pytest")),  # models through the public names
    "__main__": Room(7, rooms=names("cli")),
    "__init__": Room(
        7, rooms=BELOW_RENDER | {"evaluation", "regress"}
    ),  # the façade: names for type checkers, nothing when it runs
}
ALWAYS = names("errors records")
NO_NUMPY_AT_START = names("__init__ __main__ cli errors")


@dataclass(frozen=True)
class Import:
    module: str  # dotted and absolute
    line: int
    deferred: bool  # inside a function or under TYPE_CHECKING


def imports(source: str, file: str) -> Iterator[Import]:
    """Every import of a file, wherever it stands.

    Imports under TYPE_CHECKING count too: who names another room's types knows that room. What they are spared is the
    rule about start-up, for nothing is loaded by them.
    """
    parts = ["l2caf_onnx", *Path(file).with_suffix("").parts]
    package = parts[:-1]

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import x` may name a module
                yield Import(f"{stem}.{alias.name}", node.lineno, deferred)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        inside = deferred or typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def violations(source: str, file: str) -> list[str]:
    """What `source`, as the file of that name, imports and may not."""
    name = Path(file).parts[0].removesuffix(".py")
    room = ROOMS[name]
    found = []
    for item in imports(source, file):
        top, _, rest = item.module.partition(".")
        if top == "l2caf_onnx":
            other = rest.split(".")[0]
            if other not in ROOMS:
                other = "__init__"  # a public name, such as __version__
                allowed = name in ("cli", "pytest_plugin")
            else:
                allowed = other in room.rooms | ALWAYS | {name}
        elif top == "numpy":
            allowed = item.deferred or name not in NO_NUMPY_AT_START
        elif top in sys.stdlib_module_names:
            allowed = True
        else:
            allowed = (top in room.packages or (top in room.later and item.deferred)) and file in room.only.get(
                top, {file}
            )
        if not allowed:
            found.append(f"{file}:{item.line} imports {item.module}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_go_downward(file: str) -> None:
    assert violations(FILES[file].read_text(encoding="utf-8"), file) == []


def test_the_table_only_points_downward() -> None:
    """Within a layer there is an order too, so that no two rooms can come to import each other."""
    order = list(ROOMS)
    assert [r.layer for r in ROOMS.values()] == sorted(r.layer for r in ROOMS.values())
    assert {(a, b) for a, room in ROOMS.items() for b in room.rooms if order.index(b) >= order.index(a)} == set()
    assert {Path(f).parts[0].removesuffix(".py") for f in FILES} <= set(ROOMS)


@pytest.mark.parametrize(
    ("file", "source", "bad"),
    [
        ("graph/model.py", "import torch", True),
        ("graph/model.py", "import onnx_ir as ir", True),
        ("graph/cut.py", "import onnx_ir as ir", False),
        ("graph/cut.py", "from l2caf_onnx import runtime", True),
        ("graph/cut.py", "from .. import runtime", True),
        ("graph/cut.py", "from ..runtime import run", True),
        ("graph/cut.py", "def f():\n    from l2caf_onnx.tail.convert import to_torch", True),
        ("graph/cut.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", True),
        ("graph/cut.py", "from .model import Model", False),
        ("filters.py", "import onnx", True),
        ("solvers/sgd.py", "from ..objectives import resolve", True),
        ("tail/convert.py", "import onnxruntime", True),
        ("tail/convert.py", "from ..attention import attend", True),
        ("attention.py", "from .render import overlay", True),
        ("stored.py", "import onnx", True),
        ("stored.py", "def f():\n    import onnx", False),
        ("cli/cut.py", "import numpy as np", True),
        ("cli/cut.py", "def f():\n    import numpy as np", False),
        ("errors.py", "import numpy as np", True),
        ("records.py", "from l2caf_onnx.graph.model import Model", True),
    ],
)
def test_a_forbidden_import_is_seen(file: str, source: str, bad: bool) -> None:
    assert bool(violations(source, file)) == bad


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_two_rooms(file: str) -> None:
    lines = FILES[file].read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST


def loaded_after(code: str, *arguments: str) -> set[str]:
    """The top-level packages in `sys.modules` of a fresh process that has run `code`."""
    program = (
        f"import sys, json\nsys.argv[1:] = {list(arguments)!r}\ntry:\n    {code}\nexcept SystemExit as e:\n"
        "    assert not e.code, e.code\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


CLI = "from l2caf_onnx.cli import main; main()"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import l2caf_onnx", []),
        ("import l2caf_onnx.pytest_plugin", []),
        ("from l2caf_onnx import L2cafError", []),
        (CLI, ["--help"]),
        (CLI, ["attend", "--help"]),
        (CLI, ["eval", "--help"]),
        (CLI, ["compare", "--help"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_start_is_light(code: str, arguments: list[str]) -> None:
    assert loaded_after(code, *arguments) & names("torch onnxruntime onnx onnx_ir numpy PIL matplotlib") == set()


def test_inspect_is_light(tmp_path: Path) -> None:
    # Shape arithmetic on constants too: it is evaluated by onnx's reference, which is another import.
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]> g (float[N, 3, 4, 4] x) => (float[N, s] y) {
            a = Relu (x)  k = Constant <value_ints = [0, -1]> ()  i = Identity (k)  y = Reshape (a, i)
        }"""
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    loaded = loaded_after(CLI, "inspect", str(path))
    assert "onnx" in loaded
    assert loaded & names("torch onnxruntime onnx_ir sympy PIL matplotlib") == set()


@pytest.mark.parametrize("name", caf.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(caf, name)
    assert name in dir(caf)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # what dataclass writes where nobody wrote


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = caf.no_such_name


def test_no_module_hides_a_public_function() -> None:
    for module in ("attention", "evaluation", "graph.cut", "graph.breakpoints", "runtime", "tail"):
        importlib.import_module(f"l2caf_onnx.{module}")
    functions = ("attend", "breakpoints", "cut", "evaluate", "insert_filter", "load", "run", "to_torch")
    assert [f for f in functions if not inspect.isfunction(getattr(caf, f))] == []
    assert [f for f in functions if importlib.util.find_spec(f"l2caf_onnx.{f}") is not None] == []


# Of the fixed API: positional names, then keyword-only names with defaults ("" where there is none).
SIGNATURES: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "load": (("source",), {}),
    "breakpoints": (("model",), {}),
    "cut": (("model", "at", "to"), {}),
    "run": (("model", "feeds"), {"level": "disable"}),
    "to_torch": (("model", "example"), {}),
    "insert_filter": (("model", "at", "filter"), {"layout": None}),
    "attend": (
        ("model", "feeds"),
        {
            "at": inspect.Parameter.empty,
            "to": None,
            "target": None,
            "objective": None,
            "constraint": None,
            "radius": None,
            "solver": "auto",
            "preset": None,
            "layout": None,
            "proof": "tail",
            "device": "cpu",
            "batch_size": None,
            "providers": None,
            "seed": 0,
        },
    ),
}


@pytest.mark.parametrize("function", SIGNATURES)
def test_signatures_are_the_fixed_ones(function: str) -> None:
    positional, keywords = SIGNATURES[function]
    parameters = inspect.signature(getattr(caf, function)).parameters
    found = [p for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert tuple(p.name for p in found) == positional
    only = {p.name: p.default for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {k: only.get(k) for k in keywords} == keywords


def test_records_have_the_fixed_fields() -> None:
    fixed = {
        caf.TensorInfo: "name dtype shape",
        caf.Breakpoint: "name op_type shape layout bypass affine quantised",
        caf.Cut: "head tail at to bypass",
        caf.Parity: "tensor max_abs max_rel worst_index rtol atol ok provider level slope_rel findings",
        caf.Attention: "filter heatmap loss evaluations radius target stop_reason solver parity proof certificate at "
        "to objective constraint layout converter",
    }
    missing = {r.__name__: names(wanted) - {f.name for f in dataclasses.fields(r)} for r, wanted in fixed.items()}
    assert {k: v for k, v in missing.items() if v} == {}
