"""What is known of the input before Spark starts, which takes seconds: that it is there, its format, its columns.

Whatever cannot be looked at from here is left to Spark.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import posixpath
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from ivis_spark import storage
from ivis_spark.config import AUTO, DataConfig, did_you_mean, what_it_has
from ivis_spark.errors import ArtifactError, InputError

log = logging.getLogger(__name__)

# Endings of files, without that of a compression.
_FORMATS = {
    **{".parquet": "parquet", ".pq": "parquet", ".parq": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json"},
    **{".jsonl": "json", ".ndjson": "json", ".orc": "orc", ".avro": "avro"},
}
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".snappy", ".lz4", ".deflate")
_PATTERN = frozenset("*?[{")
_MOST_FOLDERS = 20
_MOST_HEADER_BYTES = 1 << 20
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def look_at_input(uri: str | None, data: DataConfig) -> DataConfig:
    """Return the settings for a table, its format guessed where it is `auto`. Starts no Spark. Runs on: driver.

    Args:
        uri: The table; None for a DataFrame, whose files are then read as Parquet if they are read one by one.
        data: The settings.

    Raises:
        InputError: if nothing is there, or a column that is named is not in it; says which name is near.
    """
    if data.format == "table":
        return data
    if uri is None:
        return _with_format(data, "parquet")
    files = _Files.of(uri)
    if files is None:
        return _with_format(data, _format_of(uri))
    if not files.exist and not data.glob:
        pattern = ", or pass --set data.glob=true if it is a pattern" if _PATTERN & set(uri) else ""
        raise InputError(f"input {uri!r} does not exist{files.nearest or '. Check the path'}{pattern}")
    first = files.first()
    if files.is_empty and data.format in (AUTO, *_FORMATS.values()) and not files.is_delta:
        raise InputError(f"input {uri!r} holds no files (names that begin with _ or . do not count). Check the path")
    guessed = "delta" if files.is_delta else _format_of(uri) or _format_of(first or "") or "parquet"
    options = {name: value for name, value in data.options.items() if name.lower() != "basepath"}
    if len(options) < len(data.options):
        files = dataclasses.replace(files, base="")
    if data.format == AUTO and not options and ".tsv" in posixpath.basename(first or uri).lower():
        data = dataclasses.replace(data, options={**data.options, "sep": "\t"})
        options = {"sep": "\t"}
    data = _with_format(data, guessed)
    if first is not None and data.format == "parquet" and not options:
        if first == files.path:
            files.check_parquet(first)
        _check_columns(files.columns(first), data, uri)
    if first is not None and data.format == "csv" and options in ({}, {"sep": "\t"}):
        names, sep = files.header(first, options.get("sep", ","))
        if sep is not None:
            log.info(
                "the first line of %s has no comma but %s, which are taken for separators", first, _SEPARATORS[sep]
            )
            data = dataclasses.replace(data, options={**data.options, "sep": sep})
        _check_columns(names, data, uri)
    return data


def in_folders(name: str, uris: Iterable[str], *, opened: bool = False) -> str:
    """Return the end of a message that a table lacks a column: that a folder like day=1 in its path holds it.

    Args:
        name: The column.
        uris: What the table was opened by.
        opened: Whether it may be a DataFrame, which settings come too late for.

    Returns:
        What to pass, so that the folder counts; empty if there is none.
    """
    for uri in uris:
        parts = uri.split("/")
        names = [urllib.parse.unquote(part.partition("=")[0]) if "=" in part else None for part in parts]
        if name in names:
            number = first = names.index(name)
            while first and names[first - 1] is not None:
                first -= 1
            base = "/".join(parts[:first]) or ("/" if first else ".")
            base += "/" * (parts[0].endswith(":") and base.rstrip("/") == parts[0])  # the root of a file system
            value = base if re.fullmatch(r"[\w./:@-]*[\w/.]", base) else json.dumps(base, ensure_ascii=False)
            setting = shlex.quote(f"data.options.basePath={value}")
            frame = f', or read a DataFrame with .option("basePath", {json.dumps(base, ensure_ascii=False)})' * opened
            return f"; to have it from the folder {parts[number]} of the path, pass --set {setting}{frame}"
    return ""


@dataclasses.dataclass(frozen=True)
class _Files:
    """A path on a filesystem that can be looked at, and the folder below which folders like day=1 are columns."""

    fs: Any
    path: str
    exist: bool
    base: str

    @classmethod
    def of(cls, uri: str) -> _Files | None:
        """Return None if it cannot be looked at: no driver, no right, no connection."""
        try:
            fs, path = storage.filesystem(uri)
            return cls(fs, path, storage.exists(fs, path), path)
        except (ArtifactError, OSError, ImportError, ValueError):
            return None

    @property
    def nearest(self) -> str:
        """The question whether a sibling was meant."""
        folder, name = posixpath.split(self.path.rstrip("/"))
        return did_you_mean(name, storage.children(self.fs, folder), f"{folder}/")

    @property
    def is_delta(self) -> bool:
        return "_delta_log" in storage.children(self.fs, self.path) if self.fs.isdir(self.path) else False

    def first(self) -> str | None:
        """Return a file of the table, if one is found soon."""
        return next(self._walk(), None) if self.exist else None

    @property
    def is_empty(self) -> bool:
        """Whether there is no file in it for certain."""
        return self.exist and next(self._walk(), "") == ""

    def _walk(self) -> Iterator[str | None]:
        """Yield the files that Spark reads; None at the end if there may be more."""
        folders = [self.path]
        for _ in range(_MOST_FOLDERS):
            if not folders:
                return
            path = folders.pop()
            if not self.fs.isdir(path):
                yield path
                continue
            shown = sorted(
                name for name in storage.children(self.fs, path) if name[0] != "." and (name[0] != "_" or "=" in name)
            )
            folders += [f"{path.rstrip('/')}/{name}" for name in reversed(shown)]
        yield None

    def check_parquet(self, file: str) -> None:
        """Refuse a file that does not begin as Parquet does; in a folder Spark may be told to pass over such."""
        try:
            with self.fs.open(file, "rb") as opened:
                begins = opened.read(4)
        except OSError:
            return  # Spark says why it cannot be read
        if begins and begins not in (b"PAR1", b"PARE"):  # PARE: encrypted
            raise InputError(f"input {file!r} is not a Parquet file: pass its format with --format, like --format csv")

    def columns(self, file: str) -> list[str]:
        """Return the columns of a Parquet file and of the folders it is in; none if it cannot be read."""
        try:
            with self.fs.open(file, "rb") as opened:
                names = list(pq.read_schema(opened).names)
        except Exception:  # noqa: BLE001 - Spark reads it its own way, or says why it does not
            return []
        return names + self._partitions(file)

    def header(self, file: str, sep: str) -> tuple[list[str], str | None]:
        """Return the columns of a CSV file and of the folders it is in; none if Spark may call them otherwise.

        Beside them, the character that separates them in the place of a comma, if there is one.
        """
        try:
            with self.fs.open(file, "rb", compression="infer") as opened:
                lines = opened.read(_MOST_HEADER_BYTES).splitlines()
            line = next(line for line in lines if line.strip()).decode("utf-8-sig")  # Spark skips empty ones
            names = next(csv.reader([line], delimiter=sep, strict=True))
            most, other = max(_SEPARATORS, key=line.count), None
            if sep == "," and len(names) == 1 and line.count(most) > 1:
                names, other = next(csv.reader([line], delimiter=most, strict=True)), most
        except Exception:  # noqa: BLE001 - as above
            return [], None
        if len({name.lower() for name in names}) < len(names) or not all(names):
            return [], other  # Spark numbers columns without a name and those of equal names
        return names + self._partitions(file), other

    def _partitions(self, file: str) -> list[str]:
        inner = file.removeprefix(self.base).split("/")[:-1]
        return [urllib.parse.unquote(part.partition("=")[0]) for part in inner if "=" in part]


def _with_format(data: DataConfig, guessed: str) -> DataConfig:
    return dataclasses.replace(data, format=guessed or "parquet") if data.format == AUTO else data


def _format_of(name: str) -> str:
    """Return the format that a file's ending stands for; empty if it stands for none."""
    stem = name.rstrip("/").lower()
    for ending in _COMPRESSIONS:
        stem = stem.removesuffix(ending)
    return _FORMATS.get(posixpath.splitext(stem)[1], "")


def _check_columns(columns: list[str], data: DataConfig, uri: str) -> None:
    """Refuse a named column that is missing; names that differ in case are those of different columns."""
    names = ("features_col", "feature_cols", "id_col", "id_cols", "label_col", "keep_columns", "drop_columns")
    settings = {name: getattr(data, name) for name in names}
    for setting, value in settings.items():
        for name in (value,) if isinstance(value, str) else value or ():
            if columns and name not in columns:
                hint = in_folders(name, [uri]) or what_it_has(name, columns)
                raise InputError(f"data.{setting}={name!r} is not in the table{hint}")
