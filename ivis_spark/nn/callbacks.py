"""Keras callbacks: progress, checkpoints and plots of the embedding during training.

Those of ivis are passed to `Ivis` as `callbacks` and act every `epoch_interval` epochs. Any other Keras callback can be
passed too.
"""

from __future__ import annotations

import io
import os
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from ivis_spark.errors import ConfigError, DependencyError, InputError
from ivis_spark.progress import Meter

# In the logs of `on_train_end`: why training ended before its last epoch.
STOPPED = "stopped"


class FitProgress(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows after each epoch its loss, the rate, and the time that is left at most: early stopping may come before."""

    def __init__(self, rows_per_epoch: int, *, seconds_between_lines: float | None = None) -> None:
        """Set up.

        Args:
            rows_per_epoch: Triplets of an epoch, over all ranks.
            seconds_between_lines: Least seconds between two lines of the log; None is the usual.
        """
        super().__init__()
        self.rows_per_epoch = rows_per_epoch
        self._options: dict[str, Any] = (
            {} if seconds_between_lines is None else {"seconds_between_lines": seconds_between_lines}
        )
        self._epoch_start = 0.0
        self._meter: Meter | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._epoch_start = time.monotonic()
        if self._meter is None:
            epochs = self.params.get("epochs", epoch + 1)
            # the first also compiles
            self._meter = Meter("epoch", epochs, begun=epoch, at_most=True, slow_start=True, **self._options)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Show the epoch."""
        if self._meter is not None:
            seconds = max(time.monotonic() - self._epoch_start, 1e-9)
            figures = sorted((logs or {}).items(), key=lambda item: item[0] != "loss")  # then its parts
            losses = ", ".join(f"{name} {value:.4f}" for name, value in figures)
            self._meter.update(epoch + 1, f"{losses}, {self.rows_per_epoch / seconds:,.0f} triplets/s")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Show the last epoch, and why it was the last if there could have been more."""
        self.close(str((logs or {}).get(STOPPED, "")))

    def close(self, ending: str = "") -> None:
        """Take the bar away; also where training ended with an error."""
        if self._meter is not None:
            self._meter.close(ending)
            self._meter = None


class _Figures(NamedTuple):
    Figure: Any
    hues: Any


class _EveryFewEpochs(keras.callbacks.Callback, ABC):  # type: ignore[misc]
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

    @abstractmethod
    def act(self, epoch: int) -> None:
        """Do what the callback is for."""


class ModelCheckpoint(_EveryFewEpochs):
    """Saves the complete `Ivis` during training, so that training can resume from it.

    Args:
        log_dir: Folder for the checkpoints.
        filename: Name of a checkpoint; `{}` becomes the number of the epoch, without it only the latest is kept.
        epoch_interval: Epochs from one checkpoint to the next.
    """

    def __init__(
        self, log_dir: str = "./model_checkpoints", filename: str = "model-checkpoint_{}.ivis", epoch_interval: int = 1
    ) -> None:
        super().__init__(log_dir, epoch_interval)
        self.filename = filename

    def act(self, epoch: int) -> None:
        """Save the model."""
        if self.ivis_model is None:
            raise ConfigError("ModelCheckpoint saves an Ivis: pass it to Ivis as one of its callbacks")
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
            raise InputError(f"{len(self.labels)} labels for {data.shape[0]} rows to draw; pass one label per row")
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
        labels: One label per row, for the colours; None draws all in one colour.
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
        labels: One label per row, for the colours; None draws all in one colour.
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
