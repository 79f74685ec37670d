"""Draw the README's picture: the demo, by the command line as a user would type it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "scripts" / "pictures" / "demo.png"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="l2caf-") as name:
        folder = Path(name) / "demo"
        subprocess.run(["make", "demo", f"DEMO_OUT={folder}"], cwd=ROOT, check=True)
        (row,) = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["results"]
        if not row["proof"]["ok"]:
            print("draw_readme: onnxruntime does not confirm the result.", file=sys.stderr)
            return 1
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / row["files"][0], PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: {row['class']}, loss {row['loss']:.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
