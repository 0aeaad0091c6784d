"""Where a URI points to, however it is spelled: outputs must keep apart from inputs."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from ivis_spark.errors import InputError
from ivis_spark.storage.files import local_path
from ivis_spark.storage.names import normalise_uri

_SAME_SCHEME = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss", "wasb": "abfss", "wasbs": "abfss"}
_PATTERN = re.compile(r"[*?\[{]")


class Place:
    """A file or folder by scheme, host and path; links, `..` and other spellings of one place are resolved."""

    def __init__(self, uri: str) -> None:
        uri = re.sub(r"^([A-Za-z][\w+.-]*):", lambda match: match[0].lower(), uri)
        uri = normalise_uri(re.sub(r"^file://localhost/", "file:///", uri))
        if uri.startswith(("file:", "dbfs:")):
            path = local_path(uri)
            self.scheme, self.host, self.path = "file", "", os.path.realpath(str(path))
            return
        scheme, _, rest = uri.partition("://")
        host, _, path = rest.partition("/")
        self.scheme = _SAME_SCHEME.get(scheme, scheme)
        self.host = (urlsplit(f"//{host}").hostname or "") if "@" not in host else host.lower()
        self.path = posixpath.normpath("/" + path).replace("//", "/")

    def holds(self, other: Place) -> bool:
        """Tell whether the other place is this one or lies below it. A scheme's default host may be any."""
        if self.scheme != other.scheme or (self.host != other.host and self.host and other.host):
            return False
        return self.path == other.path or other.path.startswith(self.path.rstrip("/") + "/")

    def is_below_pattern(self, pattern: str) -> bool:
        """Tell whether this place, or a folder that it lies in, is among those that a pattern names."""
        parts = self.path.split("/")
        return any(fnmatch.fnmatchcase("/".join(parts[:n]), pattern) for n in range(2, len(parts) + 1))


def keep_apart(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse an output that is, holds or lies in an input.

    Args:
        outputs: URIs of what will be written, by the names that the user knows them by. None is left out.
        inputs: URIs of what will be read; patterns stand for every place that they match.

    Raises:
        InputError: naming both.
    """
    for output, written in outputs.items():
        for name, read in inputs.items():
            if written is None or read is None:
                continue
            place, text = Place(written), Place(read)
            literal = _PATTERN.split(text.path, maxsplit=1)[0]
            is_pattern = literal != text.path and not (text.scheme == "file" and os.path.lexists(text.path))
            if is_pattern:
                clash, pattern = place.is_below_pattern(text.path), text.path
                text.path = posixpath.dirname(literal)
                clash = place.holds(text) or (clash and text.host == place.host and text.scheme == place.scheme)
                text.path = pattern
            else:
                clash = place.holds(text) or text.holds(place)
            if clash:
                how = "is" if place.path == text.path else "holds" if place.holds(text) else "lies in"
                raise InputError(
                    f"{output} {written} {how} the input, {name} {read}: writing there would alter what is read. "
                    "Choose another place for it"
                )
