"""Plans against finished runs: what a run of a part of the table took, compared with its plan and carried over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivis_spark.config import Config
from ivis_spark.errors import ArtifactError
from ivis_spark.operations.inspect import size_text
from ivis_spark.operations.plan import Assumptions, Cluster, Rates, StagePlan, make_plan
from ivis_spark.stages import STAGES
from ivis_spark.storage import Manifest, RunFolder


def measure(root: str, cores: int) -> tuple[dict[str, float], Assumptions]:
    """Return how much longer each stage of a finished run took than its plan says, and what its table showed.

    Args:
        root: URI of the run folder.
        cores: Cores that the run had.

    Raises:
        ArtifactError: if a stage is not published.
    """
    manifests = run_manifests(root)
    plans = plan_of_run(manifests, cores)
    factors = {}
    for stage in plans:
        start = stage.seconds - stage.core_seconds / min(stage.tasks, cores)
        taken = max(0.1, seconds_of(manifests[stage.stage]) - start)
        factors[stage.stage] = taken / max(1e-9, stage.seconds - start)
    return factors, _assumptions(manifests)


def plan_of_run(manifests: dict[str, Manifest], cores: int) -> list[StagePlan]:
    """Return the plan that would have been made for a finished run."""
    settings: dict[str, Any] = {}
    for manifest in manifests.values():
        settings.update(manifest.spec["config"])
    config = Config.from_mapping(settings)
    info = manifests["rows"].info
    return make_plan(info["rows"], info["dims"], config, Cluster(1, cores, 64e9), assumed=_assumptions(manifests))


def run_manifests(root: str) -> dict[str, Manifest]:
    """Return the manifests of a finished run.

    Raises:
        ArtifactError: if a stage is not published.
    """
    folder = RunFolder(root)
    return {stage: folder.require(stage, "run") for stage in STAGES}


def seconds_of(manifest: Manifest) -> float:
    """Return how long a stage took.

    Raises:
        ArtifactError: if its manifest does not say.
    """
    seconds = manifest.info.get("seconds")
    if not isinstance(seconds, (int, float)):
        raise ArtifactError(f"the manifest of {manifest.stage!r} has no seconds; rebuild the stage with --overwrite")
    return float(seconds)


def show_plan(
    stages: list[StagePlan], cluster: Cluster, *, driver: float, factors: Mapping[str, float] | None = None
) -> str:
    """Return a plan as text: a table, totals, the formulas, and what to change.

    Args:
        stages: The plan.
        cluster: What it was made for.
        driver: Bytes that the driver holds.
        factors: What the rates were multiplied by, from a finished run.
    """
    head = f"{'stage':<12}{'tasks':>9}{'shuffle':>11}{'storage':>11}{'a task':>10}{'core-hours':>12}{'hours':>9}"
    lines = [head]
    for stage in stages:
        lines.append(
            f"{stage.stage:<12}{stage.tasks:>9,}{size_text(stage.shuffle_bytes):>11}{size_text(stage.storage_bytes):>11}"
            f"{size_text(stage.task_bytes):>10}{stage.core_seconds / 3600:>12,.2f}{stage.seconds / 3600:>9,.2f}"
        )
    shuffle, stored = (sum(getattr(stage, name) for stage in stages) for name in ("shuffle_bytes", "storage_bytes"))
    core, hours = (sum(getattr(stage, name) for stage in stages) / 3600 for name in ("core_seconds", "seconds"))
    lines.append(
        f"{'all':<12}{'':>9}{size_text(shuffle):>11}{size_text(stored):>11}{'':>10}{core:>12,.2f}{hours:>9,.2f}"
    )
    biggest = max(stage.local_bytes(cluster) for stage in stages)
    lines += ["", f"local disk of an executor for shuffles: {size_text(biggest)}"]
    lines += [f"memory of the driver for regions and samples: {size_text(driver)}", "", "formulas (N rows, d dims):"]
    lines += [f"  {stage.stage}: {stage.formula}" for stage in stages]
    rates = dataclasses.asdict(Rates()).items()
    lines.append("measured rates (seconds of one core): " + ", ".join(f"{name} {value}" for name, value in rates))
    if factors:
        found = ", ".join(f"{stage} {factor:.2f}" for stage, factor in factors.items())
        lines.append(f"multiplied by what the finished run took: {found}")
    advice = [f"  {stage.stage}: {text}" for stage in stages for text in stage.advice]
    return "\n".join([*lines, "", "to change:" if advice else "nothing passes a limit", *advice])


def _assumptions(manifests: dict[str, Manifest]) -> Assumptions:
    found, epochs, base = manifests["neighbours"].info, manifests["model"].info.get("epochs"), Assumptions()
    return Assumptions(
        copies=found.get("replicas") or base.copies,
        epochs=epochs or base.epochs,
    )
