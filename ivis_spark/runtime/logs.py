"""The log of a command: readable lines on the console and in a file, or JSON, one object per line.

Every line names the process, and in JSON the run and the stage, so that lines of several commands can be told apart.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
import uuid
import warnings
from typing import Literal

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")
LOG_FILE = "ivis-spark.log"  # in a local run folder

# One command a process; a plain variable, since the thread that reports progress must see it too.
_context = {"run_id": "", "stage": ""}


def start_run(run_id: str | None = None) -> str:
    """Set, and return, the id that this run's log lines and manifests carry; a new one if none is given."""
    _context.update(run_id=run_id or uuid.uuid4().hex[:12], stage="")
    return _context["run_id"]


def run_id() -> str:
    """Return the id of this run, made at the first call if `start_run` was not called."""
    return _context["run_id"] or start_run()


def to_file(level: int, message: str, *, again: bool = False) -> None:
    """Write a line to the file of the log; to a console of JSON too unless it is an error, which ends there as text.

    Args:
        level: Of the line.
        message: The line.
        again: Whether the console has it already.
    """
    logging.getLogger(__name__).log(
        level, "%s", message, extra={"console": None if again or level >= logging.ERROR else "json"}
    )


def enter_stage(stage: str) -> None:
    """Say which stage the log lines that follow belong to."""
    _context["stage"] = stage


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, pid, run_id, stage, message, and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            **_context,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(
    *,
    level: int = logging.INFO,
    form: Format = "text",
    path: str | None = None,
    temporary: bool = False,
    all_warnings: bool = False,
) -> None:
    """Send the package's log to the console and, if given, to a file. Runs on: driver.

    Args:
        level: Lowest level shown on the console; the file gets all.
        form: Lines for people, or JSON.
        path: File to append to.
        temporary: Whether the log goes to a file of its own in the temporary folder, which `close` can remove.
        all_warnings: Whether Python's own warnings are shown.
    """
    package = logging.getLogger("ivis_spark")
    package.setLevel(logging.DEBUG)
    package.propagate = False
    close(keep=False)
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler()
    console.setLevel(level)
    console.setFormatter(
        JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    )
    console.addFilter(lambda record: getattr(record, "console", form) == form)
    package.addHandler(console)
    if temporary:
        path = _temporary_path()
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8", delay=temporary)
        plain = logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
        plain.converter, plain.default_msec_format = time.gmtime, "%s,%03dZ"
        file.setFormatter(JsonFormatter() if form == "json" else plain)
        package.addHandler(file)
    if not all_warnings:
        warnings.simplefilter("ignore")
        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # what it says of errors is in the exceptions too


def path() -> str | None:
    """Return the file that the log goes to, if it goes to one."""
    files = [item for item in logging.getLogger("ivis_spark").handlers if isinstance(item, logging.FileHandler)]
    return files[0].baseFilename if files else None


def is_temporary() -> bool:
    """Tell whether the file of the log is a temporary one."""
    return path() == _temporary_path()


def close(*, keep: bool) -> None:
    """Close the file of the log; a temporary one is removed unless it is to be kept."""
    package = logging.getLogger("ivis_spark")
    for handler in list(package.handlers):
        if isinstance(handler, logging.FileHandler):
            temporary = is_temporary()
            package.removeHandler(handler)
            handler.close()
            if temporary and not keep:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(handler.baseFilename)


def _temporary_path() -> str:
    return os.path.join(tempfile.gettempdir(), f"ivis-spark-{run_id()}.log")
