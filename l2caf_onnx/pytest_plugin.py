"""pytest's fixture `onnx_attention`: a test that a model still answers, and looks at, what was stored of it.

    def test_detector(onnx_attention):
        onnx_attention("detector.onnx", ["photos/"], at="/head/conv")

Once with `pytest --l2caf-update`, which stores the baseline beside the test; from then on the test fails where the
model differs by more than noise, with the worst named and the pictures saved. It is loaded into every run of pytest
where the package is installed, so it imports nothing until a test asks for the fixture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from l2caf_onnx.records import Bisection, Comparison

FOLDER = "l2caf_baselines"
_TOLD = 8  # failures in a message; the page has them all


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("l2caf_onnx", "regression checks of ONNX models")
    group.addoption(
        "--l2caf-update", action="store_true", help="store the present state of the models as the baselines"
    )
    group.addoption(
        "--l2caf-report",
        metavar="DIR",
        default=None,
        help="folder for pages and pictures of failures (default: pytest's temporary folder)",
    )


class OnnxAttention:
    """What the fixture `onnx_attention` gives: call it with a model to check that against its baseline.

    Attributes:
        update: Whether `--l2caf-update` was given.
        folder: Where this test's baselines are by default: `l2caf_baselines/<file>/<test>` beside the test file.
    """

    def __init__(self, folder: Path, update: bool, reports: Callable[[], Path], test: str) -> None:
        self.folder, self.update, self._reports, self._test = folder, update, reports, test
        self._taken: set[Path] = set()

    def __call__(
        self,
        model: Any,
        inputs: str | Path | Sequence[str | Path] | Mapping[str, Any],
        *,
        at: str | Sequence[str],
        baseline: str | Path | None = None,
        thresholds: Mapping[str, float] | str | Path | None = None,
        **options: Any,
    ) -> Comparison | None:
        """Check `model` against its baseline; with `--l2caf-update` store its present state instead.

        Args:
            model: As `l2caf_onnx.load` takes it.
            inputs: As `l2caf_onnx.baseline`.
            at: The breakpoints.
            baseline: Its folder; None: `folder`, and `folder`-2 for a second call of one test.
            thresholds: As `l2caf_onnx.check`.
            **options: Further ones of `l2caf_onnx.baseline`, such as target or preprocess.

        Returns:
            The comparison; None where a baseline was made and there was none before.

        Raises:
            pytest.fail.Exception: the model differs by more than noise, or there is no baseline.
        """
        __tracebackhide__ = True
        import l2caf_onnx as caf

        where = Path(baseline) if baseline is not None else self._next()
        names = [at] if isinstance(at, str) else list(at)
        if not (where / "manifest.json").is_file():
            if not self.update:
                pytest.fail(
                    f"There is no baseline in {where}.\nMake it with `pytest --l2caf-update`, and commit it.",
                    pytrace=False,
                )
            where.parent.mkdir(parents=True, exist_ok=True)
            caf.baseline(model, inputs, at=names, folder=where, thresholds=thresholds, calibrate=True, **options)
            return None
        found = caf.check(where, model, inputs=inputs, thresholds=thresholds, update=self.update)
        if not self.update:
            self.judge(found)
        return found

    def compare(self, reference: Any, candidate: Any, inputs: Any, **options: Any) -> Comparison:
        """Compare two models as `l2caf_onnx.compare`; the test fails where they differ by more than noise."""
        __tracebackhide__ = True
        import l2caf_onnx as caf

        found = caf.compare(reference, candidate, inputs, **options)
        self.judge(found)
        return found

    def bisect(self, reference: Any, candidate: Any, inputs: Any, **options: Any) -> Bisection:
        """Bisect two models as `l2caf_onnx.bisect`; the test fails where a node is at fault, and names it."""
        __tracebackhide__ = True
        import l2caf_onnx as caf

        found = caf.bisect(reference, candidate, inputs, **options)
        self.judge(found)
        return found

    def judge(self, found: Comparison | Bisection) -> None:
        """Fail the test where `found` is not ok, with the worst in the message and the pictures saved."""
        __tracebackhide__ = True
        if found.ok:
            return
        page, pictures = self._save(found)
        pytest.fail(message(found, page, pictures), pytrace=False)

    def _next(self) -> Path:
        where, count = self.folder, 1
        while where in self._taken:
            count += 1
            where = self.folder.with_name(f"{self.folder.name}-{count}")
        self._taken.add(where)
        return where

    def _save(self, found: Comparison | Bisection) -> tuple[Path, list[Path]]:
        from l2caf_onnx.render.report import save_report
        from l2caf_onnx.render.sheet import save_sheets

        folder = self._reports()
        page, count = folder / f"{self._test}.html", 1
        while page.exists():
            count += 1
            page = folder / f"{self._test}-{count}.html"
        save_report(found, page)
        return page, save_sheets(found, folder, page.stem)


def message(found: Comparison | Bisection, page: Path, pictures: Sequence[Path]) -> str:
    """What a failing test says: the verdict, the worst failures, where to look."""
    from l2caf_onnx.records import Comparison
    from l2caf_onnx.render.verdict import headline, node_said, ranked, said

    if isinstance(found, Comparison):
        failures = [said(s, found) for s in ranked(found.failures)]
    else:
        failures = [node_said(n) for n in found.ranked if not n.ok]
    lines = [headline(found), f"Change: {found.change}. {found.why}", ""]
    lines += [f"  {text}" for text in failures[:_TOLD]]
    if len(failures) > _TOLD:
        lines.append(f"  and {len(failures) - _TOLD} more")
    lines += ["", f"Page: {page}", *(f"Picture: {picture}" for picture in pictures)]
    if isinstance(found, Comparison) and found.kind == "check":
        lines.append("If this is how it shall be, store it: pytest --l2caf-update")
    return "\n".join(lines)


@pytest.fixture
def onnx_attention(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxAttention:
    """Check ONNX models against stored baselines of what they answer and look at (l2caf_onnx.pytest_plugin)."""
    test = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_.")[:80] or "test"
    given = request.config.getoption("--l2caf-report")

    def reports() -> Path:
        if given is None:
            return tmp_path_factory.mktemp("l2caf")
        folder = request.config.invocation_params.dir / str(given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    own = request.path.parent / FOLDER / request.path.stem / test
    return OnnxAttention(own, bool(request.config.getoption("--l2caf-update")), reports, f"{request.path.stem}-{test}")
