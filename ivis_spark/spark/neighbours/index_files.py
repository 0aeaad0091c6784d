"""The files of a partitioned index: what the tasks wrote, put in order and described in one `index.json`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any

from ivis_spark import storage
from ivis_spark.core.knn.quantiser import Router
from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import check_fields
from ivis_spark.serving.index import INDEX_FILE, INDEX_FORMAT, read_cell


def publish_index(folder: str, router: Router, head: dict[str, Any]) -> None:
    """Write the router and `index.json`, and remove what attempts left that did not count.

    Runs on: driver. Memory: a record a cell.

    Args:
        folder: URI where the tasks left the files of cells and a report each.
        router: Cells.
        head: What `index.json` says beside its format, the router and the cells.
    """
    fs, path = storage.filesystem(folder)
    fs.makedirs(path, exist_ok=True)
    reports = sorted(name for name in fs.ls(path, detail=False) if os.path.basename(name).startswith("cells-"))
    kept: dict[int, list[dict[str, Any]]] = {}
    for name in reports:
        with contextlib.suppress(ArtifactError):  # cut off with its attempt, which Spark then did not count
            partition, cells = storage.parse_json(fs.cat_file(name), name, _read_report)
            kept.setdefault(partition, cells)
    cells = sorted((cell for cells in kept.values() for cell in cells), key=lambda cell: cell["cell"])
    at_home = sum(cell["home_rows"] for cell in cells)
    if at_home != head["rows"]:
        raise ArtifactError(f"the cells of {folder} hold {at_home} of {head['rows']} rows; build the neighbours anew")
    used = {file["path"] for cell in cells for file in cell["files"].values()}
    for name in fs.ls(path, detail=False):
        if os.path.basename(name) not in used:
            fs.rm(name)
    with tempfile.TemporaryDirectory(prefix="ivis-spark-router-") as local:
        records = [
            {"path": name, **storage.digest_file(os.path.join(local, name))} for name in sorted(router.save(local))
        ]
        with open(os.path.join(local, INDEX_FILE), "w", encoding="utf-8") as file:
            json.dump({"format": INDEX_FORMAT, **head, "router": records, "cells": cells}, file)
        storage.put_folder(local, folder)


def _read_report(value: Any) -> tuple[int, list[dict[str, Any]]]:
    report = check_fields(value, partition=int, cells=list)
    return report["partition"], [read_cell(cell) for cell in report["cells"]]
