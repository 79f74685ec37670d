"""Do the regression checks find faults, and only faults? Plants them one at a time, beside changes that are harmless.

    python scripts/fault_bench.py                              all, some forty minutes on two cores
    python scripts/fault_bench.py --model toy-cnn --only noised,int8
    python scripts/fault_bench.py --table                      the tables of what has been run

Every case is a line in a file (default: models/zoo/fault-bench.jsonl); cases that are there are not run again, so a run
may be interrupted, or cut into pieces.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # scripts/ is not installed

from scripts.faults import rows, table  # noqa: E402  # after the path
from scripts.faults.judging import Judge  # noqa: E402
from scripts.faults.rows import Row  # noqa: E402
from scripts.faults.subjects import COUNT, NAMES, WITH_SWISH, subject  # noqa: E402

RECORD = ROOT / "models" / "zoo" / "fault-bench.jsonl"
BISECTED = 32  # inputs, those whose outputs differ most


def line(row: Row) -> str:
    """What is printed of a case."""
    size = "" if row.effect is None else f"error {row.effect.error:.1e}, answers {row.effect.changed:.1%}, "
    verdict = row.error or ("alarm" if row.alarm else "none")
    named = "" if row.named is None else f", bisect {'right' if row.named[1] else 'WRONG'}: {row.named[0]}"
    spent = f"{row.seconds[0]:.1f} + {row.seconds[1]:.1f} s"
    return f"{row.model} {row.kind} {row.name}: {size}{verdict} ({row.change}){named}; {spent}"


def run(names: Sequence[str], only: Sequence[str], kinds: Sequence[str], count: int, bisected: int, path: Path) -> None:
    """Run the cases that are not in the file yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row.key for row in rows.read(path)}
    for name in names:
        judge = Judge(subject(name, count), bisected)
        for kind, cases in (("harmless", judge.harmless), ("fault", judge.faults)):
            for row, case in cases() if kind in kinds else ():
                if row.key not in done and (not only or any(word in row.name for word in only)):
                    filled = judge.judged(row, case)
                    rows.append(path, [filled])
                    print(line(filled), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="NAME", help=f"default: {', '.join((*NAMES, WITH_SWISH))}")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose names have one of these, by commas")
    parser.add_argument("--kind", action="append", choices=("fault", "harmless"), help="default: both")
    parser.add_argument("--count", type=int, default=COUNT, help=f"inputs of each model (default: {COUNT})")
    parser.add_argument("--bisect-count", type=int, default=BISECTED, help=f"inputs that bisect sees ({BISECTED})")
    parser.add_argument("--file", type=Path, default=RECORD, help=f"default: {RECORD.relative_to(ROOT)}")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # converters and quantisers speak of their own future
    start = time.perf_counter()
    if not options.table:
        only = [word.strip() for word in options.only.split(",") if word.strip()]
        kinds = options.kind or ("harmless", "fault")
        run(options.model or (*NAMES, WITH_SWISH), only, kinds, options.count, options.bisect_count, options.file)
        print(f"\n{(time.perf_counter() - start) / 60:.0f} minutes.")
    print("\n".join(table.report([r for r in rows.read(options.file) if r.inputs == options.count])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
