"""What a published stage says of itself, and how two of them differ."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = 1
_PACKAGES = ("ivis_spark", "numpy", "pyarrow", "annoy", "pyspark", "petastorm", "tensorflow", "tensorflow-cpu", "keras")


@dataclass(frozen=True)
class Manifest:
    """What a published stage says of itself. `spec` (configuration and inputs) decides whether a rerun may skip it."""

    stage: str
    spec: dict[str, Any]
    info: dict[str, Any]
    files: list[dict[str, Any]]
    versions: dict[str, str]
    created: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_mapping(cls, mapping: Any) -> Manifest:
        """Make a manifest of what JSON gave.

        Raises:
            ValueError: if that is none; says what is wrong.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(mapping, dict) or set(mapping) != set(names):
            raise ValueError(f"its keys are not {', '.join(names)}")
        for name, kind in (
            ("spec", dict),
            ("info", dict),
            ("versions", dict),
            ("files", list),
            ("format_version", int),
        ):
            if not isinstance(mapping[name], kind):
                raise ValueError(f"{name} is no {kind.__name__}")
        for record in mapping["files"]:
            if not isinstance(record, dict) or set(record) != {"path", "bytes", "sha256"}:
                raise ValueError("a file is not listed by path, bytes and sha256")
            parts = str(record["path"]).split("/")
            if not isinstance(record["path"], str) or ".." in parts or parts[0] == "":
                raise ValueError(f"it lists {record['path']!r}, which is not below the stage")
        if not isinstance(mapping["stage"], str) or not isinstance(mapping["created"], str):
            raise ValueError("stage and created are not both text")
        return cls(**mapping)

    @property
    def fingerprint(self) -> str:
        """Digest of the configuration and the inputs: equal for equal work, whatever the bytes of the files."""
        return fingerprint(self.spec)


def fingerprint(value: Any) -> str:
    """Return a short digest of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return `name: old -> new` for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    return [] if old == new else [f"{name}: {old!r} -> {new!r}"]


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
