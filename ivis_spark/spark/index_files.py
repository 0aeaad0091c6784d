"""The files of a partitioned index: what the tasks wrote, put in order and described in one `index.json`."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from ivis_spark import storage
from ivis_spark.core.partitioned import INDEX_FILE, INDEX_FORMAT
from ivis_spark.core.router import Router


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
    kept: dict[int, dict[str, Any]] = {}
    for name in reports:
        report = json.loads(fs.cat_file(name))
        kept.setdefault(report["partition"], report)
    cells = sorted((cell for report in kept.values() for cell in report["cells"]), key=lambda cell: cell["cell"])
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
