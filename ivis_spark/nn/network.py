"""Networks with ivis's names: the registry, and the Siamese network of three heads."""

from __future__ import annotations

from typing import Any

import keras

from ivis_spark.errors import ConfigError
from ivis_spark.nn.networks import InputShape, base_networks, get_base_networks, named_network, register_network

__all__ = ["base_network", "base_networks", "get_base_networks", "register_network", "triplet_network"]


def base_network(model_name: str, input_shape: InputShape) -> keras.Model:
    """Build a registered base network.

    Raises: ConfigError: if there is none of that name.
    """
    return named_network(model_name, input_shape)


def triplet_network(
    base_network: keras.Model, embedding_dims: int | None = 2, embedding_l2: float = 0.0
) -> tuple[keras.Model, tuple[Any, Any, Any]]:
    """Build a network of three inputs that share one encoder; training itself runs the encoder once on all three.

    Args:
        base_network: Its output is one vector per row.
        embedding_dims: Units of the embedding layer added to it; None adds none.
        embedding_l2: Weight of the L2 penalty on the kernel of that layer.

    Returns:
        The network (its layer 3 is the encoder), which gives the embeddings stacked in shape (3, b, e), and the three
        embeddings.

    Raises:
        ConfigError: if the base network does not return one vector per row.
    """
    source, output = base_network.inputs[0], base_network.outputs[0]
    if len(output.shape) != 2:
        raise ConfigError(
            f"the base network returns rows of shape {tuple(output.shape[1:])}; it must return one vector per row"
        )
    if embedding_dims is not None:
        penalty = keras.regularizers.L2(embedding_l2)
        output = keras.layers.Dense(embedding_dims, kernel_regularizer=penalty)(output)
    encoder = keras.Model(source, output)
    inputs = [keras.Input(shape=source.shape[1:]) for _ in range(3)]
    anchor, positive, negative = (encoder(each) for each in inputs)
    stacked = StackedTriplets(name="stacked_triplets")([anchor, positive, negative])
    return keras.Model(inputs, stacked), (anchor, positive, negative)


@keras.saving.register_keras_serializable(package="ivis_spark")
class StackedTriplets(keras.layers.Layer):  # type: ignore[misc]
    """Stacks three embeddings, shape (b, e) each, to (3, b, e)."""

    def call(self, inputs: Any) -> Any:
        """Stack."""
        return keras.ops.stack(inputs)
