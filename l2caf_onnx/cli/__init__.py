"""The command line: one file a command, each parse -> one API call -> print -> exit code.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from l2caf_onnx.errors import L2cafError


def main() -> NoReturn:
    """Run the command line: exit 0 when all is well, 1 when a check failed, 2 for what the user can mend."""
    from .app import app

    try:
        app()
    except L2cafError as error:
        for line in ("Error: " + error.what, error.where, error.how):
            if line:
                sys.stderr.write(f"{line}\n")  # typer would wrap it at 80 columns
        sys.exit(2)
    sys.exit(0)
