"""stored.py: ONNX's test data and Polygraphy's JSON as inputs, by their own tools' bytes, and each way to be bad."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from l2caf_onnx import cli
from l2caf_onnx.errors import InputError
from l2caf_onnx.inputs import Sample, find_samples
from l2caf_onnx.records import TensorInfo

A, B = TensorInfo("a", "float32", (1, 4)), TensorInfo("b:0", "int64", (1, 2))
# Written by Polygraphy 0.53.6: save_json([OrderedDict(image=...)]) of arange(4) as float32 (1, 4).
BASE64 = (
    "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDQpLCB9ICAgICAgICAgICAgIC"
    "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAACAPwAAAEAAAEBA"
)
ENCODED = {"array": BASE64, "polygraphy_class": "ndarray"}
RESULTS = {  # RunResults.save, likewise
    "lst": [
        [
            "onnxrt-runner",
            [
                {
                    "outputs": {"a": {"values": ENCODED, "polygraphy_class": "LazyArray"}},
                    "runtime": None,
                    "runner_name": "custom_runner",
                    "polygraphy_class": "IterationResult",
                }
            ],
        ]
    ],
    "polygraphy_class": "RunResults",
}
LEGACY = [{"a": {"array": BASE64, "__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type"}}]
COUNTED = np.arange(4, dtype=np.float32).reshape(1, 4)


def encoded(array: NDArray[Any]) -> dict[str, str]:
    stream = io.BytesIO()
    np.save(stream, array)
    return {"array": base64.b64encode(stream.getvalue()).decode(), "polygraphy_class": "ndarray"}


def pb(path: Path, array: NDArray[Any], name: str = "") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())
    return path


def read(*specs: object, inputs: tuple[TensorInfo, ...] = (A,)) -> list[Sample]:
    found = find_samples([str(s) for s in specs], inputs, {}, None)
    return [pending.read() for pending in found]


def save(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


class TestOnnx:
    def test_a_set_is_one_sample(self, tmp_path: Path) -> None:
        folder = tmp_path / "test_data_set_0"
        pb(folder / "input_0.pb", COUNTED)
        pb(folder / "input_1.pb", np.array([[5, 6]]))
        pb(folder / "output_0.pb", np.zeros(3))
        (sample,) = read(folder, inputs=(A, B))
        assert sample.name == str(folder)
        assert sample.feeds["a"].tolist() == [[0, 1, 2, 3]]
        assert sample.feeds["b:0"].tolist() == [[5, 6]]
        assert sample.feeds["b:0"].dtype == np.int64

    def test_sets_are_counted_not_spelled(self, tmp_path: Path) -> None:
        for k in (0, 2, 10, 1):
            pb(tmp_path / f"test_data_set_{k}" / "input_0.pb", COUNTED + k)
        samples = read(tmp_path)
        assert [s.feeds["a"][0, 0] for s in samples] == [0, 1, 2, 10]

    def test_the_name_in_the_tensor_wins_over_the_number(self, tmp_path: Path) -> None:
        pb(tmp_path / "input_0.pb", np.array([[5, 6]]), "b:0")
        pb(tmp_path / "input_1.pb", COUNTED, "a")
        (sample,) = read(tmp_path, inputs=(A, B))
        assert sample.feeds["a"].shape == (1, 4)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int8", "int64", "bool"])
    def test_types(self, tmp_path: Path, dtype: str) -> None:
        path = pb(tmp_path / "some.pb", np.array([[0, 1]]).astype(dtype))
        (sample,) = read(path)
        assert sample.feeds["a"].dtype == dtype

    def test_a_file_for_the_input_that_the_user_names(self, tmp_path: Path) -> None:
        first, second = pb(tmp_path / "x.pb", COUNTED), pb(tmp_path / "y.pb", np.array([[5, 6]]))
        (sample,) = read(f"a={first}", f"b:0={second}", inputs=(A, B))
        assert sample.feeds["b:0"].tolist() == [[5, 6]]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\xff" * 40, "cannot be read"),
            (b"", "cannot be read"),
            (onnx.TensorProto(dims=[4], data_type=1, raw_data=b"1234").SerializeToString(), "cannot be read"),
            (onnx.SequenceProto(name="s", elem_type=1).SerializeToString(), "cannot be read"),
            (
                onnx.TensorProto(
                    dims=[4],
                    data_type=1,
                    data_location=onnx.TensorProto.EXTERNAL,
                    external_data=[onnx.StringStringEntryProto(key="location", value="/etc/passwd")],
                ).SerializeToString(),
                "another file",
            ),
        ],
    )
    def test_what_is_no_tensor(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "input_0.pb").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "input_0.pb")

    def test_which_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="Which input"):
            read(pb(tmp_path / "x.pb", COUNTED), inputs=(A, B))
        with pytest.raises(InputError, match="Which input"):
            read(pb(tmp_path / "input_2.pb", COUNTED), inputs=(A, B))

    def test_two_for_one_and_a_set_of_nothing(self, tmp_path: Path) -> None:
        pb(tmp_path / "input_0.pb", COUNTED, "a")
        pb(tmp_path / "input_1.pb", COUNTED, "a")
        with pytest.raises(InputError, match="same input"):
            read(tmp_path, inputs=(A, B))
        (tmp_path / "more" / "test_data_set_0").mkdir(parents=True)
        with pytest.raises(InputError, match=r"no input_\*\.pb"):
            read(tmp_path / "more")


class TestPolygraphy:
    @pytest.mark.parametrize("document", [[{"a": ENCODED}], {"a": ENCODED}, RESULTS, LEGACY])
    def test_what_polygraphy_wrote(self, tmp_path: Path, document: object) -> None:
        path = save(tmp_path / "inputs.json", document)
        (sample,) = read(path)
        assert sample.feeds["a"].dtype == np.float32
        np.testing.assert_array_equal(sample.feeds["a"], COUNTED)
        assert sample.name == f"{path}[0]"

    def test_samples_of_several_inputs_stay_together(self, tmp_path: Path) -> None:
        rows = [{"b:0": encoded(np.array([[k, k]])), "a": encoded(COUNTED + k)} for k in range(3)]
        samples = read(save(tmp_path / "inputs.json", rows), inputs=(A, B))
        assert [(s.feeds["a"][0, 0], s.feeds["b:0"][0, 0]) for s in samples] == [(0, 0), (1, 1), (2, 2)]

    def test_a_folder_of_iterations(self, tmp_path: Path) -> None:
        for k in range(2):
            save(tmp_path / f"{k:010}.json", [{"a": encoded(COUNTED + k)}])
        assert [s.feeds["a"][0, 0] for s in read(tmp_path)] == [0, 1]

    def test_a_file_that_changes_is_read_anew(self, tmp_path: Path) -> None:
        for count in (1, 2):
            path = save(tmp_path / "inputs.json", [{"a": encoded(COUNTED + count)}] * count)
            assert [s.feeds["a"][0, 0] for s in read(path)] == [count] * count

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ([], "no samples"),
            ([3], "no samples"),
            ("text", "no samples"),
            ({"lst": []}, "not JSON that Polygraphy"),
            ([{}], "holds nothing"),
            ([{"z": ENCODED}], "Sample 0 holds 'z'"),
            ([{"a": 3}], "no numpy array"),
            ([{"a": {"array": "%%%"}}], "cannot be read"),
            ([{"a": {"array": "AAAA"}}], "cannot be read"),
            ([{"a": {"tensor": "AAAA", "polygraphy_class": "Tensor"}}], "torch tensor"),
        ],
    )
    def test_other_json(self, tmp_path: Path, document: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read(save(tmp_path / "inputs.json", document))

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
    def test_no_json(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "inputs.json").write_bytes(content)
        with pytest.raises(InputError, match="not JSON that Polygraphy"):
            read(tmp_path / "inputs.json")

    def test_a_pickle_is_not_loaded(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        np.save(stream, np.array([object()]), allow_pickle=True)
        path = save(tmp_path / "inputs.json", [{"a": {"array": base64.b64encode(stream.getvalue()).decode()}}])
        with pytest.raises(InputError, match="cannot be read"):
            read(path)

    def test_samples_with_other_inputs(self, tmp_path: Path) -> None:
        rows = [{"a": ENCODED, "b:0": encoded(np.array([[1, 2]]))}, {"a": ENCODED}]
        with pytest.raises(InputError, match="other inputs"):
            read(save(tmp_path / "inputs.json", rows), inputs=(A, B))

    def test_a_name_is_not_wanted(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="say themselves"):
            read(f"a={save(tmp_path / 'inputs.json', [{'a': ENCODED}])}")


def test_pictures_beside_json_stay_pictures(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="inputs that take one"):  # the model of these tests takes none
        read(tmp_path)


def test_attend_takes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 4, 4] x) => (float[1, 1] y) {
            r = Relu (x)  p = GlobalAveragePool (r)  y = Flatten (p) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    values = np.random.default_rng(0).random((1, 1, 4, 4), dtype=np.float32)
    pb(tmp_path / "test_data_set_0" / "input_0.pb", values)
    save(tmp_path / "inputs.json", [{"x": encoded(values)}])
    monkeypatch.chdir(tmp_path)
    losses = []
    for given in ("test_data_set_0", "inputs.json"):
        monkeypatch.setattr(sys, "argv", ["l2caf-onnx", "attend", "m.onnx", given, "--at", "r", "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        losses.append(json.loads(capsys.readouterr().out)["results"][0]["loss"])
    assert losses[0] == losses[1]


class TestRows:
    """An array of several rows is several samples, as the model takes them: one at a time, or as many as it wants."""

    ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)

    def taken(self, path: Path, shape: tuple[int | str, ...] = ("N", 4), layout: str = "NC") -> list[Sample]:
        found = find_samples([str(path)], [TensorInfo("a", "float32", shape)], {"a": layout}, None)
        return [pending.read() for pending in found]

    @pytest.mark.parametrize("kind", ["npy", "npz", "pb", "json"])
    @pytest.mark.parametrize("shape", [("N", 4), (1, 4)])
    def test_each_row_is_a_sample(self, tmp_path: Path, kind: str, shape: tuple[int | str, ...]) -> None:
        path = tmp_path / f"x.{kind}"
        if kind == "npy":
            np.save(path, self.ROWS)
        elif kind == "npz":
            np.savez(path, a=self.ROWS)
        elif kind == "pb":
            pb(path, self.ROWS)
        else:
            save(path, [{"a": encoded(self.ROWS)}])
        samples = self.taken(path, shape)
        assert [s.feeds["a"].shape for s in samples] == [(1, 4)] * 3
        np.testing.assert_array_equal(np.concatenate([s.feeds["a"] for s in samples]), self.ROWS)
        assert samples[2].name == f"{path}[0][2]" if kind == "json" else f"{path}[2]"

    def test_along_another_axis(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", self.ROWS.T)
        samples = self.taken(tmp_path / "x.npy", (4, "N"), "CN")
        np.testing.assert_array_equal(np.concatenate([s.feeds["a"] for s in samples], axis=1), self.ROWS.T)

    @pytest.mark.parametrize(
        ("shape", "layout"), [((3, 4), "NC"), (("N", 4), ""), (("N", 4), "TC"), (("N", 4, 1), "NCL"), (("N", 4), "NCL")]
    )
    def test_what_the_model_takes_at_once_stays_whole(
        self, tmp_path: Path, shape: tuple[int | str, ...], layout: str
    ) -> None:
        np.save(tmp_path / "x.npy", self.ROWS)
        (sample,) = self.taken(tmp_path / "x.npy", shape, layout)
        assert sample.feeds["a"].shape == (3, 4)

    def test_a_damaged_file_is_told_as_ever(self, tmp_path: Path) -> None:
        (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00no")
        with pytest.raises(InputError, match="cannot be read"):
            self.taken(tmp_path / "x.npy")

    def test_a_file_that_changed_is_read_anew(self, tmp_path: Path) -> None:
        for k in range(2):
            np.savez(tmp_path / "x.npz", a=self.ROWS + k)
            assert self.taken(tmp_path / "x.npz")[0].feeds["a"][0, 0] == k
