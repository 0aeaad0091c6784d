"""What is read: the blocks of a `triplets` stage, and where reading begins. Importing this loads no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from ivis_spark.errors import InputError


@dataclass(frozen=True)
class TripletBlocks:
    """Where the blocks of a `triplets` stage lie and what they look like.

    Attributes:
        folder: URI of the Parquet files.
        file_blocks: Blocks of each file, by name.
        block_rows: B, rows of a block.
        dims: d, numbers of a row.
        draws: m, positives of each anchor.
        labelled: Numbers of a row's label; 0 without labels.
        group_blocks: Blocks of a Parquet row group; the last group of a file may hold fewer.
        negatives: Whether negatives can be drawn; blocks made for a loss that reads none do not say which are allowed.
    """

    folder: str
    file_blocks: dict[str, int]
    block_rows: int
    dims: int
    draws: int
    labelled: int
    group_blocks: int
    negatives: bool = True

    @property
    def rows(self) -> int:
        """Rows of an epoch, those that pad blocks included."""
        return self.block_rows * sum(self.file_blocks.values())

    @property
    def row_groups(self) -> int:
        """Row groups of all files."""
        return sum(-(-blocks // self.group_blocks) for blocks in self.file_blocks.values())

    def check_ranks(self, n_ranks: int, batch_size: int, *, negatives: bool = True) -> None:
        """Check that every rank gets something to read in every step, and more than one triplet of it.

        Runs on: driver, before ranks are started.

        Raises:
            InputError: if there are fewer row groups than ranks, fewer triplets than a batch has, or batches of one
                triplet a rank.
        """
        if negatives and batch_size < 2 * n_ranks:
            raise InputError(
                f"train.batch_size={batch_size} over train.num_ranks={n_ranks} leaves no other row in a batch to draw "
                f"negatives from: pass at least {2 * n_ranks}"
            )
        if n_ranks > 1 and self.row_groups < n_ranks:
            rows = max(2, self.rows // (2 * n_ranks))
            raise InputError(
                f"{self.folder} has {self.row_groups} Parquet row groups; train.num_ranks={n_ranks} needs at least "
                f"one per rank. Lower it, or write smaller groups: ivis-spark triplets --overwrite --set "
                f"triplets.group_blocks=1 --set triplets.block_rows={min(rows, self.block_rows)}"
            )
        if n_ranks > 1 and self.rows < batch_size:
            raise InputError(
                f"{self.folder} has {self.rows} triplets per epoch; train.batch_size={batch_size} over {n_ranks} "
                f"ranks needs at least as many: lower it to a multiple of {n_ranks} up to {self.rows}"
            )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch; a table smaller than a batch is one batch."""
        return max(1, self.rows // batch_size)


@dataclass(frozen=True)
class Position:
    """Where reading begins, and for whom.

    Attributes:
        rank: Which of the processes reads.
        n_ranks: How many share every epoch.
        epoch: First epoch.
        step: First batch of that epoch.
    """

    rank: int = 0
    n_ranks: int = 1
    epoch: int = 0
    step: int = 0
