"""A whole run of many small files: what the driver asks of the storage, and what the plan said that it would take."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pyspark.sql import SparkSession

from ivis_spark import Pipeline
from ivis_spark.config import load_config
from ivis_spark.operations.measured import plan_of_run
from ivis_spark.stages import STAGES
from ivis_spark.storage import Manifest

pytestmark = [pytest.mark.spark, pytest.mark.tf]
N, D = 3000, 32
UNLABELLED = 5  # one row of so many
# Of locks, manifests, marks and listings of a stage, whatever its files.
PER_STAGE = 110
SETTINGS = [
    *[
        "data.id_col=id",
        "data.label_col=kind",
        "neighbours.k=5",
        "neighbours.region_rows=100",
        "neighbours.target_recall=0.1",
    ],
    *["neighbours.max_regions=2", "neighbours.recall_sample=50", "triplets.block_rows=32", "triplets.anchors=2500"],
    *["triplets.file_blocks=1", "triplets.group_blocks=1", "train.epochs=1", "evaluate.sample_rows=200"],
]


class CountingFileSystem:
    """Passes everything on to a filesystem and notes each request with the path that it names."""

    FREE = frozenset({"invalidate_cache", "unstrip_protocol"})

    def __init__(self, fs: Any, requests: list[tuple[str, str]]) -> None:
        self._fs, self._requests = fs, requests

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._fs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if not callable(found) or name.startswith("_") or name in self.FREE:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread().name != "ivis-spark-lock":  # which beats by the clock
                self._requests.append((name, str(arguments[0]) if arguments else ""))
            return found(*arguments, **options)

        return call


@dataclass
class Done:
    """A run: its stages, where they are, and the requests of the driver in it and in a rerun."""

    manifests: dict[str, Manifest]
    folders: dict[str, str]
    requests: list[tuple[str, str]]
    again: list[tuple[str, str]]


@pytest.fixture(scope="module")
def run(_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Done:
    made: list[tuple[str, str]] = []
    plain, folder = fsspec.core.url_to_fs, tmp_path_factory.mktemp("whole")

    def counting(uri: str, **options: Any) -> tuple[Any, str]:
        fs, path = plain(uri, **options)
        return CountingFileSystem(fs, made), path

    X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    kinds = [f"kind {i % 3}" if i % UNLABELLED else None for i in range(N)]
    rows = _session.createDataFrame(
        [(i, x.tolist(), kind) for i, (x, kind) in enumerate(zip(X, kinds, strict=True))],
        "id long, features array<float>, kind string",
    )
    rows.repartition(60).write.parquet(str(folder / "table"))
    given: dict[str, Any] = {"get_spark": lambda: _session, "input_uri": str(folder / "table")}
    pipeline = Pipeline(str(folder / "run"), load_config(None, SETTINGS), **given)
    fsspec.core.url_to_fs = counting
    try:
        manifests = pipeline.run()
        first = list(made)
        del made[:]
        Pipeline(str(folder / "run"), load_config(None, SETTINGS), **given).run()
    finally:
        fsspec.core.url_to_fs = plain
    folders = {stage: pipeline.run_folder.uri(manifests[stage]).removeprefix("file://") for stage in STAGES}
    return Done(manifests, folders, first, made)


def test_files_are_asked_for_once(run: Done) -> None:
    """Lists, indexes and blocks come with their digests, other files are digested, by a request each; rows, which are
    embedded, are asked for their sizes if they are few files, and else listed.
    """
    by_path = collections.Counter(path.removeprefix("file://") for _, path in run.requests)
    written = 0
    for stage in STAGES:
        names = [record["path"] for record in run.manifests[stage].files if Path(record["path"]).parent.name]
        written += len(names)
        asked = {name: by_path[f"{run.folders[stage]}/{name}"] for name in names}
        most = {"neighbours": 0, "triplets": 0, "rows": 2}.get(stage, 1)
        late = {name for name, times in asked.items() if times > most and Path(name).suffix in (".parquet", ".leaves")}
        assert not late, (stage, late)
    assert written > 100, {stage: len(manifest.files) for stage, manifest in run.manifests.items()}
    assert len(run.requests) < PER_STAGE * len(STAGES) + written, by_path.most_common(20)


def test_a_rerun_asks_for_no_file(run: Done) -> None:
    assert len(run.again) < PER_STAGE * len(STAGES), collections.Counter(run.again).most_common(20)
    stages = tuple(run.folders.values())
    assert not [path for name, path in run.again if name == "open" and path.removeprefix("file://").startswith(stages)]


def test_rows_without_a_label_are_of_no_class(run: Done) -> None:
    figures = run.manifests["report"].info
    assert figures["classes"] == 3
    assert figures["labelled_rows"] / figures["sample_rows"] == pytest.approx(1 - 1 / UNLABELLED, abs=0.1)


def test_the_plan_said_so(run: Done) -> None:
    """Bytes within 1.5 times of what was stored; files, regions and weights."""
    plan = {stage.stage: stage for stage in plan_of_run(run.manifests, 2)}
    infos = {stage: manifest.info for stage, manifest in run.manifests.items()}
    for stage in ("rows", "neighbours", "triplets", "embeddings"):
        stored = sum(record["bytes"] for record in run.manifests[stage].files)
        assert 1 / 1.5 < plan[stage].storage_bytes / stored < 1.5, (stage, plan[stage].storage_bytes, stored)
    assert plan["triplets"].tasks == pytest.approx(len(infos["triplets"]["file_blocks"]), abs=2)
    regions = int(plan["neighbours"].formula.removeprefix("R = ").split()[0])
    assert regions == pytest.approx(infos["neighbours"]["n_regions"], rel=0.3)
    for stage in ("neighbours", "triplets"):
        assert f"A = {infos[stage]['anchors']:,}" in plan[stage].formula
    weights = next(record["bytes"] for record in run.manifests["model"].files if record["path"] == "dense.npz")
    assert 3 * weights == pytest.approx(plan["model"].storage_bytes, rel=0.2)
