"""A whole run of many small files: what the driver asks of the storage, and what the plan said that it would take."""

from __future__ import annotations

import collections
import posixpath
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pyspark.sql import SparkSession

from ivis_spark import Pipeline
from ivis_spark.config import load_config
from ivis_spark.core.knn import sizes
from ivis_spark.operations.measured import plan_of_run
from ivis_spark.stages import STAGES
from ivis_spark.storage import Manifest

pytestmark = [pytest.mark.spark, pytest.mark.tf]
N, D = 2400, 32
UNLABELLED = 5  # one row of so many
LARGE, SMALL = (N, 48), (N // 3, 16)  # rows of a table, and files of it
# Requests for each file of a stage's folders: lists and embeddings are moved, and embeddings digested.
PER_FILE: dict[str, dict[str, int]] = {stage: {} for stage in STAGES}
PER_FILE |= {"neighbours": {"data": 1}, "embeddings": {"data": 2}}
LEEWAY = 2  # a listing of more than a few files, a look at a manifest
SETTINGS = [
    *[
        "data.id_col=id",
        "data.label_col=kind",
        "neighbours.k=5",
        "neighbours.region_rows=100",
        "neighbours.target_recall=0.1",
    ],
    *["neighbours.max_regions=2", "neighbours.recall_sample=50", "triplets.block_rows=32", "triplets.anchors=2000"],
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
    """A run: its stages, where they are, and the requests of the driver in it, by what they do and the path."""

    manifests: dict[str, Manifest]
    folders: dict[str, str]
    requests: list[tuple[str, str]]

    def asked(self, stage: str) -> int:
        """Return how many requests name any place of a stage, wherever it is built and by whomever it is read."""
        root = posixpath.dirname(self.folders[stage])
        return sum(path.removeprefix("file://").startswith(root) for _, path in self.requests)

    def kinds(self, stage: str) -> list[Any]:
        """Return the most common of these requests, with digits left out."""
        root = posixpath.dirname(self.folders[stage])
        named = [(name, re.sub(r"[0-9a-f]*[0-9]", "", path.partition(root)[2])) for name, path in self.requests]
        return collections.Counter(kind for kind in named if kind[1]).most_common(10)

    def files(self, stage: str, folder: str = "") -> int:
        return sum(record["path"].startswith(folder) for record in self.manifests[stage].files)


class Runs:
    """Runs of the first rows of a table, whose tasks read two files each and search a few regions."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder = spark, folder
        X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
        kinds = [f"kind {i % 3}" if i % UNLABELLED else None for i in range(N)]
        rows = [(i, x.tolist(), kind) for i, (x, kind) in enumerate(zip(X, kinds, strict=True))]
        self.rows = spark.createDataFrame(rows, "id long, features array<float>, kind string")

    def do(self, n_rows: int, files: int) -> Done:
        """Run all stages; a second time they are all there."""
        table, out = str(self.folder / f"table-{n_rows}"), str(self.folder / f"run-{n_rows}")
        if not Path(table).exists():
            self.rows.where(f"id < {n_rows}").repartition(files).write.parquet(table)
        made: list[tuple[str, str]] = []
        plain = fsspec.core.url_to_fs

        def counting(uri: str, **options: Any) -> tuple[Any, str]:
            fs, path = plain(uri, **options)
            return CountingFileSystem(fs, made), path

        pipeline = Pipeline(out, load_config(None, SETTINGS), get_spark=lambda: self.spark, input_uri=table)
        fsspec.core.url_to_fs = counting
        try:
            manifests = pipeline.run()
        finally:
            fsspec.core.url_to_fs = plain
        folders = {stage: pipeline.run_folder.uri(manifests[stage]).removeprefix("file://") for stage in STAGES}
        return Done(manifests, folders, made)


@pytest.fixture(scope="module")
def runs(_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "TASK_BYTES", 1 << 16)
        _session.conf.set("spark.sql.files.maxPartitionBytes", "8m")  # a file counts as 4 MB at least
        yield Runs(_session, tmp_path_factory.mktemp("whole"))
        _session.conf.unset("spark.sql.files.maxPartitionBytes")


@pytest.fixture(scope="module")
def run(runs: Runs) -> Done:
    return runs.do(*LARGE)


@pytest.fixture(scope="module")
def smaller(runs: Runs) -> Done:
    return runs.do(*SMALL)


def test_requests_grow_by_no_more_than_moves_and_digests(run: Done, smaller: Done) -> None:
    """Of lists, indexes, blocks and rows, the driver only moves the lists: they come with their digests."""
    too_many = {}
    for stage in STAGES:
        files, *expected = (
            each * (run.files(stage, folder) - smaller.files(stage, folder))
            for folder, each in {"": 1, **PER_FILE[stage]}.items()
        )
        assert files > LEEWAY or stage in ("model", "report")
        if run.asked(stage) - smaller.asked(stage) > sum(expected) + LEEWAY:
            too_many[stage] = run.kinds(stage)
    assert too_many == {}
    of_the_table = [len(done.requests) - sum(map(done.asked, STAGES)) for done in (run, smaller)]
    assert of_the_table[0] - of_the_table[1] <= LEEWAY


def test_a_rerun_asks_for_no_file(runs: Runs, run: Done, smaller: Done) -> None:
    again, fewer = (runs.do(*size).requests for size in (LARGE, SMALL))
    assert len(again) - len(fewer) <= LEEWAY, collections.Counter(again).most_common(20)
    stages = tuple(run.folders.values())
    assert not [path for name, path in again if name == "open" and path.removeprefix("file://").startswith(stages)]


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
