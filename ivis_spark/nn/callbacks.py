"""Keras callbacks of this package: progress, checkpoints and pictures of the embedding while it is trained.

Those of ivis are given to `Ivis` as `callbacks` and act every `epoch_interval` epochs. Any other Keras callback can be
given as well.
"""

from __future__ import annotations

import io
import logging
import os
import time
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from ivis_spark.errors import ConfigError, DependencyError, InputError

log = logging.getLogger(__name__)


class ProgressLogger(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs, after each epoch, its loss, its seconds and the rate; early stopping may come before the last."""

    def __init__(self, rows_per_epoch: int, *, min_interval_s: float = 0.0) -> None:
        """Set up.

        Args:
            rows_per_epoch: Triplets of an epoch, over all ranks.
            min_interval_s: Seconds between two messages at least; the last epoch is always logged.
        """
        super().__init__()
        self.rows_per_epoch = rows_per_epoch
        self.min_interval_s = min_interval_s
        self._epoch_start = 0.0
        self._last_message = float("-inf")
        self._unlogged: tuple[Any, ...] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._epoch_start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the epoch, unless the last message was a moment ago."""
        now = time.monotonic()
        seconds = max(now - self._epoch_start, 1e-9)
        epochs = self.params.get("epochs", epoch + 1)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self._unlogged = (epoch + 1, epochs, figures, seconds, self.rows_per_epoch / seconds)
        if now - self._last_message >= self.min_interval_s:
            self._last_message = now
            self._log()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Log the last epoch."""
        self._log()

    def _log(self) -> None:
        if self._unlogged is not None:
            log.info("epoch %d/%d: %s, %.1f s, %.0f triplets/s", *self._unlogged)
            self._unlogged = None


class _Figures(NamedTuple):
    Figure: Any
    hues: Any


class _EveryFewEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls `act` with the number of the epoch, from 1, after every `epoch_interval` epochs."""

    def __init__(self, log_dir: str, epoch_interval: int) -> None:
        super().__init__()
        if epoch_interval < 1:
            raise ConfigError(f"epoch_interval={epoch_interval} must be at least 1")
        self.log_dir = log_dir
        self.epoch_interval = epoch_interval
        self.epochs_since_last_save = 0
        self.ivis_model: Any = None

    def register_ivis_model(self, ivis_model: Any) -> None:
        """Take the `Ivis` that is being trained; `Ivis.fit` calls this."""
        self.ivis_model = ivis_model

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Act when it is time."""
        self.epochs_since_last_save += 1
        if self.epochs_since_last_save >= self.epoch_interval:
            self.epochs_since_last_save = 0
            os.makedirs(self.log_dir, exist_ok=True)
            self.act(epoch + 1)

    def act(self, epoch: int) -> None:
        """Do what the callback is for."""
        raise NotImplementedError


class ModelCheckpoint(_EveryFewEpochs):
    """Saves the `Ivis` being trained, whole, so that training can go on from it.

    Args:
        log_dir: Folder for the checkpoints.
        filename: Name of a checkpoint; `{}` becomes the number of the epoch, and without it only the latest is kept.
        epoch_interval: Epochs from one checkpoint to the next.
    """

    def __init__(
        self,
        log_dir: str = "./model_checkpoints",
        filename: str = "model-checkpoint_{}.ivis",
        epoch_interval: int = 1,
    ) -> None:
        super().__init__(log_dir, epoch_interval)
        self.filename = filename

    def act(self, epoch: int) -> None:
        """Save the model."""
        if self.ivis_model is None:
            raise ConfigError("ModelCheckpoint saves an Ivis: give it to Ivis as one of its callbacks")
        self.ivis_model.save_model(os.path.join(self.log_dir, self.filename.format(epoch)), overwrite=True)


class _OfEmbeddings(_EveryFewEpochs):
    """Embeds some rows with the model as it stands; `embeddings` keeps the last, float32 (n, e)."""

    def __init__(self, data: Any, log_dir: str, epoch_interval: int) -> None:
        super().__init__(log_dir, epoch_interval)
        self.data = data
        self.embeddings: NDArray[np.float32] | None = None

    def embed(self) -> NDArray[np.float32]:
        if self.ivis_model is not None:
            self.embeddings = np.asarray(self.ivis_model.transform(self.data))
        else:
            self.embeddings = self.model.encoder.predict(np.asarray(self.data, dtype=np.float32), verbose=0)
        return self.embeddings


class EmbeddingsLogging(_OfEmbeddings):
    """Saves embeddings of some rows as .npy files.

    Args:
        data: Rows to embed.
        log_dir: Folder for the files.
        filename: Name of a file; `{}` becomes the number of the epoch.
        epoch_interval: Epochs from one file to the next.
    """

    def __init__(
        self,
        data: Any,
        log_dir: str = "./embeddings_logs",
        filename: str = "{}_embeddings.npy",
        epoch_interval: int = 1,
    ) -> None:
        super().__init__(data, log_dir, epoch_interval)
        self.filename = filename

    def act(self, epoch: int) -> None:
        """Save the embeddings."""
        np.save(os.path.join(self.log_dir, self.filename.format(epoch)), self.embed())


class _Pictured(_OfEmbeddings):
    """Draws the embeddings, coloured by label."""

    def __init__(self, data: Any, labels: ArrayLike | None, log_dir: str, epoch_interval: int) -> None:
        super().__init__(data, log_dir, epoch_interval)
        self.labels = np.zeros(data.shape[0]) if labels is None else np.asarray(labels).reshape(-1)
        if len(self.labels) != data.shape[0]:
            raise InputError(f"{len(self.labels)} labels for {data.shape[0]} rows to draw; pass one label a row")
        self.n_classes = len(np.unique(self.labels))

    def draw(self) -> bytes:
        """Return a PNG picture of the first two dimensions, scaled to [0, 1]."""
        figures = _figures()
        points = self.embed()
        points = np.column_stack([points, np.zeros(len(points))])[:, :2]  # one dimension is drawn as a line
        points = (points - points.min()) / max(float(np.ptp(points)), np.finfo(np.float32).tiny)
        figure = figures.Figure()
        axes = figure.add_subplot()
        for code, label in enumerate(np.unique(self.labels)):
            colour = figures.hues(code / self.n_classes)
            axes.scatter(*points[self.labels == label].T, s=1, linewidth=0, color=[colour], label=str(label))
        axes.legend(markerscale=5, fontsize="small")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=300)
        return buffer.getvalue()


class EmbeddingsImage(_Pictured):
    """Draws embeddings of some rows into PNG files.

    Args:
        data: Rows to embed.
        labels: One label a row, for the colours; None draws all in one.
        log_dir: Folder for the files.
        filename: Name of a file; `{}` becomes the number of the epoch.
        epoch_interval: Epochs from one picture to the next.
    """

    def __init__(
        self,
        data: Any,
        labels: ArrayLike | None = None,
        log_dir: str = "./logs",
        filename: str = "{}_embeddings.png",
        epoch_interval: int = 1,
    ) -> None:
        super().__init__(data, labels, log_dir, epoch_interval)
        self.filename = filename

    def act(self, epoch: int) -> None:
        """Write the picture."""
        with open(os.path.join(self.log_dir, self.filename.format(epoch)), "wb") as file:
            file.write(self.draw())


class TensorBoardEmbeddingsImage(_Pictured):
    """Draws embeddings of some rows for TensorBoard, under `log_dir`/embeddings.

    Args:
        data: Rows to embed.
        labels: One label a row, for the colours; None draws all in one.
        log_dir: Folder that TensorBoard watches.
        epoch_interval: Epochs from one picture to the next.
    """

    def __init__(
        self, data: Any, labels: ArrayLike | None = None, log_dir: str = "./logs", epoch_interval: int = 1
    ) -> None:
        super().__init__(data, labels, log_dir, epoch_interval)
        self._writer: Any = None

    def act(self, epoch: int) -> None:
        """Write the picture."""
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(os.path.join(self.log_dir, "embeddings"))
        with self._writer.as_default():
            tf.summary.image("Embeddings", tf.io.decode_png(self.draw(), channels=4)[None], step=epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the log, which another fit opens again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _figures() -> Any:
    """Return what pictures are drawn with. Raises DependencyError without matplotlib."""
    try:
        from matplotlib import colormaps, figure
    except ImportError as err:
        raise DependencyError(
            "pictures of embeddings need matplotlib: pip install 'ivis_spark[report]', or leave the callback out"
        ) from err
    return _Figures(figure.Figure, colormaps["hsv"])
