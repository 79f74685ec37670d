"""The operator table: ONNX's own node tests, each as a tail, by each converter; right, wrong or refused by name.

Float in and float out; those that the installed onnxruntime runs and gets right count. Right: every output has ONNX's
expected shape and np.allclose(rtol=1e-3, atol=1e-5, equal_nan=True). `--converter onnx2torch` or `onnx2pytorch` tries
that library alone, as it is published, without the check that the chain makes (the table's "before").
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.backend.test.case.node import collect_testcases

import l2caf_onnx as caf

Arrays = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """One node test: a model, what it is fed and what ONNX expects of it."""

    name: str
    proto: onnx.ModelProto
    feeds: Arrays
    expected: Arrays


def cases() -> Iterator[Case]:
    """Those with a float input and a float output, plain tensors throughout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        assert case.model is not None
        graph = case.model.graph
        for inputs, outputs in case.data_sets or ():
            given, wanted = ([_array(a) for a in arrays] for arrays in (inputs, outputs))
            if not any(_is_float(a) for a in given) or not any(_is_float(a) for a in wanted):
                continue
            if any(a is None for a in (*given, *wanted)):
                continue
            feeds = {i.name: a for i, a in zip(graph.input, given, strict=True) if a is not None}
            expected = {o.name: a for o, a in zip(graph.output, wanted, strict=True) if a is not None}
            yield Case(case.name, case.model, feeds, expected)
            break


def _array(value: Any) -> NDArray[Any] | None:
    """A test's datum as an array, whatever way it is stored; None for a sequence or an optional."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else None


def _is_float(array: NDArray[Any] | None) -> bool:
    return array is not None and array.dtype in (np.float16, np.float32, np.float64)


def agrees(expected: Arrays, found: Arrays) -> bool:
    """The issue's rule: same shape, close values."""
    return all(
        np.shape(found[k]) == v.shape
        and np.allclose(
            np.asarray(found[k]).astype(np.float64) if v.dtype.kind != "O" else found[k],
            v.astype(np.float64) if v.dtype.kind != "O" else v,
            rtol=1e-3, atol=1e-5, equal_nan=True,
        )
        for k, v in expected.items()
    )  # fmt: skip


def by_onnxruntime(case: Case) -> str:
    """Whether the installed onnxruntime runs the case, and agrees with ONNX."""
    try:
        found = caf.run(caf.load(case.proto), case.feeds)
        return "right" if agrees(case.expected, found) else "differs"
    except caf.L2cafError:
        return "cannot run"


def by_tail(case: Case) -> tuple[str, str]:
    """(right, wrong or refused; which converter, or the reason)."""
    try:
        tail = caf.to_torch(caf.load(case.proto), case.feeds)
    except caf.L2cafError as e:
        return "refused", str(e).replace("\n", " ")[:300]
    with torch.no_grad():
        found = tail({k: torch.from_numpy(np.array(v)) for k, v in case.feeds.items() if k in tail.reads})
    arrays = {k: v.numpy() for k, v in found.items()}
    return ("right" if agrees(case.expected, arrays) else "wrong"), tail.converter


def by_library(case: Case, library: str) -> tuple[str, str]:
    """What becomes of the case by a library alone, as published: none of our operators, no check."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)  # converters change what they are given
    try:
        if library == "onnx2torch":
            import onnx2torch

            module = onnx2torch.convert(proto)
        else:
            from onnx2pytorch import ConvertModel

            module = ConvertModel(proto)
        with torch.no_grad():
            given = [torch.from_numpy(np.array(case.feeds[i.name])) for i in case.proto.graph.input]
            result = module(*given)
        values = list(result) if isinstance(result, (list, tuple)) else [result]
        found = {k: v.numpy() for k, v in zip(case.expected, values, strict=True)}
    except Exception as error:  # noqa: BLE001  # libraries raise anything
        return "refused", f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return ("right" if agrees(case.expected, found) else "wrong"), library


def main() -> None:
    """Print the table; with --json also every case's verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the case's name")
    parser.add_argument("--json", type=Path, help="write every verdict there")
    parser.add_argument("--converter", choices=("onnx2torch", "onnx2pytorch"), help="by that library alone, unchecked")
    parser.add_argument("--list", default="refused,wrong", help="verdicts to list by name")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    verdicts: dict[str, tuple[str, str, str]] = {}
    for case in cases():
        if asked.only not in case.name:
            continue
        reference = by_onnxruntime(case)
        found = by_library(case, asked.converter) if asked.converter else by_tail(case)
        verdicts[case.name] = (reference, *found)
    if asked.json:
        asked.json.write_text(json.dumps(verdicts, indent=0))
    for name, (reference, verdict, why) in verdicts.items():
        if verdict in asked.list.split(",") and reference == "right":
            print(f"{verdict:8} {name}: {why}")
    for reference in ("right", "differs", "cannot run"):
        part = [v for v in verdicts.values() if v[0] == reference]
        counts = Counter(v[1] for v in part)
        print(f"onnxruntime {reference}: {len(part)} cases: " + ", ".join(f"{k} {n}" for k, n in counts.most_common()))
    print("converters:", dict(Counter(v[2] for v in verdicts.values() if v[1] != "refused" and v[0] == "right")))
    sys.exit(any(v[1] == "wrong" and v[0] == "right" for v in verdicts.values()))


if __name__ == "__main__":
    main()
