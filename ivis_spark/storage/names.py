"""URIs as Spark and fsspec both understand them."""

from __future__ import annotations

import os
import posixpath


def normalise_uri(uri: str) -> str:
    """Return `uri` with a scheme, so that Spark and fsspec mean the same place: a bare path is local.

    Nothing is decoded: %20 in a path stands for these three characters, as Hadoop has it.
    """
    if uri.startswith("file:"):
        path = uri[len("file:") :]
        return "file://" + os.path.abspath(path[2:] if path.startswith("//") else path)
    if "://" in uri:
        return _without_slash(uri)
    if uri.startswith("/Volumes/") and "DATABRICKS_RUNTIME_VERSION" in os.environ:
        uri = "dbfs:" + uri
    if uri.startswith("dbfs:/"):
        return _without_slash(uri)
    return "file://" + os.path.abspath(os.path.expanduser(uri))


def _without_slash(uri: str) -> str:
    """Return a URI without slashes at its end, unless it is the root of a file system, like hdfs:///."""
    stripped = uri.rstrip("/")
    return stripped if "/" in stripped else uri


def join(uri: str, *parts: str) -> str:
    """Return the URI below `uri`."""
    return posixpath.join(uri, *parts)
