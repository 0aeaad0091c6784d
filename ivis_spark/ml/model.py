"""The trained model as a Spark ML Transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pyspark.ml.base import Model
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import listed
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.ml.local import NEIGHBOURS, fitted_settings, from_local, local_classes, to_local
from ivis_spark.ml.output import OUTPUT_TYPE, VECTOR, returns_vectors, to_schema, with_outputs
from ivis_spark.ml.params import (
    ParamsWriter,
    add_accessors,
    add_params,
    camel,
    check_spark_frame,
    config_of,
    naming_params,
    restore,
    saved_class,
    set_defaults,
    set_params,
    settings,
)
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import STAGE, ModelFolder, read_model, write_model
from ivis_spark.spark.embedding import embed, udf
from ivis_spark.spark.embedding.embed import InvalidRows, Outputs
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows.tables import exact_names
from ivis_spark.spark.session import is_connect
from ivis_spark.spark.workers import check_workers

if TYPE_CHECKING:
    import keras

    from ivis_spark.estimator import Ivis

_PARAMS = (
    *("featuresCol", "featureCols", "indicesCol", "labelCol", "idCol", "imageHeight", "imageWidth", "imageMode"),
    *("outputCol", "scoresCol", "classCol", "precision", "embedInvalid"),
)
_SETTINGS = {name: setting for name, setting in settings(("data", "embed")).items() if name in _PARAMS}
_SUMMARY = "summary"
_PIXELS = "__pixels"  # of a column of images, while they are embedded


@dataclass(frozen=True)
class Summary:
    """Summary of the training.

    Attributes:
        loss: Loss of each epoch.
        epochs: Number of epochs.
        seconds: Seconds of each stage of the run.
        recall: Recall of the neighbours: `value`, `low`, `high`, `sample`; None if none were searched.
        rows: Number of training rows.
        run_folder: URI of the run folder; None after a fit without `runFolder`, whose run is removed.
    """

    loss: list[float] = field(default_factory=list)
    epochs: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    recall: dict[str, Any] | None = None
    rows: int | None = None
    run_folder: str | None = None


class IvisModel(Model, MLWritable, MLReadable["IvisModel"]):
    """Embeds DataFrames with a trained encoder; made by `IvisEstimator.fit`, `load`, `from_run` or `from_local`.

    `transform` is lazy, and its tasks hold Arrow batches of as many rows as the session's setting
    `spark.sql.execution.arrow.maxRecordsPerBatch` says, 10,000 by default: for rows of more than 1,000 features, or
    with long text or files beside them, set about 64 MB divided by the bytes of a row (8 a feature). A batch must stay
    below 2 GiB. From Spark 4.0 on `spark.sql.execution.arrow.maxBytesPerBatch` bounds it by itself.

    Args:
        folder: The model's files.
        custom_objects: Layers and functions of a custom backbone by name; executors import them by their modules.
        params: Spark ML Params by name, as in `explainParams()`.

    Example:
        `model` was fitted with text labels.

        >>> from ivis_spark import IvisModel
        >>> embedded = model.setClassCol("class").setOutputType("array").transform(frame)
        >>> embedded.select("embedding", "class").dtypes
        [('embedding', 'array<float>'), ('class', 'string')]
        >>> model.write().overwrite().save("cells-model")
        >>> IvisModel.load("cells-model").getClassCol()
        'class'
        >>> model.summary.epochs, model.summary.rows, model.settings["k"]
        (1, 60, 5)
    """

    outputType = OUTPUT_TYPE

    def __init__(self, folder: ModelFolder, *, custom_objects: Mapping[str, Any] | None = None, **params: Any) -> None:
        super().__init__()
        self._folder = folder
        self._custom_objects = dict(custom_objects or {})
        self._invalid: InvalidRows | None = None
        set_defaults(self, _SETTINGS)
        self._setDefault(outputType=VECTOR)
        names = folder.serving["features"]
        chosen = {"featuresCol": names[0]} if len(names) == 1 else {"featureCols": names}
        images = {camel(name): value for name, value in folder.images.items()}
        images |= {"indicesCol": folder.indices_col} if folder.indices_col else {}
        set_params(self, {**(chosen if names else {}), **images, **params})

    @property
    def encoder(self) -> keras.Model:
        """The Keras encoder; it takes unscaled rows, scaling included."""
        return self._networks()[0]

    @property
    def summary(self) -> Summary:
        """Summary of the training."""
        return Summary(**self._folder.info[_SUMMARY])

    @property
    def settings(self) -> dict[str, Any]:
        """What the model was fitted with, by the names of the estimator's Params: `k`, `embeddingDims`, `epochs`, ...

        `auto` stands resolved. A model of `from_local` has those that an `Ivis` has.
        """
        return fitted_settings(self._folder, rows=self.summary.rows)

    @property
    def classes(self) -> list[Any]:
        """The labels of the classes, in the order of `scoresCol`; empty if the model was not trained on classes.

        A single score, as of binary_crossentropy, is the probability of the second.
        """
        classes = local_classes(self._folder.classes)
        return [] if classes is None else list(classes.tolist())

    @property
    def invalid_rows(self) -> dict[str, int]:
        """Rows that could not be embedded, by fault, over all actions on frames of this model."""
        return self._invalid.value() if self._invalid is not None else {}

    def transformSchema(self, schema: T.StructType) -> T.StructType:
        """Return the schema of `transform`.

        Raises:
            InputError: if the features are missing (lists what is there), of a type that cannot be used, or an output
                column already exists.
        """
        with naming_params():
            data = config_of(self, _SETTINGS).data
            names = frames.feature_names(schema, data)
            return with_outputs(
                schema, self._outputs(), vectors=returns_vectors(self), made_from=() if data.indices_col else names
            )

    def _transform(self, dataset: DataFrame) -> DataFrame:
        check_spark_frame(dataset, "IvisModel.transform")
        with exact_names(dataset), naming_params():
            return self._embedded(dataset)

    def _embedded(self, dataset: DataFrame) -> DataFrame:
        schema = self.transformSchema(dataset.schema)
        if not is_connect(dataset.sparkSession):
            check_workers(dataset.sparkSession)
            self._invalid = self._invalid or InvalidRows(dataset.sparkSession.sparkContext)
        data = config_of(self, _SETTINGS).data
        names = frames.feature_names(dataset.schema, data)
        frame = frames.decoded(dataset, names, data, into=_PIXELS)
        embedded = embed.embed_frame(
            frame,
            self.to_encoder(),
            invalid=self.getOrDefault("embedInvalid"),
            features=names if frame is dataset else (_PIXELS,),
            kept=dataset.columns,
            outputs=self._outputs(),
            counts=self._invalid,
            setting="embedInvalid",
        )
        return to_schema(embedded, schema)

    def to_encoder(self) -> Encoder:
        """Return the encoder that executors use: arrays for a dense encoder, else the bytes of its Keras file."""
        return self._folder.encoder(custom_objects=self._custom_objects)

    def to_folder(self) -> ModelFolder:
        """Return the model's files."""
        return self._folder

    def to_local(self) -> Ivis:
        """Return an equivalent `Ivis`, whose training can be resumed; loads TensorFlow.

        It has the settings of the fit: `k`, `random_state` and all others that an `Ivis` has. Its `preset` is `ivis`:
        what another preset chose stands in the parameters. Its rows are unscaled; scaling is in the network.
        """
        local = to_local(self._folder, *self._networks(), rows=self.summary.rows)
        local.loss_history_ = list(self.summary.loss)
        return local

    @classmethod
    def from_local(cls, local: Ivis, *, custom_objects: Mapping[str, Any] | None = None, **params: Any) -> IvisModel:
        """Return the model of an `Ivis` that was fitted in memory; loads TensorFlow.

        Raises:
            NotFittedError: if it is not fitted.
        """
        summary = Summary(loss=list(local.loss_history_), epochs=len(local.loss_history_))
        return cls(from_local(local, {_SUMMARY: asdict(summary)}), custom_objects=custom_objects, **params)

    @classmethod
    def from_run(cls, uri: str, **params: Any) -> IvisModel:
        """Return the model of a run folder, as written by `ivis-spark run` and the estimator.

        Args:
            uri: The run folder; of a fit with `runFolder`, its folder `run-...`, which is `summary.run_folder` too.
            params: Spark ML Params by name.

        Raises:
            ArtifactError: if there is none (lists the runs below), or a file of it is missing or modified.
            InputError: if `uri` is None or otherwise not text.
        """
        _check_there(uri)
        return cls(with_summary(uri, read_model(uri)), **params)

    def write(self) -> MLWriter:
        """Return a writer for `save`."""
        return _ModelWriter(self)

    @classmethod
    def read(cls) -> ModelReader:
        """Return a reader for `load`."""
        return ModelReader(cls)

    def _outputs(self) -> Outputs:
        return Outputs.of(config_of(self, _SETTINGS).embed, self._folder.classes)

    def _networks(self) -> tuple[keras.Model, keras.Model | None]:
        from ivis_spark.nn.persistence import load_model
        from ivis_spark.nn.scaling import with_scaling

        with self._folder.on_disk() as folder:
            saved = load_model(folder, custom_objects=self._custom_objects)
        scaler: Scaler | None = self._folder.scaler()
        return (saved.encoder if scaler is None else with_scaling(saved.encoder, scaler)), saved.head


add_params(IvisModel, _SETTINGS)
add_accessors(IvisModel, "outputType")


def embed_udf(model: IvisModel, spark: SparkSession | None = None) -> Any:
    """Return a pandas UDF that embeds one column with a model: arrays, Spark ML vectors, or structs of numbers.

    For `withColumn`, and for SQL: `spark.udf.register("ivis_embed", embed_udf(model))`. Fields of a struct, as of
    `struct("a", "b")`, are found by name if the model was trained on columns, else by order. Batches have as many rows
    as the session's settings say when the query runs: for wide rows set them as for `IvisModel`. Runs on: driver.

    Args:
        model: Its `precision` and `embedInvalid` apply; in a UDF, `drop` returns null.
        spark: The session; by default the active one.

    Example:
        >>> from ivis_spark import embed_udf
        >>> _ = spark.udf.register("ivis_embed", embed_udf(model, spark))
        >>> frame.createOrReplaceTempView("cells")
        >>> len(spark.sql("SELECT ivis_embed(features) AS z FROM cells LIMIT 1").first().z)
        2
    """
    session = spark or SparkSession.active()
    invalid = "error" if model.getOrDefault("embedInvalid") == "error" else "null"
    half = model.getOrDefault("precision") == "float16"
    names = model.to_folder().serving["features"]
    encoder, names = model.to_encoder(), names if len(names) > 1 else []
    return udf.embed_udf(session, encoder, invalid=invalid, half=half, names=names, setting="embedInvalid")


def _check_there(uri: str) -> None:
    """Check that a folder holds a model, as a run or saved.

    Raises:
        InputError: if it is not named by text.
        ArtifactError: says what it holds instead, and where models are.
    """
    if not isinstance(uri, str):
        raise InputError(
            f"a model's folder must be a path or URI as text, not {uri!r}. summary.run_folder is None after a fit "
            "without runFolder, whose run is removed: keep its model with model.save(path) and IvisModel.load(path)"
        )
    run = storage.RunFolder(uri)
    if run.manifest(STAGE) is not None:
        return
    if not run.exists():
        raise ArtifactError(f"{run.root} does not exist: pass the folder of a saved model or of a run")
    kind = saved_class(uri)
    if kind:
        raise ArtifactError(f"{run.root} holds a saved {kind}: load it with {kind}.load")
    below = [run.path(name) for name in run.stages() if name.startswith("run-")]
    if below:
        calls = listed([f"IvisModel.from_run({name!r})" for name in below])
        raise ArtifactError(f"{run.root} holds no model, but runs, each in a folder of its own: {calls}")
    raise ArtifactError(f"{run.root} holds no model: pass the folder of a saved model, or of a run that has trained")


def with_summary(uri: str, folder: ModelFolder, *, temporary: bool = False) -> ModelFolder:
    """Return a model with the summary of its run."""
    if _SUMMARY in folder.info:
        return folder
    run = storage.RunFolder(uri)
    manifests = {name: run.manifest(name) for name in ("rows", "neighbours", "triplets", "model")}
    published = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    summary = Summary(
        loss=list(folder.info.get("loss", [])),
        epochs=folder.info.get("epochs", 0),
        seconds={name: manifest.info["seconds"] for name, manifest in published.items()},
        recall=published["neighbours"].info.get("recall") if "neighbours" in published else None,
        rows=published["rows"].info["rows"] if "rows" in published else None,
        run_folder=None if temporary else run.root,
    )
    info = {**folder.info, _SUMMARY: asdict(summary)}
    info["fitted"] = {name: value for manifest in published.values() for name, value in manifest.spec["config"].items()}
    if "neighbours" in info["fitted"]:
        settings = info["fitted"]["neighbours"]
        info["neighbours"] = {name: settings[name] for name in NEIGHBOURS if name in settings}
    return ModelFolder(folder.spec, info, folder.files)


class _ModelWriter(ParamsWriter):
    """Writes Spark ML's metadata and, beside it, the model's folder."""

    _names = frozenset({"metadata", "model"})

    def _save(self, uri: str) -> None:
        write_model(uri, cast(IvisModel, self._instance).to_folder())
        super()._save(uri)


class ModelReader(MLReader["IvisModel"]):
    """Reads what `IvisModel.save` wrote."""

    def __init__(self, cls: type[IvisModel]) -> None:
        super().__init__()
        self._cls = cls
        self._custom_objects: Mapping[str, Any] = {}

    def custom_objects(self, custom_objects: Mapping[str, Any]) -> ModelReader:
        """Pass the layers and functions of a custom backbone by name; nothing else of a file is ever imported."""
        self._custom_objects = custom_objects
        return self

    def load(self, path: str) -> IvisModel:
        """Read a model.

        Raises:
            ArtifactError: if there is none, it is of a newer format, or a file is missing or modified (names the file).
        """
        _check_there(path)
        uri = storage.normalise_uri(path)
        if saved_class(uri) is None:
            raise ArtifactError(f"{uri} is a run folder, not a saved model: load it with IvisModel.from_run({path!r})")
        folder = read_model(uri)
        model = self._cls(folder, custom_objects=self._custom_objects)
        restore(model, uri)
        return model
