"""`plan`: the resources of a run before it is started: tasks, bytes, memory per task, core-hours, and what to change.

Each stage's module estimates its own (`stages.estimate`); here they are added up, compared with the cluster and shown.
The seconds in them were measured by `tests/bench/bench_plan.py`, which compares plans with what runs take; those of a
machine of one's own come from a finished run of a part of the table, see `operations.measured`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ivis_spark.config import Config
from ivis_spark.errors import ConfigError
from ivis_spark.operations.inspect import size_text
from ivis_spark.stages import embeddings, model, neighbours, report, rows, triplets
from ivis_spark.stages.estimate import Cluster, Estimate

_ESTIMATES = {module.__name__.rpartition(".")[2]: module.estimate for module in (rows, neighbours, triplets, model)}
_ESTIMATES |= {"embeddings": embeddings.estimate, "report": report.estimate}
# Python workers live beside the JVM's heap; a third of the executor is what Spark's own sorts should be left.
_PYTHON_SHARE = 0.67
_LONG_HOURS = 24.0  # of training
_IDLE_HOURS, _IDLE_SHARE = 1.0, 0.1  # of a core, and of all that the run holds, from which idle ones are worth a word


def make_plan(
    n_rows: float,
    dims: int,
    config: Config,
    cluster: Cluster,
    *,
    seen: Mapping[str, Mapping[str, Any]] | None = None,
    factors: Mapping[str, float] | None = None,
) -> list[Estimate]:
    """Estimate every stage of a run.

    Args:
        n_rows: Rows of the table.
        dims: Features of a row; stages after the rows have as many components, if `data.components` projects these.
        config: Settings of the run.
        cluster: What it runs on.
        seen: By stage, facts of a finished run's manifest, in the place of what is assumed of the table.
        factors: By stage, how much more work the growing part is than its rates say; 1 where none is given.

    Raises:
        ConfigError: if rows or dims are not above 0, or k is not less than the rows.
    """
    config = config.for_rows(int(n_rows))
    if n_rows < config.neighbours.k + 2 or dims < 1:
        raise ConfigError(
            f"--rows {n_rows:g} --dims {dims}: dims must be at least 1, and rows at least neighbours.k + 2 = "
            f"{config.neighbours.k + 2}"
        )
    steps, components = [], config.data.components_of(dims, sparse=False, images=False)
    for name, estimate in _ESTIMATES.items():
        width = dims if name == "rows" or components is None else components
        stage = estimate(n_rows, width, config, cluster, (seen or {}).get(name, {}))
        steps.append(dataclasses.replace(stage, core_seconds=stage.core_seconds * (factors or {}).get(name, 1.0)))
    held = cluster.slots * sum(stage.seconds for stage in steps)
    for stage in steps:
        stage.advice.extend(_limits_passed(stage, cluster))
        stage.advice.extend(_idle(stage, cluster, held))
    return steps


def driver_bytes(stages: Sequence[Estimate]) -> float:
    """Return what the driver holds at most, at once."""
    return max(stage.driver_bytes for stage in stages)


def _limits_passed(stage: Estimate, cluster: Cluster) -> Iterator[str]:
    slots = stage.slots_of_executor or cluster.cores
    room = _PYTHON_SHARE * cluster.memory / slots
    if stage.task_bytes > room:
        needed = f"a task needs {stage.task_bytes / 1e9:.2f} GB and has {room / 1e9:.2f}"
        yield f"{needed}: {stage.remedy}, or fewer cores per executor"
    spilled = stage.local_bytes(cluster)
    if spilled > cluster.disk:
        sizes = spilled / 2**30, cluster.disk / 2**30  # --executor-disk 10g are GiB
        needed = f"shuffles take {sizes[0]:.1f} GiB of an executor's disk, which has {sizes[1]:.1f}"
        yield f"{needed}: larger or more disks in spark.local.dir, or more executors"


def _idle(stage: Estimate, cluster: Cluster, held: float) -> Iterator[str]:
    """Yield what to do about hours of training, and about cores that are held and have nothing to do meanwhile."""
    if stage.stage != "model":
        return
    hours, idle = stage.seconds / 3600, cluster.slots - stage.slots
    if hours > _LONG_HOURS:
        yield f"{hours:.0f} h of training: raise train.num_ranks, or lower triplets.anchors or train.epochs"
    if idle * hours > max(_IDLE_HOURS, _IDLE_SHARE * held / 3600):
        yield (
            f"{idle} of {cluster.slots} cores are idle for {hours:.2f} h, {idle * hours:,.0f} of {held / 3600:,.0f} "
            "core-hours held: raise train.num_ranks, lower triplets.anchors, or train by a command of its own on fewer "
            "executors"
        )


def show_plan(stages: Sequence[Estimate], cluster: Cluster, *, notes: Sequence[str] = ()) -> str:
    """Return a plan as text: a table, totals, the formulas, and what to change.

    Args:
        stages: The plan.
        cluster: What it was made for.
        notes: Further lines, about where the rates are from.
    """
    head = ("tasks", "shuffle", "storage", "a task", "fixed s", "core-hours", "hours", "held")
    widths = (9, 11, 11, 10, 9, 12, 9, 12)
    lines = [f"{'stage':<12}" + "".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True))]

    def line(name: str, *cells: str) -> str:
        return f"{name:<12}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    for stage in stages:
        sizes = [size_text(size) for size in (stage.shuffle_bytes, stage.storage_bytes, stage.task_bytes)]
        lines.append(line(stage.stage, f"{stage.tasks:,}", *sizes, *_times([stage], cluster)))
    shuffle, stored = (sum(getattr(stage, name) for stage in stages) for name in ("shuffle_bytes", "storage_bytes"))
    lines.append(line("all", "", size_text(shuffle), size_text(stored), "", *_times(stages, cluster)))
    biggest = max(stage.local_bytes(cluster) for stage in stages)
    uncompared = " (not compared with what it has: pass --executor-disk)" if math.isinf(cluster.disk) else ""
    lines += [
        "",
        "tasks: of the largest job; shuffle, storage: bytes written between tasks and published; a task: its memory",
        "fixed s: independent of the rows; core-hours: grows with the rows; hours: wall time; held: core-hours that",
        f"the {cluster.slots} cores of the cluster are held, busy or not",
        f"local disk of an executor for shuffles: {size_text(biggest)}{uncompared}",
        f"memory of the driver: {size_text(driver_bytes(stages))}",
        *notes,
        "",
        "formulas (N rows, d dims; a, b, ... measured):",
    ]
    lines += [f"  {stage.stage}: {stage.formula}" for stage in stages]
    advice = [f"  {stage.stage}: {text}" for stage in stages for text in stage.advice]
    return "\n".join([*lines, "", "to change:" if advice else "no limit is exceeded", *advice])


def _times(stages: Sequence[Estimate], cluster: Cluster) -> list[str]:
    fixed, core, wall = (
        sum(getattr(stage, name) for stage in stages) for name in ("fixed_seconds", "core_seconds", "seconds")
    )
    return [f"{fixed:.0f}", f"{core / 3600:,.2f}", f"{wall / 3600:,.2f}", f"{cluster.slots * wall / 3600:,.1f}"]
