"""A debugger for exported neural networks: gradient-grade attention on a bare `.onnx`, proved by onnxruntime.

Names are imported when they are first used, so that `import l2caf_onnx` costs nothing.

torch and onnxruntime take turns on the same cores. A thread of torch's OpenMP (libgomp) that spins while it waits for
more takes one from onnxruntime, so it is told to sleep after some microseconds, unless the environment says otherwise
or torch was imported before. (Sleeping at once, OMP_WAIT_POLICY=PASSIVE, doubles the cost of a convolutional tail.)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import attend
    from .errors import (
        CutError,
        InputError,
        L2cafError,
        ParityError,
        SolverError,
        TensorNotFoundError,
        UnsupportedModelError,
    )
    from .evaluation import Evaluation, evaluate
    from .graph.breakpoints import breakpoints
    from .graph.cut import Cut, cut
    from .graph.insert import insert_filter
    from .graph.model import Model, load
    from .records import (
        Aligned,
        Attention,
        Baseline,
        Bisection,
        Breakpoint,
        Certificate,
        Classes,
        Comparison,
        NodeError,
        Parity,
        Score,
        TensorInfo,
        Threshold,
    )
    from .regress.baseline import baseline
    from .regress.bisect import bisect
    from .regress.check import check
    from .regress.compare import compare
    from .runtime import run
    from .tail import to_torch

__version__ = "0.1.0"

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOME = {
    "Query": ".explain.query",
    "attend_many": ".attention",
    "attend": ".attention",  # not attend.py: importing a module of that name would hide the function
    "breakpoints": ".graph.breakpoints",
    "cut": ".graph.cut",
    "Cut": ".graph.cut",
    "evaluate": ".evaluation",
    "Evaluation": ".evaluation",
    "insert_filter": ".graph.insert",
    "load": ".graph.model",
    "Model": ".graph.model",
    "run": ".runtime",
    "to_torch": ".tail",
    "baseline": ".regress.baseline",
    "bisect": ".regress.bisect",
    "check": ".regress.check",
    "compare": ".regress.compare",
    **dict.fromkeys(
        [
            "Aligned",
            "Attention",
            "Baseline",
            "Bisection",
            "Breakpoint",
            "Certificate",
            "Classes",
            "Comparison",
            "NodeError",
            "Parity",
            "Score",
            "TensorInfo",
            "Threshold",
        ],
        ".records",
    ),
    **dict.fromkeys(
        [
            "CutError",
            "InputError",
            "L2cafError",
            "ParityError",
            "SolverError",
            "TensorNotFoundError",
            "UnsupportedModelError",
        ],
        ".errors",
    ),
}

__all__ = [
    "Aligned",
    "Attention",
    "Baseline",
    "Bisection",
    "Breakpoint",
    "Certificate",
    "Classes",
    "Comparison",
    "Cut",
    "CutError",
    "Evaluation",
    "InputError",
    "L2cafError",
    "Model",
    "NodeError",
    "Parity",
    "ParityError",
    "Query",
    "Score",
    "SolverError",
    "TensorInfo",
    "TensorNotFoundError",
    "Threshold",
    "UnsupportedModelError",
    "attend",
    "attend_many",
    "baseline",
    "bisect",
    "breakpoints",
    "check",
    "compare",
    "cut",
    "evaluate",
    "insert_filter",
    "load",
    "run",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
