"""The games on a network that knows colours: what a faithful map of it must look like is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import l2caf_onnx as caf
from l2caf_onnx.evaluation.contenders import contender, contenders
from l2caf_onnx.evaluation.evaluation import best_exponents, differences, summaries
from l2caf_onnx.evaluation.grid import Grid, Photo, deal, frames, paint
from l2caf_onnx.evaluation.localise import Boxes
from l2caf_onnx.evaluation.perturb import Perturb
from l2caf_onnx.evaluation.randomise import Randomise
from l2caf_onnx.evaluation.record import Row
from l2caf_onnx.graph.randomise import permuted, weight_layers
from tests.conftest import text

# Channel k of "relu" is 1 where the picture has colour k and 0 elsewhere; the class is the colour seen most.
COLOURS = """
g (float[N,3,16,16] image) => (float[N,4] scores)
<float[4,3,1,1] w = {1,-1,-1, -1,1,-1, -1,-1,1, 1,1,-1}, float[4] b = {0,0,0,-1}, int64[2] flat = {0,-1},
 float[4,4] v = {20,-1,-2,-3, -4,20,-5,-6, -7,-8,20,-9, -10,-11,-12,20}>
{ conv = Conv (image, w, b)  relu = Relu (conv)  pooled = GlobalAveragePool (relu)  each = Reshape (pooled, flat)
  logits = MatMul (each, v)  scores = Softmax (logits) }"""
FREE = "l2caf:basis=full"  # the default is smooth, and a little of it lies beyond any edge
RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
# The tail is dead for filters below 1 / 2: 16 x 16 cells at the norm 1 have 1 / 16 each.
THRESHOLD = COLOURS.replace(
    "pooled = GlobalAveragePool (relu)",
    "half = Constant <value_float = 0.5> ()  less = Sub (relu, half)  over = Relu (less)  "
    "pooled = GlobalAveragePool (over)",
)


@pytest.fixture
def model() -> caf.Model:
    return text(COLOURS)


def photos(folder: Path, count: int = 2, seed: int = 0) -> Path:
    """Photos of one colour each, a little different in size and shade."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for name, colour in RGB.items():
        for k in range(count):
            shades = np.array(colour) * rng.uniform(0.9, 1, (20 + k, 24, 1))
            Image.fromarray(shades.astype(np.uint8)).save(folder / f"{name}{k}.png")
    return folder


def scene(*squares: tuple[int, int, str], side: int = 4) -> NDArray[np.float32]:
    """A feed (1, 3, 16, 16): grey, with squares of colour at (row, column)."""
    pixels = np.full((16, 16, 3), 0.5, np.float32)
    for row, column, colour in squares:
        pixels[row : row + side, column : column + side] = np.array(RGB[colour]) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


class TestGrid:
    def test_a_map_that_is_right_scores_one(self, model: caf.Model, tmp_path: Path) -> None:
        found = caf.evaluate(
            model, photos(tmp_path / "p"), at=["relu"], games=[Grid(count=12)], methods=[FREE, "paper", "default"],
            preprocess="unit",
        )  # fmt: skip
        assert len(found.rows) == 36
        for score in ("energy", "top_share", "hit"):
            own = found.find("grid", "relu", FREE, score)
            assert own.mean == pytest.approx(1, abs=1e-6)
            assert own.items == 12
            assert own.photos == 8
        assert found.find("grid", "relu", "default", "energy").mean > 0.9
        assert found.find("grid", "relu", "default", "hit").mean == 1
        (compared, _) = [d for d in found.differences if d.score == "energy"]
        assert (compared.method, compared.reference, compared.verdict) == ("paper", FREE, "better")
        assert compared.mean == pytest.approx(1 - found.find("grid", "relu", "paper", "energy").mean)
        assert any("exponent 1" in note for note in found.notes)

    def test_a_method_without_a_map_scores_as_chance_and_is_counted(self, tmp_path: Path) -> None:
        found = caf.evaluate(
            text(THRESHOLD), photos(tmp_path / "p"), at="relu", games=[Grid(count=5)], preprocess="unit",
            methods=["unit", "l2caf:radius=2,basis=full"],
        )  # fmt: skip
        dead = found.find("grid", "relu", "unit", "energy")
        assert (dead.mean, dead.failed) == (0.25, 5)
        assert found.find("grid", "relu", "unit", "top_share").mean == pytest.approx(0.25)
        alive = found.find("grid", "relu", "l2caf:radius=2,basis=full", "energy")
        assert alive.mean > 0.9
        assert alive.failed == 0
        assert any("unit has no map" in note for note in found.notes)

    def test_it_is_seeded_and_batches_do_not_matter(self, model: caf.Model, tmp_path: Path) -> None:
        folder = photos(tmp_path / "p")
        options: dict[str, Any] = {"at": "relu", "games": [Grid(count=5)], "preprocess": "unit", "methods": ["paper"]}
        one = caf.evaluate(model, folder, batch_size=1, **options)
        many = caf.evaluate(model, folder, batch_size=4, **options)
        other = caf.evaluate(model, folder, seed=1, **options)
        for a, b in zip(one.rows, many.rows, strict=True):
            assert (a.item, a.photo, a.target) == (b.item, b.photo, b.target)
            assert a.scores["energy@1"] == pytest.approx(b.scores["energy@1"], rel=1e-3)
        assert [r.photo for r in other.rows] != [r.photo for r in one.rows]

    def test_exponents_are_chosen_on_the_other_half(self, model: caf.Model, tmp_path: Path) -> None:
        found = caf.evaluate(
            model, photos(tmp_path / "p"), at="relu", games=[Grid(count=4)], methods=["paper"],
            choose=photos(tmp_path / "q", seed=1), preprocess="unit",
        )  # fmt: skip
        assert found.chosen
        assert not any("exponent 1" in note for note in found.notes)
        own = found.find("grid", "relu", "paper", "energy")
        assert own.exponent in (1, 2, 4)
        assert own.mean == pytest.approx(np.mean([r.scores[f"energy@{own.exponent}"] for r in found.rows]))

    def test_a_photo_of_both_halves_is_refused(self, model: caf.Model, tmp_path: Path) -> None:
        one, other = photos(tmp_path / "p"), photos(tmp_path / "q", seed=1)
        (other / "copy.png").write_bytes((one / "red0.png").read_bytes())
        with pytest.raises(caf.InputError, match="choosing half too"):
            caf.evaluate(model, one, at="relu", choose=other, preprocess="unit")

    def test_too_few_classes(self, model: caf.Model, tmp_path: Path) -> None:
        folder = photos(tmp_path / "p")
        for file in folder.glob("blue*"):
            file.unlink()
        with pytest.raises(caf.InputError, match=r"4 classes; 6 of 6 photos .* as 3 classes"):
            caf.evaluate(model, folder, at="relu", preprocess="unit")

    def test_arrays_are_no_photos(self, model: caf.Model) -> None:
        with pytest.raises(caf.InputError, match="photos"):
            caf.evaluate(model, {"image": scene()}, at="relu")

    @pytest.mark.parametrize("targets", [1, 3, 4])
    def test_every_photo_leads_as_often_among_three_of_other_classes(self, targets: int) -> None:
        pool = [Photo(Path(f"{k}.png"), k % 5, 0.9) for k in range(10)]
        boards = deal(pool, 30, targets, np.random.default_rng(0))
        assert boards == deal(pool, 30, targets, np.random.default_rng(0))
        leads = [b.cells[b.asked[0]].photo.path.name for b in boards]
        assert {leads.count(n) for n in leads} == {3}
        for board in boards:
            assert len({c.photo.target for c in board.cells}) == 4
            assert len(set(board.asked)) == targets
        assert {b.asked[0] for b in boards} == {0, 1, 2, 3}

    @pytest.mark.parametrize("size", [(16, 16), (15, 21)])
    def test_each_cell_holds_its_photo_alone(self, size: tuple[int, int]) -> None:
        pool = [Photo(Path(f"{name}.png"), k, 1.0) for k, name in enumerate(RGB)]
        (board,) = deal(pool, 1, 1, np.random.default_rng(2))
        pictures = [Image.new("RGB", (30, 18), RGB[cell.photo.path.stem]) for cell in board.cells]
        pixels = np.asarray(paint(board, size, pictures))
        covered = np.zeros(size, dtype=int)
        for cell, (top, left, bottom, right) in zip(board.cells, frames(size), strict=True):
            assert (pixels[top:bottom, left:right] == RGB[cell.photo.path.stem]).all()
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()


class TestBoxes:
    def test_the_right_box_scores_full(self, model: caf.Model) -> None:
        feeds = np.concatenate([scene((2, 3, "red"), (9, 9, "blue")), scene((1, 8, "green"), (8, 1, "green"))])
        boxes = {
            "sample 0": [("0", (3.0, 2.0, 7.0, 6.0)), ("2", (9.0, 9.0, 13.0, 13.0))],
            "sample 1": [("green", (8.0, 1.0, 12.0, 5.0)), ("green", (1.0, 8.0, 5.0, 12.0))],
        }
        found = caf.evaluate(
            model, {"image": feeds}, at="relu", games=["boxes"], boxes=boxes, labels=dict(enumerate(RGB)),
            methods=[FREE],
        )  # fmt: skip
        assert [r.target for r in found.rows] == [0, 1, 2]
        for score in ("energy", "top_share", "hit", "box_loc", "max_box_acc", "covered"):
            mean = found.find("boxes", "relu", FREE, score).mean
            assert mean > 0.25 if score == "top_share" else mean == pytest.approx(1, abs=1e-6)
        assert found.find("boxes", "relu", FREE, "covered").items == 1
        assert found.find("boxes", "relu", FREE, "top1_loc").items == 3

    def test_the_wrong_box_scores_nothing(self, model: caf.Model) -> None:
        boxes = {"sample 0": [("0", (9.0, 9.0, 13.0, 13.0))]}
        asked: dict[str, Any] = {"at": "relu", "methods": [FREE]}
        found = caf.evaluate(model, {"image": scene((2, 3, "red"))}, games="boxes", boxes=boxes, **asked)
        for score in ("energy", "hit", "max_box_acc", "top1_loc"):
            assert found.find("boxes", "relu", FREE, score).mean == pytest.approx(0, abs=1e-6)
        near = Boxes(annotations=boxes, tolerance=8)
        found = caf.evaluate(model, {"image": scene((2, 3, "red"))}, games=[near], **asked)
        assert found.find("boxes", "relu", FREE, "hit").mean > 0

    def test_max_box_acc_is_the_best_over_thresholds(self) -> None:
        from l2caf_onnx.evaluation.localise import IOU, _at_best_thresholds

        curves = np.random.default_rng(0).random((14, 6))
        rows = [
            Row(game="boxes", at="a", method="xy"[k % 2], item=str(k), photo=str(k), target=None, scores={})
            for k in range(14)
        ]
        found = _at_best_thresholds(rows, curves)
        for method, start in (("x", 0), ("y", 1)):
            own = curves[start::2]
            expected = np.mean([max((own[:, t] >= least).mean() for t in range(6)) for least in IOU])
            mean = np.mean([r.scores["max_box_acc"] for r in found if r.method == method])
            assert mean == pytest.approx(expected)

    def test_boxes_of_photos_move_with_the_crop(self, model: caf.Model, tmp_path: Path) -> None:
        picture = Image.new("RGB", (64, 32), (128, 128, 128))
        picture.paste(RGB["red"], (30, 10, 40, 20))
        picture.save(tmp_path / "a.png")
        (tmp_path / "b.csv").write_text("a.png,0,30,10,40,20\n")
        found = caf.evaluate(
            model, tmp_path / "a.png", at="relu", games=["boxes"], boxes=tmp_path / "b.csv", preprocess="unit"
        )
        assert found.find("boxes", "relu", "default", "hit").mean == 1
        assert found.find("boxes", "relu", "default", "max_box_acc").mean == 1

    @pytest.mark.parametrize(
        "boxes", [{"x.png": [("0", (0.0, 0.0, 3.0, 3.0))]}, {"sample 0": [("0", (20.0, 0.0, 30.0, 3.0))]}]
    )
    def test_no_box_in_sight(self, model: caf.Model, boxes: Any) -> None:
        with pytest.raises(caf.InputError, match="No sample has a box"):
            caf.evaluate(model, {"image": scene()}, at="relu", games=["boxes"], boxes=boxes)


class TestPerturb:
    def test_areas_are_those_of_a_loop(self, model: caf.Model) -> None:
        feeds = scene((2, 3, "red"), (9, 9, "blue"))
        found = caf.evaluate(model, {"image": feeds}, at="relu", games=[Perturb(steps=4)], target=0)
        (row,) = found.rows
        heat = caf.attend(model, {"image": feeds}, at="relu", target=0).heatmap[0]
        mean = feeds.mean((2, 3), keepdims=True)
        mixed = caf.run(model, {"image": (feeds * heat + mean * (1 - heat)).astype(np.float32)})["scores"][0, 0]
        before = caf.run(model, {"image": feeds})["scores"][0, 0]
        assert row.scores["drop"] == pytest.approx(max(0, 1 - mixed / before), abs=1e-5)
        assert row.scores["increase"] == float(mixed > before)
        # The 16 pixels of the square are the hottest: a quarter of all takes them and 48 others, in random order.
        assert row.scores["insertion"] > row.scores["deletion"]
        assert row.scores["insertion_minus_deletion"] == row.scores["insertion"] - row.scores["deletion"]

    def test_a_model_without_classes_is_refused(self) -> None:
        dense = text("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }")
        with pytest.raises(caf.InputError, match="probability of a class"):
            caf.evaluate(dense, {"x": np.ones((1, 3, 8, 8), np.float32)}, at="x", games=["perturb"])


class TestRandomise:
    def test_weights_are_permuted_and_nothing_else(self, model: caf.Model) -> None:
        assert weight_layers(model, "relu") == (("v",),)
        assert weight_layers(model, "image") == (("v",), ("w", "b"))
        changed = permuted(model, ["v"], seed=0)
        before, after = (caf.run(m, {"image": scene((2, 3, "red"))})["scores"] for m in (model, changed))
        assert np.abs(before - after).max() > 1e-3
        own = {t.name: onnx_values(t) for t in changed.proto.graph.initializer}
        assert sorted(own["v"].ravel()) == sorted(onnx_values(model.initialisers["v"]).ravel())
        assert np.array_equal(own["w"], onnx_values(model.initialisers["w"]))
        again = permuted(model, ["v"], seed=0)
        assert again.proto.SerializeToString() == changed.proto.SerializeToString()

    def test_weights_that_the_head_reads_too_are_left(self) -> None:
        shared = text("""g (float[N,3,8,8] x) => (float[N,3,8,8] z) <float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}>
            { a = Conv (x, w)  b = Relu (a)  z = Conv (b, w) }""")
        assert weight_layers(shared, "b") == ()

    def test_quantised_weights_are_found_behind_their_dequantiser(self) -> None:
        model = text("""g (float[N,2,4,4] x) => (float[N,2,3,3] y)
            <int8[2,2,2,2] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float s = {0.5}, int8 z = {0}>
            { w = DequantizeLinear (q, s, z)  a = Relu (x)  y = Conv (a, w) }""")
        assert weight_layers(model, "a") == (("q",),)
        assert not np.array_equal(
            onnx_values(permuted(model, ["q"], 1).initialisers["q"]), onnx_values(model.initialisers["q"])
        )

    def test_a_map_of_the_class_changes_and_a_blind_one_less(self, model: caf.Model) -> None:
        corners = ((0, 0), (0, 8), (8, 0), (8, 8))
        orders = (("red", "green", "blue", "yellow"), ("blue", "red", "yellow", "green"))
        cells = [[(*corner, colour) for corner, colour in zip(corners, order, strict=True)] for order in orders]
        feeds = np.concatenate([scene(*own, side=8) for own in cells])
        found = caf.evaluate(
            model, {"image": feeds}, at=["relu", "image"], games=[Randomise(count=4)], target="top1",
            methods=["default", "l2caf:objective=outputs"],
        )  # fmt: skip
        assert len(found.rows) == 2 * 2 * 2 * 4
        own = found.find("randomise", "relu", "default", "rank_correlation").mean
        assert own < found.find("randomise", "relu", "l2caf:objective=outputs", "rank_correlation").mean
        assert own < 0.7
        scores = {s.score for s in found.summaries if s.at == "image"}
        assert scores == {"rank_correlation", "rank_correlation_top"}

    def test_nothing_to_randomise(self) -> None:
        bare = text("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu (x) }")
        with pytest.raises(caf.InputError, match="weights"):
            caf.evaluate(bare, {"x": np.ones((1, 3, 8, 8), np.float32)}, at="x", games=["randomise"])


def test_repeatability(model: caf.Model) -> None:
    feeds = np.concatenate([scene((2, 3, "red"), (9, 9, "blue")), scene((8, 1, "green"), (2, 9, "yellow"))])
    found = caf.evaluate(model, {"image": feeds}, at="relu", games=["repeat"])
    scores = {s.score: s for s in found.summaries}
    assert set(scores) == {"worst", "seed", "noise", "threads", "level", "activation"}
    assert scores["seed"].least == pytest.approx(1, abs=1e-6)
    assert 0.98 < scores["noise"].least <= scores["noise"].mean
    assert scores["worst"].least <= scores["noise"].least
    at_once = caf.cut(model, "relu").head
    rng = np.random.default_rng(0)
    shaken = (feeds + rng.uniform(-1, 1, feeds.shape) * float(np.ptp(feeds)) / 255).astype(np.float32)
    a, b = (caf.run(at_once, {"image": x})["relu"].reshape(2, -1).astype(np.float64) for x in (feeds, shaken))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert scores["activation"].least == pytest.approx(expected.min(), abs=1e-9)
    assert expected.min() < 1


class TestContenders:
    @pytest.mark.parametrize(
        ("word", "fields"),
        [
            ("default", {}),
            ("paper", {"preset": "paper"}),
            ("l2caf:constraint=l2-nonneg, radius=0.5", {"constraint": "l2-nonneg", "radius": 0.5}),
            ("paper:radius=2,solver=adam", {"preset": "paper", "radius": 2, "solver": "adam"}),
        ],
    )
    def test_a_word_as_settings(self, word: str, fields: dict[str, Any]) -> None:
        assert dict(contender(word).fields) == fields

    @pytest.mark.parametrize(
        "words", [["nobody"], ["l2caf:colour=red"], ["l2caf:radius"], ["l2caf:at=x"], [], ["unit", "unit"], "default"]
    )
    def test_what_is_refused(self, words: Any) -> None:
        with pytest.raises(caf.InputError):
            contenders(words)

    def test_an_objective_without_a_class_has_no_target(self) -> None:
        assert contender("l2caf:objective=outputs").query("a", None, [3]).target is None
        assert contender("default").query("a", None, [3]).target == [3]


def onnx_values(tensor: Any) -> NDArray[Any]:
    import onnx

    return onnx.numpy_helper.to_array(tensor)


class TestMeans:
    def rows(self) -> list[Row]:
        rng = np.random.default_rng(0)
        found = []
        for k in range(60):
            level = rng.random()
            for method, shift in (("a", 0.2), ("b", 0.0), ("c", 0.2 + 0.5 * rng.normal())):
                scores = {f"energy@{e}": level + shift * e + 0.01 * rng.random() for e in (1, 2, 4)}
                scores["deletion"] = scores["energy@1"]
                item, photo = str(k), str(k // 2)
                found.append(
                    Row(game="grid", at="x", method=method, item=item, photo=photo, target=None, scores=scores)
                )
        return found

    def test_the_exponent_of_the_largest_mean(self) -> None:
        assert best_exponents(self.rows())["grid", "x", "a"] == 4

    def test_differences_are_paired(self) -> None:
        found = {(d.method, d.score): d for d in differences(self.rows(), {}, "a", 500, 0)}
        assert found["b", "energy"].verdict == "better"
        assert found["b", "energy"].high - found["b", "energy"].low < 0.01  # the levels, that differ by 1, cancel
        assert found["b", "deletion"].verdict == "worse"  # less is better
        assert found["c", "energy"].verdict == "equal"

    def test_rows_without_a_score_are_left_out_of_its_mean(self) -> None:
        rows = [
            Row(game="g", at="x", method="a", item=str(k), photo=str(k), target=None, scores=scores)
            for k, scores in enumerate([{"s": 1.0}, {"s": float("nan")}, {}, {"s": 3.0}])
        ]
        (own,) = summaries(rows, {}, 100, 0)
        assert (own.mean, own.items) == (2, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"games": []},
        {"games": ["chess"]},
        {"games": ["grid", "grid"]},
        {"games": ["boxes"]},
        {"reference": "gradcam"},
        {"resamples": 0},
        {"target": "top5"},
        {"at": []},
        {"at": "nowhere"},
        {"target": 99, "games": ["perturb"]},
    ],
)
def test_options_that_are_refused(model: caf.Model, options: dict[str, Any]) -> None:
    with pytest.raises(caf.L2cafError):
        caf.evaluate(model, {"image": scene((2, 3, "red"))}, **{"at": "relu", **options})


def test_the_record_is_json(model: caf.Model) -> None:
    import json

    found = caf.evaluate(model, {"image": scene((2, 3, "red"))}, at="relu", games=[Perturb(steps=2)])
    document = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert {"rows", "summaries", "differences", "methods", "at", "games", "seed", "notes", "settings"} <= set(document)
    assert document["summaries"][0]["low"] is None  # one photo tells no interval
    assert document["settings"]["perturb"] == {"steps": 2}
    with pytest.raises(KeyError):
        found.find("perturb", "relu", "nobody", "drop")
