"""The progress message, checkpoints and pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.errors import ConfigError, InputError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark import Ivis  # noqa: E402
from ivis_spark.nn.callbacks import (  # noqa: E402
    EmbeddingsImage,
    EmbeddingsLogging,
    FitProgress,
    ModelCheckpoint,
    TensorBoardEmbeddingsImage,
)


def test_message_holds_epoch_loss_rate_and_last_epoch_is_always_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ivis_spark")
    caplog.set_level("INFO", "ivis_spark")
    progress = FitProgress(1000, seconds_between_lines=3600)
    progress.set_params({"epochs": 3})
    for epoch in range(3):
        progress.on_epoch_begin(epoch)
        progress.on_epoch_end(epoch, {"loss": 0.5 - epoch / 10})
    progress.on_train_end()
    assert [message.split(",")[0] for message in caplog.messages] == [
        "epoch 1/3: loss 0.5000",
        "epoch 3/3: loss 0.3000",
    ]
    assert "triplets/s" in caplog.messages[0] and caplog.messages[0].endswith(", ? left")


def test_training_that_stops_early_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ivis_spark")
    X, y = iris_like()
    model = Ivis(k=5, epochs=300, batch_size=16, n_epochs_without_progress=2).fit(X, y)
    done = len(model.loss_history_)
    assert done < 300
    last = caplog.messages[-1]
    assert last.startswith(f"epoch {done}/300: loss ") and "left" not in last
    assert last.endswith(f"stopped after epoch {done}: the loss has not fallen for 2 epochs")
    parts = [last.index(name) for name in (": loss", "supervised_loss", "triplet_loss", "triplets/s")]
    assert parts[0] == min(parts) and parts[-1] == max(parts)

    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            self.model.stop_training = True

    Ivis(k=5, epochs=9, batch_size=16, callbacks=[Stops()]).fit(X)
    assert caplog.messages[-1].endswith("stopped after epoch 1: a callback ended training")


@pytest.mark.compiled
def test_fits_in_one_process_do_not_warn_of_retracing() -> None:
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tensorflow").addHandler(handler)
    try:
        for _ in range(7):
            Ivis(model="small_networks:tiny", k=5, epochs=1, batch_size=16, verbose=0).fit(iris_like()[0])
    finally:
        logging.getLogger("tensorflow").removeHandler(handler)
    assert not [message for message in seen if "retracing" in message]


def iris_like() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).random((40, 4)), np.arange(40) % 3


def train(*given: object, **options: object) -> Ivis:
    X, _ = iris_like()
    return Ivis(k=5, epochs=5, batch_size=16, verbose=0, callbacks=given, **options).fit(X)


def test_checkpoints_are_whole_models_that_go_on(tmp_path: Path) -> None:
    X, _ = iris_like()
    model = train(ModelCheckpoint(str(tmp_path), "at-{}", epoch_interval=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-2", "at-4"]
    loaded = Ivis().load_model(str(tmp_path / "at-4"))
    assert loaded.loss_history_ == model.loss_history_[:4]
    assert int(loaded.model_.optimizer.iterations) == 4 * 3
    assert len(loaded.fit(X).loss_history_) == 9
    only = tmp_path / "only"
    train(ModelCheckpoint(str(only), "latest"))
    assert [path.name for path in only.iterdir()] == ["latest"]


def test_embeddings_are_logged_and_drawn_every_few_epochs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    X, y = iris_like()
    logged = EmbeddingsLogging(X, str(tmp_path), "{}.npy", epoch_interval=5)
    drawn = EmbeddingsImage(X, y, str(tmp_path), "{}.png", epoch_interval=3)
    board = TensorBoardEmbeddingsImage(X, None, str(tmp_path), epoch_interval=2)
    model = train(logged, drawn, board)
    np.testing.assert_array_equal(np.load(tmp_path / "5.npy"), model.transform(X))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.png", "5.npy", "embeddings"]
    assert (tmp_path / "3.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "embeddings").iterdir()
    steps = [e.step for e in tf.compat.v1.train.summary_iterator(str(events)) if e.summary.value]
    assert steps == [2, 4]


def test_one_dimension_is_drawn_and_wrong_labels_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    X, y = iris_like()
    train(EmbeddingsImage(X, y, str(tmp_path), "{}.png", epoch_interval=5), embedding_dims=1)
    assert (tmp_path / "5.png").exists()
    with pytest.raises(InputError, match="3 labels for 40 rows"):
        EmbeddingsImage(X, [1, 2, 3])
    with pytest.raises(ConfigError, match="epoch_interval=0"):
        ModelCheckpoint(epoch_interval=0)


def test_keras_callbacks_work(tmp_path: Path) -> None:
    stopping = keras.callbacks.TerminateOnNaN()
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    board = keras.callbacks.TensorBoard(str(tmp_path / "board"))
    slower = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1)
    model = train(stopping, log, board, slower)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 6
    assert list((tmp_path / "board").rglob("events*"))
    assert len(model.loss_history_) == 5


def test_what_was_learnt_outlives_an_interruption(caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(epoch: int, logs: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    X, _ = iris_like()
    model = Ivis(k=5, epochs=9, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert len(model.loss_history_) == 2 and "interrupted after 2 epochs" in caplog.text
    assert model.transform(X).shape == (40, 2)
