"""Callbacks that tests hand to ranks by name; what they see goes into files of $IVIS_TEST_FOLDER."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import keras

RANK = os.environ.get("IVIS_SPARK_RANK", "0")


def note(name: str, text: object) -> None:
    with open(Path(os.environ["IVIS_TEST_FOLDER"]) / f"{name}-rank-{RANK}", "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


class Losses(keras.callbacks.Callback):
    """Writes down the loss of every epoch, and the process it came from."""

    def on_train_begin(self, logs=None):
        note("pids", os.getpid())

    def on_epoch_end(self, epoch, logs=None):
        note("losses", f"{epoch} {logs['loss']!r}")


class Weights(keras.callbacks.Callback):
    """Writes down a digest of all weights after every epoch."""

    def on_epoch_end(self, epoch, logs=None):
        found = hashlib.sha256()
        for weight in self.model.get_weights():
            found.update(weight.tobytes())
        note("weights", found.hexdigest())


def weights() -> keras.callbacks.Callback:
    return Weights()


def losses() -> keras.callbacks.Callback:
    return Losses()


class OnRankOne(keras.callbacks.Callback):
    """Does something on rank 1 at the end of an epoch, once in a test."""

    def __init__(self, epoch: int, action) -> None:
        super().__init__()
        self.epoch, self.action = epoch, action

    def on_epoch_end(self, epoch, logs=None):
        once = Path(os.environ["IVIS_TEST_FOLDER"]) / "done"
        if RANK == "1" and epoch >= self.epoch and not once.exists():
            once.touch()
            self.action(self)


def stop_on_rank_one() -> keras.callbacks.Callback:
    return OnRankOne(2, lambda callback: setattr(callback.model, "stop_training", True))


def raise_on_rank_one() -> keras.callbacks.Callback:
    def fail(_):
        raise ZeroDivisionError("a fault of the user's own")

    return OnRankOne(1, fail)


def kill_rank_one() -> keras.callbacks.Callback:
    return OnRankOne(1, lambda _: os.kill(os.getpid(), signal.SIGKILL))


class SlowOnRankOne(keras.callbacks.Callback):
    """Rank 1 takes many times as long as the others."""

    def on_train_batch_end(self, batch, logs=None):
        if RANK == "1":
            time.sleep(1.0)


def slow_on_rank_one() -> keras.callbacks.Callback:
    return SlowOnRankOne()


def stop_rank_one() -> keras.callbacks.Callback:
    """Frozen, not gone."""
    return OnRankOne(1, lambda _: os.kill(os.getpid(), signal.SIGSTOP))


class NoteSockets(keras.callbacks.Callback):
    """Writes down the filters of the socket that TensorFlow's server listens on."""

    def on_train_begin(self, logs=None):
        import json
        import socket

        from ivis_spark.train.backends import tensorflow

        cluster = json.loads(os.environ["TF_CONFIG"])
        port = int(cluster["cluster"]["worker"][cluster["task"]["index"]].rpartition(":")[2])
        for each in tensorflow._listening_sockets(port):
            note("filters", len(each.getsockopt(socket.SOL_SOCKET, 26, 1024)))  # SO_GET_FILTER
            each.close()


def note_sockets() -> keras.callbacks.Callback:
    return NoteSockets()
