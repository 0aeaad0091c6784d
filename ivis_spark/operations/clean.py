"""`clean`: remove what killed runs left, and stages that are no longer wanted."""

from __future__ import annotations

from collections.abc import Sequence

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.runtime.lock import RunLock, owners
from ivis_spark.storage import RunFolder


def clean(root: str, *, stages: Sequence[str] = (), dry_run: bool = False) -> list[str]:
    """Remove half-built folders, stages moved aside and the locks of dead runs; then the stages named.

    A stage that a killed run had moved aside before its new one stood is brought back first.

    Runs on: driver.

    Args:
        root: URI of the run folder.
        stages: Published stages to remove too, for example `triplets`, which only training reads.
        dry_run: Only say what would be done.

    Returns:
        What was removed, or brought back, a line each.

    Raises:
        ArtifactError: if the folder or a stage named is not there, or a run is writing the folder.
    """
    folder = RunFolder(root)
    if not folder.exists():
        raise ArtifactError(f"{folder.root} is not there; give the folder that --output named")
    if not folder.is_run():
        raise ArtifactError(f"{folder.root} is not a run folder; nothing in it was written by ivis-spark")
    standing, aside, left = folder.published(), folder.set_aside(), folder.unfinished()
    known = {*standing, *aside}
    unknown = [stage for stage in stages if stage not in known]
    if unknown:
        there = ", ".join(sorted({*standing, *aside})) or "none"
        raise ArtifactError(f"{folder.root} has no stage {', '.join(map(repr, unknown))}; it has: {there}")
    locks = owners(folder.root)
    alive = [owner for owner in locks.values() if not owner.is_dead()]
    if alive:
        raise ArtifactError(f"{folder.root} is being written by {alive[0]}; clean it when that has ended")
    done = [f"{uri}: removed, the lock of {owner}" for uri, owner in locks.items()]
    done += [f"{name}: {'what it replaced is removed' if name in standing else 'brought back'}" for name in aside]
    done += [f"{folder.path(name)}: removed" for name in [*left, *stages]]
    if dry_run:
        return done
    with RunLock(folder.root):
        folder.mend()
        for name in left[:1]:
            storage.remove_folder(folder.path(name.rpartition("/")[0]))  # the folder that holds all half-built ones
        for stage in stages:
            folder.remove(stage)
        for uri in locks:
            if not uri.endswith("-run.json"):  # that one was taken over, and goes with the lock
                storage.remove_folder(uri)
    return done
