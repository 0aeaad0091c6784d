"""Plans against finished runs: what a run of a part of the table took, compared with its plan and carried over."""

from __future__ import annotations

from typing import Any

from ivis_spark.config import Config
from ivis_spark.errors import ArtifactError, ConfigError
from ivis_spark.operations.plan import make_plan
from ivis_spark.stages import STAGES
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.storage import Manifest, RunFolder

# A stage tells a rate if its work that grows with the rows took at least so many times what it takes whatever they are.
_GROWING = 1.0


def measure(root: str, cores: int) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Return how much more work the growing part of each stage of a finished run was than its plan says, and its facts.

    The fixed time of a stage is subtracted first; a stage that took hardly more has no measurable rate.

    Args:
        root: URI of the run folder.
        cores: Cores that the run had.

    Returns:
        Factors of the stages that tell one, and facts of their manifests, by stage.

    Raises:
        ArtifactError: if a stage is not published.
        ConfigError: if the run was so small that no stage tells a rate.
    """
    manifests = run_manifests(root)
    factors = {}
    lists = manifests["neighbours"].info
    searched = "by" not in lists and lists.get("backend") != "given"
    for stage in plan_of_run(manifests, cores):
        if stage.stage == "neighbours" and not searched:  # by label, or the user's table: other work than is planned
            continue
        growing = seconds_of(manifests[stage.stage]) - stage.fixed_seconds
        planned = stage.core_seconds / stage.slots
        if min(growing, planned) >= _GROWING * stage.fixed_seconds:
            factors[stage.stage] = growing / planned
    if not factors:
        raise ConfigError(
            f"--measured {root}: its {manifests['rows'].info['rows']:,} rows are too few: fixed costs dominate in "
            f"every stage. Measure a run with more rows, a few hundred thousand per core, or plan without it"
        )
    return factors, {stage: _facts(manifests[stage].info) for stage in factors}


def _facts(info: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a stage, without what is none: one region has no copies, which larger tables will have."""
    return {name: value for name, value in info.items() if name != "replicas" or info.get("n_regions", 2) > 1}


def plan_of_run(manifests: dict[str, Manifest], cores: int) -> list[Estimate]:
    """Return the plan that would have been made for a finished run."""
    settings: dict[str, Any] = {}
    for manifest in manifests.values():
        settings.update(manifest.spec["config"])
    seen = {stage: manifest.info for stage, manifest in manifests.items()}
    info = manifests["rows"].info
    projected = info.get("components")  # a run of an older version has none, whatever the default is now
    lists = "all" if manifests["neighbours"].info.get("anchors", info["rows"]) == info["rows"] else "anchors"
    settings["neighbours"] = {**settings["neighbours"], "query_rows": lists}
    settings["data"] = {**settings.get("data", {}), "components": None if projected is None else projected["count"]}
    config, n_features = Config.from_mapping(settings), info.get("n_features", info["dims"])
    return make_plan(info["rows"], n_features, config, Cluster(1, cores, 64e9), seen=seen)


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
        raise ArtifactError(
            f"the manifest of {manifest.stage!r} does not record its seconds; rebuild the stage with --overwrite"
        )
    return float(seconds)


def notes_of(factors: dict[str, float], stages: list[Estimate]) -> list[str]:
    """Return the notes of a plan about measured rates."""
    listed = ", ".join(f"{stage} {factor:.2f}" for stage, factor in factors.items())
    others = [stage.stage for stage in stages if stage.stage not in factors]
    lines = [f"work scaled by the finished run: {listed}"]
    return lines + [f"built-in, because the run tells no rate of them: {', '.join(others)}"] * bool(others)
