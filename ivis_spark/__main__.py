"""`ivis-spark`, and `python -m ivis_spark`: the command line, guarded while its modules are still being imported."""

from __future__ import annotations

import sys


def start() -> int:
    """Run a command and return its exit code; Ctrl-C is one line from the first moment on."""
    try:
        from ivis_spark.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("ivis-spark: interrupted; nothing was begun\n")
        return 130


if __name__ == "__main__":
    sys.exit(start())
