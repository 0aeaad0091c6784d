"""The manifest of a published stage, and the differences between two."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivis_spark.config.checks import without_secrets

FORMAT_VERSION = 2
_CONTENT = ("files", "bytes", "digest")  # of a table, by which `changes` sees that it changed
_PACKAGES = ("ivis_spark", "numpy", "pyarrow", "annoy", "pyspark", "petastorm", "tensorflow", "tensorflow-cpu", "keras")


@dataclass(frozen=True)
class Defaults:
    """Default settings by section of the configuration: `plain`, and with what the preset sets in their place."""

    plain: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)

    def others(self, spec: Mapping[str, Any]) -> list[str]:
        """Return the settings `section.key` of a specification that have another value than the plain default."""
        return [
            f"{name}.{key}"
            for name, settings in spec.get("config", {}).items()
            if isinstance(settings, Mapping)
            for key, value in settings.items()
            if value != self.plain.get(name, {}).get(key)
        ]


@dataclass(frozen=True)
class Manifest:
    """The manifest of a published stage.

    `spec` (configuration and inputs) decides whether a rerun may skip it. `folder` holds its files, relative to the
    stage; it is empty in format 1, where they are next to the manifest. `made_from` has the fingerprints of all stages
    that it was made from, directly or not. `non_defaults` names the settings that had another value than their
    default, by the user or by a preset; None where that is not known.
    """

    stage: str
    spec: dict[str, Any]
    info: dict[str, Any]
    files: list[dict[str, Any]]
    versions: dict[str, str]
    created: str
    folder: str = ""
    made_from: dict[str, str] = field(default_factory=dict)
    non_defaults: list[str] | None = None
    format_version: int = FORMAT_VERSION

    def __repr__(self) -> str:
        """Return the stage, when it was published, and the names of the facts in `info`: the whole fills a screen."""
        return f"Manifest({self.stage!r}, created={self.created!r}, info has {', '.join(self.info) or 'nothing'})"

    @classmethod
    def from_mapping(cls, mapping: Any) -> Manifest:
        """Make a manifest of what JSON gave.

        Raises:
            ValueError: if that is none; says what is wrong.
        """
        if isinstance(mapping, dict) and mapping.get("format_version") == 1:
            mapping = {"folder": "", "made_from": {}, "non_defaults": None, **mapping}
        names = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(mapping, dict) or set(mapping) != set(names):
            raise ValueError(f"its keys are not {', '.join(names)}")
        check_fields(mapping, stage=str, spec=dict, info=dict, files=list, versions=dict, created=str)
        check_fields(mapping, format_version=int, folder=str, made_from=dict, non_defaults=(list, type(None)))
        if mapping["folder"] and "/" in check_inside(mapping["folder"], "the stage"):
            raise ValueError(f"it names {mapping['folder']!r}, which is not a folder of the stage")
        check_list(list(mapping["made_from"].values()), str, "made_from")
        check_list(mapping["non_defaults"] or [], str, "non_defaults")
        for record in mapping["files"]:
            check_record(record, "the stage")
        return cls(**mapping)

    def changes(self, spec: Mapping[str, Any], defaults: Defaults) -> tuple[list[str], list[str]]:
        """Return what differs in another specification: `name: old -> new` for each, and stages replaced since.

        A table whose content alone differs is described in words.

        What was set counts: a setting that the writing code did not know yet is taken for its default, a default that
        has another value since is none of the user's changes, and a setting that went counts only if it was set.
        """
        old, new = dict(self.spec), dict(spec)
        words, replaced = _digests_in_words(old, new)
        if not isinstance(old.get("config"), dict) or not isinstance(new.get("config"), Mapping):
            return [*differences(old, new), *words], replaced
        old["config"], new["config"] = dict(old["config"]), dict(new["config"])
        for name, settings in new["config"].items():
            known = old["config"].get(name)
            if not isinstance(settings, Mapping) or not isinstance(known, dict):
                continue
            if isinstance(known.get("options"), dict):  # of former versions, with passwords
                known = old["config"][name] = {**known, "options": without_secrets(known["options"])}
            was_set = {key for key in known if self.non_defaults is None or f"{name}.{key}" in self.non_defaults}
            plain, preset = defaults.plain.get(name, {}), defaults.preset.get(name, {})
            new_ones = {
                key for key in settings.keys() - known.keys() if settings[key] in (plain.get(key), preset.get(key))
            }
            same = {key for key in settings.keys() & known.keys() - was_set if settings[key] == plain.get(key)}
            gone = {key for key in known.keys() - settings.keys() if self.non_defaults is None or key not in was_set}
            old["config"][name] = {key: value for key, value in known.items() if key not in same | gone}
            new["config"][name] = {key: value for key, value in settings.items() if key not in same | new_ones}
        return [*differences(old, new), *words], replaced

    @property
    def fingerprint(self) -> str:
        """Digest of the configuration and the inputs: equal for equal work, independent of the bytes of the files."""
        return fingerprint(self.spec)


def replaced_since(stage: str, inputs: Sequence[str]) -> str:
    """Return the sentence that a stage was made from others that have been replaced since."""
    names, have = " and ".join(map(repr, inputs)), "have" if len(inputs) > 1 else "has"
    return f"{stage!r} was made from {names} that {have} been replaced since"


def _digests_in_words(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Take what only a digest tells apart out of two specifications: tables, in words, and names of stages."""
    before, now = old.get("inputs"), new.get("inputs")
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [], []
    old["inputs"], new["inputs"] = before, now = dict(before), dict(now)
    stages, fresh = stage_inputs(old), stage_inputs(new)
    replaced = [name for name in stages if name in fresh and stages[name] != fresh[name]]
    words = []
    for name in replaced:
        del before[name], now[name]
    for name in before.keys() & now.keys():
        was, is_ = before[name], now[name]
        if isinstance(was, Mapping) and isinstance(is_, Mapping) and "digest" in was and "digest" in is_:
            before[name], now[name] = ({k: v for k, v in each.items() if k not in _CONTENT} for each in (was, is_))
            if not differences(before[name], now[name]) and was != is_:
                words.append(f"the content of the input changed since: {_sizes(was, is_)}")
    return words, replaced


def _sizes(*tables: Mapping[str, Any]) -> str:
    """Return the files and bytes of a table then and now."""
    counts = [(table.get("files", 0), table.get("bytes", 0)) for table in tables]
    then, now = (f"{files:,} file{'s' * (files != 1)} of {size:,} bytes" for files, size in counts)
    if not any(map(any, counts)):
        return "its data, or how it is made"
    return f"{then} then, {now} now" if then != now else f"{then} then and now, whose times or query differ"


def stage_inputs(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints of the stages among the inputs of a specification; other inputs are mappings."""
    inputs = spec.get("inputs")
    named = inputs.items() if isinstance(inputs, Mapping) else ()
    return {name: digest for name, digest in named if isinstance(digest, str) and "/" not in name}


def check_fields(mapping: Any, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Return what JSON gave if it is a mapping that holds each of these fields as one of its kinds.

    Raises:
        ValueError: if not; says what is wrong. A bool does not count as a number.
    """
    if not isinstance(mapping, dict):
        raise ValueError(f"it is not a mapping of {', '.join(kinds)}")
    missing = [name for name in kinds if name not in mapping]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, kind in kinds.items():
        wanted = kind if isinstance(kind, tuple) else (kind,)
        value = mapping[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ValueError(f"{name} must be {' or '.join(each.__name__ for each in wanted)}")
    return mapping


def check_list(value: Any, kind: type | tuple[type, ...], name: str) -> list[Any]:
    """Return what JSON gave if it is a list of such items. Raises ValueError if not."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    for item in value:
        check_fields({name: item}, **{name: kind})
    return value


def check_inside(path: Any, folder: str) -> str:
    """Return a path if it stays below the folder that it is relative to.

    Raises:
        ValueError: if it does not, or is no path; `::` would chain another file system to it.
    """
    parts = path.split("/") if isinstance(path, str) else [""]
    if parts[0] == "" or ".." in parts or "::" in path or "\0" in path:
        raise ValueError(f"it lists {path!r}, which is not below {folder}")
    return str(path)


def check_record(record: Any, folder: str) -> dict[str, Any]:
    """Return the record of a file below a folder: path, bytes and sha256. Raises ValueError if it is none."""
    if not isinstance(record, dict) or set(record) != {"path", "bytes", "sha256"}:
        raise ValueError("a file is not listed by path, bytes and sha256")
    check_inside(record["path"], folder)
    return check_fields(record, bytes=int, sha256=str)


def fingerprint(value: Any) -> str:
    """Return a short digest of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return `name: old -> new` for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            lines += differences(old.get(key), new.get(key), inner)
        return lines
    return [] if old == new else [f"{name}: {old!r} -> {new!r}"]


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
