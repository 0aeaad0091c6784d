"""Serving: new rows in the published index, with and without Spark; files that are not what was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import toy_index
from pyspark.sql import SparkSession
from runs import published
from scipy.spatial.distance import cdist
from spark_tasks import batches_asked_for

from ivis_spark.config import Config, DataConfig, NeighboursConfig
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.serving import index as partitioned
from ivis_spark.serving.index import INDEX_FORMAT, PartitionedIndex
from ivis_spark.spark.neighbours import query as query_module
from ivis_spark.spark.neighbours.query import query
from ivis_spark.spark.neighbours.stage import build_neighbours

pytestmark = pytest.mark.spark
KINDS = [("euclidean", "leaves"), ("euclidean", "annoy"), ("dot", "leaves"), ("hamming", "leaves")]


def clusters(n: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(12, 6)) * 3
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 12, n)] + rng.normal(size=(n, 6))).astype(np.float32)


X, NEW = clusters(5000, 1), clusters(300, 2)
SCALER = Scaler("minmax", np.arange(6, dtype=np.float32), np.full(6, 0.5, np.float32))


@pytest.fixture(scope="module")
def built(_session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], str]]:
    """URI of an index of each kind; rows have ids 10, 20, ..., and were scaled."""
    scaled = SCALER.transform(X)
    rows = _session.createDataFrame(
        [(10 * i + 10, bytearray(row.tobytes())) for i, row in enumerate(scaled)], "id long, features binary"
    ).cache()
    uris = {}
    for metric, backend in KINDS:
        folder = tmp_path_factory.mktemp(f"{metric}-{backend}")
        config = NeighboursConfig(
            k=10, metric=metric, backend=backend, region_rows=600, leaf_rows=50, n_trees=10, target_recall=0.9
        )
        build_neighbours(rows, config, random_state=0, folder=f"file://{folder}", scaler=SCALER)
        uris[metric, backend] = str(folder / "index")
    rows.unpersist()
    return uris


def true_distances(Q: np.ndarray, metric: str) -> np.ndarray:
    """float64 (q, 5000); for dot the products."""
    Q, R = SCALER.transform(Q).astype(np.float64), SCALER.transform(X).astype(np.float64)
    if metric == "dot":
        return Q @ R.T
    return cdist(Q > 0.5, R > 0.5, "cityblock") if metric == "hamming" else cdist(Q, R)


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_find_their_neighbours(built: dict[tuple[str, str], str], kind: tuple[str, str]) -> None:
    index = PartitionedIndex.load(built[kind])
    assert (index.metric, index.dims, index.rows, index.k) == (kind[0], 6, 5000, 10)
    ids, distances = index.query(NEW)
    truth = true_distances(NEW, kind[0])
    assert ids.shape == distances.shape == (300, 10) and all(len(set(line)) == 10 for line in ids.tolist())
    near = np.take_along_axis(truth, ids // 10 - 1, axis=1)
    np.testing.assert_allclose(distances, near, rtol=1e-4, atol=1e-4)
    limit = np.sort(-truth if kind[0] == "dot" else truth, axis=1)[:, 9:10]
    hit = (-near if kind[0] == "dot" else near) <= limit + 1e-6
    assert hit.mean() > 0.88 and abs(hit.mean() - index.recall) < 0.06


def test_an_exact_query_is_exact(built: dict[tuple[str, str], str]) -> None:
    index = PartitionedIndex.load(built["euclidean", "leaves"])
    ids, _ = index.query(NEW, 25, exact=True)
    assert np.array_equal(ids // 10 - 1, true_distances(NEW, "euclidean").argsort(axis=1)[:, :25])


@pytest.mark.parametrize("kind", KINDS)
def test_more_neighbours_than_a_region_holds_come_from_others(
    built: dict[tuple[str, str], str], kind: tuple[str, str]
) -> None:
    index = PartitionedIndex.load(built[kind])
    for k in (1700, 5000):
        ids, distances = index.query(NEW[:20], k)
        assert np.isfinite(distances).all() and all(len(set(line)) == k for line in ids.tolist())


def test_own_rows_leave_themselves_out(built: dict[tuple[str, str], str]) -> None:
    index = PartitionedIndex.load(built["euclidean", "leaves"])
    own = np.arange(1, 201) * 10
    ids, _ = index.query(X[:200], 10, own=own, exact=True)
    truth = true_distances(X[:200], "euclidean")
    truth[np.arange(200), np.arange(200)] = np.inf
    assert np.array_equal(ids // 10 - 1, truth.argsort(axis=1)[:, :10])
    assert np.array_equal(index.query(X[:200], 1)[0][:, 0], own)
    assert np.array_equal(index.query(SCALER.transform(X[:200]), 1, scaled=True)[0][:, 0], own)


def test_few_leaves_are_read_and_kept(built: dict[tuple[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One row reads the head of its region and some leaves; what is kept has a limit, and changes no answer."""
    uri = built["euclidean", "leaves"]
    read: list[int] = []
    part = partitioned._Files.part
    monkeypatch.setattr(
        partitioned._Files, "part", lambda self, suffix, a, b: read.append(b - a) or part(self, suffix, a, b)
    )
    index = PartitionedIndex.load(uri)
    index.query(NEW[:1])
    (size,) = {file["bytes"] for record in index._head["regions"] if record["region"] in index._open
               for file in record["files"].values()}  # fmt: skip
    assert len(index._open) == 1 and sum(read) < 0.8 * size
    expected = index.query(NEW)
    again = PartitionedIndex.load(uri)
    monkeypatch.setattr(partitioned, "_CACHE_BYTES", 1)
    monkeypatch.setattr(partitioned, "_OPEN_REGIONS", 1)
    assert all(np.array_equal(a, b) for a, b in zip(again.query(NEW), expected, strict=True))
    assert len(again._open) == len(again._leaves) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_spark_finds_the_same(spark: SparkSession, built: dict[tuple[str, str], str], kind: tuple[str, str]) -> None:
    ids, distances = PartitionedIndex.load(built[kind]).query(NEW, 4)
    table = spark.createDataFrame([(i, row.tolist()) for i, row in enumerate(NEW)], "n int, v array<double>")
    data = DataConfig(id_col="n", features_col="v")
    for parts in (1, 5):
        found = query(table.repartition(parts), built[kind], 4, data=data).orderBy("n").collect()
        assert np.array_equal([row["neighbour_ids"] for row in found], ids)
        assert np.array_equal(np.array([row["distances"] for row in found], np.float32), distances)


def test_an_index_elsewhere_is_copied_and_read(built: dict[tuple[str, str], str]) -> None:
    """fsspec's memory file system stands for any that is not this machine's disk."""
    for kind in KINDS[:2]:
        fs = fsspec.filesystem("memory")
        fs.put(built[kind] + "/", "/far/neighbours/index/", recursive=True)
        expected = PartitionedIndex.load(built[kind]).query(NEW, 3)
        found = PartitionedIndex.load("memory://far/neighbours/index").query(NEW, 3)
        fs.rm("/far", recursive=True)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_python_needs_no_spark(built: dict[tuple[str, str], str]) -> None:
    code = (
        "import sys, numpy as np\nfrom ivis_spark.serving.index import PartitionedIndex\n"
        f"index = PartitionedIndex.load({built['euclidean', 'annoy']!r})\n"
        "ids, _ = index.query(np.zeros((2, 6)), 3)\n"
        "print(ids.shape, [m for m in ('pyspark', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3) []"


@pytest.mark.parametrize("harm", ["flipped", "torn", "gone", "quantiser"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_harmed_file_is_named(
    spark: SparkSession, built: dict[tuple[str, str], str], kind: tuple[str, str], harm: str, tmp_path: Path
) -> None:
    shutil.copytree(built[kind], tmp_path / "index")
    head = json.loads((tmp_path / "index" / "index.json").read_text())
    files = max(head["regions"], key=lambda record: record["rows"])["files"]
    name = "regions.npz" if harm == "quantiser" else next(iter(files.values()))["path"]
    path = tmp_path / "index" / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body[: len(body) // 2]) if harm == "torn" else bytes(body))
    if harm == "gone":
        path.unlink()
    text = rf"index file .*{name}.* (is not what was written|cannot be read).*; remove the neighbours"
    with pytest.raises(ArtifactError, match=text):
        PartitionedIndex.load(str(tmp_path / "index")).query(X, 3)
    if harm == "flipped":
        from ivis_spark.spark.causes import task_errors

        table = spark.createDataFrame([(row.tolist(),) for row in X[::4]], "features array<float>")
        with pytest.raises(ArtifactError, match=text), task_errors():
            query(table, str(tmp_path / "index"), 3).collect()


def test_what_does_not_fit_is_refused(spark: SparkSession, built: dict[tuple[str, str], str], tmp_path: Path) -> None:
    uri = built["euclidean", "leaves"]
    index = PartitionedIndex.load(uri)
    with pytest.raises(InputError, match=r"shape \(3, 5\); the index needs \(n, 6\)"):
        index.query(np.zeros((3, 5)))
    with pytest.raises(InputError, match=r"1 of 3 rows hold NaN"):
        index.query(np.array([[0.0] * 6, [np.nan] * 6, [1.0] * 6]))
    with pytest.raises(InputError, match=r"k=5001 is out of range: .* 5000 rows, so k must be 1 to 5000"):
        index.query(NEW, 5001)
    with pytest.raises(ArtifactError, match=r"holds no index; build it first"):
        PartitionedIndex.load(str(tmp_path))
    table = spark.createDataFrame([([1.0, 2.0],)], "features array<double>")
    with pytest.raises(InputError, match=r"the table has 2 features in column 'features'; the index was built on 6"):
        query(table, uri)
    shutil.copytree(uri, tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text('{"format": 99}')
    with pytest.raises(ArtifactError, match=rf"index of format 99; this version reads {INDEX_FORMAT}: remove"):
        PartitionedIndex.load(str(tmp_path / "index"))


def test_executors_find_an_index_of_the_user_by_its_name(spark: SparkSession, tmp_path: Path) -> None:
    """It is built and searched there; nothing imports it because a file names it."""
    spark.sparkContext.addPyFile(toy_index.__file__)
    rows = spark.createDataFrame(
        [(i, bytearray(row.tobytes())) for i, row in enumerate(X[:600])], "id long, features binary"
    )
    config = NeighboursConfig(k=5, backend="toy_index:Index", region_rows=150, target_recall=0.8)
    info = build_neighbours(rows, config, random_state=0, folder=f"file://{tmp_path}")
    assert info["backend"] == "toy_index:Index" and info["n_regions"] > 1
    table = spark.createDataFrame([(i, row.tolist()) for i, row in enumerate(X[:40])], "n int, v array<double>")
    data = DataConfig(id_col="n", features_col="v")
    found = query(table, str(tmp_path / "index"), 1, data=data, backend="toy_index:Index").collect()
    assert all(row["neighbour_ids"] == [row["n"]] for row in found) and len(found) == 40
    with pytest.raises(ArtifactError, match=r"needs the index library 'toy_index:Index', .* only if you name it too"):
        PartitionedIndex.load(str(tmp_path / "index"))


def test_pipeline_queries_its_own_index(spark: SparkSession, tmp_path: Path) -> None:
    """Rows as the user has them, before scaling; the second call finds the first one's answer."""
    rows = [(i, row.tolist()) for i, row in enumerate(X[:600])]
    spark.createDataFrame(rows, "id long, features array<float>").write.parquet(str(tmp_path / "old"))
    spark.createDataFrame(rows[:50], "id long, features array<float>").write.parquet(str(tmp_path / "new"))
    config = Config.from_mapping({"data": {"id_col": "id"}, "neighbours": {"k": 5}, "query": {"k": 2}})

    def pipeline(name: str) -> Pipeline:
        return Pipeline(str(tmp_path / "run"), config, get_spark=lambda: spark, input_uri=str(tmp_path / name))

    pipeline("old").neighbours()
    manifest = pipeline("new").query()
    assert manifest.stage == "queries-new" and manifest.info["rows"] == 50
    found = spark.read.parquet(str(published(tmp_path / "run", "queries-new") / "data")).orderBy("id").collect()
    assert [row["neighbour_ids"][0] for row in found] == list(range(50))
    assert all(len(row["neighbour_ids"]) == 2 and row["distances"][0] == 0 for row in found)
    assert pipeline("new").query().created == manifest.created


def test_batches_are_cut_by_bytes(
    spark: SparkSession, built: dict[tuple[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features, what is kept, and the neighbours that are found."""
    asked = batches_asked_for(monkeypatch, query_module)
    table = spark.createDataFrame(
        [(i, "x" * 900, row.tolist()) for i, row in enumerate(NEW[:9])], "n int, t string, v array<double>"
    )
    uri, folder = built["euclidean", "leaves"], str(tmp_path / "found")
    query_module.query_into(folder, table, uri, 4, data=DataConfig(features_col="v"), backend="auto", batch_rows=77)
    assert asked == [(8 * 6 + 16 + len('{"c1":""}') + 900 + 4 * 12, 77)]
    found = spark.read.parquet(folder).orderBy("n").collect()
    assert [row["neighbour_ids"] for row in found] == PartitionedIndex.load(uri).query(NEW[:9], 4)[0].tolist()
