"""The stage `rows`: the user's table, checked and scaled."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.core.knn.by_features import CHUNK_BYTES, rows_to_measure
from ivis_spark.core.projection import sample_rows
from ivis_spark.core.scaling import STATISTICS_BYTES
from ivis_spark.core.sizes import BATCH_BYTES, PYTHON_BYTES, SPLIT_BYTES
from ivis_spark.runtime.fitness import check_fit, check_rows
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild

# Measured, in seconds of one core: the stage whatever its rows, a row, a value of it, and a value that is compared with
# that of a sampled row.
_FIXED, _ROW, _VALUE, _COMPARED = 6.0, 2e-6, 1e-7, 8e-11
_ID_BYTES = 5.0  # of an id that is checked, as it is shuffled
_NUMBERING_BYTES = 24  # of a row that is numbered: its hash, place and group, in Spark's rows
_BESIDE_BYTES = 16  # of a row that is stored: its id, and where its features begin
# Bytes of the sample that components are learnt from: of a row's objects, of a number (as it came, scaled, centred, and
# what the solver makes of it), and of an element of d x d matrices.
_SAMPLE_ROW, _SAMPLE_NUMBER, _SAMPLE_SQUARE, _MOST_SQUARE = 300, 24, 32, 1_000


def publish(run: Run) -> Manifest:
    """Check, scale and keep the rows of the input table; without one, return those that are published.

    Raises:
        InputError: if the table or the settings that go with it cannot be used; nothing is published then.
    """
    table = run.input.read()
    if table is None:
        return checked(run)
    run.folder.claim()
    storage.check_writable(run.folder.root)

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.rows import choice, columns, ingest

        left_out = choice.explain_columns(table, run.config.data)
        source = columns.resolve(table, run.config.data)
        check = functools.partial(check_rows, config=run.config)
        stage.info.update(ingest.ingest(source, run.config.data, stage, check_rows=check))
        stage.info["left_out"] = left_out
        stage.info["table"] = run.input.uri
        check_fit(stage.info, run.config)

    run.publish("rows", run.spec("data", source=run.source(table)), build)
    return checked(run)


def checked(run: Run) -> Manifest:
    """Return the manifest of the published rows, after checking that the settings fit them."""
    manifest = run.require("rows")
    check_fit(manifest.info, run.config)
    return manifest


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what the stage needs, see `stages.estimate`."""
    vector = 4.0 * dims
    tasks = max(cluster.slots, math.ceil(rows * vector / SPLIT_BYTES))
    projected = config.data.components_of(dims, sparse=False, images=False) is not None
    compared = min(rows, rows_to_measure(dims)) if projected else 0.0
    return Estimate(
        stage="rows",
        tasks=tasks,
        slots=min(cluster.slots, tasks),
        fixed_seconds=_FIXED,
        core_seconds=rows * (_ROW + (_VALUE + _COMPARED * compared) * dims),
        shuffle_bytes=rows * (_ID_BYTES if config.data.keys else vector + _NUMBERING_BYTES),
        storage_bytes=rows * (vector + _BESIDE_BYTES),
        task_bytes=PYTHON_BYTES + 4 * BATCH_BYTES + (2 * CHUNK_BYTES + 16 * compared * dims if projected else 0),
        driver_bytes=2.0 * STATISTICS_BYTES * dims + _sample_bytes(rows, dims, config),
        formula=f"shuffles {_ID_BYTES:g} N B to check ids, N (4 d + {_NUMBERING_BYTES}) B to number rows; stores "
        f"N (4 d + {_BESIDE_BYTES}) B; seconds N (a + b d)",
    )


def _sample_bytes(rows: float, dims: int, config: Config) -> float:
    """Return what the driver holds while it learns principal components."""
    count = config.data.components_of(dims, sparse=False, images=False)
    if count is None:
        return 0.0
    sampled = min(rows, sample_rows(4 * dims, count))
    matrices = _SAMPLE_SQUARE * min(dims, _MOST_SQUARE) ** 2
    return sampled * (_SAMPLE_ROW + _SAMPLE_NUMBER * dims) + matrices
