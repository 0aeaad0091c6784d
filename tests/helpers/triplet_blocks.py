"""Blocks of triplets written without Spark, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ivis_spark.core.triplets.sampling import same_class_codes
from ivis_spark.train.dataset.blocks import TripletBlocks


def write_blocks(
    folder: Path,
    files: list[int],
    *,
    rows: int = 32,
    dims: int = 4,
    draws: int = 2,
    group_blocks: int = 2,
    negatives: bool = True,
) -> TripletBlocks:
    """Write files of so many blocks; the anchors are points of three clusters, their last column says which.

    The label of an anchor is its cluster, rows 2i and 2i + 1 are near one another, and the last block of a file ends
    with a row of weight 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, file_blocks, number = np.random.default_rng(0), {}, 0
    for file, count in enumerate(files):
        columns: dict[str, list[bytes]] = {}
        for block in range(count):
            ids = np.arange(number, number + rows)
            number += rows
            centres = np.eye(3, dims)[ids % 3] * 4
            weight = np.ones(rows)
            weight[-1] = block < count - 1
            parts = {"anchor": _points(centres, rng), "weight": weight, "label": ids % 3}
            parts |= {f"positive_{draw}": _points(centres, rng) for draw in range(draws)}
            parts["anchor"][:, -1] = ids / 1000  # says which anchor it is
            for name, values in parts.items():
                columns.setdefault(name, []).append(np.asarray(values, "<f4").tobytes())
            if negatives:
                columns.setdefault("near", []).append(same_class_codes(ids // 2).astype("<u4").tobytes())
        name = f"part-{file}.parquet"
        table = pa.table({key: pa.array(values, pa.binary()) for key, values in columns.items()})
        pq.write_table(table, folder / name, compression="lz4", use_dictionary=False, row_group_size=group_blocks)
        file_blocks[name] = count
    facts = {"labelled": 1, "group_blocks": group_blocks, "negatives": negatives}
    return TripletBlocks(f"file://{folder}", file_blocks, rows, dims, draws, **facts)


def _points(centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return centres + rng.normal(size=centres.shape) * 0.5
