"""From a DataFrame to a trained model, as a Spark ML Estimator."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyspark.ml.base import Estimator
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import Config, what_it_has
from ivis_spark.errors import ConfigError, InputError, reworded
from ivis_spark.ml.model import IvisModel, with_summary
from ivis_spark.ml.output import OUTPUT_TYPE, VECTOR, returns_vectors, with_outputs
from ivis_spark.ml.params import (
    StoredParams,
    add_accessors,
    add_params,
    check_spark_frame,
    config_of,
    naming_params,
    set_defaults,
    set_params,
    settings,
)
from ivis_spark.pipeline import Pipeline
from ivis_spark.runtime.fitness import check_rows
from ivis_spark.serving.folder import read_model
from ivis_spark.spark.embedding.embed import Outputs
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows.tables import exact_names
from ivis_spark.spark.session import check_batch
from ivis_spark.spark.watching import SparkProgress
from ivis_spark.spark.workers import check_workers
from ivis_spark.stages.input_table import InputTable

if TYPE_CHECKING:
    from pyspark.ml._typing import ParamMap

log = logging.getLogger(__name__)

_SETTINGS = settings()


class IvisEstimator(Estimator[IvisModel], StoredParams):
    """Trains an encoder on a DataFrame: the stages of `Pipeline` from rows to model, in a run folder.

    Args:
        params: Spark ML Params by name; `explainParams()` lists them with documentation and defaults. The settings of
            the configuration in camel case: `train.embedding_dims` is `embeddingDims`.

    Example:
        `frame` has the columns id, features and label.

        >>> from ivis_spark import IvisEstimator
        >>> estimator = IvisEstimator(idCol="id", labelCol="label", k=5, epochs=1, recallSample=20)
        >>> model = estimator.setSupervisionMetric("sparse_categorical_crossentropy").fit(frame)
        >>> model.transform(frame).columns
        ['id', 'features', 'label', 'embedding']
    """

    runFolder: Param[str] = Param(
        Params._dummy(),
        "runFolder",
        "URI that all executors can reach. Each fit writes its own run folder below it, named after data and "
        "settings, and the same fit resumes there. Default on one machine: a temporary folder, removed after the fit.",
        typeConverter=TypeConverters.toString,
    )

    outputType = OUTPUT_TYPE

    def __init__(self, **params: Any) -> None:
        super().__init__()
        set_defaults(self, _SETTINGS)
        self._setDefault(runFolder=None, outputType=VECTOR)
        set_params(self, params)

    def config(self) -> Config:
        """Return the configuration that the Params make.

        Raises:
            ConfigError: if settings exclude each other.
        """
        return config_of(self, _SETTINGS)

    def transformSchema(self, schema: T.StructType) -> T.StructType:
        """Return the schema of the model's `transform`.

        Raises:
            InputError: if a column is missing (lists what is there) or of a type that cannot be used.
        """
        config = self.config()
        with naming_params():
            features = frames.feature_names(schema, config.data)
            self._check_labels(config)
            for param, name in (("idCol", config.data.id_col), ("labelCol", config.data.label_col)):
                if name is not None and name not in schema.fieldNames():
                    hint = what_it_has(name, schema.fieldNames())
                    raise InputError(f"{param}={name!r} is not in the DataFrame{hint}")
            outputs = Outputs.of(config.embed, self._classes(schema, config))
            made_from = () if config.data.indices_col else features
            return with_outputs(schema, outputs, vectors=returns_vectors(self), made_from=made_from)

    def _check_labels(self, config: Config) -> None:
        """Check that what is asked of labels will be there: they train only with labelCol and supervisionMetric."""
        metric, label = config.train.supervision_metric, config.data.label_col
        if metric is not None and label is None:
            raise ConfigError(f"supervisionMetric={metric!r} trains on labels: set labelCol")
        if config.embed.scores_col is not None and metric is None:
            raise ConfigError(
                f"scoresCol={config.embed.scores_col!r} needs a model trained on labels: set labelCol and "
                "supervisionMetric, or remove scoresCol"
            )

    def _classes(self, schema: T.StructType, config: Config) -> dict[str, Any] | None:
        """Return what can be said of the model's classes before training: the type of their labels; None without."""
        metric, name = config.train.supervision_metric, config.data.label_col
        if config.embed.class_col is None or metric is None or name is None:
            return None
        from ivis_spark.nn.supervision import takes_classes

        kind = schema[name].dataType
        if isinstance(kind, T.ArrayType) or (isinstance(kind, T.NumericType) and not takes_classes(metric)):
            return None
        return {"values": [], "type": kind.simpleString()}

    def fitMultiple(self, dataset: DataFrame, paramMaps: Sequence[ParamMap]) -> Iterator[tuple[int, IvisModel]]:
        """Return an iterator of (index, model), one for each param map; all maps are checked before the first fit.

        Raises:
            ConfigError, InputError: if one cannot be fitted; names it.
        """
        _check_frame(dataset)
        configs: dict[str, Config] = {}
        for number, params in enumerate(paramMaps, start=1):
            shown = ", ".join(f"{param.name}={value!r}" for param, value in params.items())
            where = f"param map {number} of {len(paramMaps)} ({shown}): "
            with reworded(where.__add__):
                copied = self.copy(params)
                copied.transformSchema(dataset.schema)
                configs[where] = copied.config()
        largest = max((k for config in configs.values() if isinstance(k := config.neighbours.k, int)), default=1)
        rows = dataset.limit(largest + 2).count()
        for where, config in configs.items():
            with reworded(where.__add__), naming_params():
                check_rows(rows, config)
        return super().fitMultiple(dataset, paramMaps)

    def _fit(self, dataset: DataFrame) -> IvisModel:
        _check_frame(dataset)
        config = self.config()
        self.transformSchema(dataset.schema)
        label = config.data.label_col
        if label is not None and not config.trains_on_labels:
            log.warning(
                "labelCol=%r only keeps that column out of the features: training on it takes supervisionMetric, such "
                "as sparse_categorical_crossentropy for classes",
                label,
            )
        check_workers(dataset.sparkSession)
        given = self.getOrDefault("runFolder")
        if given is None and not (dataset.sparkSession.sparkContext.master or "").startswith("local"):
            raise ConfigError(
                "on a cluster the run needs a folder that all executors can reach: set runFolder to its URI, like "
                "hdfs:///runs, s3a://bucket/runs or dbfs:/runs"
            )
        scratch = tempfile.mkdtemp(prefix="ivis-spark-") if given is None else None
        try:
            with exact_names(dataset), SparkProgress(), naming_params():
                folder = self._run(dataset, config, scratch)
            model = IvisModel(with_summary(folder, read_model(folder), temporary=scratch is not None))
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
        return self._copyValues(model)

    def _run(self, dataset: DataFrame, config: Config, scratch: str | None) -> str:
        """Run the stages up to the model and return the run's folder."""
        if scratch is None:
            source = InputTable(config.data, lambda: dataset.sparkSession, frame=dataset).fingerprint(dataset)
            name = storage.fingerprint([source, {**config.to_mapping(), "embed": None}])
            root = storage.join(storage.normalise_uri(self.getOrDefault("runFolder")), f"run-{name}")
        else:
            root = storage.normalise_uri(scratch)
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, version=scratch))
        there = storage.exists(*storage.filesystem(root))
        try:
            pipeline = Pipeline(root, config, get_spark=lambda: dataset.sparkSession, source=_needed(dataset, config))
            pipeline.neighbours(for_training=True)
            pipeline.triplets()
            pipeline.train()
        except BaseException:
            if not there and set(storage.children(*storage.filesystem(root))) <= {storage.MARK}:
                storage.remove_folder(root)
            raise
        return root


def _check_frame(dataset: DataFrame) -> None:
    check_spark_frame(dataset, "IvisEstimator.fit")
    check_batch(dataset, "IvisEstimator.fit")


def _needed(dataset: DataFrame, config: Config) -> DataFrame:
    """Return the columns that training reads; `transform` keeps the others."""
    names = {*frames.feature_names(dataset.schema, config.data), *config.data.keys}
    names |= {name for name in (config.data.indices_col, config.data.label_col) if name is not None}
    return dataset.select([frames.quoted(name) for name in dataset.columns if name in names])


add_params(IvisEstimator, _SETTINGS)
for _name in ("runFolder", "outputType"):
    add_accessors(IvisEstimator, _name)
