"""Networks that tests name in settings as `small_networks:function`."""

from __future__ import annotations

import keras


def convolutional(input_shape: tuple[int, ...]) -> keras.Model:
    """For gray images of 8 x 8, which come as rows of 64 numbers."""
    layers = [keras.layers.Reshape((8, 8, 1)), keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential([keras.Input(input_shape), *layers])


def tiny(input_shape: tuple[int, ...]) -> keras.Model:
    """One layer, for models that are kept as files."""
    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(8, activation="relu")])
