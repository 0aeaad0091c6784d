"""`ivis-spark`, and `python -m ivis_spark`: the command line, guarded while its modules are still being imported."""

from __future__ import annotations

import gc
import sys


def start() -> int:
    """Run a command and return its exit code; Ctrl-C prints one line, even during imports."""
    try:
        from ivis_spark.cli import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("ivis-spark: interrupted before anything was started\n")
        return 130
    finally:
        gc.freeze()  # what is left ends with the process; to search TensorFlow's for cycles takes a second


if __name__ == "__main__":
    sys.exit(start())
