"""GitHub's workflow commands: annotations beside the run, escaped as its runner unescapes them.

https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts has the two functions.
"""

from __future__ import annotations

from l2caf_onnx.records import Bisection, Comparison

from .verdict import called, clean, headline, likeliest, node_said, ranked, said

MOST = 9  # GitHub shows ten annotations of a kind in a step; the last one counts the others


def commands(found: Comparison | Bisection) -> str:
    """A line for each of the worst findings: `::error` for failures, `::notice` for the notes and a good verdict."""
    kind = found.kind if isinstance(found, Comparison) else "bisect"
    lines = [_command("notice" if found.ok else "error", f"l2caf-onnx {kind}", headline(found))]
    if isinstance(found, Comparison):
        failures = [(f"{called(s)} at {clean(s.name)}", said(s, found)) for s in ranked(found.failures)]
    else:
        failures = [(f"node {clean(n.node or n.candidate)}", node_said(n)) for n in found.ranked if not n.ok]
    shown = failures[: MOST - 1]
    lines += [_command("error", title, text) for title, text in shown]
    if len(failures) > len(shown):
        lines.append(_command("error", "l2caf-onnx", f"{len(failures) - len(shown)} more; the report has them all."))
    lines += [_command("notice", f"l2caf-onnx {kind}", clean(note, 1000)) for note in found.notes[: MOST - 1]]
    if isinstance(found, Comparison) and (told := likeliest(found)):
        lines.append(_command("notice", f"l2caf-onnx {kind}", told))
    return "\n".join(lines) + "\n"


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
