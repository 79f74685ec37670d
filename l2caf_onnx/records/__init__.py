"""Frozen results: what the tool found, how, and the proof; and their files. Nothing here computes."""

from .files import SCHEMA_VERSION, load_manifest, plain, save_arrays, save_manifest, write_atomic
from .regression import (
    Aligned,
    Baseline,
    Bisection,
    Change,
    Classes,
    Comparison,
    NodeError,
    Pair,
    Score,
    Subject,
    Threshold,
)
from .results import Attention, Breakpoint, Certificate, Parity, Shape, TensorInfo

__all__ = [
    "SCHEMA_VERSION",
    "Aligned",
    "Attention",
    "Baseline",
    "Bisection",
    "Breakpoint",
    "Certificate",
    "Change",
    "Classes",
    "Comparison",
    "NodeError",
    "Pair",
    "Parity",
    "Score",
    "Shape",
    "Subject",
    "TensorInfo",
    "Threshold",
    "load_manifest",
    "plain",
    "save_arrays",
    "save_manifest",
    "write_atomic",
]
