"""The cause of a Spark error: the error that a task raised on purpose, else the root cause."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ivis_spark.errors import InputError, IvisError, raised_remotely

_DISK_FULL = "No space left on device"
# Up to the words that follow a file's name in Spark's messages; the name itself may hold spaces.
_FILE = re.compile(
    r"\b(?:file|hdfs|s3a?|gs|abfss?|wasbs?|dbfs|viewfs):/.+?(?=[.,;:]? (?:is not|Column|Details|Please)|[.,;:]?$)", re.M
)
# What Spark and its readers say when a file of a table is not what its name, or the first file, says.
_UNREADABLE = (
    *("Parquet column cannot be converted", "is not a Parquet file", "CANNOT_READ_FILE_FOOTER", "FAILED_READ_FILE"),
    *("Encountered error while reading file", "Malformed ORC file", "FileNotFoundException"),
)
_MOST_CHARACTERS = 500


@dataclass(frozen=True)
class Cause:
    """The deepest cause of an error that came through Java: one line, without any stack, and the file it is about."""

    text: str
    file: str | None = None

    def __str__(self) -> str:
        return self.text if self.file is None or self.file in self.text else f"{self.text} (reading {self.file})"


def deepest_cause(err: BaseException) -> Cause:
    """Return the deepest cause that has a message. Needs no JVM that still runs. Runs on: driver.

    Args:
        err: Any exception; one that is not Spark's is its own cause.
    """
    account = account_of(err)
    if "\tat " not in account:
        lines = [line.strip() for line in account.splitlines() if line.strip()]
        return Cause(f"{type(err).__name__}: {lines[0] if lines else 'no message'}"[:_MOST_CHARACTERS])
    # A cause begins behind "Caused by: ", and ends where its stack begins.
    heads = [re.split(r"\n\s*(?:at |\.\.\. \d+ more)", part)[0] for part in account.split("Caused by: ")]
    texts = [text for text in map(_message, heads) if text]
    files = [name for head in heads for name in _FILE.findall(head)]
    return Cause(texts[-1] if texts else f"{type(err).__name__}: no message", files[-1] if files else None)


def account_of(err: BaseException) -> str:
    """Return Spark's full text of an error: the messages, and Java's stacks."""
    return getattr(err, "_stackTrace", None) or str(err)


@contextlib.contextmanager
def task_errors(output: str = "--output") -> Iterator[None]:
    """Raise on the driver what a task raised on purpose, and what users can put right, not Spark's account of it.

    Args:
        output: What is written to, as the user named it.

    Raises:
        IvisError: of the class and with the message that the task gave; or if a disk is full.
        InputError: if a file of the table cannot be read as what it should be.
    """
    try:
        yield
    except IvisError:
        raise
    except Exception as err:
        account = account_of(err)
        ours = raised_remotely(account)
        if ours is not None:
            raise ours from err
        if _DISK_FULL in account:
            raise IvisError(
                f"{_DISK_FULL}, in a task: free space on the disks of {output} and spark.local.dir, then run the same "
                f"command again; finished stages and units are kept"
            ) from err
        if "\tat " in account and any(text in account for text in _UNREADABLE):
            raise InputError(
                f"the table cannot be read: {deepest_cause(err)}. All its files must be whole and of one "
                "format, with the same types of columns"
            ) from err
        raise


def _message(head: str) -> str:
    """Return the class and message of a cause in a line; empty if it has no message."""
    if "Traceback (most recent call last)" in head:  # a Python worker's: its last line says what it is
        return [line.strip() for line in head.splitlines() if line.strip()][-1][:_MOST_CHARACTERS]
    head = re.sub(r"^\s*An error occurred while calling [^\n]*\n: ", "", head).strip()
    head = re.sub(r"^.*most recent failure: Lost task [^\n]*? executor [^)\n]*\): ", "", head, flags=re.DOTALL)
    name, colon, message = head.partition(":")
    message = (message.strip().splitlines() or [""])[0].removesuffix(" Details:")  # further lines are plans of queries
    if not colon or message in ("", "null"):
        return ""
    return f"{name.rpartition('.')[2]}: {message}"[:_MOST_CHARACTERS]
