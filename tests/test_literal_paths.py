"""A run in a folder whose name would be a pattern, on storage for which fsspec takes it for one."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import small_stages
from nasty_names import PATHS

from ivis_spark import storage
from ivis_spark.runtime.lock import RunLock
from ivis_spark.storage import RunFolder


@pytest.fixture(params=["memory", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with files that names of other folders match as patterns."""
    root = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}"
    for name in ("a1", "ax", "ay", "a", "ab"):
        storage.write_json(f"{root}/{name}/rows/data/part-0", name)
    return root


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
    fs.mv(f"{path}", f"{path} 2", recursive=True)
    assert set(files(root)) - set(before) == {f"{name} 2/{name}"}
    storage.remove_folder(f"{folder} 2")
    assert files(root) == before


@pytest.mark.parametrize("name", small_stages.TABLES)
def test_a_target_beside_others(root: str, name: str) -> None:
    before = files(root)
    table = small_stages.Table(f"{root}/a[1]*?", name)
    table.prepare()
    table.work()
    assert sorted(table.rows()) == sorted(table.wanted)
    assert before.items() <= files(root).items()
