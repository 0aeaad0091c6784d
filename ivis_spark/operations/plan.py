"""`plan`: what a run will need, before it is started: tasks, bytes, memory a task, core-hours, and what to change.

Every figure is a formula over rows, dimensions and settings; seconds are that times a rate. The built-in rates are
rough estimates, which `tests/bench/bench_plan.py` compares with what a run takes. Those of a machine of one's own
come from a finished run of a part of the table: `plan --measured RUN --measured-cores N` scales each stage by what
that run took.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from ivis_spark.config import Config
from ivis_spark.core.blocks import BlockPlan
from ivis_spark.core.neighbours import cell_limits
from ivis_spark.core.router import SPREAD
from ivis_spark.errors import ConfigError

_TASK_BYTES = 256 << 20  # as in the neighbours stage
# Widths of the hidden layers, here again since nn/networks.py needs TensorFlow; a test holds them equal.
NETWORKS = {"szubert": (128, 128, 128), "hinton": (2000, 1000, 500), "maaten": (500, 500, 2000)}
_PYTHON_BYTES, _TENSORFLOW_BYTES = 150e6, 700e6  # resident before any data


@dataclass(frozen=True)
class Rates:
    """Estimated costs, in seconds of one core; `tests/bench/bench_plan.py` compares them with runs.

    Attributes:
        start: Of a stage, whatever its size: planning, first Python workers.
        rows: (a row, a value of it) to check, scale and write.
        route: (a row, a value times the square root of cells) to survey and assign; a survey is one more pass.
        search: (a pair of rows compared, a value of it).
        list: A neighbour written or merged.
        triplets: (a vector fetched, a value of it).
        train: (a triplet, a floating-point operation).
        embed: (a row, a floating-point operation).
        report: Of the report, whose samples do not grow with the table.
    """

    start: float = 2.0
    rows: tuple[float, float] = (4e-6, 2e-7)
    route: tuple[float, float] = (1e-5, 4e-9)
    search: tuple[float, float] = (4e-9, 4e-11)
    list: float = 1e-6
    triplets: tuple[float, float] = (4e-6, 1e-7)
    train: tuple[float, float] = (2e-5, 2e-11)
    embed: tuple[float, float] = (4e-6, 2e-11)
    report: float = 30.0


@dataclass(frozen=True)
class Cluster:
    """What the run gets: executors, cores of each, memory of each in bytes."""

    executors: int
    cores: int
    memory: float

    @classmethod
    def parse(cls, text: str, memory: str) -> Cluster:
        """Read `50x16` and `64g`.

        Raises:
            ConfigError: if either is not of that form.
        """
        try:
            executors, cores = (int(part) for part in text.lower().split("x"))
            unit = {"g": 1 << 30, "m": 1 << 20, "t": 1 << 40}[memory[-1:].lower()]
            found = cls(executors, cores, float(memory[:-1]) * unit)
        except (ValueError, KeyError) as err:
            raise ConfigError(
                f"--executors {text!r} --executor-memory {memory!r}: they must be like 50x16 (executors x cores), 64g"
            ) from err
        if found.executors < 1 or found.cores < 1 or found.memory <= 0:
            raise ConfigError(f"--executors {text!r} --executor-memory {memory!r} must be above 0")
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


@dataclass(frozen=True)
class Assumptions:
    """What the table itself decides, and a plan can only assume."""

    copies: float = 1.7  # cells that a row is searched in; 1.2 to 3 in tables looked at
    epochs: int = 30  # until the loss stops falling, by patience
    surveys: int = 2  # passes until the cells are balanced


@dataclass(frozen=True)
class _Job:
    rows: float
    dims: int
    config: Config
    cluster: Cluster
    rates: Rates
    assumed: Assumptions

    @property
    def vector(self) -> float:
        return 4.0 * self.dims

    @property
    def cells(self) -> int:
        return max(1, round(self.rows / (SPREAD * cell_limits(self.config.neighbours).most)))

    @property
    def flops(self) -> float:
        """Operations of one forward pass through the encoder."""
        widths = [
            self.dims,
            *NETWORKS.get(self.config.train.model, NETWORKS["szubert"]),
            self.config.train.embedding_dims,
        ]
        return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))

    def seconds(self, core_seconds: float, tasks: int) -> float:
        return self.rates.start + core_seconds / min(self.cluster.slots, tasks)


def make_plan(
    rows: float,
    dims: int,
    config: Config,
    cluster: Cluster,
    *,
    rates: Rates | None = None,
    assumed: Assumptions | None = None,
) -> list[StagePlan]:
    """Plan every stage of a run.

    Args:
        rows: Rows of the table.
        dims: Features of a row.
        config: Settings of the run.
        cluster: What it runs on.
        rates: Costs; the built-in ones by default.
        assumed: What depends on the table.

    Raises:
        ConfigError: if rows or dims are not above 0, or k is not less than the rows.
    """
    config = config.for_rows(int(rows))
    if rows < config.neighbours.k + 2 or dims < 1:
        raise ConfigError(
            f"--rows {rows:g} --dims {dims}: dims must be at least 1, and rows at least neighbours.k + 2 = "
            f"{config.neighbours.k + 2}"
        )
    job = _Job(rows, dims, config, cluster, rates or Rates(), assumed or Assumptions())
    stages = [_rows(job), _neighbours(job), _triplets(job), _model(job), _embeddings(job), _report(job)]
    return [_with_memory_advice(stage, job) for stage in stages]


def _rows(job: _Job) -> StagePlan:
    record = job.vector + 16
    derived = 0.0 if job.config.data.id_col else 24.0 * job.rows
    tasks = max(job.cluster.slots, math.ceil(job.rows * record / _TASK_BYTES))
    core = job.rows * (job.rates.rows[0] + job.rates.rows[1] * job.dims)
    return StagePlan(
        "rows", tasks, derived, job.rows * record, _PYTHON_BYTES + 4 * 10_000 * record, core, job.seconds(core, tasks),
        "N (4 d + 16) B stored; seconds N (a + b d)",
    )  # fmt: skip


def _neighbours(job: _Job) -> StagePlan:
    copies, k, rates = job.assumed.copies if job.cells > 1 else 1.0, job.config.neighbours.k, job.rates
    cell_rows = copies * job.rows / job.cells
    biggest = copies * cell_limits(job.config.neighbours).most
    shuffled = copies * job.rows * (job.vector + 9)
    lists = copies * job.rows * k * 12
    tasks = max(1, min(job.cells, max(2 * job.cluster.slots, math.ceil(shuffled / _TASK_BYTES))))
    passes = 1 + (job.assumed.surveys if job.cells > 1 else 0)
    core = passes * job.rows * (rates.route[0] + rates.route[1] * job.dims * math.sqrt(job.cells))
    core += copies * job.rows * cell_rows * (rates.search[0] + rates.search[1] * job.dims)
    core += copies * job.rows * k * rates.list
    advice = []
    if job.cells > 100_000:
        larger = math.ceil(job.rows / (SPREAD * 100_000) / 1000) * 1000
        advice.append(f"{job.cells:,} index files: pass --set neighbours.max_cell_rows={larger}")
    return StagePlan(
        "neighbours", tasks, shuffled + lists, job.rows * (job.vector + 12 * k),
        _PYTHON_BYTES + 2 * biggest * job.vector + 96e6, core, job.seconds(core, tasks),
        f"C = N / ({SPREAD} max_cell_rows) = {job.cells:,} cells, c = {copies:g} copies; shuffles c N (4 d + 9) + "
        f"12 c N k B; stores N (4 d + 12 k) B; seconds {passes} N (a + b d sqrt C) + (c N)(c N / C)(e + f d) + g c N k",
        advice,
    )  # fmt: skip


def _triplets(job: _Job) -> StagePlan:
    settings, k = job.config.triplets, job.config.neighbours.k
    vectors = job.rows * (1 + settings.draws)
    plan = BlockPlan.of(int(job.rows), block_rows=settings.block_rows, file_blocks=settings.file_blocks)
    core = vectors * (job.rates.triplets[0] + job.rates.triplets[1] * job.dims)
    bucket = settings.block_rows * settings.file_blocks * (1 + settings.draws)
    advice = []
    if plan.buckets > 10_000:
        blocks = math.ceil(job.rows / settings.block_rows / 10_000)
        advice.append(f"{plan.buckets:,} files: pass --set triplets.file_blocks={blocks}")
    if plan.buckets < job.config.train.num_ranks:
        advice.append(
            f"{plan.buckets} files for {job.config.train.num_ranks} ranks: lower triplets.file_blocks or block_rows"
        )
    return StagePlan(
        "triplets", plan.buckets, job.rows * (8 * k + 16) + vectors * (job.vector + 56) + job.rows * (job.vector + 8),
        vectors * job.vector, _PYTHON_BYTES + 6 * settings.block_rows * (1 + settings.draws) * job.vector + 56 * bucket,
        core, job.seconds(core, plan.buckets),
        "F = N / (block_rows file_blocks) files, v = N (1 + draws) vectors; shuffles N (8 k + 16) + v (4 d + 56) + "
        "N (4 d + 8) B; stores 4 v d B; seconds v (a + b d)",
        advice,
    )  # fmt: skip


def _model(job: _Job) -> StagePlan:
    ranks, settings = job.config.train.num_ranks, job.config.train
    passes = min(settings.epochs, job.assumed.epochs)
    core = passes * job.rows * (job.rates.train[0] + job.rates.train[1] * 6 * job.flops)
    group = job.config.triplets.group_blocks * job.config.triplets.block_rows * 2 * job.vector
    params = job.flops / 2 * 4
    seconds = job.rates.start + core / ranks
    advice = []
    if settings.model not in NETWORKS:
        advice.append(f"train.model={settings.model!r} is not known here and counted as szubert")
    if seconds > 24 * 3600:
        advice.append(f"{seconds / 3600:.0f} h of training: more ranks, larger train.batch_size, or fewer epochs")
    return StagePlan(
        "model", ranks, 0.0, 3 * params, _TENSORFLOW_BYTES + 8 * group + 6 * params, core, seconds,
        f"{passes} epochs, R = {ranks} ranks; seconds epochs N (a + b 6 flops) / R: two rows, forward and backward",
        advice,
    )  # fmt: skip


def _embeddings(job: _Job) -> StagePlan:
    tasks = max(job.cluster.slots, math.ceil(job.rows * job.vector / _TASK_BYTES))
    core = job.rows * (job.rates.embed[0] + job.rates.embed[1] * job.flops)
    width = 4 * job.config.train.embedding_dims
    batch = job.config.embed.batch_rows
    return StagePlan(
        "embeddings", tasks, 0.0, job.rows * (width + 16), _PYTHON_BYTES + 3 * batch * (job.vector + width), core,
        job.seconds(core, tasks), "stores N (4 e + 16) B; seconds N (a + b flops); no shuffle",
    )  # fmt: skip


def _report(job: _Job) -> StagePlan:
    sample = job.config.evaluate.sample_rows * job.vector
    return StagePlan(
        "report", 1, sample, 10e6, _PYTHON_BYTES + 4 * sample, job.rates.report, job.rates.report,
        "samples of fixed size: the same for any N",
    )  # fmt: skip


def _with_memory_advice(stage: StagePlan, job: _Job) -> StagePlan:
    # Python workers live beside the JVM's heap; a third of the executor is what Spark's own sorts should be left.
    slots = 1 if stage.stage == "model" else job.cluster.cores
    room = 0.67 * job.cluster.memory / slots
    if stage.task_bytes > room:
        cure = {
            "neighbours": "lower neighbours.max_cell_rows",
            "triplets": "lower triplets.block_rows",
            "embeddings": "lower embed.batch_rows",
            "model": "lower triplets.block_rows or triplets.group_blocks",
        }.get(stage.stage, "give executors more memory")
        text = (
            f"a task needs {stage.task_bytes / 1e9:.2f} GB and has {room / 1e9:.2f}: {cure}, or fewer cores an executor"
        )
        stage.advice.append(text)
    return stage
