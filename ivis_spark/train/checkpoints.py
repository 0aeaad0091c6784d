"""Checkpoints of a training run: built locally, published whole, the last few kept.

A checkpoint is a folder of `arrays.npz` (encoder, head, optimizer slots, random states), the files that callbacks
wrote so far below `logs/`, and, written last, `checkpoint.json`: the training state and the digest of the arrays. A
folder without it does not exist.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import posixpath
import tempfile
import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ivis_spark import storage
from ivis_spark.config import TrainConfig
from ivis_spark.errors import UNREADABLE, ArtifactError
from ivis_spark.manifest import check_fields
from ivis_spark.nn.model import TripletModel, variables_of
from ivis_spark.train.loop import TrainingState

log = logging.getLogger(__name__)

_UNUSABLE: tuple[type[Exception], ...] = (ArtifactError, *UNREADABLE)
_ARRAYS, _INDEX, _LOGS = "arrays.npz", "checkpoint.json", "logs"


class Checkpoints:
    """The checkpoints of one run. Runs on: rank 0.

    Args:
        uri: Folder of the checkpoints; it is made when the first is saved.
        config: How often, and how many are kept.
        steps_per_epoch: Batches of an epoch.
        logs: Local folder of the callbacks' files, which go with each checkpoint.
    """

    def __init__(self, uri: str, config: TrainConfig, *, steps_per_epoch: int, logs: str) -> None:
        self.uri = storage.normalise_uri(uri)
        self._config, self._steps_per_epoch, self._logs = config, steps_per_epoch, logs
        self._saved_at, self._saved_steps = time.monotonic(), 0

    def save_if_due(self, model: TripletModel, state: TrainingState) -> bool:
        """Save after an epoch, or after so many steps, but not too soon after the last time; tell whether it did."""
        done = self._position(state)
        if done < self._saved_steps:  # training started again
            self._saved_steps = 0
        every = self._config.checkpoint_steps
        due = done - self._saved_steps >= every if every else state.step == 0
        if not due or time.monotonic() - self._saved_at < self._config.checkpoint_seconds:
            return False
        self.save(model, state)
        self._saved_at, self._saved_steps = time.monotonic(), done
        return True

    def save(self, model: TripletModel, state: TrainingState) -> None:
        """Publish a checkpoint and remove those that are no longer kept."""
        if not self._config.keep_checkpoints:
            return
        current = f"epoch-{state.epoch:06d}-step-{state.step:09d}"
        folder = storage.join(self.uri, current)
        with tempfile.TemporaryDirectory(prefix="ivis-spark-") as scratch:
            path = os.path.join(scratch, _ARRAYS)
            np.savez(path, **{name: np.asarray(variable) for name, variable in variables_of(model).items()})
            record = storage.put_file(path, storage.join(folder, _ARRAYS))
        if os.path.isdir(self._logs):
            storage.put_folder(self._logs, storage.join(folder, _LOGS))
        index = {"sha256": record["sha256"], "state": dataclasses.asdict(state)}
        storage.write_json(storage.join(folder, _INDEX), index)
        names = self._names()
        later = [name for name in names if name > current]  # of training that collapsed and started again
        for name in later + names[: -self._config.keep_checkpoints - len(later)]:
            self._remove(name)

    def restore(self, model: TripletModel) -> TrainingState | None:
        """Give the model the values of the newest checkpoint that is whole, and return where it stands, or None."""
        for name in reversed(self._names()):
            folder = storage.join(self.uri, name)
            try:
                sha256, state = storage.read_json(storage.join(folder, _INDEX), read_index)
                with storage.local_copy(storage.join(folder, _ARRAYS)) as path:
                    if storage.digest_file(path)["sha256"] != sha256:
                        raise ArtifactError(f"{folder}/{_ARRAYS} is corrupt or was modified")
                    with np.load(path, allow_pickle=False) as arrays:
                        _assign(model, dict(arrays))
            except _UNUSABLE as err:
                log.warning("skipping checkpoint %s: %s", name, err)
                continue
            self._restore_logs(storage.join(folder, _LOGS))
            self._saved_steps = self._position(state)
            return cast(TrainingState, state)
        return None

    def _position(self, state: TrainingState) -> int:
        return state.epoch * self._steps_per_epoch + state.step

    def _restore_logs(self, uri: str) -> None:
        fs, path = storage.filesystem(uri)
        if storage.exists(fs, path):
            fs.get(path.rstrip("/") + "/", self._logs.rstrip("/") + "/", recursive=True)

    def _names(self) -> list[str]:
        """Return the names of the published checkpoints, oldest first."""
        fs, path = storage.filesystem(self.uri)
        return [name for name in storage.children(fs, path) if storage.exists(fs, posixpath.join(path, name, _INDEX))]

    def _remove(self, name: str) -> None:
        fs, path = storage.filesystem(storage.join(self.uri, name))
        fs.rm_file(posixpath.join(path, _INDEX))  # first, so that a torn folder never looks whole
        fs.rm(path, recursive=True)


def read_index(value: Any) -> tuple[str, TrainingState]:
    """Return the digest of the arrays and the state of a `checkpoint.json`. Raises ValueError if it is none."""
    index = check_fields(value, sha256=str, state=dict)
    return index["sha256"], TrainingState.from_mapping(index["state"])


def _assign(model: TripletModel, arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError, before anything is changed, if the arrays are not those of this model."""
    variables = variables_of(model)
    saved = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    expected = {name: (tuple(variable.shape), np.asarray(variable).dtype) for name, variable in variables.items()}
    if saved != expected:
        raise ValueError("it holds a different network or optimizer")
    for name, variable in variables.items():
        variable.assign(arrays[name])
