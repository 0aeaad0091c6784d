"""Where a URI points to, however it is spelled: outputs must keep apart from inputs."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Mapping

from ivis_spark.errors import InputError
from ivis_spark.storage.files import local_path
from ivis_spark.storage.names import normalise_uri

_SAME_SCHEME = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss", "wasb": "abfss", "wasbs": "abfss"}
_PATTERN = re.compile(r"[*?\[{]")


class Place:
    """A file, folder or pattern by scheme, host and path; links, `..` and other spellings of one place are resolved.

    Args:
        uri: Its URI.
        pattern: Whether *, ?, [...] and {...} in it stand for other characters.
    """

    def __init__(self, uri: str, *, pattern: bool = False) -> None:
        uri = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:", lambda scheme: scheme[0].lower(), uri)
        uri = normalise_uri(re.sub(r"^file://localhost/", "file:///", uri))
        scheme, _, rest = uri.partition("://")
        local = local_path(uri) if uri.startswith(("file:", "dbfs:")) else None
        if local is not None:
            self.scheme, self.host, self.path = "file", "", os.path.realpath(local)
        else:
            host, _, path = rest.partition("/")
            self.scheme = _SAME_SCHEME.get(scheme, scheme)
            self.host = (host if "@" in host else host.partition(":")[0]).lower()
            self.path = posixpath.normpath(re.sub("/+", "/", f"/{path}"))
        fixed = _PATTERN.split(self.path, maxsplit=1)[0]
        self.is_pattern = pattern and fixed != self.path
        self.folder = posixpath.dirname(fixed) if self.is_pattern else self.path

    def holds(self, other: Place) -> bool:
        """Tell whether the other place is this one or lies below it."""
        if not self._shares_storage(other):
            return False
        parts = other.path.split("/")
        above = ("/".join(parts[:n]) or "/" for n in range(1, len(parts) + 1))
        if self.is_pattern:
            return any(fnmatch.fnmatchcase(folder, self.path) for folder in above)
        return self.path in above

    def is_above(self, other: Place) -> bool:
        """Tell whether all that the other place names lies in this one."""
        folder = other.folder.rstrip("/") + "/"
        return self._shares_storage(other) and folder.startswith(self.path.rstrip("/") + "/")

    def _shares_storage(self, other: Place) -> bool:
        """Tell whether schemes and hosts are the same; `hdfs:///` is some default host, so it may be any."""
        return self.scheme == other.scheme and (self.host == other.host or not self.host or not other.host)


def keep_apart(
    outputs: Mapping[str, str | None],
    inputs: Mapping[str, str | None],
    *,
    scratch: Mapping[str, str | None] = {},
    patterns: bool = False,
) -> None:
    """Refuse an output that is, holds or lies in an input.

    Args:
        outputs: URIs of what will be written, by the names that the user knows them by. None is left out.
        inputs: URIs of what will be read.
        patterns: Whether they may be patterns, which stand for every place that they match.
        scratch: Folders for temporary files, which may hold inputs but not lie in one.

    Raises:
        InputError: naming both.
    """
    read = {name: Place(uri, pattern=patterns) for name, uri in inputs.items() if uri is not None}
    for output, written in [*outputs.items(), *scratch.items()]:
        place = None if written is None else Place(written)
        for name, source in read.items():
            if place is None:
                continue
            how = "lies in" if source.holds(place) else "holds" if place.is_above(source) and output in outputs else ""
            if how:
                raise InputError(
                    f"{output} {written} {'is' if place.path == source.path else how} {name} {inputs[name]}, which is "
                    f"read: writing there would modify it. Choose another place"
                )
