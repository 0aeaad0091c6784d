"""A run in a folder whose name would be a pattern, on storage for which fsspec takes it for one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_stages
from nasty_names import PATHS
from object_store import s3_bucket

from ivis_spark import storage
from ivis_spark.runtime.lock import RunLock
from ivis_spark.storage import RunFolder


@pytest.fixture(params=["memory", "local", "s3 over http"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with files that names of other folders match as patterns."""
    if request.param == "s3 over http":
        root = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    else:
        root = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}"
    for name in ("a1", "ax", "ay", "a", "ab"):
        storage.write_json(f"{root}/{name}/rows/data/part-0", name)
    return root


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as monkeypatch, s3_bucket(monkeypatch) as bucket:
        yield bucket


def files(root: str) -> dict[str, int]:
    return dict(storage.list_files(root))


@pytest.mark.parametrize("name", PATHS)
def test_a_run_is_published_replaced_and_removed_beside_others(root: str, name: str) -> None:
    before, run = files(root), f"{root}/{name}"
    RunFolder(run).claim()
    for text in ("one", "two"):
        small_stages.publish(run, text)
        assert small_stages.text_of(run) == text
    with RunLock(run):
        RunFolder(run).remove("rows")
    assert small_stages.text_of(run) is None
    storage.remove_folder(run)
    assert files(root) == before
    storage.remove_folder(run)  # again, when it is not there
    assert files(root) == before


@pytest.mark.parametrize("name", PATHS)
def test_files_and_folders_are_moved_copied_and_fetched(root: str, name: str, tmp_path: Path) -> None:
    if "::" in name and root.startswith("memory:"):
        pytest.skip("fsspec's memory filesystem itself chains on it")
    before, folder = files(root), f"{root}/{name}"
    storage.write_json(f"{folder}/deep/{name}", 1)
    fs, path = storage.filesystem(folder)
    with storage.local_copy(folder) as local:
        assert (Path(local) / "deep" / name).read_text() == "1"
    fs.mv(f"{path}/deep/{name}", f"{path}/{name}")
    assert set(files(root)) - set(before) == {f"{name}/{name}"}
    storage.remove_folder(folder)
    assert files(root) == before


@pytest.mark.parametrize("name", small_stages.TABLES)
def test_a_target_beside_others(root: str, name: str) -> None:
    before = files(root)
    table = small_stages.Table(f"{root}/a[1]*?", name)
    table.prepare()
    table.work()
    assert sorted(table.rows()) == sorted(table.wanted)
    assert before.items() <= files(root).items()
