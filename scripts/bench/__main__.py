"""What attention costs and reaches, as multiples of a plain onnxruntime forward of the same model in the same run.

`python -m scripts.bench` prints one table; --peers adds other projects' methods, --scaling draws how the cost grows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cases import MODEL, PLACES, cases, pictures
from .floor import SOLVER, floor
from .measure import measured
from .peers import PeerError, peers
from .table import Row, against_authors, against_peers, header, line
from .timing import machine

PICTURE = Path(__file__).resolve().parents[1] / "pictures" / "scaling.png"
LEGEND = """\
EfficientNet-Lite0, 224x224. A plain forward: one session with default options but for spinning, on the same feeds,
timed before and after each run; the ratio of a run is to the mean of the two, and the median over runs is given. Whole
attentions: head, tail, solve, heatmap, proof. Of 16 images at once, the ratio is to a forward of the 16, that is, an
image's part over an image's part; loss and evaluations are means. First call: a fresh model, with loading, cutting,
converting and parity, but with the libraries imported (not timed for the authors' loops, sgd and adam). What
the bare parts are: floor.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="runs of each case after the first (default: 15)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORDS",
        help="only cases of which all these words are true, as in '16 exact outputs' (may repeat)",
    )  # fmt: skip
    parser.add_argument("--no-slow", action="store_true", help="without sgd, adam and RISE")
    parser.add_argument("--no-table", action="store_true", help="without the table (for --scaling alone)")
    parser.add_argument("--peers", action="store_true", help="grad-cam and dianna too, from .venv-peers")
    parser.add_argument("--scaling", action="store_true", help=f"measure how the cost grows, draw {PICTURE.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"machine": machine(torch=version("torch"))}
    print(f"{document['machine']}.\n", flush=True)

    rows: list[Row] = []
    others: list[Row] = []
    if not options.no_table:
        print(f"{LEGEND}\n\n{header()}", flush=True)
        for row in measured(cases(options.only, slow=not options.no_slow), MODEL, pictures, options.repeats):
            rows.append(row)
            print(line(row.cells()), flush=True)
        if not options.only:
            for row in floor(MODEL, pictures(1), options.repeats):
                others.append(row)
                print(line(row.cells()), flush=True)
    if options.peers:
        try:
            for row in peers(MODEL, pictures(1), options.repeats, slow=not options.no_slow):
                others.append(row)
                print(line(row.cells()), flush=True)
        except PeerError as e:
            print(f"\n{e}", file=sys.stderr)
            return 1
    remarks = [
        *against_authors(rows),
        *against_peers(rows, [r for r in others if r.solver != SOLVER], next(iter(PLACES))),
    ]
    if remarks:
        print("\n" + "\n".join(f"- {remark}" for remark in remarks), flush=True)
    document |= {"rows": [asdict(row) for row in rows], "peers": [asdict(row) for row in others], "remarks": remarks}
    if options.scaling:
        from .scaling import draw, scaling  # matplotlib is for this alone

        document["scaling"] = scaling(max(3, options.repeats // 3))
        draw(document["scaling"], document["machine"], PICTURE)
        print(f"\n{PICTURE.name}: {PICTURE.stat().st_size / 1000:.0f} kB", flush=True)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
