"""`clean`: remove what no manifest names, the locks of dead runs, and stages that are no longer needed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ivis_spark.errors import ArtifactError, BusyError
from ivis_spark.runtime.lock import RunLock, lock_names, owners
from ivis_spark.stages import lock_of
from ivis_spark.storage import RunFolder


def clean(root: str, *, stages: Sequence[str] = (), dry_run: bool = False) -> list[str]:
    """Remove builds that were superseded or cut off, parts of jobs, and the locks of dead runs; then the stages named.

    All locks of the folder are held meanwhile, so that builds in progress are never removed. Files that
    `ivis-spark` did not write stay. Runs on: driver.

    Args:
        root: URI of the run folder.
        stages: Published stages to remove too, for example `triplets`, which only training reads.
        dry_run: Only say what would be done.

    Returns:
        What was removed, or would be, a line each.

    Raises:
        ArtifactError: if the folder or a stage named is not there.
        BusyError: if a run is writing the folder.
    """
    folder = RunFolder(root)
    if not folder.exists():
        raise ArtifactError(f"{folder.root} does not exist; pass the folder that was given as --output")
    if not folder.is_run():
        raise ArtifactError(f"{folder.root} is not a run folder; there is nothing to clean")
    published = folder.published()
    unknown = [stage for stage in stages if stage not in published]
    if unknown:
        there = ", ".join(published) or "none"
        raise ArtifactError(f"{folder.root} has no stage {', '.join(map(repr, unknown))}; it has: {there}")
    locks = owners(folder.root)
    alive = [owner for owner in locks.values() if not owner.seems_dead()]
    if alive:
        raise BusyError(f"{folder.root} is being written by {alive[0]}; clean it after that process has ended")
    removed = "would be removed" if dry_run else "removed"
    done = [f"{uri}: {removed}, the lock of {owner}" for uri, owner in locks.items()]
    names = folder.stages()
    with contextlib.ExitStack() as held:
        if not dry_run:
            for lock in sorted({"run", *map(lock_of, names), *lock_names(locks)}):
                held.enter_context(RunLock(folder.root, lock))
        garbage = [name for stage in names if stage not in stages for name in folder.garbage(stage)]
        done += [f"{folder.path(name)}: {removed}" for name in [*garbage, *stages]]
        if not dry_run:
            for name in garbage:
                folder.discard(name)
            for stage in stages:
                folder.remove(stage)
    return done
