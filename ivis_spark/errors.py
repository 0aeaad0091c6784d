"""Errors raised at the boundary, before work is lost.

Every message says what was given, what is allowed and what to do. `exit_code` is what the command line returns.
Messages are written with command-line options; in Python they show arguments and settings instead.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator

# What reading torn or hostile JSON, npz and zip files raises, beside errors of ours: too deep nesting and encrypted
# members are RuntimeErrors, sizes that no memory holds a MemoryError.
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


# Options of the command line, and what they are in Python.
_IN_PYTHON: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"ivis-spark (\w+)(?: --(?:input|output) (?:'[^']*'|[^\s,;']+))*", r"Pipeline(...).\1()"),
    (r"\(\) --overwrite", "() with overwrite=True"),
    (r"--(format|id-col|label-col|features?-cols?)\b", lambda found: "data." + found.group(1).replace("-", "_")),
    (r"--neighbours-table\b", "neighbours.table"),
    (r"--set (?=\w+\.\w)", ""),
    (r"--set ('\w+\.\w[^']*'(?:\"'\"'[^']*')*)", lambda found: shlex.split(found.group(1))[0]),
    (r"--overwrite\b", "overwrite=True"),
    (r"--input\b( TABLE)?", "input_uri"),
    (r"--(mode|name) (\w+)", r"\1='\2'"),
    (r"--(output|target|name|mode|master)\b", r"\1"),
    (r"--spark-conf (?=\w)", "the setting "),
)
_language = {"python": False}


def speak_python(on: bool) -> None:
    """Set whether messages name Python arguments and settings, or command-line options."""
    _language["python"] = on


def in_python(message: str) -> str:
    """Return a message with Python arguments and settings in the place of command-line options."""
    for options, python in _IN_PYTHON:
        message = re.sub(options, python, message)
    return message


class IvisError(Exception):
    """Base of all errors this package raises on purpose.

    Example:
        >>> from ivis_spark import IvisError, load_config
        >>> try:
        ...     load_config("no_such_file.yaml")
        ... except IvisError as error:
        ...     print(error, error.exit_code)
        configuration file 'no_such_file.yaml' cannot be read: No such file or directory 2
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, with Python arguments or command-line options."""
        return in_python(super().__str__()) if _language["python"] else super().__str__()


class ConfigError(IvisError, ValueError):
    """A setting or argument is unknown, of the wrong type or out of range."""

    exit_code = 2


class InputError(IvisError, ValueError):
    """The user's data cannot be used: a column is missing, a value is NaN, ids repeat, ..."""

    exit_code = 2


class ExistsError(InputError, FileExistsError):
    """A file or folder already exists where a result is to be written."""


class ArtifactError(IvisError):
    """A published stage is missing, was made with other settings, or a file of it is corrupt or modified."""

    exit_code = 2


class BusyError(ArtifactError):
    """Another process is writing the same folder, or replaced what was being read: the same command works later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class NotFittedError(IvisError, ValueError, AttributeError):
    """A model was used before it was trained or loaded."""

    exit_code = 2


class DependencyError(IvisError, ImportError):
    """An optional package or program is missing or unusable; the message says how to fix it."""

    exit_code = 2


class TrainingError(IvisError, RuntimeError):
    """Training cannot continue: the loss is not finite, or a rank was lost."""


_reword: contextvars.ContextVar[Callable[[str], str]] = contextvars.ContextVar("_reword")


@contextlib.contextmanager
def reworded(reword: Callable[[str], str]) -> Iterator[None]:
    """Pass the messages of errors, and of `advice`, through a function, where users know settings by other names."""
    token = _reword.set(reword)
    try:
        yield
    except IvisError as err:
        if err.args:
            err.args = (reword(str(err.args[0])), *err.args[1:])
        raise
    finally:
        _reword.reset(token)


def advice(message: str) -> str:
    """Return a log message that names settings as errors do: as options, Python arguments or Params."""
    message = in_python(message) if _language["python"] else message
    return _reword.get(str)(message)


def remote_error(kind: str, message: str) -> IvisError:
    """Return an error raised by another process, as the class of that name if it is defined here."""
    error_class = globals().get(kind)
    return (error_class if isinstance(error_class, type) and issubclass(error_class, IvisError) else IvisError)(message)


def raised_remotely(account: str) -> IvisError | None:
    """Return the error of this module that another process raised, parsed from a library's message; None if none."""
    names = "|".join(name for name, item in globals().items() if isinstance(item, type) and issubclass(item, IvisError))
    match = re.search(rf"(?<![\w.])(?:ivis_spark\.errors\.)?({names}): (.+)", account)
    return None if match is None else remote_error(match.group(1), match.group(2).strip())
