"""A process that dies between any two operations on the storage: what is published is whole, and the next run ends it.

Each operation that changes the storage is a fault point, in everything of ours that writes: publishing, cleaning,
checkpoints, tables that embeddings are put into, and the stages that Spark works for.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_table import FaultTable
from faulty_storage import bury, dies_after, each_death
from fsspec.implementations.memory import MemoryFileSystem
from runs import ids, published
from small_stages import TABLES, Table, publish, text_of

from ivis_spark import storage
from ivis_spark.config import TrainConfig, load_config
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.operations.clean import clean
from ivis_spark.runtime import lock
from ivis_spark.serving.folder import ModelFolder, write_model
from ivis_spark.storage import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_SETTLE_S", 0.0)


class Folders:
    """A new run folder for each death: on this disk, where a rename is one step, or where it is a copy."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self._kind, self._tmp_path, self.root = kind, tmp_path, ""

    def new(self, prepare: Callable[[str], Any] = lambda root: None) -> Callable[[], None]:
        def make() -> None:
            MemoryFileSystem.store.clear()
            MemoryFileSystem.pseudo_dirs[:] = [""]
            name = uuid.uuid4().hex
            self.root = str(self._tmp_path / name) if self._kind == "disk" else f"memory://{name}/out"
            prepare(self.root)

        return make


@pytest.fixture(params=["disk", "object store"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Folders:
    return Folders(request.param, tmp_path)


def kind_of(folders: Folders) -> str:
    return folders._kind


@pytest.mark.parametrize("before", [None, "old"], ids=["first", "rebuild"])
def test_publication(folders: Folders, table: FaultTable, before: str | None) -> None:
    what = "rebuild" if before else "first publication"
    seen = []
    with table.fault(f"killed after each operation of a {what} ({kind_of(folders)})") as fault:
        prepare = folders.new(lambda root: publish(root, before) if before else None)
        for _ in each_death(lambda: publish(folders.root, "new"), prepare):
            with fault.attempt():
                fault.look(folders.root)
                bury(folders.root)  # the lock of the dead is taken over
                seen.append(text_of(folders.root, fault))
                publish(folders.root, "newest")
                assert text_of(folders.root, fault) == "newest"
    assert set(seen) == {before, "new"} and seen == [before] * seen.count(before) + ["new"] * seen.count("new")


def test_two_deaths_in_a_row(folders: Folders, table: FaultTable) -> None:
    prepare = folders.new(lambda root: publish(root, "old"))
    with table.fault(f"killed twice at the same operation of a rebuild ({kind_of(folders)})") as fault:
        for operations in each_death(lambda: publish(folders.root, "new"), prepare):
            with fault.attempt():
                bury(folders.root)
                dies_after(operations, lambda: publish(folders.root, "newer"))
                fault.look(folders.root)
                bury(folders.root)
                assert text_of(folders.root, fault) in ("old", "new", "newer")
                clean(folders.root)
                assert text_of(folders.root, fault) in ("old", "new", "newer")
                assert RunFolder(folders.root).garbage("rows") == []
                fault.look(folders.root)


def test_cleaning(folders: Folders, table: FaultTable) -> None:
    def prepare(root: str) -> None:
        publish(root, "old")
        with RunFolder(root).build("kept", {"text": "kept"}) as build:
            storage.write_json(build.path("data"), [1])
        publish(root, "new")  # so that a superseded build goes, too
        storage.write_json(storage.join(RunFolder(root).work("kept", "0"), "units", "0"), [1])

    with table.fault(f"killed after each operation of clean --stages ({kind_of(folders)})") as fault:
        for _ in each_death(lambda: clean(folders.root, stages=["rows"]), folders.new(prepare)):
            with fault.attempt():
                fault.look(folders.root)
                bury(folders.root)
                there = RunFolder(folders.root)
                clean(folders.root, stages=[name for name in ("rows",) if name in there.published()])
                assert there.published() == ["kept"] and not any(map(there.garbage, ("rows", "kept")))
                fault.look(folders.root)


@pytest.mark.tf
def test_checkpoints(folders: Folders, table: FaultTable) -> None:
    """Each death costs the checkpoint that was being saved, and nothing before it."""
    from ivis_spark.train.checkpoints import Checkpoints
    from ivis_spark.train.loop import TrainingState

    class Variable:
        def __init__(self, value: float) -> None:
            self.value, self.shape = np.full(3, value, np.float32), (3,)

        def __array__(self, *arguments: Any, **options: Any) -> Any:
            return self.value

        def assign(self, value: Any) -> None:
            self.value = value

    def model(value: float) -> Any:
        parts = SimpleNamespace(variables=[Variable(value)])
        return SimpleNamespace(encoder=parts, head=None, optimizer=parts)

    def checkpoints() -> Checkpoints:
        config = TrainConfig(keep_checkpoints=2)
        return Checkpoints(folders.root, config, steps_per_epoch=1, logs=str(folders._tmp_path / "logs"))

    def save(*epochs: int) -> None:
        for epoch in epochs:
            checkpoints().save(model(epoch), TrainingState(epoch=epoch))

    (folders._tmp_path / "logs").mkdir()
    (folders._tmp_path / "logs" / "training.csv").write_text("epoch")
    epochs = []
    with table.fault(f"killed after each operation of saving checkpoints ({kind_of(folders)})") as fault:
        for _ in each_death(lambda: save(3, 4), folders.new(lambda root: save(1, 2))):
            with fault.attempt():
                restored = model(0)
                state = checkpoints().restore(restored)
                assert state is not None
                np.testing.assert_array_equal(restored.encoder.variables[0], np.full(3, state.epoch))
                epochs.append(state.epoch)
                save(*range(state.epoch + 1, 6))
                state = checkpoints().restore(restored)
                assert state is not None and state.epoch == 5
    assert epochs == sorted(epochs) and set(epochs) == {2, 3, 4}


@pytest.mark.parametrize("mode", TABLES)
def test_embedding_into_a_table(folders: Folders, table: FaultTable, mode: str) -> None:
    with table.fault(f"killed after each operation of units and moves: {mode} ({kind_of(folders)})") as fault:
        job = Table(str(folders._tmp_path) if kind_of(folders) == "disk" else "memory", mode)
        for _ in each_death(job.work, job.prepare):
            with fault.attempt():
                seen = job.rows()  # a file that is there is whole
                assert set(seen) <= {row for days in (job.BEFORE, job.JOB) for rows in days.values() for row in rows}
                job.work()
                fault.compare(job.rows(), job.wanted)


ROWS = 60
MOST = 12  # deaths of each stage that Spark works for, evenly spread over its operations


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("table") / "rows"
    folder.mkdir()
    for number, some in enumerate(np.array_split(np.arange(ROWS), 3)):
        pq.write_table(pa.table({"id": some, "features": X[some].tolist()}), folder / f"{number}.parquet")
    return folder


class SparkStage:
    """A stage of the pipeline, in a run folder that holds what it reads."""

    NEEDS: ClassVar[dict[str, list[str]]] = {"rows": [], "neighbours": ["rows"], "embeddings": ["rows"], "table": []}

    def __init__(self, name: str, spark: Any, source: Path, tmp_path: Path) -> None:
        self.name, self._spark, self._source, self._tmp_path = name, spark, source, tmp_path
        self.output = self._ready = tmp_path / "ready"
        for stage in self.NEEDS[name]:
            self._do(stage)
        if name in ("embeddings", "table"):
            network = DenseNetwork((DenseLayer.of(np.ones((4, 2)), None, "tanh"),))
            serving = b'{"format": 1, "input_shape": [4], "n_outputs": 2, "features": ["features"]}'
            files = {"serving.json": serving, "dense.npz": network.to_bytes()}
            write_model(str(self._ready), ModelFolder({"config": {}, "inputs": {}}, {}, files))

    def prepare(self) -> None:
        self.output = self._tmp_path / uuid.uuid4().hex
        if self._ready.exists():
            shutil.copytree(self._ready, self.output)

    def work(self) -> None:
        self._do(self.name)

    def _do(self, name: str) -> None:
        from ivis_spark.pipeline import Pipeline

        settings = ["neighbours.k=3", "embed.unit_bytes=1", "data.id_col=id"]
        config, given = load_config(None, settings), str(self._source) if name in ("rows", "table") else None
        pipeline = Pipeline(str(self.output), config, get_spark=lambda: self._spark, input_uri=given)
        if name == "table":
            pipeline.embed_into(str(self._target()), "append")
        else:
            {"rows": pipeline.ingest, "neighbours": pipeline.neighbours, "embeddings": pipeline.embed}[name]()

    def rows(self) -> list[int]:
        return ids(self._target() if self.name == "table" else published(self.output, self.name) / "data")

    def locked(self) -> list[Path]:
        """Return the folders that hold locks."""
        return [self.output, self._target() / "_ivis_spark"]

    def _target(self) -> Path:
        return self.output.with_suffix(".table")


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("name", SparkStage.NEEDS)
def test_stages_that_spark_works_for(spark: Any, rows: Path, tmp_path: Path, table: FaultTable, name: str) -> None:
    stage = SparkStage(name, spark, rows, tmp_path)
    with table.fault(f"killed after operations of the stage on Spark: {name}") as fault:
        for _ in each_death(stage.work, stage.prepare, most=MOST):
            with fault.attempt():
                fault.look(stage.output)
                for place in stage.locked():
                    bury(str(place))
                stage.work()
                fault.look(stage.output)
                fault.compare(stage.rows(), range(ROWS))
            shutil.rmtree(stage.output)
