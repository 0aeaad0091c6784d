"""A stage that is being built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ivis_spark.errors import ArtifactError
from ivis_spark.storage.names import join


@dataclass
class StageBuild:
    """A stage that is being built: write below `uri`, note facts in `info`, then leave the `with` block.

    `digests` may hold bytes and sha256 of files that were digested as they were written, by their path below `uri`:
    those are not read again.
    """

    uri: str
    info: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def path(self, *parts: str) -> str:
        """Return the URI of a file or folder of the stage."""
        return join(self.uri, *parts)

    def check_sizes(self, files: list[tuple[str, int]]) -> None:
        """Raise ArtifactError if a file that was digested as it was written is not among these files as it was."""
        sizes = dict(files)
        for name, digest in self.digests.items():
            if sizes.get(name) != digest["bytes"]:
                raise ArtifactError(
                    f"{self.path(name)} holds {sizes.get(name, 'no')} bytes, {digest['bytes']} were written: run the "
                    "same command again"
                )
