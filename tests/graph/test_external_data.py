"""Weights in files of their own: found, never read before they are used, and never from outside the model's folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import _get_all_tensors as all_tensors

import l2caf_onnx as caf
from l2caf_onnx.graph.cut import save
from tests.conftest import normal, parse

X, W = normal(1, 2, 8, 8), normal(2, 8, 8, seed=1)
RIGHT = np.maximum(X, 0) + W

_W = f"float[2,8,8] w = {{{', '.join(['0'] * W.size)}}}"
_CONST = f"w = Constant <value = {_W.removesuffix('}').replace(' w = {', ' {')}}}> ()"
_GRAPH = "g (float[1,2,8,8] x) => (float[1,2,8,8] y) <{0}> {{ a = Relu (x) {1} }}"
_IF = "y = If (yes) <then_branch = t () => (float[1,2,8,8] p) {0} {{ {1} p = Add (a, w) }}, "
_IF += "else_branch = e () => (float[1,2,8,8] q) {{ q = Neg (a) }}>"
PLACES = {
    "initialiser": _GRAPH.format(_W, "y = Add (a, w)"),
    "Constant": _GRAPH.format("float unused = {0}", f"{_CONST} y = Add (a, w)"),
    "initialiser in a subgraph": _GRAPH.format("bool yes = {1}", _IF.format(f"<{_W}>", "")),
    "Constant in a subgraph": _GRAPH.format("bool yes = {1}", _IF.format("", _CONST)),
}


def proto_at(place: str, location: str = "w.bin", **entries: object) -> onnx.ModelProto:
    """A model whose weights w lie at `location`, 4 bytes in unless `entries` says otherwise."""
    proto = parse(PLACES[place])
    (tensor,) = [t for t in all_tensors(proto) if list(t.dims) == [2, 8, 8]]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 4, "length": W.nbytes, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return proto


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data of w, and a neighbour of the folder with the same."""
    folder = tmp_path / "model"
    for place in (folder, tmp_path):
        place.mkdir(exist_ok=True)
        (place / "w.bin").write_bytes(b"four" + W.tobytes())
    return folder


def save_proto(folder: Path, proto: onnx.ModelProto) -> Path:
    """Write the model alone."""
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


_opened: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_audit)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The names of the files that Python opens during the test."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.mark.parametrize("place", PLACES)
def test_read_only_when_used_and_then_rightly(
    place: str, folder: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not where the data lie; there is a file of that name, though
    (tmp_path / "w.bin").write_bytes(b"four" + bytes(W.nbytes))
    path = save_proto(folder, proto_at(place))
    opened.clear()
    model = caf.load(path)
    stops = caf.breakpoints(model)
    assert [s.name for s in stops] == ["x", "a", "y"]
    cuts = [caf.cut(model, s.name) for s in stops]
    assert str(path) in opened
    assert not any(name.endswith("w.bin") for name in opened)
    assert model.has_external_data
    for level in ("disable", "all"):
        np.testing.assert_array_equal(caf.run(model, {"x": X}, level=level)["y"], RIGHT)
    for c in cuts:
        held = {"x": X, **caf.run(c.head, {"x": X})}
        np.testing.assert_array_equal(caf.run(c.tail, {i.name: held[i.name] for i in c.tail.inputs})["y"], RIGHT)
    half = np.full((8, 8), 0.5, np.float32)
    filtered = caf.run(caf.insert_filter(model, "a", half), {"x": X})["y"]
    np.testing.assert_array_equal(filtered, np.maximum(X, 0) / 2 + W)


@pytest.mark.parametrize("place", PLACES)
def test_saved_elsewhere_the_data_go_along(place: str, folder: Path, tmp_path: Path) -> None:
    model = caf.load(save_proto(folder, proto_at(place)))
    before = model.proto.SerializeToString(deterministic=True)
    (tmp_path / "other").mkdir()
    save(model, tmp_path / "other" / "copy.onnx")
    (folder / "w.bin").unlink()
    (tmp_path / "w.bin").unlink()
    copy = caf.load(tmp_path / "other" / "copy.onnx")
    np.testing.assert_array_equal(caf.run(copy, {"x": X})["y"], RIGHT)
    assert model.proto.SerializeToString(deterministic=True) == before


def link_out(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(folder.parent / "w.bin")


def link_loop(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(folder / "w.bin")


def nothing(folder: Path) -> None:
    assert (folder / "w.bin").is_file()


FAULTS: list[tuple[Callable[[Path], object], str, dict[str, object], str]] = [
    (lambda folder: (folder / "w.bin").unlink(), "w.bin", {}, "'w.bin', which is missing"),
    (lambda folder: (folder / "w.bin").write_bytes(bytes(9)), "w.bin", {}, "too short: 516 bytes are needed"),
    (lambda folder: (folder / "w.bin").write_bytes(bytes(512)), "w.bin", {"length": None}, "too short: 516 bytes"),
    (nothing, "w.bin", {"offset": 8}, "too short: 520 bytes are needed"),
    (nothing, "w.bin", {"offset": -8}, "at a negative place"),
    (nothing, "w.bin", {"offset": "far"}, "no place in it that can be told"),
    (nothing, "../w.bin", {}, "'../w.bin', which is outside the model's folder"),
    (nothing, "sub/../../w.bin", {}, "outside the model's folder"),
    (nothing, "/etc/passwd", {}, "outside the model's folder"),
    (nothing, "C:\\w.bin", {}, "outside the model's folder"),
    (nothing, "w\0.bin", {}, "outside the model's folder"),
    (nothing, "", {}, "outside the model's folder"),
    (link_out, "w.bin", {}, "outside the model's folder"),
    (link_loop, "w.bin", {}, "outside the model's folder|which is missing"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("spoil", "location", "entries", "message"), FAULTS, ids=[f[3][:30] for f in FAULTS])
def test_data_astray(
    place: str,
    spoil: Callable[[Path], object],
    location: str,
    entries: dict[str, object],
    message: str,
    folder: Path,
    opened: list[str],
) -> None:
    path = save_proto(folder, proto_at(place, location, **entries))
    spoil(folder)
    opened.clear()
    with pytest.raises(caf.InputError, match=message) as caught:
        caf.load(path)
    assert "weights of 'w'" in str(caught.value)
    assert opened == [str(path)]


@pytest.mark.parametrize("place", PLACES)
def test_data_inside_a_folder_beside_the_model(place: str, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "w.bin").rename(folder / "data" / "w.bin")
    model = caf.load(save_proto(folder, proto_at(place, "data/w.bin", length=None)))
    np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_without_a_folder(place: str, as_bytes: bool) -> None:
    proto = proto_at(place)
    with pytest.raises(caf.InputError, match=r"'w\.bin', but the model came without a folder.*Load it by its path"):
        caf.load(proto.SerializeToString() if as_bytes else proto)


ROWS, COUNT = 1_200_000, 7  # of 64 numbers: each weight has 307 MB, all together 2.15 GB


def large(folder: Path) -> Path:
    """A model with more weights than a protobuf can hold, as files with holes: the last weight in one of its own."""
    size = ROWS * 64 * 4
    stored, nodes = [], []
    for k in range(COUNT):
        location, offset = ("tail.bin", 0) if k == COUNT - 1 else ("head.bin", k * size)
        with (folder / location).open("ab") as stream:
            stream.truncate(offset + size)
        with (folder / location).open("r+b") as stream:
            stream.seek(offset)
            stream.write(normal(4, 64, seed=k).tobytes())
        tensor = onnx.TensorProto(name=f"w{k}", data_type=1, dims=[ROWS, 64], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": offset, "length": size}.items():
            tensor.external_data.add(key=key, value=str(value))
        stored.append(tensor)
        before = f"a{k - 1}" if k else "x"
        nodes.append(f"g{k} = Gather (w{k}, rows) r{k} = Reshape (g{k}, shape) a{k} = Add ({before}, r{k})")
    proto = parse(
        f"g (float[1,4,8,8] x) => (float[1,4,8,8] a{COUNT - 1}) <int64[4] rows = {{0,1,2,3}}, int64[4] shape = "
        f"{{1,4,8,8}}> {{ {' '.join(nodes)} }}"
    )
    proto.graph.initializer.extend(stored)
    return save_proto(folder, proto)


STREAM = r"""
import re, sys
from pathlib import Path
import numpy as np
import l2caf_onnx as caf
from l2caf_onnx.graph.cut import save
folder = Path(sys.argv[1])
cut = caf.cut(caf.load(folder / "m.onnx"), sys.argv[2])
(folder / "saved").mkdir()
save(cut.tail, folder / "saved" / "tail.onnx")
(folder / "head.bin").unlink()
x = np.load(folder / "x.npy")
for tail in (cut.tail, caf.load(folder / "saved" / "tail.onnx")):
    (y,) = caf.run(tail, {sys.argv[2]: x}).values()
    np.save(folder / "y.npy", y)
print(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process took is read from /proc")
def test_over_two_gigabytes_are_streamed_and_a_tail_reads_its_own_alone(tmp_path: Path) -> None:
    """`cut` and save stay under 300 MB of memory; the tail runs, from both places, where the head's data are gone."""
    folder = tmp_path
    large(folder)
    assert (folder / "head.bin").stat().st_size + (folder / "tail.bin").stat().st_size > 2**31
    np.save(folder / "x.npy", X[:, :1].repeat(4, 1))
    at = f"a{COUNT - 2}"
    found = subprocess.run([sys.executable, "-c", STREAM, folder, at], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 300
    assert (folder / "saved" / "tail.onnx.data").stat().st_size == ROWS * 64 * 4
    expected = np.load(folder / "x.npy") + normal(4, 64, seed=COUNT - 1).reshape(1, 4, 8, 8)
    np.testing.assert_array_equal(np.load(folder / "y.npy"), expected)
    for path in (folder / "tail.bin", folder / "saved" / "tail.onnx.data"):  # pytest keeps folders of past runs
        path.unlink()
