"""Every model at breakpoints spread over its depth: does head plus tail equal the model, and is the attention proved?

Prints a line for each (model, breakpoint): what made the torch tail, or the solver blackbox, or the refusal; how well
it agrees with onnxruntime; the layout. Then sums. Each model runs in a process of its own. The solvers stop early
(--evaluations), since what is asked is agreement, not the last digit of a loss.

    python scripts/zoo.py                     all models in models/ and models/zoo/
    python scripts/zoo.py 'crnn*' --stops 4   some, at four breakpoints each
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import l2caf_onnx as caf
from l2caf_onnx import runtime, solvers
from l2caf_onnx.graph.nodes import stored_tensors
from l2caf_onnx.inputs import find_samples

MODELS = Path(__file__).resolve().parents[1] / "models"
Arrays = dict[str, NDArray[Any]]

# Model (a glob) -> sizes of its open dimensions, in order; the first is the batch.
SIZES: dict[str, tuple[int, ...]] = {
    "rapidocr-det*": (1, 160, 160),
    "rapidocr-rec*": (1, 48, 160),
    "rapidocr-cls*": (1, 48, 192),
    "styletransfer-multistyle26": (64, 64),
    "silero*": (1, 512, 1),
}
PROPERTIES = ("is dead", "does not respond", "no path", "one spatial cell", "nothing to choose", "of floating type")


def feeds_of(model: caf.Model, name: str) -> Arrays:
    """The photo of a cat where the model takes a picture that fits it, else seeded noise of the model's sizes."""
    rng = np.random.default_rng(0)
    open_sizes = next((s for glob, s in SIZES.items() if fnmatch(name, glob)), (1,))
    feeds: Arrays = {}
    for info in model.inputs:
        rest = list(open_sizes)
        shape = [d if isinstance(d, int) else (rest.pop(0) if rest else 1) for d in info.shape or ()]
        if info.dtype.startswith(("int", "uint")):
            text = rng.integers(0, 200, shape)  # bytes or tokens; a lone number is a sampling rate
            feeds[info.name] = (text if text.size > 1 else np.full(shape, 16000)).astype(info.dtype)
        elif info.dtype == "bool":
            feeds[info.name] = np.ones(shape, bool)
        else:
            feeds[info.name] = rng.standard_normal(shape).astype(info.dtype)
    first = model.inputs[0]
    if first.dtype == "float32" and len(first.shape or ()) == 4 and feeds[first.name].shape[1] == 3:
        photo = str(MODELS / "photos" / "chelsea.png")
        layout = {first.name: "NCHW"}
        try:
            (sample,) = find_samples([photo], model.inputs[:1], layout, "imagenet")
            read = sample.read().feeds
            if read[first.name].shape == feeds[first.name].shape:
                feeds.update(read)
        except caf.L2cafError:
            pass
    return feeds


def head_then_tail(model: caf.Model, at: str, feeds: Arrays) -> str:
    """How head, then tail differs from the model; "" where it does not."""
    cut = caf.cut(model, at)
    whole = caf.run(model, feeds)
    given = caf.run(cut.head, {i.name: feeds[i.name] for i in cut.head.inputs})
    fed = {i.name: given[i.name] if i.name in given else feeds[i.name] for i in cut.tail.inputs}
    half = any(a.dtype == np.float16 for a in (*given.values(), *whole.values())) or "fp16" in str(model.name)
    for name, value in caf.run(cut.tail, fed).items():
        if name not in whole:
            continue
        if half and value.dtype.kind == "f":
            y = whole[name].astype(np.float64)
            if np.abs(y - value).max() > 5e-3 * np.abs(y).max():
                return f"head+tail differ at {name!r}"
        elif not np.array_equal(value, whole[name], equal_nan=value.dtype.kind == "f"):
            return f"head+tail differ at {name!r}"
    return ""


def memory_of(tail: Any) -> float:
    """Bytes of the torch form's tensors."""
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in (*tail.parameters(), *tail.buffers())}
    arrays = [a for m in tail.modules() for a in getattr(m, "arrays", {}).values()]
    return float(sum(tensors.values()) + sum(a.nbytes for a in arrays))


def explained(model: caf.Model, at: str, feeds: Arrays) -> dict[str, Any]:
    """One breakpoint: its row."""
    start = time.perf_counter()
    row: dict[str, Any] = {"at": at}
    try:
        row["split"] = head_then_tail(model, at, feeds)
        found = caf.attend(model, feeds, at=at)
    except caf.L2cafError as error:
        kind = type(error).__name__
        property_ = kind in ("SolverError", "CutError") or any(p in str(error) for p in PROPERTIES)
        return {**row, "verdict": "property" if property_ else "refused", "why": f"{kind}: {error}"}
    except TimeoutError:
        return {**row, "verdict": "slow", "why": "the time limit"}
    wrong = row["split"] or ("" if found.proof.ok and (found.parity is None or found.parity.ok) else "proof")
    return {
        **row,
        "verdict": "wrong" if wrong else ("blackbox" if found.parity is None else "gradient"),
        "why": wrong,
        "converter": found.converter or "blackbox",
        "parity": found.parity.max_rel if found.parity is not None else None,
        "slope": found.parity.slope_rel if found.parity is not None else None,
        "proof": found.proof.max_rel,
        "layout": found.layout + (f"[{found.grid}]" if found.grid else ""),
        "notes": list(found.notes) if found.parity is None else [],
        "seconds": time.perf_counter() - start,
    }


def one_model(path: Path, stops: int, evaluations: int, limit: int) -> None:
    """Print one row a breakpoint, as JSON lines."""
    import torch

    solvers.SOLVERS["lbfgs"] = solvers.Lbfgs(max_evaluations=evaluations)
    torch.set_num_threads(1)
    model = caf.load(path)
    feeds = feeds_of(model, path.stem)
    every = caf.breakpoints(model)
    chosen = [every[int(k)] for k in np.unique(np.linspace(0, len(every) - 1, stops).round())] if every else []
    print(json.dumps({"model": path.stem, "breakpoints": len(every)}), flush=True)

    def ring(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    for stop in chosen:
        signal.alarm(limit)
        try:
            row = explained(model, stop.name, feeds)
        except Exception as error:  # noqa: BLE001  # a traceback is the worst that can be: it is a row
            row = {"at": stop.name, "verdict": "crash", "why": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        print(json.dumps({**row, "shape": [str(s) for s in stop.shape]}), flush=True)
        model = caf.load(path)  # let go of what the last breakpoint kept
    if chosen:
        print(json.dumps({"cost": _cost(model, chosen[0].name, feeds)}), flush=True)


def _cost(model: caf.Model, at: str, feeds: Arrays) -> dict[str, float] | None:
    """Conversion at the first breakpoint: time in forwards of the model, memory in weights of the tail."""
    cut = caf.cut(model, at)
    session = runtime.session(model, level="all")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    given = caf.run(cut.head, {i.name: feeds[i.name] for i in cut.head.inputs})
    fed = {i.name: given[i.name] if i.name in given else feeds[i.name] for i in cut.tail.inputs}
    start = time.perf_counter()
    try:
        tail = caf.to_torch(cut.tail, fed)
    except caf.L2cafError:
        return None
    spent = time.perf_counter() - start
    weights = sum(_bytes(t) for _, t in stored_tensors(cut.tail.proto.graph))  # Paddle's lie in Constant nodes
    return {"forwards": spent / min(times), "memory": memory_of(tail) / max(weights, 1), "megabytes": weights / 1e6}


def _bytes(tensor: Any) -> int:
    import onnx

    return int(np.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="globs of model names; default: all")
    parser.add_argument("--stops", type=int, default=10, help="breakpoints a model")
    parser.add_argument("--evaluations", type=int, default=12, help="of the tail, with gradient, at most")
    parser.add_argument("--limit", type=int, default=300, help="seconds a breakpoint")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        one_model(asked.child, asked.stops, asked.evaluations, asked.limit)
        return
    paths = sorted(p for folder in (MODELS, MODELS / "zoo") for p in folder.glob("*.onnx"))
    paths = [p for p in paths if not asked.names or any(fnmatch(p.stem, n) for n in asked.names)]
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += _printed(path, asked)
        if asked.json:
            asked.json.write_text(json.dumps(rows))
    counts = Counter(r["verdict"] for r in rows)
    total = sum(counts.values())
    reached = counts["gradient"] + counts["blackbox"] + counts["property"]
    print(f"\n{total} pairs of {len(paths)} models: {dict(counts)}")
    if total:
        by_gradient = counts["gradient"] / max(total - counts["property"], 1)
        print(f"explained, or refused for a property of the model: {100 * reached / total:.1f}%")
        print(f"by gradient: {100 * by_gradient:.1f}% of those that have an answer")
    print("converters:", dict(Counter(r["converter"] for r in rows if "converter" in r)))


def _printed(path: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--child", str(path), "--stops", str(asked.stops)]
    command += ["--evaluations", str(asked.evaluations), "--limit", str(asked.limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = []
    for line in done.stdout.splitlines():
        row = json.loads(line)
        if "breakpoints" in row:
            print(f"\n{row['model']}: {row['breakpoints']} breakpoints", flush=True)
        elif "cost" in row:
            if row["cost"]:
                c = row["cost"]
                print(
                    f"  conversion of the longest tail: {c['forwards']:.0f} forwards; memory {c['memory']:.2f} of its "
                    f"{c['megabytes']:.1f} MB of weights"
                )
        else:
            rows.append({**row, "model": path.stem})
            agreed = (
                f"{row['converter']} parity {row['parity'] or 0:.1e} slope {row['slope'] or 0:.1e} "
                f"proof {row['proof']:.1e} {row['layout']} {row['seconds']:.1f} s"
                if "converter" in row
                else ""
            )
            print(f"  {row['verdict']:9s} {row['at'][:60]:60s} {agreed} {row['why'][:300]}", flush=True)
            for note in row.get("notes", []):
                print(f"            {note[:300]}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"\n{path.stem}: {last}", flush=True)
        rows.append({"model": path.stem, "at": "", "verdict": "crash", "why": last})
    return rows


if __name__ == "__main__":
    main()
