"""JUnit, GitHub's commands and markdown: read back by their own rules, with names that try to break out of them."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from l2caf_onnx.records import Bisection, Comparison
from l2caf_onnx.render.github import MOST, commands
from l2caf_onnx.render.junit import junit, legal
from l2caf_onnx.render.markdown import code, markdown
from l2caf_onnx.render.verdict import clean
from tests.handmade import COSINE, bisection, comparison, renamed, score

HOSTILE = (
    "]]><failure/>&amp;<x a='\"'>",
    "a\x00\x08\x1f\x7f\ufffe\ud800z",
    "line\nbreak\r\n::error::fake",
    "100%, 5%25: a,b",
    "| cell | ` `` *bold* [x](http://e.x) <img src=x> @team #1",
    "",
)
RECORDS: dict[str, Comparison | Bisection] = {
    "bad": comparison(),
    "good": comparison(ok=True),
    "bad-bisection": bisection(),
    "good-bisection": bisection(ok=True),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_junit_fails_exactly_where_the_record_does(kind: str) -> None:
    found = RECORDS[kind]
    root = ET.fromstring(junit(found))
    suite = root[0]
    failed = suite.findall("testcase/failure")
    assert bool(failed) != found.ok
    assert int(suite.attrib["failures"]) == int(root.attrib["failures"]) == len(failed)
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))


def test_junit_has_a_case_for_each_input_and_breakpoint() -> None:
    root = ET.fromstring(junit(comparison()))
    cases = {(c.attrib["classname"], c.attrib["name"]): c for c in root.iter("testcase")}
    for at in ("attention /conv", "attention /late", "output logits"):
        assert {name for own, name in cases if own == at} == {"a.png", "b.png", "c.png"}
    assert {name for own, name in cases if own == "tensor /t0"} == {"all inputs"}  # hundreds of them: no case an input
    failure = cases["attention /conv", "c.png"].find("failure")
    assert failure is not None
    assert "0.96" in failure.attrib["message"]
    assert "Calibrated: 4 x the noise" in failure.attrib["message"]
    assert cases["attention /conv", "a.png"].find("failure") is None


def test_junit_forgives_the_inputs_that_a_share_allows() -> None:
    share = dataclasses.replace(COSINE, share=0.5)
    made = dataclasses.replace(comparison(), scores=(score("attention", "/conv", "cosine", [1.0, 1.0, 0.5], share),))
    assert made.ok
    assert ET.fromstring(junit(made)).attrib["failures"] == "0"


def test_junit_fails_where_no_single_input_explains_it() -> None:
    odd = score("attention", "/conv", "cosine", [np.nan] * 3, COSINE, ok=False)
    root = ET.fromstring(junit(dataclasses.replace(comparison(), scores=(odd,))))
    (failure,) = (c for c in root.iter("testcase") if c.find("failure") is not None)
    assert failure.attrib["name"] == "all inputs"


@pytest.mark.parametrize("name", HOSTILE)
def test_junit_holds_any_name(name: str) -> None:
    text = junit(renamed(comparison(), name))
    root = ET.fromstring(text.encode("utf-8"))
    reference = ET.fromstring(junit(renamed(comparison(), "x")))
    assert [e.tag for e in root.iter()] == [e.tag for e in reference.iter()]


def test_legal_keeps_what_xml_allows() -> None:
    assert legal("tab\t nl\n é \N{CAT} <&>") == "tab\t nl\n é \N{CAT} <&>"
    assert legal("\x00\x0b\uffff\udfff") == "\N{REPLACEMENT CHARACTER}" * 4


def unescaped(text: str) -> str:
    """As GitHub's runner does (ActionCommand.cs): %25 last."""
    for sign, code_ in ((":", "%3A"), (",", "%2C"), ("\n", "%0A"), ("\r", "%0D"), ("%", "%25")):
        text = text.replace(code_, sign)
    return text


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["comparison", "bisection"])
def test_github_commands_are_one_line_each(name: str, kind: str) -> None:
    found: Comparison | Bisection = renamed(comparison(), name)
    if kind == "bisection":
        nodes = tuple(dataclasses.replace(n, node=name, candidate=name) for n in bisection().nodes)
        found = dataclasses.replace(bisection(), nodes=nodes, first=nodes[20], notes=(name,))
    lines = commands(found).splitlines()
    for line in lines:
        matched = re.fullmatch(r"::(error|notice) title=([^:,]*)::(.*)", line)
        assert matched
        assert "%" not in re.sub(r"%(25|0D|0A|3A|2C)", "", line)
    assert sum(line.startswith("::error") for line in lines) >= 2


def test_github_says_what_the_record_says() -> None:
    first = commands(comparison()).splitlines()[0]
    assert unescaped(first).endswith("allowed at least 60 on all but 10% of the inputs; beyond on 100%.")
    assert commands(comparison(ok=True)).startswith("::notice title=l2caf-onnx compare::No regression")


def test_github_shows_ten_at_most() -> None:
    many = tuple(score("output", f"y{k}", "cosine", [0.5] * 3, COSINE) for k in range(40))
    lines = commands(dataclasses.replace(comparison(), scores=many, notes=())).splitlines()
    assert len(lines) == MOST + 1
    assert lines[-1].endswith(f"{40 - MOST + 1} more; the report has them all.")


def cells(row: str) -> int:
    """How many cells GitHub sees in a table's row: pipes that are not escaped."""
    return len(re.findall(r"(?<!\\)\|", row)) - 1


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_tables_keep_their_shape(name: str) -> None:
    lines = markdown(renamed(comparison(), name)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {cells(row) for row in table} == {10}
    assert len(table) == 2 + 9
    outside = re.sub(r"(`+)( ?).*?\2\1", "", "\n".join(lines))  # what is not in a code span
    assert not re.search(r"(?<!\\)[<>@\[]", outside.replace("**", ""))


def test_markdown_of_a_bisection() -> None:
    text = markdown(bisection())
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert rows[0].startswith("| **at fault** | `Conv_20`")
    assert len(rows) == 40
    assert "✅" in markdown(bisection(ok=True))


def test_markdown_fits_a_step_summary() -> None:
    many = comparison(inputs=tuple("n" * 400 + str(k) for k in range(200)))
    huge = dataclasses.replace(many, scores=many.scores * 100, notes=("x" * 500,) * 200)
    assert len(markdown(huge).encode()) < 1_000_000
    assert "more rows are not shown" in markdown(huge)


@pytest.mark.parametrize(
    ("name", "span"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`a`", "`` `a` ``"), ("a|b", "`a\\|b`"), ("", "(no name)"), ("a\nb", "`a�b`")],
)
def test_code_spans(name: str, span: str) -> None:
    assert code(name) == span


def test_clean_is_short_and_printable() -> None:
    assert clean("/a/b:0") == "/a/b:0"
    assert len(clean("x" * 10**6)) == 160
    assert clean("start" + "x" * 1000 + "end").startswith("start")
    assert clean("start" + "x" * 1000 + "end").endswith("end")
    assert clean("a\u202e\x1b[31m").isprintable()
