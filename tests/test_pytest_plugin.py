"""The pytest plugin in small runs of pytest: a baseline is made, holds, catches a fault, and is accepted anew."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import l2caf_onnx as caf
import l2caf_onnx.render.report
import l2caf_onnx.render.sheet
from tests.conftest import weighted
from tests.test_cli_regress import NET, fault

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All imported here once: a small run of pytest forgets, and would import anew, what it is the first to import."""
    model, feeds = weighted(NET), {"image": np.ones((1, 3, 8, 8), np.float32)}
    folder = tmp_path_factory.mktemp("warm") / "base"
    caf.baseline(model, feeds, at="act", folder=folder)
    assert caf.check(folder, model, inputs=feeds).ok
    assert caf.compare(model, model, feeds).ok
    assert caf.bisect(model, model, feeds).ok


TEST = """
    import numpy as np

    def test_model(onnx_attention):
        x = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
        onnx_attention("model.onnx", {"image": x}, at="act")
"""
JUDGED = """
    from tests.handmade import bisection, comparison

    def test_comparison(onnx_attention):
        onnx_attention.judge(comparison())

    def test_bisection(onnx_attention):
        onnx_attention.judge(bisection())

    def test_good(onnx_attention):
        onnx_attention.judge(comparison(ok=True))
        onnx_attention.judge(bisection(ok=True))
"""


@pytest.fixture(autouse=True)
def lean(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plugins, which each small run would import anew, stay out."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:cacheprovider")


@pytest.fixture
def model(pytester: pytest.Pytester) -> caf.Model:
    """The model of TEST, in the folder where pytest is run."""
    made = weighted(NET)
    onnx.save(made.proto, pytester.path / "model.onnx")
    return made


def files_named(output: str, kind: str) -> list[Path]:
    """The files told of, each once: where the variable CI is set, pytest's summary repeats each message in full."""
    return list(dict.fromkeys(Path(p) for p in re.findall(rf"^E?\s*{kind}: (\S+)$", output, flags=re.MULTILINE)))


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_failure_is_told_and_its_pictures_are_kept(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makepyfile(test_judged=JUDGED)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=2, passed=1)
    output = result.stdout.str()
    assert "Regression: on 3 inputs, 3 of 9 judged scores" in output
    assert "attention.cosine at /conv is 0.96 on c.png, allowed at least 0.98" in output
    assert "First at fault: node Conv_20 (Conv)" in output
    assert "pytest_plugin.py" not in output  # no traceback of ours: the message says it all
    pages, (picture,) = files_named(output, "Page"), files_named(output, "Picture")
    assert [p.is_file() for p in pages] == [True, True]
    with Image.open(picture) as drawn:
        assert drawn.width > 4 * 256
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 1000


def test_the_folder_of_reports_can_be_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_judged=JUDGED)
    for _ in range(2):
        pytester.runpytest_inprocess("--l2caf-report", "out/ci")
    names = sorted(p.name for p in (pytester.path / "out" / "ci").iterdir())
    assert [n for n in names if n.endswith(".html")] == [
        "test_judged-test_bisection-2.html",
        "test_judged-test_bisection.html",
        "test_judged-test_comparison-2.html",
        "test_judged-test_comparison.html",
    ]
    assert "test_judged-test_comparison-1.png" in names


def test_without_a_baseline_it_says_how_to_make_one(pytester: pytest.Pytester, model: caf.Model) -> None:
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*There is no baseline in *l2caf_baselines*test_it*test_model.*", "*--l2caf-update*"])
    assert not (pytester.path / "l2caf_baselines").exists()


def test_a_baseline_holds_until_the_model_changes(pytester: pytest.Pytester, model: caf.Model) -> None:
    pytester.makepyfile(test_it=TEST)
    pytester.runpytest_inprocess("--l2caf-update").assert_outcomes(passed=1)
    assert (pytester.path / "l2caf_baselines" / "test_it" / "test_model" / "manifest.json").is_file()
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    onnx.save(fault(model, "w2"), pytester.path / "model.onnx")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Regression: on 3 inputs*", "*pytest --l2caf-update*"])
    pytester.runpytest_inprocess("--l2caf-update").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_two_models_are_compared_and_bisected(pytester: pytest.Pytester, model: caf.Model) -> None:
    onnx.save(fault(model, "w2"), pytester.path / "bad.onnx")
    pytester.makepyfile(
        """
        import numpy as np
        import pytest

        X = {"image": np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)}

        def test_same(onnx_attention):
            assert onnx_attention.compare("model.onnx", "model.onnx", X).ok
            assert onnx_attention.bisect("model.onnx", "model.onnx", X).ok

        @pytest.mark.parametrize("what", ["compare", "bisect"])
        def test_bad(onnx_attention, what):
            getattr(onnx_attention, what)("model.onnx", "bad.onnx", X)
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*First at fault: node * (Conv), which makes deep*"])


def test_mistakes_are_told_in_their_own_words(pytester: pytest.Pytester, model: caf.Model) -> None:
    pytester.makepyfile(test_it=TEST.replace('at="act"', 'at="akt"'))
    result = pytester.runpytest_inprocess("--l2caf-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*There is no tensor 'akt'*"])


def test_help_names_the_options_and_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess("--help").stdout.fnmatch_lines(["*--l2caf-update*", "*--l2caf-report=DIR*"])
    pytester.runpytest_inprocess("--fixtures").stdout.fnmatch_lines(["*onnx_attention*", "*stored baselines*"])
