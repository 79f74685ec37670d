"""`--labels` of the regression checks: classes by their names, wherever a report tells of classes."""

# ruff: noqa: F811 - pytest finds a fixture by the name of the parameter

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import l2caf_onnx as caf
from l2caf_onnx.errors import InputError
from l2caf_onnx.records import Classes, Comparison
from l2caf_onnx.render.github import commands
from l2caf_onnx.render.junit import junit
from l2caf_onnx.render.markdown import markdown
from l2caf_onnx.render.report import report
from l2caf_onnx.render.verdict import headline, likeliest
from tests.conftest import text
from tests.handmade import ERROR, comparison, score
from tests.test_cli_regress import Command, command, files  # noqa: F401 - fixtures
from tests.test_report_html import HOSTILE, Page
from tests.test_report_text import HOSTILE as HOSTILE_TEXT
from tests.test_report_text import cells

NAMES = {0: "tench", 1: "tabby", 2: "tiger cat", 3: "jay"}
TOP1 = dataclasses.replace(ERROR, value=1.0, above=False)


def classified(names: dict[int, str] | None = None, candidate: tuple[int, ...] = (1, 2, 3)) -> Comparison:
    """Three inputs of which the second is a tabby in the reference and a tiger cat in the candidate."""
    found = comparison()
    reference = (1, 1, 3)
    agree = [float(a == b) for a, b in zip(reference, candidate, strict=True)]
    classes = Classes(reference=reference, candidate=candidate, asked=reference, names=names or {})
    scores = (score("output", "logits", "top1", agree, TOP1), *found.scores[2:])
    return dataclasses.replace(found, classes=classes, scores=scores, settings={**found.settings, "target": 3})


@pytest.fixture
def turned(files: Path) -> Path:
    """turned.onnx, whose likeliest class is another on every input, and names.txt."""
    proto = onnx.load(files / "ref.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name in ("v", "c"):
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=0), tensor.name))
    onnx.save(proto, files / "turned.onnx")
    (files / "names.txt").write_text("\n".join(NAMES.values()), encoding="utf-8")
    return files


def answers(files: Path, model: str) -> list[str]:
    scores = caf.run(caf.load(files / model), {"image": np.load(files / "x.npy")})["scores"]
    return [f"{k} {NAMES[k]}" for k in scores.argmax(1).tolist()]


class TestReports:
    def test_the_sentence(self) -> None:
        told = "The likeliest class differs on 1 of 3 inputs: b.png (1 tabby, in the candidate 2 tiger cat)."
        assert likeliest(classified(NAMES)) == told
        assert likeliest(classified()).endswith("b.png (class 1, in the candidate class 2).")
        same = classified(NAMES, (1, 1, 3))
        assert likeliest(same) == "The likeliest class is the same on all 3 inputs: 1 tabby (2), 3 jay (1)."
        assert likeliest(classified(None, (1, 1, 3))) == ""  # nothing that a reader has asked for
        assert likeliest(comparison()) == ""

    def test_a_score_that_counts_classes_says_which(self) -> None:
        found = classified(NAMES)
        alone = dataclasses.replace(found, scores=found.scores[:1])
        assert "is 0 on b.png (1 tabby, in the candidate 2 tiger cat), allowed at least 1" in headline(alone)

    def test_html(self) -> None:
        shown = Page(report(classified(NAMES))).text
        part = shown[shown.index("Likeliest class") : shown.index("Where both look")]
        assert "b.png1 tabby2 tiger cat" in part
        assert "a.png" not in part
        assert "Another in the candidate on 1 of 3 inputs." in part
        assert "about 1 tabby" in shown
        assert "3 jay" in shown[shown.index("Settings") :]
        assert "Likeliest class" not in Page(report(comparison())).text
        assert "same on all 3 inputs: 1 tabby (2)" in Page(report(classified(NAMES, (1, 1, 3)))).text

    @pytest.mark.parametrize("name", HOSTILE)
    def test_html_of_a_hostile_name(self, name: str) -> None:
        page, plain = (Page(report(classified(dict.fromkeys(NAMES, n)))) for n in (name, "x"))
        assert page.open == []
        assert [(t, sorted(a)) for t, a in page.tags] == [(t, sorted(a)) for t, a in plain.tags]
        assert not any(ord(c) < 32 and c not in "\n\t" for c in page.text)

    def test_junit(self) -> None:
        root = ET.fromstring(junit(classified(NAMES)))
        cases = {(c.attrib["classname"], c.attrib["name"]): c for c in root.iter("testcase")}
        assert cases["output logits", "a.png"].findtext("system-out") == "top1 1, 1 tabby"
        failure = cases["output logits", "b.png"].find("failure")
        assert failure is not None
        assert "is 0 (1 tabby, in the candidate 2 tiger cat)" in failure.attrib["message"]
        assert (cases["attention /conv", "a.png"].findtext("system-out") or "").endswith("about 1 tabby")

    def test_markdown_and_github(self) -> None:
        assert "| `b.png` | 1 tabby | 2 tiger cat |" in markdown(classified(NAMES))
        assert "same on all 3 inputs: 1 tabby (2)" in markdown(classified(NAMES, (1, 1, 3)))
        last = commands(classified(NAMES)).splitlines()[-1]
        assert last.startswith("::notice title=l2caf-onnx compare::The likeliest class differs on 1 of 3 inputs")

    @pytest.mark.parametrize("name", HOSTILE_TEXT)
    def test_text_of_a_hostile_name(self, name: str) -> None:
        found = classified(dict.fromkeys(NAMES, name))
        ET.fromstring(junit(found).encode("utf-8"))
        assert len(commands(found).splitlines()) == len(commands(classified(NAMES)).splitlines())
        table = [line for line in markdown(found).splitlines() if line.startswith("|")]
        assert [cells(row) for row in table][-3:] == [3, 3, 3]

    def test_json_has_the_numbers_and_the_names(self) -> None:
        assert classified(NAMES).describe()["classes"] == {
            "reference": [1, 1, 3],
            "candidate": [1, 2, 3],
            "asked": [1, 1, 3],
            "names": {str(k): v for k, v in NAMES.items()},
        }


class TestCommands:
    def test_compare(self, command: Command, turned: Path) -> None:
        told = command("compare", "ref.onnx", "turned.onnx", "x.npy", "--labels", "names.txt", "--html", "r.html")
        assert told.code == 1
        one, other = answers(turned, "ref.onnx"), answers(turned, "turned.onnx")
        assert all(a != b for a, b in zip(one, other, strict=True))
        head, *rows = told.out[told.out.index("The likeliest class differs on 4 of 4 inputs:") :].splitlines()[1:6]
        assert head.split() == ["input", "reference", "candidate"]
        assert [re.split("  +", row)[1:] for row in rows] == [[a, b] for a, b in zip(one, other, strict=True)]
        page = (turned / "r.html").read_text(encoding="utf-8")
        assert one[0] in page
        assert other[0] in page
        for form in ("github", "markdown", "junit", "json"):
            printed = command("compare", "ref.onnx", "turned.onnx", "x.npy", "--labels", "names.txt", "--format", form)
            assert printed.code == 1
            assert one[0].split(" ", 1)[1] in printed.out

    def test_check(self, command: Command, turned: Path) -> None:
        assert command("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "base").code == 0
        good = command("check", "base", "good.onnx", "--labels", "names.txt")
        assert good.code == 0
        assert "The likeliest class is the same on all 4 inputs: " in good.out
        assert answers(turned, "ref.onnx")[0] in good.out
        assert "likeliest" not in command("check", "base", "good.onnx").out
        bad = command("check", "base", "turned.onnx", "--labels", "names.txt", "--json")
        assert bad.code == 1
        classes = json.loads(bad.out)["classes"]
        told = [f"{k} {classes['names'][str(k)]}" for k in classes["candidate"]]
        assert told == answers(turned, "turned.onnx")
        assert classes["asked"] == classes["reference"]

    def test_a_baseline_keeps_the_names(self, command: Command, turned: Path) -> None:
        made = command("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "base", "--labels", "names.txt")
        assert made.code == 0
        told = answers(turned, "ref.onnx")
        assert f"Attention is about {told[0]} (" in made.out
        assert told[0] in command("check", "base", "good.onnx").out
        (turned / "others.txt").write_text("w\nx\ny\nz", encoding="utf-8")
        updated = command("check", "base", "good.onnx", "--update", "--labels", "others.txt")
        assert updated.code == 0
        other = f"{told[0].split()[0]} {'wxyz'[int(told[0].split()[0])]}"
        assert other in updated.out
        found = command("check", "base", "good.onnx")
        assert other in found.out
        assert told[0] not in found.out

    def test_a_baseline_of_a_chosen_class(self, command: Command, turned: Path) -> None:
        words = ("baseline", "ref.onnx", "x.npy", "--at", "act", "--target", "3", "-o", "base")
        found = command(*words, "--labels", "names.txt", "--json")
        assert json.loads(found.out)["asked"] == [3, 3, 3, 3]
        assert json.loads(found.out)["names"]["3"] == "jay"
        assert "Attention is about class 3 (4)." in command(*words, "--force").out
        assert command("check", "base", "--html", "r.html", "--labels", "names.txt").code == 0
        page = (turned / "r.html").read_text(encoding="utf-8")
        assert "about 3 jay" in page
        assert "<dt>target</dt><dd><code>3 jay</code></dd>" in page

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("nowhere.txt", None, "labels cannot be read"),
            ("l.json", "{", "not in a form that can be read"),
            ("l.txt", "tench\ntabby\n", "There are 2 class names for 4 classes."),
            ("l.txt", "", "There are 0 class names for 4 classes."),
        ],
    )
    def test_bad_labels(self, command: Command, turned: Path, name: str, content: str | None, message: str) -> None:
        assert command("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "base").code == 0
        before = (turned / "base" / "manifest.json").read_bytes()
        if content is not None:
            (turned / name).write_text(content, encoding="utf-8")
        reports = ("--html", "r.html", "--junit", "r.xml")
        for words in (
            ("baseline", "ref.onnx", "x.npy", "--at", "act", "-o", "b"),
            ("compare", "ref.onnx", "good.onnx", "x.npy", *reports),
            ("check", "base", "bad.onnx", "--update", *reports),
        ):
            found = command(*words, "--labels", name)
            assert found.code == 2
            assert message in found.err
            assert found.out == ""
            assert found.err.count("Error") == 1
            assert not (turned / "b").exists()
            assert not (turned / "r.html").exists()
            assert not (turned / "r.xml").exists()
        assert (turned / "base" / "manifest.json").read_bytes() == before

    @pytest.mark.parametrize("words", ["baseline", "check", "compare"])
    def test_help(self, command: Command, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        assert "Class names: a line each, or JSON." in command(words, "--help").out


class TestPython:
    NET = "g (float[N,3,4,4] x) => (float[N,%s] y) { r = Relu (x)  p = GlobalAveragePool (r)  y = Flatten (p) }"

    def compared(self, size: str, **options: Any) -> Comparison:
        model = text(self.NET % size)
        return caf.compare(model, model, {"x": np.ones((2, 3, 4, 4), np.float32)}, target="none", **options)

    @pytest.mark.parametrize("size", ["3", "C"])  # a graph that tells how many there are, and one that does not
    def test_too_few_names(self, size: str) -> None:
        with pytest.raises(InputError, match="There is 1 class name for 3 classes"):
            self.compared(size, labels={0: "a"})

    def test_a_mapping_may_leave_classes_out(self) -> None:
        found = self.compared("3", labels={2: "c"})
        assert found.classes.reference == (0, 0)
        assert found.classes.names == {}
        assert likeliest(found) == ""

    def test_where_there_is_no_class(self) -> None:
        model = text("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { r = Relu (x)  y = Abs (r) }")
        feeds = {"x": np.ones((2, 3, 4, 4), np.float32)}
        found = caf.compare(model, model, feeds, at="r", labels={0: "a"})
        assert found.classes == Classes()
        assert any("no class to name" in note for note in found.notes)
