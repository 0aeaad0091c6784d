"""Fits that end early, for documents whose text is tested and not their models."""

from __future__ import annotations

import dataclasses
from typing import Any

from ivis_spark.config import TrainConfig
from ivis_spark.train import loop

ENOUGH_STEPS = 600


def fit_briefly(*given: Any, config: TrainConfig, steps_per_epoch: int, **more: Any) -> loop.History:
    """Fit for two epochs of a few steps, which are not worth compiling (`processes.FEW`)."""
    config = dataclasses.replace(config, epochs=min(config.epochs, 2))
    return loop.fit(*given, config=config, steps_per_epoch=min(steps_per_epoch, 4), **more)


def fit_enough(*given: Any, config: TrainConfig, steps_per_epoch: int, **more: Any) -> loop.History:
    """Fit for so many steps that the digits lie well apart."""
    config = dataclasses.replace(config, epochs=min(config.epochs, ENOUGH_STEPS // steps_per_epoch + 1))
    return loop.fit(*given, config=config, steps_per_epoch=steps_per_epoch, **more)
