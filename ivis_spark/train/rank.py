"""A rank as a process of its own: `python -m ivis_spark.train.rank RESULT_FILE`.

It reads the job, a line of JSON, from standard input, trains as the environment says, and writes a line of JSON to the
result file: the facts of the training, or what went wrong. When standard input closes, whoever started it is gone,
and it ends at once: no rank outlives its Spark task. On Linux the kernel ends it too, which also reaches a rank that is
stopped or hangs where it cannot read.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import traceback
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import IvisError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(result_path: str) -> None:
    """Train, write the result, and leave without waiting for threads that may hang."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _set_up_logging(order["progress_uri"] if os.environ.get("HOROVOD_RANK", "0") == "0" else None)
    result = _run(order)
    with open(result_path, "w", encoding="utf-8") as file:
        json.dump(result, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if "facts" in result else 1)


def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Return `facts`, or `error` and its `kind`: refused (a message for the user), lost (a peer), failed or raised."""
    from ivis_spark.train.backends.horovod import HorovodBackend, is_lost_peer
    from ivis_spark.train.job import TrainingJob, run_job

    try:
        job = TrainingJob.from_mapping(order["job"])
        return {"facts": run_job(job, HorovodBackend(job.config.gradient_compression))}
    except IvisError as err:
        return {"kind": "refused", "error": str(err), "type": type(err).__name__}
    except Exception as err:  # noqa: BLE001 - the driver is told of whatever it was
        if is_lost_peer(err):
            return {"kind": "lost", "error": f"a rank it worked with was lost: {_last_line(err)}"}
        traceback.print_exc()
        kind = "failed" if isinstance(err, OSError) else "raised"
        return {"kind": kind, "error": f"{type(err).__name__}: {_last_line(err)}"}


def _last_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"


def _leave_with_parent() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(1)


class _ProgressFile(logging.Handler):
    """Keeps the last messages in a file that the driver reads, since a rank's own log stays on its machine."""

    def __init__(self, uri: str) -> None:
        super().__init__(logging.INFO)
        self._uri, self._lines = uri, []  # type: tuple[str, list[str]]

    def emit(self, record: logging.LogRecord) -> None:
        """Rewrite the file; training does not fail for want of it."""
        self._lines.append(record.getMessage())
        try:
            storage.write_json(self._uri, {"count": len(self._lines), "last": self._lines[-20:]})
        except OSError:
            self.handleError(record)


def _set_up_logging(progress_uri: str | None) -> None:
    package = logging.getLogger("ivis_spark")
    package.setLevel(logging.INFO)
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(asctime)s rank " + os.environ.get("HOROVOD_RANK", "0") + ": %(message)s"))
    package.addHandler(console)
    if progress_uri is not None:
        package.addHandler(_ProgressFile(progress_uri))


if __name__ == "__main__":
    main(sys.argv[1])
