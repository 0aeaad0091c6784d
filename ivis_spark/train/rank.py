"""A rank as a process of its own: `python -m ivis_spark.train.rank FILE_DESCRIPTOR`.

It reads the job, a line of JSON, from standard input, trains as the environment says, and writes lines of JSON to the
file descriptor: an empty object when it has met the other ranks, then the facts of the training, or what went wrong.
With facts it stays until its standard input closes, so that no rank goes while others still read from it. When standard
input closes before, its parent process is gone, and it ends at once: no rank outlives its Spark task. On Linux the
kernel ends it too, which also reaches a rank that is stopped or hangs where it cannot read.
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
from collections.abc import Callable, Iterable
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import IvisError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Which rank a process is; callbacks may read it.
RANK = "IVIS_SPARK_RANK"


def rank_environment(rank: int, gpus: Iterable[str], cores: int) -> dict[str, str]:
    """Return the environment variables that keep a rank to its GPU (none: to the CPU), its cores and its memory."""
    return {
        RANK: str(rank),
        "CUDA_VISIBLE_DEVICES": next(iter(gpus), "-1"),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "OMP_NUM_THREADS": str(cores),
        "TF_NUM_INTRAOP_THREADS": str(cores),
        "TF_NUM_INTEROP_THREADS": str(max(2, cores)),
        # Buffers of row groups are used again, where glibc would give them back and have the kernel clear new ones.
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # --py-files too
    }


def main(descriptor: int) -> None:
    """Train, write the result, and leave without waiting for threads that may hang."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.stdin.readline())
    finished, left = threading.Event(), threading.Event()
    threading.Thread(target=_leave_with_parent, args=(finished, left), daemon=True).start()
    _set_up_logging(order["progress_uri"] if os.environ[RANK] == "0" else None)

    def write(value: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(value).encode() + b"\n")

    result = _run(order, lambda: write({}))
    finished.set()
    write(result)
    sys.stdout.flush()
    sys.stderr.flush()
    if "facts" in result:
        left.wait()
    os._exit(0 if "facts" in result else 1)


def _run(order: dict[str, Any], met: Callable[[], None]) -> dict[str, Any]:
    """Return `facts`, or `error` and its `kind`: refused (a message for the user), lost (a peer), failed or raised."""
    from ivis_spark.train.backends import Backend, load_backend
    from ivis_spark.train.job import TrainingJob, run_job

    kind: type[Backend] = Backend
    try:
        job = TrainingJob.from_mapping(order["job"])
        kind = load_backend(order["backend"])
        backend = kind(job.config)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which TensorFlow takes for itself
        met()
        return {"facts": run_job(job, backend)}
    except IvisError as err:
        return {"kind": "refused", "error": str(err), "type": type(err).__name__}
    except Exception as err:  # noqa: BLE001 - the driver is told of whatever it was
        if kind.is_lost_peer(err):
            return {"kind": "lost", "error": f"a peer rank was lost: {_last_line(err)}"}
        traceback.print_exc()
        kind_of_error = "failed" if isinstance(err, OSError) else "raised"
        return {"kind": kind_of_error, "error": f"{type(err).__name__}: {_last_line(err)}"}


def _last_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"


def _leave_with_parent(finished: threading.Event, left: threading.Event) -> None:
    while sys.stdin.read(1):
        pass
    if not finished.is_set():
        os._exit(1)
    left.set()


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
    console.setFormatter(logging.Formatter("%(asctime)s rank " + os.environ[RANK] + ": %(message)s"))
    package.addHandler(console)
    if progress_uri is not None:
        package.addHandler(_ProgressFile(progress_uri))


if __name__ == "__main__":
    main(int(sys.argv[1]))
