"""Fits that end early, for pages and notebooks."""

from __future__ import annotations

import dataclasses
from typing import Any

import processes

from ivis_spark.config import TrainConfig
from ivis_spark.train import loop

ENOUGH_STEPS = 600  # accuracies and trustworthiness that pages assert are then at least .03 above what they ask for


def fit_briefly(*given: Any, config: TrainConfig, steps_per_epoch: int, **more: Any) -> loop.History:
    """Fit for two epochs of so few steps that they are not compiled."""
    config = dataclasses.replace(config, epochs=min(config.epochs, 2))
    return loop.fit(*given, config=config, steps_per_epoch=min(steps_per_epoch, processes.FEW // 2), **more)


def fit_enough(*given: Any, config: TrainConfig, steps_per_epoch: int, **more: Any) -> loop.History:
    """Fit for so many steps that what the pages assert is true."""
    config = dataclasses.replace(config, epochs=min(config.epochs, ENOUGH_STEPS // steps_per_epoch + 1))
    return loop.fit(*given, config=config, steps_per_epoch=steps_per_epoch, **more)
