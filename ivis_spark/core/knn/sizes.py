"""Memory of a build of the neighbours, from its constants: for `plan`, and for a test of its limits."""

from __future__ import annotations

from dataclasses import dataclass

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.regions import region_rows, sample_size

CHOOSING_ROWS, CHOOSING_NEIGHBOURS = 256, 16  # whose places choose the margin between regions
TASK_BYTES = 256 << 20  # of rows that a task is sent, unless one region has more
_RECORD_BYTES = 1024  # of `index.json` about a region
_SPREAD = 3.0  # times its mean rows: a large region; seen in noise of 128 dimensions, where regions differ most
_COPIES = 3.0  # of a region's rows while it is searched: as they came, sorted, in products


@dataclass(frozen=True)
class BuildSizes:
    """Numbers and bytes of a build; each of the bytes is one structure.

    Attributes:
        regions: Regions.
        region_rows: Rows per region, without copies, in the smallest regions that are tried.
        tasks: Tasks that search them, if none is sent more than `TASK_BYTES`.
        sample: Rows that regions are learnt from, on the driver.
        quantiser: Regions, on the driver and broadcast.
        queries: Rows whose exact neighbours are searched, on the driver and broadcast.
        lists: Their neighbours: a record of each partition, folded in tasks.
        places: Neighbours whose places choose the margin, on the driver.
        records: Records of the regions, which the driver collects and writes to `index.json`.
        region: Rows of a large region, with the rows copied to it, in a task.
        region_lists: Their neighbours.
    """

    regions: int
    region_rows: int
    tasks: int
    sample: float
    quantiser: float
    queries: float
    lists: float
    places: float
    records: float
    region: float
    region_lists: float

    @property
    def driver(self) -> float:
        """Bytes that the driver holds at once, at most: the sample twice while it is collected."""
        return 2 * self.sample + self.quantiser + self.queries + 2 * self.lists + 2 * self.places + 2 * self.records

    @property
    def task(self) -> float:
        """Bytes that a task holds, at most."""
        return _COPIES * self.region + 2 * self.region_lists + 2 * self.quantiser


def build_sizes(rows: float, dims: int, config: NeighboursConfig, *, copies: float) -> BuildSizes:
    """Return the sizes of a build.

    Args:
        rows: Rows of the table.
        dims: Features of a row.
        config: Settings of the stage.
        copies: Mean regions that hold a row.
    """
    sizes = region_rows(config, int(rows), dims)
    rows_per_region = sizes[0]  # the most regions, and below the largest
    regions = max(1, round(rows / rows_per_region))
    vector, queries, k = 4.0 * dims, config.recall_sample + CHOOSING_ROWS, config.k
    copies = copies if regions > 1 else 1.0
    large = min(rows, _SPREAD * sizes[-1])
    return BuildSizes(
        regions=regions,
        region_rows=rows_per_region,
        tasks=max(1, min(regions, -int(-copies * rows * (vector + 9) // TASK_BYTES))),
        sample=sample_size(int(rows), dims, rows_per_region) * vector,
        quantiser=regions * (vector + 16),
        queries=queries * vector,
        lists=queries * k * 12.0,
        places=CHOOSING_ROWS * min(k, CHOOSING_NEIGHBOURS) * vector,
        records=regions * _RECORD_BYTES,
        region=copies * large * (vector + 9),
        region_lists=large * k * 12.0,
    )
