"""Task bodies on executors."""

from __future__ import annotations

import importlib
import sys
import zipfile
import zipimport
from collections.abc import Iterator
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyspark")
pytestmark = pytest.mark.spark

from ivis_spark.spark.tasks import _run  # noqa: E402


def test_after_a_task_no_importer_of_a_zip_is_left_and_imports_from_it_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "shipped.zip")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("shipped/__init__.py", "")
        file.writestr("shipped/first.py", "value = 1")
        file.writestr("shipped/second.py", "value = 2")
    monkeypatch.syspath_prepend(path)

    def body(batches: Iterator[int]) -> Iterator[int]:
        for number in batches:
            yield number + importlib.import_module("shipped.first").value

    assert list(_run(iter([1, 2]), body=body)) == [2, 3]
    assert not [each for each in sys.path_importer_cache.values() if isinstance(each, zipimport.zipimporter)]
    assert importlib.import_module("shipped.second").value == 2
    for name in ("shipped", "shipped.first", "shipped.second"):
        sys.modules.pop(name)
