"""`status` and `verify`: what a run folder holds, and whether it is what was published. Nothing here writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import replaced_since
from ivis_spark.report.wording import NAMES
from ivis_spark.runtime.lock import owners
from ivis_spark.runtime.logs import LOG_FILE
from ivis_spark.stages import STAGES
from ivis_spark.storage import Manifest, RunFolder


@dataclass(frozen=True)
class Status:
    """What `status` found. `stages` are in the order of a run; tables of other inputs follow as they were published."""

    folder: str
    stages: list[dict[str, Any]]
    quality: dict[str, float]
    running: list[str]
    left: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    log: str | None = None


def status(root: str) -> Status:
    """Describe a run folder: its stages with rows, seconds and bytes, the quality metrics, and who is writing it.

    Raises:
        ArtifactError: if it is not a run folder.
    """
    folder = RunFolder(root)
    stages, quality = [], {}
    for manifest in _manifests(folder).values():
        stages.append(_stage(folder, manifest))
        quality.update({name: manifest.info[key] for key, name in NAMES.items() if key in manifest.info})
        for name in ("recall", "original_recall"):
            if isinstance(manifest.info.get(name), dict):
                quality[NAMES[f"{name}_at_k"]] = manifest.info[name].get("value")
    locks = owners(folder.root)
    running = [str(owner) for owner in locks.values() if not owner.seems_dead()]
    left = [f"lock of {owner}" for owner in locks.values() if owner.seems_dead()]
    if not running:
        left += [name for stage in folder.stages() for name in folder.garbage(stage)]
    if not folder.is_run():
        raise folder.no_run()
    found = {text: value for text, value in quality.items() if isinstance(value, (int, float))}
    outdated = [fault for stage in stages for fault in _outdated(folder, stage["stage"])]
    order = {name: number for number, name in enumerate(STAGES)}
    stages = sorted(stages, key=lambda stage: (order.get(stage["stage"], len(order)), stage["created"]))
    return Status(folder.root, stages, found, running, left, outdated, _log_of(folder))


def show(state: Status) -> str:
    """Return a status as text: a table of the stages, the quality, and what is running."""
    lines = [state.folder, ""] + ["no stage is published"] * (not state.stages)
    if state.stages:
        lines.append(f"{'stage':<24} {'rows':>14} {'seconds':>10} {'size':>9}  published")
    for stage in state.stages:
        rows = "-" if stage["rows"] is None else f"{stage['rows']:,}"
        line = f"{stage['stage']:<24} {rows:>14} {stage['seconds'] or 0:>10,.1f} {size_text(stage['bytes']):>9}"
        lines.append(f"{line}  {stage['created']}")
    if state.quality:
        lines += ["", ", ".join(f"{text} {value:.3f}" for text, value in state.quality.items())]
    shown = {stage["stage"]: stage["table"] or stage["page"] for stage in state.stages}
    tables = [f"{name:<24} {uri}" for name, uri in shown.items() if uri]
    tables += [f"{'log':<24} {state.log}"] if state.log else []
    lines += ["", *tables] if tables else []
    lines += [f"outdated: {text}" for text in state.outdated]  # and with it the quality above
    lines += [f"running: {text}" for text in state.running]
    lines += [f"no longer needed: {text} (ivis-spark clean removes it)" for text in state.left]
    return "\n".join(lines)


def size_text(size: float) -> str:
    """Return bytes with a unit, like 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def verify(root: str) -> dict[str, int]:
    """Read every published file and compare it with the digest in its manifest.

    Returns:
        Files of each stage, all of them whole.

    Raises:
        ArtifactError: naming missing, modified and foreign files, and stages whose input was replaced since.
    """
    folder = RunFolder(root)
    manifests = _manifests(folder)
    if not manifests:
        raise ArtifactError(f"{folder.root} holds no published stage to verify")
    faults = []
    for name, manifest in manifests.items():
        faults += _altered(folder, name, manifest) + _outdated(folder, name)
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise ArtifactError(
            f"{folder.root} differs from what was published: {shown}. Rebuild these stages with --overwrite"
        )
    return {name: len(manifest.files) for name, manifest in manifests.items()}


def _manifests(folder: RunFolder) -> dict[str, Manifest]:
    manifests = {name: folder.manifest(name) for name in folder.published()}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def _stage(folder: RunFolder, manifest: Manifest) -> dict[str, Any]:
    table = any(record["path"].startswith("data/") for record in manifest.files)
    page = any(record["path"] == "report.html" for record in manifest.files)
    return {
        "stage": manifest.stage,
        "uri": folder.uri(manifest),
        "table": folder.uri(manifest, "data") if table else None,
        "page": folder.uri(manifest, "report.html") if page else None,
        "rows": _number(manifest.info.get("rows")),
        "seconds": _number(manifest.info.get("seconds")),
        "bytes": sum(record["bytes"] for record in manifest.files),
        "files": len(manifest.files),
        "created": manifest.created,
        "run_id": manifest.info.get("run_id"),
        "fingerprint": manifest.fingerprint,
    }


def _log_of(folder: RunFolder) -> str | None:
    fs, path = storage.filesystem(folder.path(LOG_FILE))
    return folder.path(LOG_FILE) if storage.exists(fs, path) else None


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else None


def _altered(folder: RunFolder, name: str, manifest: Manifest) -> list[str]:
    present = dict(storage.list_files(folder.uri(manifest)))
    records = {record["path"]: record for record in manifest.files}
    faults = [f"{name}/{path} is missing" for path in sorted(records.keys() - present.keys())]
    if manifest.folder:  # else there may be other builds beside the files
        faults += [f"{name}/{path} is not in the manifest" for path in sorted(present.keys() - records.keys())]
    complete = sorted(records.keys() & present.keys())
    digests = storage.in_parallel(storage.digest_file, [folder.uri(manifest, path) for path in complete])
    for path, digest in zip(complete, digests, strict=True):
        expected = {key: records[path][key] for key in ("bytes", "sha256")}
        if digest != expected:
            faults.append(f"{name}/{path} was modified ({digest['bytes']} bytes, {expected['bytes']} were written)")
    return faults


def _outdated(folder: RunFolder, name: str) -> list[str]:
    """Name the stages of this run that a stage was made from and that have been replaced since."""
    replaced = folder.outdated(name).get(name)
    return [replaced_since(name, replaced)] if replaced else []
