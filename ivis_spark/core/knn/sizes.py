"""Memory of a build of the neighbours, from its constants: for `plan`, and for a test of its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.leaves import KEPT_BYTES
from ivis_spark.core.knn.regions import region_rows, sample_size

CHOOSING_ROWS, CHOOSING_NEIGHBOURS = 256, 16  # whose places choose the margin between regions
TASK_BYTES = 256 << 20  # of rows that a task is sent, unless one region has more
MOST_COPIES = 3.5  # regions that hold a row, on average: larger regions copy fewer, and are learnt if they fit
MOST_REGION_BYTES = 1 << 30  # of rows in a region, with those copied to it: if more are expected, smaller are learnt
NEIGHBOUR_BYTES = 12  # of a list: an id and a distance
_RECORD_BYTES = 1024  # of `index.json` about a region
_SPREAD = 3.0  # times its mean rows: a large region; seen in noise of 128 dimensions, where regions differ most
_COPIES = 2.25  # of a region's rows while it is searched: by id, by leaf, and along principal directions


@dataclass(frozen=True)
class BuildSizes:
    """Numbers and bytes of a build; each of the bytes is one structure.

    Attributes:
        regions: Regions.
        region_rows: Rows per region, without copies, in the smallest regions that are tried.
        tasks: Tasks that search them, see `search_tasks`.
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
        return searching_bytes(self.region) + 2 * self.region_lists + 2 * self.quantiser


def row_bytes(dims: int) -> int:
    """Return the bytes of a row that is sent to a region: its id, features and role."""
    return 8 + 4 * dims + 1


def searching_bytes(region: float) -> float:
    """Return what a task holds of a region whose rows take so many bytes, while it is searched."""
    return _COPIES * region + KEPT_BYTES


def search_tasks(size: float, regions: int, slots: int) -> int:
    """Return how many tasks search: some a core, more if one would be sent too much, never more than regions.

    They fill whole rounds: a last task would run by itself, as long as all of a round.

    Args:
        size: Bytes of the rows that are sent to regions.
        regions: Regions.
        slots: Tasks that run at once.
    """
    rounds = max(2, math.ceil(size / TASK_BYTES / slots))
    return max(1, min(regions, rounds * slots))


def build_sizes(rows: float, dims: int, config: NeighboursConfig, *, copies: float, slots: int = 1) -> BuildSizes:
    """Return the sizes of a build.

    Args:
        rows: Rows of the table.
        dims: Features of a row.
        config: Settings of the stage.
        copies: Mean regions that hold a row.
        slots: Tasks that run at once.
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
        tasks=search_tasks(copies * rows * row_bytes(dims), regions, slots),
        sample=sample_size(int(rows), dims, rows_per_region) * vector,
        quantiser=regions * (vector + 16),
        queries=queries * vector,
        lists=queries * k * float(NEIGHBOUR_BYTES),
        places=CHOOSING_ROWS * min(k, CHOOSING_NEIGHBOURS) * vector,
        records=regions * _RECORD_BYTES,
        region=copies * large * row_bytes(dims),
        region_lists=large * k * NEIGHBOUR_BYTES,
    )
