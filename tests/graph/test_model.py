"""graph/model.py, validate.py and dense.py: what is read, what is refused, and that each refusal names the thing."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

import l2caf_onnx as caf
from l2caf_onnx.graph.model import Cache
from tests.conftest import normal, parse, text

TINY = "g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[1] w = {3}> { a = Relu (x) y = Add (a, w) }"
X = normal(2, 2, 3, 3)
RIGHT = np.maximum(X, 0) + 3


def test_load_takes_path_text_bytes_proto_and_model(tmp_path: Path) -> None:
    path, proto = tmp_path / "tiny.onnx", parse(TINY)
    path.write_bytes(proto.SerializeToString())
    sources: list[str | Path | bytes | onnx.ModelProto] = [path, str(path), path.read_bytes(), proto]
    models = [caf.load(source) for source in sources]
    for model in models:
        np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)
        assert caf.load(model) is model
    assert [m.name for m in models] == ["tiny.onnx", "tiny.onnx", "model", "model"]
    assert path.read_bytes() == proto.SerializeToString()


def test_inputs_outputs_and_repr() -> None:
    model = text(TINY)
    assert model.inputs == (caf.TensorInfo("x", "float32", ("N", 2, 3, 3)),)
    assert model.outputs == (caf.TensorInfo("y", "float32", ("N", 2, 3, 3)),)
    assert repr(model) == "<Model model: 2 nodes, opset 17>"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("seq(float[2])", "sequence"),
        ("optional(float[2])", "optional"),
        ("string[2]", "str"),
        ("bfloat16[2]", "bfloat16"),
    ],
)
def test_types_of_inputs(kind: str, dtype: str) -> None:
    assert text(f"g ({kind} x) => ({kind} y) {{ y = Identity (x) }}").inputs[0].dtype == dtype


def test_ir_version_3_with_initialisers_among_the_inputs() -> None:
    model = text(
        '<ir_version: 3, opset_import: ["": 9]> g (float[N,2,3,3] x, float[1] w) => (float[N,2,3,3] y) '
        "<float[1] w = {3}> { a = Relu (x) y = Add (a, w) }"
    )
    assert [i.name for i in model.inputs] == ["x"]
    np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)


def test_local_functions_are_inlined() -> None:
    model = text(
        '<ir_version: 8, opset_import: ["": 17, "mine": 1]> g (float[N,2,3,3] x) => (float[N,2,3,3] y) '
        "<float[1] w = {3}> { y = mine.Shift (x, w) } "
        '<domain: "mine", opset_import: ["": 17]> Shift (p, q) => (r) { s = Relu (p) r = Add (s, q) }'
    )
    assert [b.op_type for b in caf.breakpoints(model)] == ["Input", "Relu", "Add"]
    np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)


def test_nodes_are_brought_into_order() -> None:
    model = text(
        "g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[1] w = {3}> { y = Add (b, w) b = Relu (a) a = Relu (x) }"
    )
    assert [n.output[0] for n in model.proto.graph.node] == ["a", "b", "y"]
    np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)


def test_nodes_without_a_name_are_called_after_their_output() -> None:
    model = text("g (float[2,3] x) => (float[2,3] y) { [named] a = Relu (x) y = Relu (a) }")
    assert [n.name for n in model.proto.graph.node] == ["named", "y"]


def test_nodes_of_one_name_are_told_apart() -> None:
    """onnxruntime refuses a name given twice; a name made up for a nameless node must not make one."""
    model = text(
        "g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[1] w = {3}> "
        "{ a = Relu (x) [a] b = Relu (a) [same] c = Abs (b) [same] y = Add (c, w) }"
    )
    assert [n.name for n in model.proto.graph.node] == ["a_2", "a", "same", "y"]
    np.testing.assert_array_equal(caf.run(model, {"x": X})["y"], RIGHT)


def test_operators_that_onnxruntime_writes_into_the_standard_domain() -> None:
    model = text(
        '<ir_version: 8, opset_import: ["": 13]> g (float[2,3,4] x) => (float[2,3,4] y) <float[4] s = {1, 1, 1, 1}> '
        "{ a = LayerNormalization (x, s) y = SimplifiedLayerNormalization (a, s) }"
    )
    assert [(b.name, b.layout) for b in caf.breakpoints(model)] == [("x", "NTC"), ("a", "NTC"), ("y", "NTC")]
    assert caf.run(model, {"x": normal(2, 3, 4)})["y"].shape == (2, 3, 4)


@pytest.mark.parametrize("indices", [np.array([1, 3]), np.array([[0, 1], [1, 1]])], ids=["linear", "by axis"])
@pytest.mark.parametrize("place", ["initialiser", "Constant"])
def test_sparse_weights_are_made_dense(indices: np.ndarray, place: str) -> None:
    sparse = onnx.helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.array([5, 7], np.float32), "w"),
        onnx.numpy_helper.from_array(indices, "places"),
        [2, 2],
    )
    proto = parse("g (float[2,2,2] x) => (float[2,2,2] y) { a = Relu (x) y = Add (a, w) }")
    if place == "Constant":
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    else:
        proto.graph.sparse_initializer.append(sparse)
    model, nothing = caf.load(proto), np.zeros((2, 2, 2), np.float32)
    for loaded, name in ((model, "x"), (caf.cut(model, "a").tail, "a")):
        np.testing.assert_array_equal(caf.run(loaded, {name: nothing})["y"], [[[0, 5], [0, 7]]] * 2)


@pytest.mark.parametrize("indices", [np.array([1, 4]), np.array([[0, 1], [2, 0]]), np.array([1, 2, 3])])
def test_damaged_sparse_weights(indices: np.ndarray) -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) { y = Add (x, w) }")
    values, places = np.array([5, 7], np.float32), indices
    sparse = proto.graph.sparse_initializer.add(dims=[2, 2])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(places, "places"))
    with pytest.raises(caf.InputError, match="sparse tensor 'w' is damaged"):
        caf.load(proto)


def test_sparse_weights_too_large_to_be_dense() -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) { y = Add (x, w) }")
    sparse = proto.graph.sparse_initializer.add(dims=[1 << 20, 1 << 20])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "places"))
    with pytest.raises(caf.UnsupportedModelError, match=r"too large.*'w'"):
        caf.load(proto)


# --- files that are no models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no graph"),
        (b"This is a text, whatever it is called.\n" * 9, "cannot be decoded"),
        (bytes(range(256)) * 4, "cannot be decoded"),
        (onnx.helper.make_tensor("w", 1, [2], [1, 2]).SerializeToString(), "InputError|no graph|cannot be decoded"),
    ],
    ids=["empty", "text", "binary", "another protobuf"],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(caf.InputError, match=message) as caught:
        caf.load(path)
    assert "model.onnx" in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(caf.InputError, match=r"no such model file.*nowhere\.onnx"):
        caf.load(tmp_path / "nowhere.onnx")
    with pytest.raises(caf.InputError, match=f"is a directory.*{tmp_path.name}"):
        caf.load(tmp_path)


def test_every_truncation_is_refused() -> None:
    """The opset comes last in the file, so that no beginning of it is a whole model."""
    data = parse(f'<ir_version: 8, opset_import: ["": 17]> {TINY}').SerializeToString()
    for length in range(len(data)):
        with pytest.raises((caf.InputError, caf.UnsupportedModelError)):
            caf.load(data[:length])


def test_damaged_bytes_are_refused_or_harmless() -> None:
    """Whatever a flipped byte does, what is raised is meant for the user: no traceback from inside."""
    whole = parse(
        "g (float[N,2,4,4] x, bool[1] c) => (float[N,2,4,4] y, z) <float[2] w = {1,2}, float s = {0.1}, uint8 zp = {3}>"
        " { a = Relu (x) k = Constant <value_ints = [0,-1,4,4]> () b = Reshape (a, k) q = QuantizeLinear (b, s, zp) "
        "d = DequantizeLinear (q, s, zp) u, v = Split <axis = 1> (d) z = com.microsoft.Gelu (v) "
        "t = Transpose <perm = [0,2,3,1]> (x) f = Conv (t, w) y = If (c) <then_branch = t1 () => (float[N,2,4,4] p) "
        "{ p = Add (a, d) }, else_branch = t2 () => (float[N,2,4,4] o) { o = Mul (a, d) }> }"
    ).SerializeToString()
    rng, loaded = random.Random(0), 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            model = caf.load(bytes(data))
            for stop in caf.breakpoints(model):
                caf.cut(model, stop.name)
            loaded += 1
        except caf.L2cafError:
            continue
    assert loaded > 10


# --- graphs that are invalid

BRANCHES = "then_branch = t () => (float[2] {0}) {{ {1} }}, else_branch = e () => (float[2] q) {{ q = Neg (x) }}"
INVALID, UNSUPPORTED = caf.InputError, caf.UnsupportedModelError


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ("[n] y = Add (x, lost)", INVALID, "'n' .Add. reads 'lost'"),
        ("z = Relu (x)", INVALID, "nothing makes the output 'y'"),
        ("y = Relu (x) y = Neg (x)", INVALID, "'y' is defined twice"),
        ("x = Relu (x) y = Neg (x)", INVALID, "'x' is defined twice"),
        ("[n] a = Add (x, b) b = Relu (a) y = Neg (b)", INVALID, "cycle through node 'n' .Add."),
        ("[n] y = Nonsense (x)", UNSUPPORTED, "no operator 'Nonsense' in opset 17.*'n'"),
        ("[n] y = Swish (x)", UNSUPPORTED, "no operator 'Swish' in opset 17"),  # there is one in opset 24
        ("[n] y = Cast (x)", INVALID, "lacks the attribute 'to'.*'n'"),
        ("[n] y = Add (x)", INVALID, "has 1 inputs.*'n' .Add"),
        ("[n] y, z = Relu (x)", INVALID, "has 2 outputs.*'n' .Relu"),
        ("y = ai.onnx.ml.Scaler (x)", INVALID, "no opset of domain 'ai.onnx.ml'"),
        (f"[n] y = If (c) <{BRANCHES.format('x', 'p = Neg (x)')}>", INVALID, "'n' .If. does not itself make .* 'x'"),
        (f"[n] y = If (c) <{BRANCHES.format('p', 'p = Neg (lost)')}>", INVALID, "'n' .If. reads 'lost'"),
        (f"y = If (c) <{BRANCHES.format('p', '[n] p = Nonsense (x)')}>", UNSUPPORTED, "'n' .Nonsense"),
    ],
)
def test_invalid_graphs(nodes: str, error: type[caf.L2cafError], message: str) -> None:
    with pytest.raises(error, match=message):
        text(f"g (float[2] x, bool c) => (float[2] y) {{ {nodes} }}")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: setattr(p, "ir_version", 2), UNSUPPORTED, "IR version 2"),
        (lambda p: p.ClearField("opset_import"), INVALID, "imports no operator set"),
        (lambda p: setattr(p.opset_import[0], "version", 1 << 40), UNSUPPORTED, "in opset 1099"),
        (lambda p: p.graph.ClearField("output"), INVALID, "no graph with outputs"),
        (lambda p: p.graph.input[0].ClearField("type"), INVALID, "the input 'x' has no type"),
        (lambda p: p.graph.input.add(), INVALID, "an input has no name"),
        (lambda p: p.graph.input.append(p.graph.input[0]), INVALID, "the input 'x' is defined twice"),
    ],
)
def test_invalid_models(change: Callable[[onnx.ModelProto], object], error: type[caf.L2cafError], message: str) -> None:
    proto = parse(TINY)
    change(proto)
    with pytest.raises(error, match=message):
        caf.load(proto)


def test_an_unknown_operator_is_named_in_the_error() -> None:
    with pytest.raises(caf.UnsupportedModelError) as caught:
        text("g (float[2] x) => (float[2] y) { [n] y = Nonsense (x) }")
    assert (caught.value.node, caught.value.op, caught.value.opset) == ("n", "Nonsense", 17)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("w", "is a constant of the model"),
        ("p", "is inside a subgraph"),
        ("Relu_0", "Did you mean 'relu_1'"),
        ("zzz", "inspect MODEL"),
    ],
)
def test_names_that_are_no_tensors(name: str, hint: str) -> None:
    model = text(
        "g (float[2,3,4] x) => (float[2,3,4] y) <bool yes = {1}, float w = {1}> { relu_1 = Relu (x) b = Add (x, w) "
        "y = If (yes) <then_branch = t () => (float[2,3,4] p) { p = Neg (b) }, else_branch = e () => (float[2,3,4] q) "
        "{ q = Relu (b) }> }"
    )
    with pytest.raises(caf.TensorNotFoundError, match=hint):
        caf.cut(model, name)


# --- the cache


def test_cache_keeps_facts_and_the_products_used_last() -> None:
    cache, made = Cache(lambda: 2), list[object]()

    def get(key: object) -> object:
        return cache.get(key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]  # for its effect

    for key in ["fact", ("a",), ("b",), ("a",), ("c",), ("a",), "other", "fact", ("b",)]:
        assert get(key) == key
    assert made == ["fact", ("a",), ("b",), ("c",), "other", ("b",)]
    assert len(cache) == 4
    assert cache.get(("none",), lambda: None) is None


def test_cache_entries_may_ask_for_entries() -> None:
    cache = Cache(lambda: 1)
    assert cache.get(("outer",), lambda: [cache.get(("inner",), lambda: 1)]) == [1]
    assert len(cache) == 1


def test_products_are_bounded_and_go_with_the_model() -> None:
    stops = " ".join(f"t{k + 1} = Relu (t{k})" for k in range(90))
    model = text(f"g (float[1,2,3,3] t0) => (float[1,2,3,3] t90) {{ {stops} }}")
    refs = [weakref.ref(caf.cut(model, f"t{k}").tail) for k in range(90)]
    gc.collect()
    assert 0 < sum(ref() is not None for ref in refs) <= 64
    assert caf.cut(model, "t89").tail is refs[89]()
    refs.append(weakref.ref(model))
    del model
    gc.collect()
    assert not any(ref() for ref in refs)


def test_large_models_keep_fewer_products() -> None:
    small, large = text(TINY), text(TINY)
    large.proto.graph.initializer.add(name="big", raw_data=bytes(1 << 25))
    large = caf.Model(large.proto)
    for model in (small, large):
        for k in range(100):
            model.cache.get((k,), list)
    assert (len(small.cache), len(large.cache)) == (64, 7)
