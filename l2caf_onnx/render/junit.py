"""JUnit XML, which every CI reads: a case for each input and each judged tensor."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from l2caf_onnx.records import Bisection, Comparison

from .verdict import cases, clean, headline

# What XML 1.0 cannot hold, escaped or not: control characters, lone surrogates, two non-characters.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(found: Comparison | Bisection) -> str:
    """The report as a JUnit document; it has failures if and only if `found` is not ok."""
    kind = found.kind if isinstance(found, Comparison) else "bisect"
    rows = cases(found)
    failed = sum(1 for case in rows if case.failures)
    counts = {"tests": str(len(rows)), "failures": str(failed), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", {"name": "l2caf-onnx", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"l2caf-onnx {kind}", **counts})
    properties = ET.SubElement(suite, "properties")
    told = {
        "verdict": headline(found),
        "change": found.change,
        "why": found.why,
        "reference": f"{found.reference.get('name', '')} {found.reference.get('sha256', '')}",
        "candidate": f"{found.candidate.get('name', '')} {found.candidate.get('sha256', '')}",
    }
    for name, value in told.items():
        ET.SubElement(properties, "property", {"name": name, "value": legal(value)})
    for case in rows:
        named = {"classname": legal(f"{case.subject} {clean(case.tensor)}"), "name": legal(case.input or "all inputs")}
        element = ET.SubElement(suite, "testcase", {**named, "time": "0"})
        classes = [case.classes] if case.classes else []
        if case.failures:
            failure = ET.SubElement(element, "failure", {"message": legal(case.failures[0]), "type": "regression"})
            failure.text = legal("\n".join((*case.failures, *classes)))
        elif case.seen:
            ET.SubElement(element, "system-out").text = legal(", ".join((*case.seen, *classes)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def legal(text: str) -> str:
    """`text` without what XML cannot hold; each such character becomes a mark."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
