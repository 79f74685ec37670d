"""Train the toy networks, whose right answer is known, and export each to `models/toy-<name>.onnx`.

    python scripts/train_toys.py              all, in some forty minutes on one core
    python scripts/train_toys.py cnn vit      some

What comes out is committed; so is what `models/manifest.toml` says of it. Run it again only to change a network.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # scripts/ is not installed

import torch  # noqa: E402  # after the path

from scripts.toys.exporting import exported, run  # noqa: E402
from scripts.toys.training import PLANS, stacked, train  # noqa: E402

SEED, HELD_OUT_SEED, COUNT = 0, 1, 1000
ACCURACY = 0.95  # what a toy must reach on held-out scenes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PLANS)}")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--into", type=Path, default=ROOT / "models", metavar="DIR", help="default: models/")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(PLANS):
        parser.error(f"no toy is called {', '.join(sorted(unknown))}; there are {', '.join(PLANS)}")
    torch.set_num_threads(asked.threads)
    poor = []
    for name in asked.names or PLANS:
        plan = PLANS[name]
        print(f"toy-{name}:", flush=True)
        start = time.perf_counter()
        net = train(plan, SEED)
        minutes = (time.perf_counter() - start) / 60
        data = exported(plan, net, HELD_OUT_SEED)
        shown = plan.held_out(COUNT, HELD_OUT_SEED)
        accuracy = plan.score(run(data, plan, stacked(shown)), shown)
        print(f"  {accuracy:.1%} of {COUNT} held out, {minutes:.1f} minutes, {len(data) / 1000:.0f} kB", flush=True)
        if accuracy > ACCURACY:
            (asked.into / f"toy-{name}.onnx").write_bytes(data)
        else:
            poor.append(name)
    if poor:
        print(f"not written, too poor: {', '.join(poor)}", file=sys.stderr)
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
