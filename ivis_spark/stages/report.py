"""The stage `report`: metrics and pictures of the embeddings."""

from __future__ import annotations

import dataclasses
import math
import posixpath
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.core.sizes import PYTHON_BYTES, SPLIT_BYTES
from ivis_spark.errors import ConfigError
from ivis_spark.report.sample import FEATURE_BYTES
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from ivis_spark.report.colouring import Wanted
    from ivis_spark.report.sample import Originals

# Measured, in seconds of one core: the stage, whose samples do not grow with the rows, and a row that is counted.
_FIXED, _ROW = 8.5, 2.4e-6


def publish(run: Run) -> Manifest:
    """Measure the embeddings and write the report."""
    needed = {name: run.require(name) for name in ("rows", "neighbours", "model", "embeddings")}
    made = needed["embeddings"].spec["config"]["embed"]
    if made["output_col"] != "embedding" or made["precision"] != "float32":
        raise ConfigError(
            f"the report needs embeddings with the defaults of embed.output_col and embed.precision, not "
            f"{made['output_col']!r} and {made['precision']}: embed again with --overwrite"
        )

    wanted = _columns_to_show(run, needed["rows"])

    def build(stage: StageBuild) -> None:
        from ivis_spark.report.evaluate import evaluate

        embeddings, predicted = _numbered(run, needed["rows"], needed["embeddings"])
        with tempfile.TemporaryDirectory(prefix="ivis-spark-", ignore_cleanup_errors=True) as folder:
            figures = evaluate(
                run.get_spark(),
                rows=_labelled(run, needed["rows"]),
                embeddings=embeddings,
                training=_curves(needed["model"].info),
                neighbours=needed["neighbours"].info,
                config=run.config.evaluate,
                random_state=run.config.random_state,
                folder=folder,
                title=f"ivis_spark: {posixpath.basename(run.folder.root)}",
                settings=_settings(needed),
                table=needed["rows"].info.get("table"),
                held_out=_held_out(needed["model"], needed["neighbours"]),
                wanted=wanted,
                predicted=predicted,
                originals=_originals(run, needed["rows"]),
                components=needed["rows"].info.get("components"),
            )
            storage.put_folder(folder, stage.uri)
        stage.info.update(figures)

    inputs: dict[str, Any] = {name: manifest.fingerprint for name, manifest in needed.items()}
    return run.publish("report", run.spec("evaluate", "random_state", **inputs), build)


def check_metrics(config: Config) -> None:
    """Raise ConfigError if a metric of the user's own cannot be imported, or is called as what the report holds."""
    if config.evaluate.metrics:
        from ivis_spark.report.evaluate import import_metrics

        import_metrics(config.evaluate.metrics)


def _columns_to_show(run: Run, rows: Manifest) -> Wanted:
    from ivis_spark.report.colouring import find_columns

    return find_columns(
        run.config.evaluate.colour_by,
        features=[] if rows.info.get("components") else rows.info["features"],
        width=rows.info["dims"],
        scaler=run.scaler(rows),
        kept=rows.info["columns"] or (),
        read_table=lambda: _with_kept(run, rows),
    )


def _originals(run: Run, rows: Manifest) -> Originals | None:
    """Return the features of some rows, where all rows hold principal components."""
    if not rows.info.get("components"):
        return None
    from ivis_spark.report.sample import Originals
    from ivis_spark.spark.rows.tables import read_parquet

    table = read_parquet(run.get_spark(), run.folder.uri(rows, "originals"))
    return Originals(table, dataclasses.replace(run.scaler(rows), projection=None))


def _with_kept(run: Run, rows: Manifest) -> DataFrame:
    """Return `id` of the rows and the user's columns that were kept with them, none of which is called so."""
    from ivis_spark.spark.rows.columns import kept_column

    kept = rows.info["columns"] or ()
    return run.table(rows).select("id", *[kept_column(kept, name).alias(name) for name in kept if name.lower() != "id"])


def _labelled(run: Run, rows: Manifest) -> DataFrame:
    """Return the rows with the user's names for labels."""
    from pyspark.sql import functions as F

    table, labels = run.table(rows).drop("columns"), rows.info["labels"]
    if labels is None or labels["kind"] != "names":
        return table
    names = F.array(*[F.lit(name) for name in labels["values"]])
    named = F.element_at(names, (F.col("label") + 1).cast("int"))
    # Spark 4.3 takes the last element of a literal array for an index that is null.
    return table.withColumn("label", F.when(F.col("label").isNotNull(), named))


def _numbered(run: Run, rows: Manifest, embeddings: Manifest) -> tuple[DataFrame, str | None]:
    """Return the embeddings with the rows' numbers as `id`, and which of their columns is the predicted class, if any.

    The user's columns are kept, except ids and the label.
    """
    from pyspark.sql import functions as F

    from ivis_spark.spark.embedding.job import number_column
    from ivis_spark.spark.rows.columns import quoted, unused

    table, info = run.table(embeddings), rows.info
    if info["columns"] is None:  # an older version called the columns so
        return table, None
    number = number_column(info) or info["keys"][0]
    taken = {"id", "embedding", "label", number, info["label_col"], *info["keys"]}
    predicted = embeddings.spec["config"]["embed"].get("class_col")
    shown = unused("predicted", table.columns) if predicted and predicted in taken else predicted
    others = [F.col(quoted(name)) for name in table.columns if name not in {*taken, predicted}]
    others += [F.col(quoted(predicted)).alias(shown)] if predicted else []
    return table.select(F.col(quoted(number)).cast("long").alias("id"), "embedding", *others), shown


def _curves(info: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in info.items() if isinstance(value, list)}
    plain = ("anchors", "epochs", "training_seconds", "triplets_per_second", "steps_per_epoch", "margin")
    return kept | {name: info[name] for name in plain if info.get(name) is not None}


def _held_out(model: Manifest, neighbours: Manifest) -> tuple[float, int] | None:
    """Return the share of labels that training did not see and the seed of that choice; None if it saw none at all."""
    supervised = model.spec["config"]["train"]["supervision_metric"] is not None
    by_label = neighbours.info.get("by") == "label"
    if not supervised and not by_label:
        return None
    share = 0.0 if by_label else model.info.get("held_out_labels", 0.0)
    return share, model.spec["config"]["random_state"]


def _settings(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return the configuration that each stage was really made with."""
    merged: dict[str, Any] = {}
    for manifest in manifests.values():
        merged.update(manifest.spec["config"])
    return merged


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what the report needs, see `stages.estimate`: samples of one size, and a count of all rows by place."""
    sample = float(min(config.evaluate.sample_rows * 4 * dims, FEATURE_BYTES))
    tasks = max(cluster.slots, math.ceil(rows * 4 * config.train.embedding_dims / SPLIT_BYTES))
    return Estimate(
        stage="report",
        tasks=tasks,
        slots=min(cluster.slots, tasks),
        fixed_seconds=_FIXED,
        core_seconds=rows * _ROW,
        shuffle_bytes=sample,
        storage_bytes=5e6,
        task_bytes=PYTHON_BYTES + 4 * sample,
        driver_bytes=2 * sample,
        formula="samples of one size for any N; seconds to count all rows N a",
    )
