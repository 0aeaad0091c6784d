"""Every reader gives the same batches to the byte, wherever the blocks lie."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from object_store import s3_bucket  # noqa: E402
from triplet_blocks import write_blocks  # noqa: E402

from ivis_spark import storage  # noqa: E402
from ivis_spark.config import TrainConfig  # noqa: E402
from ivis_spark.config.checks import module_names  # noqa: E402
from ivis_spark.errors import ArtifactError, ConfigError, DependencyError  # noqa: E402
from ivis_spark.train import readers  # noqa: E402
from ivis_spark.train.dataset.block_dataset import block_dataset  # noqa: E402
from ivis_spark.train.dataset.blocks import Position, TripletBlocks  # noqa: E402
from ivis_spark.train.dataset.sharding import Part, deal, row_groups_of, whole_and_cut  # noqa: E402
from ivis_spark.train.readers import installed_readers, make_reader  # noqa: E402


def _orders_otherwise(reader: str) -> bool:
    """Petastorm before 0.13 shuffles row groups by another generator: the same rows, in other batches."""
    return reader == "petastorm" and importlib.metadata.version(reader) < "0.13"


USABLE = list(installed_readers()[0])
ALIKE = [
    pytest.param(name, marks=pytest.mark.skipif(_orders_otherwise(name), reason="Petastorm 0.12 orders otherwise"))
    for name in USABLE
]
# Digests of the batches of one rank, or two, over two epochs, from the beginning or not; taken from Petastorm.
PLACES = [{}, {"rank": 0, "n_ranks": 3}, {"rank": 2, "n_ranks": 3, "epoch": 1, "step": 1}]


def digest(blocks: TripletBlocks, reader: str, **position: int) -> str:
    """Digest what is in the batches, in order."""
    options = {"batch_size": 96, "random_state": 5, "labels": True, "negatives": 3, "reader": reader}
    found = hashlib.sha256()
    for batch in block_dataset(blocks, **options, position=Position(**position)).take(9).as_numpy_iterator():
        for name in sorted(batch):
            found.update(batch[name].tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TripletBlocks:
    """Files of several row groups, the last of them short, cut by the borders of three ranks."""
    return write_blocks(tmp_path_factory.mktemp("blocks"), [3, 5, 4, 1])


@pytest.fixture(scope="module")
def expected(local: TripletBlocks) -> list[str]:
    return [digest(local, "pyarrow", **position) for position in PLACES]


def elsewhere(blocks: TripletBlocks, folder: str) -> TripletBlocks:
    """Copy the blocks to another folder."""
    storage.put_folder(blocks.folder.removeprefix("file://"), folder)
    return TripletBlocks(**{**vars(blocks), "folder": folder})


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_bucket(monkeypatch) as bucket:
        yield f"{bucket}/run"


@pytest.mark.parametrize("reader", ALIKE)
def test_on_a_disk(local: TripletBlocks, expected: list[str], reader: str) -> None:
    assert [digest(local, reader, **position) for position in PLACES] == expected
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("reader", ALIKE)
@pytest.mark.parametrize("name", ["with space", "a%20b", "c#d", "e?f", "[g]", "h:i", "ü"])
def test_in_a_folder_of_any_name(
    local: TripletBlocks, expected: list[str], reader: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(local.folder.removeprefix("file://"), folder)
    moved = TripletBlocks(**{**vars(local), "folder": f"file://{folder}"})
    assert digest(moved, reader, **PLACES[1]) == expected[1]


@pytest.mark.parametrize("reader", ALIKE)
@pytest.mark.parametrize("form", ["dbfs:/Volumes/main/default/run", "/Volumes/main/default/run", "dbfs:/run"])
def test_on_databricks(
    local: TripletBlocks, expected: list[str], reader: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volumes and DBFS are mounted folders there: `file:///Volumes/...` and `file:///dbfs/...`."""
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    uri = storage.normalise_uri(form)
    mounted = storage.local_path(uri)
    assert mounted == ("/dbfs/run" if form == "dbfs:/run" else "/Volumes/main/default/run")
    # A machine that is none of theirs has no such folder at its root, so the root is moved.
    filesystem = storage.filesystem

    def moved(uri: str) -> tuple[object, str]:
        fs, path = filesystem(uri)
        return fs, str(tmp_path) + path if path.startswith(("/dbfs/", "/Volumes/")) else path

    for module in (storage, storage.files):
        monkeypatch.setattr(module, "filesystem", moved)
    blocks = elsewhere(local, uri)
    assert (tmp_path / mounted[1:] / "part-0.parquet").exists()
    assert digest(blocks, reader, **PLACES[1]) == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pyarrow"])
def test_in_memory_and_on_s3(local: TripletBlocks, expected: list[str], reader: str, s3: str) -> None:
    for uri in ("memory://run/blocks", s3, s3.replace("s3://", "s3a://") + "-2"):
        blocks = elsewhere(local, uri)
        assert [digest(blocks, reader, **position) for position in PLACES] == expected


@pytest.mark.parametrize("reader", ALIKE)
def test_the_order_is_the_one_that_is_written_down(local: TripletBlocks, reader: str) -> None:
    """Whole files and cut ones; the column `weight` tells blocks apart that end a file."""
    parts = [p for p in _parts(local) if p.stop > p.first]
    whole, cut = whole_and_cut(local.file_blocks, local.group_blocks, parts)
    assert whole and cut
    found = [len(group["anchor"]) for group in make_reader(reader).read(local, parts, ["anchor"], seed=7)]
    planned = row_groups_of(local.file_blocks, local.group_blocks, parts, seed=7)
    sizes = [
        len(range(min(local.group_blocks, local.file_blocks[name] - group * local.group_blocks))[kept])
        for name, group, kept in planned
    ]
    assert found == sizes


def _parts(blocks: TripletBlocks):
    from ivis_spark.train.dataset.sharding import deal

    return deal(blocks.file_blocks, 1, 2, np.random.default_rng(1))


@pytest.mark.parametrize("reader", USABLE)
def test_a_file_that_lost_row_groups_is_named(local: TripletBlocks, reader: str) -> None:
    claimed = {**local.file_blocks, "part-0.parquet": 9}
    short = TripletBlocks(**{**vars(local), "file_blocks": claimed})
    parts = [Part("part-0.parquet", 0, 9)]
    read = 0
    with contextlib.suppress(ArtifactError):  # or fewer blocks come, which is an error of whoever counts them
        for group in make_reader(reader).read(short, parts, ["anchor"], seed=7):
            read += len(group["anchor"])
    assert read < sum(part.stop - part.first for part in parts)
    with pytest.raises(tf.errors.OpError, match=r"ArtifactError: .*(blocks were read|fewer row groups)"):
        digest(short, reader)


def test_many_files_are_not_all_kept_open(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, [1] * 90, rows=4)
    opened = []
    for group in make_reader("pyarrow").read(blocks, _parts(blocks), ["anchor"], seed=3):
        assert len(group["anchor"]) == 1
        opened.append(
            sum(str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        )
    assert len(opened) == 45 and max(opened) <= 64
    assert not _open_below(tmp_path)


def _open_below(folder: Path) -> int:
    return sum(str(folder) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))


def test_a_third_reader_is_one_file(
    local: TripletBlocks, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder joins the settings, their help and the choice of `auto`."""
    (tmp_path / "toy.py").write_text(
        "from ivis_spark.train.readers.pyarrow import Reader as Known\n"
        "class Reader(Known):\n"
        "    preference = 9\n"
        "    read_by_toy = 0\n"
        "    def read(self, *args, **kwargs):\n"
        "        Reader.read_by_toy += 1\n"
        "        return super().read(*args, **kwargs)\n"
    )
    readers.__path__.append(str(tmp_path))
    try:
        assert TrainConfig(reader="toy").reader == "toy"
        toy = type(make_reader("auto"))
        assert toy.__module__ == "ivis_spark.train.readers.toy"
        assert digest(local, "auto") == digest(local, "toy") == expected[0] and toy.read_by_toy >= 2
    finally:
        readers.__path__.remove(str(tmp_path))
    with pytest.raises(ConfigError, match=r"train.reader='toy' is not one of: auto, petastorm, pyarrow, package"):
        TrainConfig(reader="toy")


def test_a_reader_that_is_missing_or_broken_is_refused_or_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    (tmp_path / "petastorm").mkdir()
    (tmp_path / "petastorm" / "__init__.py").write_text("raise AttributeError('module pyarrow has no filesystem')")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "petastorm"}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DependencyError, match=r"has no filesystem\): pip install 'ivis_spark\[classic\]'"):
        make_reader("petastorm")
    assert type(make_reader("auto")).__module__.endswith(".pyarrow")
    with pytest.raises(ConfigError, match=r"train.reader='no.such:Reader' cannot be imported"):
        make_reader("no.such:Reader")
    monkeypatch.undo()
    sys.modules.update(loaded)
    assert module_names("ivis_spark.train.readers") == ["petastorm", "pyarrow"]


@pytest.mark.skipif("petastorm" not in USABLE, reason="needs Petastorm")
def test_petastorm_does_not_sleep_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks every 100 ms whether there is another row group; one look may come before the first."""
    from petastorm.workers_pool import dummy_pool

    blocks, slept = write_blocks(tmp_path, [30, 30]), []
    monkeypatch.setattr(dummy_pool, "sleep", lambda seconds: (slept.append(seconds), time.sleep(seconds)))
    parts = deal(blocks.file_blocks, 0, 1, np.random.default_rng(0))
    groups = list(make_reader("petastorm").read(blocks, parts, ["anchor", "positive_0"], seed=1))
    assert sum(len(group["anchor"]) for group in groups) == 60
    assert len(slept) <= 1
