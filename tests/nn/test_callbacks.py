"""The progress message."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.nn.callbacks import ProgressLogger  # noqa: E402


def test_message_holds_epoch_loss_rate_and_last_epoch_is_always_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ivis_spark")
    progress = ProgressLogger(1000, min_interval_s=3600)
    progress.set_params({"epochs": 3})
    for epoch in range(3):
        progress.on_epoch_begin(epoch)
        progress.on_epoch_end(epoch, {"loss": 0.5 - epoch / 10})
    progress.on_train_end()
    assert [message.split(",")[0] for message in caplog.messages] == [
        "epoch 1/3: loss 0.5000",
        "epoch 3/3: loss 0.3000",
    ]
    assert "triplets/s" in caplog.messages[0]
