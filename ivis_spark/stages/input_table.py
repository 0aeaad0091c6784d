"""The table that the user gave: how it is opened, what identifies it, which of its columns are read."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config, DataConfig, without_secrets
from ivis_spark.storage import Manifest

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Settings `data.*` that decide which columns are read and kept.
COLUMNS = ("features_col", "feature_cols", "indices_col", "id_col", "id_cols", "keep_columns", "drop_columns")


@dataclass(frozen=True)
class InputTable:
    """A table by URI, or a DataFrame in its place, or neither. Runs on: driver.

    Args:
        data: How to open it and which columns are read.
        get_spark: Returns the session.
        uri: The table.
        frame: A DataFrame in the place of that table.
    """

    data: DataConfig
    get_spark: Callable[[], SparkSession]
    uri: str | None = None
    frame: DataFrame | None = None

    def read(self) -> DataFrame | None:
        """Return the table, or None if none was given."""
        from ivis_spark.spark.rows.tables import read_table

        if self.frame is not None or self.uri is None:
            return self.frame
        return read_table(self.get_spark(), self.uri, self.data)

    @property
    def name(self) -> str:
        """A name for what is made from this table: that of the table, or of the file without its usual ending.

        A DataFrame has none.
        """
        if self.data.format == "table" or not self.uri:
            return self.uri or ""
        return posixpath.basename(storage.normalise_uri(self.uri)).removesuffix(f".{self.data.format}")

    def fingerprint(self, table: DataFrame) -> dict[str, Any]:
        """Return what identifies a table and the state that it is in.

        Raises:
            InputError: if it does not tell when its content changes, and `data.version` is not set.
        """
        from ivis_spark.spark.rows.identity import content_of

        how = [self.data.format, without_secrets(self.data.options)] if self.frame is None else []
        opened = {"uri": self._place, "read_as": storage.fingerprint([how, table.schema.json()])}
        if self.data.version is not None:
            return {**opened, "version": self.data.version}
        return opened | content_of(table)

    def former_fingerprint(self, table: DataFrame) -> dict[str, Any]:
        """Return what identified a table up to version 0.1: names, sizes and times of its files, without folders."""
        from ivis_spark.spark.rows.tables import input_files

        described = storage.describe_files(input_files(table))
        files = [[posixpath.basename(uri), size, changed] for uri, size, changed in described]
        identity = {"files": len(files), "bytes": sum(file[1] for file in files), "digest": storage.fingerprint(files)}
        return identity if self.frame is None else {**identity, "plan": table.semanticHash()}

    @property
    def _place(self) -> str | None:
        is_path = self.uri is not None and self.data.format != "table"
        return storage.normalise_uri(self.uri or "") if is_path else self.uri

    def columns_like(self, rows: Manifest, table: DataFrame) -> DataConfig:
        """Return which columns of another table to read: of each kind those named, else those of the run's input."""
        trained, named = Config.from_mapping({"data": rows.spec["config"]["data"]}).data, self.data
        settings = ("features_col", "feature_cols", "indices_col")
        features: dict[str, Any] = {name: getattr(trained, name) for name in settings}
        if named.features_col or named.feature_cols:
            features = {name: getattr(named, name) for name in settings}
        elif not trained.features_col and not trained.feature_cols:
            names = tuple(rows.info["features"])
            features = {"features_col": names[0]} if len(names) == 1 else {"feature_cols": names}

        def of_kind(*settings: str) -> dict[str, Any]:
            """Return settings as they are named here, else as the run has them where the table has those columns."""
            for data in (named, trained):
                values = {name: getattr(data, name) for name in settings}
                columns = {
                    c for value in values.values() for c in ((value,) if isinstance(value, str) else value or ())
                }
                if columns and (data is named or columns <= set(table.columns)):
                    return values
            return {name: getattr(DataConfig(), name) for name in settings}

        others = of_kind("id_col", "id_cols") | of_kind("label_col") | of_kind("keep_columns", "drop_columns")
        return dataclasses.replace(trained, invalid=named.invalid, **features, **others)
