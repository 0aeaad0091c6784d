"""`plan`: what a run will need, before it is started: tasks, bytes, memory a task, core-hours, and what to change.

Every figure is a formula over rows, dimensions and settings; seconds are that times a rate. The built-in rates were
measured by `tests/bench/bench_plan.py`, which compares plans with what runs take. Those of a machine of one's own come
from a finished run of a part of the table: `plan --measured RUN --measured-cores N` scales each stage by what that run
took.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ivis_spark.config import NETWORK_UNITS, Config
from ivis_spark.core.knn.sizes import TASK_BYTES, BuildSizes, build_sizes
from ivis_spark.core.triplets.blocks import BlockPlan
from ivis_spark.errors import ConfigError

# Widths of the hidden layers, here again since nn/networks.py needs TensorFlow; a test holds them equal.
_PYTHON_BYTES, _TENSORFLOW_BYTES = 150e6, 700e6  # resident before any data


@dataclass(frozen=True)
class Rates:
    """Costs, in seconds of one core, each behind the seconds that its stage takes whatever its size.

    Attributes:
        rows: (starting Spark and Python, a row, a value of it) to check, scale and write.
        search: (a stage of several jobs, a row, a value of it) to find regions, exact neighbours of a sample, and the
            neighbours of every row.
        list: A neighbour ranked and written.
        triplets: (the stage, a vector fetched, a value of it).
        train: (starting TensorFlow, a triplet, a floating-point operation).
        embed: (the stage, a row, a floating-point operation).
        report: (the stage, whose samples do not grow with the table, a row) to count all rows by their place.
    """

    rows: tuple[float, float, float] = (6.0, 2e-6, 1e-7)
    search: tuple[float, float, float] = (5.0, 8e-6, 3.5e-7)
    list: float = 7e-7
    triplets: tuple[float, float, float] = (3.0, 6e-6, 1.3e-7)
    train: tuple[float, float, float] = (6.0, 9e-6, 8e-12)
    embed: tuple[float, float, float] = (1.0, 4e-6, 2e-11)
    report: tuple[float, float] = (8.5, 2.4e-6)


@dataclass(frozen=True)
class Cluster:
    """What the run gets: executors, cores of each, memory and, where it is known, disk of each in bytes."""

    executors: int
    cores: int
    memory: float
    disk: float = math.inf

    @classmethod
    def parse(cls, text: str, memory: str, disk: str | None = None) -> Cluster:
        """Read `50x16`, `64g` and `500g`.

        Raises:
            ConfigError: if one is not of that form.
        """
        given = f"--executors {text!r} --executor-memory {memory!r}" + f" --executor-disk {disk!r}" * (disk is not None)
        try:
            executors, cores = (int(part) for part in text.lower().split("x"))
            found = cls(executors, cores, _bytes(memory), math.inf if disk is None else _bytes(disk))
        except (ValueError, KeyError) as err:
            raise ConfigError(f"{given}: they must be like 50x16 (executors x cores), 64g and 500g") from err
        if min(found.executors, found.cores, found.memory, found.disk) <= 0:
            raise ConfigError(f"{given} must be above 0")
        return found

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return self.executors * self.cores


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs. Bytes are upper bounds: nothing is taken off for compression."""

    stage: str
    tasks: int
    shuffle_bytes: float
    storage_bytes: float
    task_bytes: float
    core_seconds: float
    seconds: float
    formula: str
    advice: list[str] = field(default_factory=list)

    def local_bytes(self, cluster: Cluster) -> float:
        """Return what its shuffle takes of an executor's disk: once sorted by the map side, once merged."""
        return 2 * self.shuffle_bytes / cluster.executors


@dataclass(frozen=True)
class Assumptions:
    """What the table itself decides, and a plan can only assume."""

    copies: float = 1.7  # regions that hold a row; 1 to 2 in tables looked at, more in noise of many dimensions
    epochs: int = 30  # until the loss stops falling, by patience


@dataclass(frozen=True)
class _Job:
    rows: float
    dims: int
    config: Config
    cluster: Cluster
    rates: Rates
    assumed: Assumptions
    factors: Mapping[str, float]

    @property
    def vector(self) -> float:
        return 4.0 * self.dims

    @property
    def anchors(self) -> float:
        return float(self.config.triplets.anchors or self.rows)

    @property
    def build(self) -> BuildSizes:
        return build_sizes(self.rows, self.dims, self.config.neighbours, copies=self.assumed.copies)

    @property
    def flops(self) -> float:
        """Operations of one forward pass through the encoder."""
        widths = [
            self.dims,
            *(NETWORK_UNITS.get(self.config.train.model) or NETWORK_UNITS["szubert"]),
            self.config.train.embedding_dims,
        ]
        return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))

    def times(self, stage: str, start: float, core_seconds: float, slots: float) -> tuple[float, float]:
        """Return core-seconds and seconds of a stage that starts in `start` and has that work by the rates."""
        core = core_seconds * self.factors.get(stage, 1.0)
        return core, start + core / min(self.cluster.slots, slots)


def make_plan(
    rows: float,
    dims: int,
    config: Config,
    cluster: Cluster,
    *,
    rates: Rates | None = None,
    assumed: Assumptions | None = None,
    factors: Mapping[str, float] | None = None,
) -> list[StagePlan]:
    """Plan every stage of a run.

    Args:
        rows: Rows of the table.
        dims: Features of a row.
        config: Settings of the run.
        cluster: What it runs on.
        rates: Costs; the built-in ones by default.
        assumed: What depends on the table.
        factors: By stage, how much more work it is than the rates say; 1 where none is given.

    Raises:
        ConfigError: if rows or dims are not above 0, or k is not less than the rows.
    """
    config = config.for_rows(int(rows))
    if rows < config.neighbours.k + 2 or dims < 1:
        raise ConfigError(
            f"--rows {rows:g} --dims {dims}: dims must be at least 1, and rows at least neighbours.k + 2 = "
            f"{config.neighbours.k + 2}"
        )
    job = _Job(rows, dims, config, cluster, rates or Rates(), assumed or Assumptions(), factors or {})
    stages = [_rows(job), _neighbours(job), _triplets(job), _model(job), _embeddings(job), _report(job)]
    for stage in stages:
        stage.advice.extend(_limits_passed(stage, job))
    return stages


def driver_bytes(rows: float, dims: int, config: Config) -> float:
    """Return what the driver holds at most: samples to learn from and measure by, and those of the report."""
    build = build_sizes(rows, dims, config.neighbours, copies=Assumptions.copies)
    return build.driver + 2 * config.evaluate.sample_rows * 4.0 * dims


def _bytes(text: str) -> float:
    return float(text[:-1]) * {"g": 1 << 30, "m": 1 << 20, "t": 1 << 40}[text[-1:].lower()]


def _rows(job: _Job) -> StagePlan:
    record = job.vector + 16
    shuffled = (5.0 if job.config.data.keys else job.vector + 24.0) * job.rows
    tasks = max(job.cluster.slots, math.ceil(job.rows * record / TASK_BYTES))
    start, row, value = job.rates.rows
    core = job.rows * (row + value * job.dims)
    return StagePlan(
        "rows", tasks, shuffled, job.rows * record, _PYTHON_BYTES + 4 * 10_000 * record,
        *job.times("rows", start, core, tasks),
        "shuffles 5 N B to check ids, N (4 d + 24) B to number rows; stores N (4 d + 16) B; seconds N (a + b d)",
    )  # fmt: skip


def _neighbours(job: _Job) -> StagePlan:
    build, k, rates = job.build, job.config.neighbours.k, job.rates
    copies = job.assumed.copies if build.regions > 1 else 1.0
    tasks = max(build.tasks, min(build.regions, 2 * job.cluster.slots))
    start, row, value = rates.search
    queries = job.rows if job.config.neighbours.query_rows == "all" else job.anchors
    core = job.rows * (row + value * job.dims) + queries * rates.list * k
    return StagePlan(
        "neighbours", tasks, copies * job.rows * (job.vector + 9),
        job.rows * copies * (job.vector + 8) + queries * 12 * k,
        _PYTHON_BYTES + build.task, *job.times("neighbours", start, core, tasks),
        f"R = {build.regions:,} regions, c = {copies:g} copies; shuffles c N (4 d + 9) B; stores "
        "N c (4 d + 8) + A 12 k B; seconds N (a + b d) + A e k, A = lists",
    )  # fmt: skip


def _triplets(job: _Job) -> StagePlan:
    settings, k = job.config.triplets, job.config.neighbours.k
    per_anchor = 1 + settings.positives_per_anchor
    vectors = job.anchors * per_anchor
    plan = BlockPlan.of(
        int(job.anchors),
        block_rows=settings.block_rows,
        file_blocks=settings.file_blocks,
        row_bytes=int(per_anchor * job.vector),
        list_bytes=8 * k,
    )
    start, row, value = job.rates.triplets
    core = vectors * (row + value * job.dims)
    bucket, ranks = job.anchors / plan.buckets, job.config.train.num_ranks
    advice = []
    if job.anchors < plan.block_rows * settings.group_blocks * ranks:
        advice.append(f"too few row groups for {ranks} ranks: lower triplets.block_rows or triplets.group_blocks")
    return StagePlan(
        "triplets", plan.buckets,
        job.anchors * (8 * k + 16) + vectors * (job.vector + 56) + job.rows * (job.vector + 8),
        vectors * job.vector, _PYTHON_BYTES + 6 * plan.block_rows * per_anchor * job.vector + bucket * (24 * k + 16),
        *job.times("triplets", start, core, plan.buckets),
        f"A = {job.anchors:,.0f} anchors, F = {plan.buckets:,} files, v = A (1 + positives_per_anchor) vectors; "
        "shuffles A (8 k + 16) + v (4 d + 56) + N (4 d + 8) B; stores 4 v d B; seconds v (a + b d)",
        advice,
    )  # fmt: skip


def _model(job: _Job) -> StagePlan:
    ranks, settings = job.config.train.num_ranks, job.config.train
    passes = min(settings.epochs, job.assumed.epochs)
    start, row, operation = job.rates.train
    core = passes * job.anchors * (row + operation * 6 * job.flops)
    group = job.config.triplets.group_blocks * job.config.triplets.block_rows * 2 * job.vector
    params = job.flops / 2 * 4
    core, seconds = job.times("model", start, core, ranks)
    advice = []
    if ranks > job.cluster.slots:
        advice.append(
            f"train.num_ranks={ranks} and the cluster has {job.cluster.slots} cores: training will not start. Lower "
            "train.num_ranks or give it more executors"
        )
    if not NETWORK_UNITS.get(settings.model):
        advice.append(f"train.model={settings.model!r} is not known here and counted as szubert")
    if seconds > 24 * 3600:
        advice.append(f"{seconds / 3600:.0f} h of training: more ranks, larger train.batch_size, or fewer epochs")
    return StagePlan(
        "model", ranks, 0.0, 3 * params, _TENSORFLOW_BYTES + 8 * group + 6 * params, core, seconds,
        f"{passes} epochs, R = {ranks} ranks; seconds epochs A (a + b 6 flops) / R: two rows, forward and backward",
        advice,
    )  # fmt: skip


def _embeddings(job: _Job) -> StagePlan:
    tasks = max(job.cluster.slots, math.ceil(job.rows * job.vector / TASK_BYTES))
    start, row, operation = job.rates.embed
    core = job.rows * (row + operation * job.flops)
    width = 4 * job.config.train.embedding_dims
    batch = job.config.embed.batch_rows
    return StagePlan(
        "embeddings", tasks, 0.0, job.rows * (width + 8), _PYTHON_BYTES + 3 * batch * (job.vector + width),
        *job.times("embeddings", start, core, tasks), "stores N (4 e + 8) B; seconds N (a + b flops); no shuffle",
    )  # fmt: skip


def _report(job: _Job) -> StagePlan:
    sample = job.config.evaluate.sample_rows * job.vector
    width = 4 * job.config.train.embedding_dims
    tasks = max(job.cluster.slots, math.ceil(job.rows * width / TASK_BYTES))
    start, row = job.rates.report
    return StagePlan(
        "report", tasks, sample, 8e6, _PYTHON_BYTES + 4 * sample, *job.times("report", start, job.rows * row, tasks),
        "samples of fixed size for any N; seconds to count all rows N a",
    )  # fmt: skip


def _limits_passed(stage: StagePlan, job: _Job) -> Iterator[str]:
    # Python workers live beside the JVM's heap; a third of the executor is what Spark's own sorts should be left.
    slots = 1 if stage.stage == "model" else job.cluster.cores
    room = 0.67 * job.cluster.memory / slots
    if stage.task_bytes > room:
        cure = {
            "neighbours": "lower neighbours.region_rows",
            "triplets": "lower triplets.block_rows",
            "embeddings": "lower embed.batch_rows",
            "model": "lower triplets.block_rows or triplets.group_blocks",
        }.get(stage.stage, "give executors more memory")
        needed = f"a task needs {stage.task_bytes / 1e9:.2f} GB and has {room / 1e9:.2f}"
        yield f"{needed}: {cure}, or fewer cores an executor"
    spilled = stage.local_bytes(job.cluster)
    if spilled > job.cluster.disk:
        needed = f"shuffles take {spilled / 1e9:.0f} GB of an executor's disk, which has {job.cluster.disk / 1e9:.0f}"
        yield f"{needed}: larger or more disks in spark.local.dir, or more executors"
