"""The HTML report: what it says, that strangers' text cannot act in it, that it is offline and bounded."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2caf_onnx.errors import InputError
from l2caf_onnx.records import Bisection, Comparison, Threshold
from l2caf_onnx.render.chart import HIGH, WIDE, Line, Mark, chart
from l2caf_onnx.render.report import DRAWN, report, save_report
from l2caf_onnx.render.sidebyside import differing, panels
from l2caf_onnx.render.verdict import excess, headline, worst_inputs
from tests.handmade import bell, bisection, comparison, pair, renamed

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "javascript:alert(1)",
    "a\x00b\x1b[31m\u202egnp.exe",
    "\ud800lone",
)


class Page(HTMLParser):
    """The tags, attributes and text of a page, and that every element that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def hostile_bisection(name: str) -> Bisection:
    made = bisection(name=name)
    nodes = tuple(dataclasses.replace(n, node=name, op_type=name) for n in made.nodes)
    return dataclasses.replace(made, nodes=nodes, first=nodes[20], why=name, unaligned=(name,), notes=(name,))


@pytest.mark.parametrize("kind", ["comparison", "bisection"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str, kind: str) -> None:
    found: Comparison | Bisection = renamed(comparison(), name) if kind == "comparison" else hostile_bisection(name)
    plain: Comparison | Bisection = renamed(comparison(), "x") if kind == "comparison" else hostile_bisection("x")
    page, harmless = Page(report(found)), Page(report(plain))
    assert page.open == []
    # The same elements with the same attributes, whatever the names are: nothing that they say became markup.
    assert [(t, sorted(a)) for t, a in page.tags] == [(t, sorted(a)) for t, a in harmless.tags]
    assert all(not a.startswith("on") for _, attributes in page.tags for a in attributes)
    assert "root:" not in page.text
    assert not any(ord(c) < 32 and c not in "\n\t" for c in page.text)
    readable = re.sub(r"[^\w/<>:;=.' (){}%*+-]+", "", name.partition("\x00")[0])
    assert readable in page.text.replace('"', "")


def test_nothing_is_fetched_and_nothing_runs() -> None:
    for found in (comparison(), comparison(ok=True), bisection()):
        text = report(found)
        page = Page(text)
        assert not {t for t, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
        sources = [a.get("src") or "" for t, a in page.tags if t == "img"]
        assert all(s.startswith("data:image/") for s in sources)
        assert "url(" not in text
        assert "@import" not in text
        assert not re.findall(r"https?://", text)
        policy = next(a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_verdict_stands_first_and_the_worst_is_first() -> None:
    text = Page(report(comparison())).text
    assert "Regression" in text[: text.index("Reference")]
    beyond = text[text.index("What is beyond") : text.index("Where both look")]
    assert beyond.index("/t5") < beyond.index("/t4") < beyond.index("/conv")
    maps = text[text.index("Where both look") : text.index("Drift by depth")]
    assert maps.index("/conv") < maps.index("/late")
    assert maps.index("c.png") < maps.index("b.png") < maps.index("a.png")
    for word in ("Calibrated: 4 x the noise", "model-int8.onnx", "confidence", "preprocess", "lite", "10% allowed"):
        assert word in text
    good = Page(report(comparison(ok=True))).text
    assert "No regression" in good
    assert "What is beyond" not in good


def test_a_bisection_ranks_and_names_the_first() -> None:
    text = Page(report(bisection())).text
    assert "First at fault" in text
    assert text.index("first at fault") < text.index("Conv_39")
    assert "fused_1" in text
    assert "No node at fault" in Page(report(bisection(ok=True))).text


def test_the_page_is_bounded() -> None:
    many = comparison(inputs=tuple(f"{k}.png" for k in range(60)))
    page = Page(report(many))
    assert 0 < len([1 for t, a in page.tags if t == "article"]) <= DRAWN
    assert len(report(many)) < 2_000_000
    assert len(report(renamed(comparison(), "n" * 1_000_000))) < 2_000_000
    assert len([1 for t, _ in Page(report(many, drawn=1)).tags if t == "article"]) == 1


@pytest.mark.parametrize("shape", [(40,), (8, 8), (5, 8, 8)])
def test_maps_of_any_shape_without_a_picture(shape: tuple[int, ...]) -> None:
    made = comparison(image=False)
    maps = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    cells = np.ones((3, *shape), np.float32)
    one = dataclasses.replace(made.pairs[0], reference=cells, candidate=cells, reference_maps=maps,
                              candidate_maps=maps[::-1].copy())  # fmt: skip
    page = Page(report(dataclasses.replace(made, pairs=(one,))))
    assert len([1 for t, _ in page.tags if t == "img"]) == 9
    assert ("slice" in page.text) == (len(shape) == 3)


def test_nothing_to_show_is_a_page_too() -> None:
    made = comparison(ok=True)
    empty = dataclasses.replace(made, scores=(), pairs=(), alignment=(), images=(), notes=(), settings={})
    assert "No tensors were aligned" in Page(report(empty)).text
    nothing = dataclasses.replace(bisection(ok=True), nodes=())
    assert "No node at fault" in Page(report(nothing)).text


def test_numbers_that_are_none() -> None:
    made = comparison()
    holes = tuple(
        dataclasses.replace(s, values=np.full(3, v))
        for s, v in zip(made.scores, [math.nan, math.inf] * 9, strict=False)
    )
    assert Page(report(dataclasses.replace(made, scores=holes))).open == []


def decoded(uri: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


class TestPictures:
    def test_the_difference_is_where_the_maps_differ_and_has_their_sign(self) -> None:
        left, right = bell(0.5, 0.2), bell(0.5, 0.8)
        shown = decoded(panels(left, right, np.full((224, 224, 3), 120, np.uint8)).difference).astype(int)
        high, wide = shown.shape[:2]
        lost, won = shown[high // 2, wide // 5], shown[high // 2, 4 * wide // 5]
        assert lost[2] > lost[0] + 60  # blue: the candidate has less
        assert won[0] > won[2] + 60  # red: more
        assert np.abs(shown[2, wide // 2] - 120).max() <= 12  # the photo where they agree

    def test_equal_maps_leave_the_photo_as_it_is(self) -> None:
        ground = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        shown = differing(ground, np.zeros((8, 8)))
        assert (shown == ground[..., None]).all()

    def test_a_faint_difference_looks_faint(self) -> None:
        ground = np.full((1, 3), 128, np.uint8)
        strength = np.ptp(differing(ground, np.array([[0.05, 0.3, 1.0]])).astype(int), axis=-1)[0]
        assert strength[0] < 20 < strength[1] < strength[2]

    def test_no_image_is_enlarged_beyond_its_panel(self) -> None:
        made = panels(np.zeros((300, 900)), np.zeros((300, 900)), None)
        assert decoded(made.reference).shape == (85, 256, 3)


class TestChart:
    def test_a_failure_stands_out_and_is_escaped(self) -> None:
        svg = chart([Line("a", "worst", [Mark(0, 1, "<b>"), Mark(1, 2, "&", bad=True)])], y_label="<y>", x_label="x",
                    logarithmic=False)  # fmt: skip
        assert "&lt;b&gt;" in svg
        assert "<b>" not in svg
        assert svg.count("dot bad") == 1

    @pytest.mark.parametrize("logarithmic", [False, True])
    @pytest.mark.parametrize(
        "values", [[0.0, 0.0], [1e-30, 1e30], [5.0], [math.inf, 1.0, math.nan], [-3.0, 4.0], [0.3] * 9000]
    )
    def test_points_stay_inside(self, values: list[float], logarithmic: bool) -> None:
        marks = [Mark(k / len(values), v, "") for k, v in enumerate(values)]
        svg = chart([Line("a", "worst", marks)], y_label="", x_label="", logarithmic=logarithmic)
        points = (
            [p.split(",") for p in re.findall(r'points="([^"]*)"', "".join(svg.split("\n")))[0].split()] if svg else []
        )
        assert all(0 <= float(x) <= WIDE and 0 <= float(y) <= HIGH for x, y in points)
        assert len(points) <= 2000

    def test_higher_is_higher(self) -> None:
        svg = chart([Line("a", "worst", [Mark(0, 1e-6, ""), Mark(1, 1e-2, "")])], y_label="", x_label="",
                    logarithmic=True)  # fmt: skip
        (line,) = re.findall(r'points="([^"]*)"', svg)
        (x1, y1), (x2, y2) = ([float(v) for v in p.split(",")] for p in line.split())
        assert x1 < x2
        assert y1 > y2

    def test_nothing_to_draw(self) -> None:
        assert chart([Line("a", "worst", [Mark(0, math.nan, "")])], y_label="", x_label="", logarithmic=True) == ""


@pytest.mark.parametrize(
    ("line", "value", "times"),
    [
        (Threshold(value=2.0, above=True, share=0, source=""), 6.0, 3.0),
        (Threshold(value=0.9, above=False, share=0, source=""), 0.7, 3.0),
        (Threshold(value=60.0, above=False, share=0, source=""), 40.0, 10.0),
        (Threshold(value=1.0, above=False, share=0, source=""), 1.0, 1.0),
        (Threshold(value=0.0, above=True, share=0, source=""), 0.1, 1e9),
        (Threshold(value=60.0, above=False, share=0, source=""), -math.inf, 1e9),
        (Threshold(value=2.0, above=True, share=0, source=""), math.nan, 0.0),
    ],
)
def test_excess(line: Threshold, value: float, times: float) -> None:
    assert excess(value, line) == pytest.approx(times, rel=1e-9)


def test_the_worst_input_is_the_one_that_fails_most() -> None:
    assert worst_inputs(comparison(), "/conv")[0] == 2
    assert "Worst: tensor.snr at /t5" in headline(comparison())


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    save_report(comparison(), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(InputError):
        save_report(comparison(), tmp_path / "no" / "r.html")
    assert [f.name for f in tmp_path.iterdir()] == ["r.html"]


def test_two_breakpoints_with_their_own_depth() -> None:
    made = dataclasses.replace(comparison(), pairs=(pair("/conv", 3, 0.25, 0.06), pair("/late", 3, 0.75, 0.0)))
    svg = report(made)
    first = re.findall(r'<polyline class="worst" points="([^"]*)"', svg)[0].split()
    assert len(first) == 2
    assert float(first[0].split(",")[0]) == pytest.approx(0.25 * (1100 - 64 - 32) + 72, abs=1)
