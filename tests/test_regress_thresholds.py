"""Lines between noise and a regression: where they come from, which wins, and that a user's mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from l2caf_onnx.errors import InputError
from l2caf_onnx.records import Change
from l2caf_onnx.regress.metrics import METRICS
from l2caf_onnx.regress.thresholds import KEYS, Noise, bundled, given, measured, refuse_unknown, score, unmeasured


def noise(*values: float) -> Noise:
    return Noise(values=np.array(values), worst="one thread", variations=2, inputs=3)


@pytest.mark.parametrize("change", get_args(Change))
def test_every_class_has_lines_for_metrics_that_there_are(change: Change) -> None:
    lines = bundled(change)
    assert lines
    assert set(lines) <= set(KEYS)
    for key, line in unmeasured(change).items():
        assert 0 <= line.share < 0.5
        assert line.source
        assert line.above == METRICS[key.split(".")[1]].above


def test_the_line_is_a_multiple_of_the_noise_but_never_sharper_than_the_least() -> None:
    line = bundled("float32")["output.error"]
    found = measured("float32", {"output.error@y": noise(1e-3, 2e-3), "output.error@z": noise(0.0, 1e-12)})
    assert found["output.error@y"].value == pytest.approx(line.factor * 2e-3)
    assert "one thread" in found["output.error@y"].source
    assert "2 harmless variations on 3 inputs" in found["output.error@y"].source
    assert found["output.error@z"].value == line.least


def test_cosines_and_decibels_are_multiplied_as_errors() -> None:
    cosine, snr = bundled("int8")["attention.cosine"], bundled("int8")["output.snr"]
    found = measured("int8", {"attention.cosine@a": noise(0.9, 1.0), "output.snr@y": noise(20.0, 40.0)})
    assert found["attention.cosine@a"].value == pytest.approx(1 - max(cosine.factor * 0.1, 1 - cosine.least))
    assert found["output.snr@y"].value == pytest.approx(20 - 20 * np.log10(snr.factor))


def test_what_is_counted_moves_the_share_not_the_line() -> None:
    line = bundled("int8")["output.top1"]
    found = measured("int8", {"output.top1@y": noise(1, 1, 0, 1)})["output.top1@y"]
    assert found.value == 1
    assert found.share == max(line.share, line.factor * 0.25)


def test_noise_that_says_nothing_is_no_noise() -> None:
    assert measured("float32", {"output.error@y": noise(np.nan, np.nan)})["output.error@y"].value == pytest.approx(
        bundled("float32")["output.error"].least
    )


def test_a_score_fails_by_the_share_beyond_the_line() -> None:
    values = np.array([0.0, 1.0, 2.0, np.nan])
    lines = given({"output.error": {"value": 0.5, "share": 0.5}})
    found = score("output", "y", "error", values, [lines])
    assert found.failing == pytest.approx(2 / 3)
    assert not found.ok
    assert found.worst == 2
    assert score("output", "y", "error", values, [given({"output.error": {"value": 1.5, "share": 0.5}})]).ok


def test_the_first_set_and_the_named_tensor_win() -> None:
    one, other = given({"output.error@y": 0.1, "output.error": 0.2}), given({"output.error@y": 9.0})
    values = np.array([0.15])
    assert not score("output", "y", "error", values, [one, other]).ok
    assert score("output", "z", "error", values, [one, other]).ok
    assert score("output", "y", "error", values, [{}, other]).ok
    reported = score("output", "y", "error", values, [{}])
    assert reported.threshold is None
    assert reported.ok


def test_one_of_ten_inputs_may_be_equally_likely_two_classes() -> None:
    lines = [unmeasured("float32")]
    right = np.ones(20)
    assert score("output", "y", "top1", right, lines).ok
    right[3] = 0
    assert score("output", "y", "top1", right, lines).ok
    right[4] = 0
    assert not score("output", "y", "top1", right, lines).ok
    assert not score("output", "y", "top1", np.array([1.0, 0.0]), lines).ok
    assert not score("output", "y", "top1", right, [given({"output.top1": 1.0})]).ok


def test_infinitely_bad_is_beyond_any_line() -> None:
    assert not score("output", "y", "error", np.array([np.inf]), [unmeasured("int8")]).ok
    assert not score("output", "y", "top1", np.array([-np.inf]), [unmeasured("int8")]).ok


@pytest.mark.parametrize(
    "text",
    [
        '"attention.cosine" = 0.9\n"output.error@/a.b" = { value = 0.1, share = 0.2 }',
        '[attention]\ncosine = 0.9\n[output]\n"error@/a.b" = { value = 0.1, share = 0.2 }',
    ],
)
def test_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    found = given(path)
    assert found["attention.cosine"].value == 0.9
    assert not found["attention.cosine"].above
    assert (found["output.error@/a.b"].value, found["output.error@/a.b"].share) == (0.1, 0.2)
    assert "user" in found["attention.cosine"].source


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"attention.cosin": 0.9}, r"no metric 'attention.cosin'.*attention.cosine"),
        ({"nonsense": 0.9}, "There are output"),
        ({"output.error": "low"}, "cannot be used"),
        ({"output.error": float("nan")}, "cannot be used"),
        ({"output.error": True}, "cannot be used"),
        ({"output.error": {"value": 1, "share": 2}}, "cannot be used"),
        ({"output.error": {"share": 0.1}}, "cannot be used"),
        ({"output.error": {"value": 1, "part": 0.1}}, "cannot be used"),
        ("nowhere.toml", "cannot be read"),
    ],
)
def test_mistakes_are_told(stated: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        given(stated)


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("output.error = ")
    with pytest.raises(InputError, match="cannot be read"):
        given(str(tmp_path / "t.toml"))


def test_a_tensor_that_is_not_compared_is_told() -> None:
    names = {"output": ["logits"], "attention": [], "tensor": ["a"]}
    refuse_unknown(given({"output.error@logits": 1, "output.snr": 3}), names)
    with pytest.raises(InputError, match="Did you mean 'logits'"):
        refuse_unknown(given({"output.error@logit": 1}), names)
