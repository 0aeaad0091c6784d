"""Base networks by name, and the encoder built from one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

import keras

from ivis_spark.config import NETWORK_UNITS, TrainConfig, did_you_mean
from ivis_spark.config.imports import import_named
from ivis_spark.core.dense import ACTIVATIONS, DenseLayer, DenseNetwork
from ivis_spark.errors import ConfigError
from ivis_spark.nn.activations import selu
from ivis_spark.nn.dropout import PooledAlphaDropout
from ivis_spark.nn.seeds import seeded_layers

InputShape = tuple[int | None, ...]

_F = TypeVar("_F", bound=Callable[..., Any])
# Layers that do nothing to rows of features when the network is not being trained.
_INERT_LAYERS = (keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianNoise)

base_networks: dict[str, Callable[[InputShape], keras.Model]] = {}


@overload
def register_network(build_fn: _F, *, name: str | None = None) -> _F: ...
@overload
def register_network(build_fn: None = None, *, name: str | None = None) -> Callable[[_F], _F]: ...
def register_network(build_fn: Any = None, *, name: str | None = None) -> Any:
    """Register a function `(input_shape) -> keras.Model` as a base network; also a decorator.

    Args:
        build_fn: Builds the network, without its embedding layer.
        name: Key of the network; by default the name of the function.

    Returns:
        `build_fn` itself, or a decorator if it is omitted.

    Example:
        >>> import keras
        >>> from ivis_spark.nn.networks import get_base_networks, register_network
        >>> @register_network(name="narrow")
        ... def narrow(input_shape):
        ...     return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(16, activation="selu")])
        >>> "narrow" in get_base_networks()
        True
    """
    if build_fn is None:
        return functools.partial(register_network, name=name)
    base_networks[name or build_fn.__name__] = build_fn
    NETWORK_UNITS.setdefault(name or build_fn.__name__, ())
    return build_fn


def get_base_networks() -> list[str]:
    """Return the names of the registered base networks."""
    return list(base_networks)


@register_network(name="szubert")
def szubert_base_network(input_shape: InputShape) -> keras.Model:
    """Build the small default."""
    return _selu_network(input_shape, NETWORK_UNITS["szubert"])


@register_network(name="hinton")
def hinton_base_network(input_shape: InputShape) -> keras.Model:
    """Build the encoder of Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks"."""
    return _selu_network(input_shape, NETWORK_UNITS["hinton"])


@register_network(name="maaten")
def maaten_base_network(input_shape: InputShape) -> keras.Model:
    """Build the encoder of van der Maaten, "Learning a parametric embedding by preserving local structure"."""
    return _selu_network(input_shape, NETWORK_UNITS["maaten"])


def build_encoder(
    model: str | keras.Model,
    input_shape: InputShape,
    embedding_dims: int | None,
    seed: int | None = None,
    *,
    dropout: float = TrainConfig.dropout,
    precision: str = TrainConfig.compute_precision,
) -> keras.Model:
    """Build the network that embeds rows: a base network and, after it, a Dense layer of the embedding's size.

    Runs on: each rank. With a seed, no global random state is read or changed.

    Args:
        model: Name of a base network, `package.module:function` that builds one, or a Keras model whose output is one
            vector per row.
        input_shape: Shape of a row, as in (784,); ignored if `model` is a Keras model.
        embedding_dims: Dimensions of the embedding; None uses the output of the model.
        seed: Of the initial weights and the dropout.
        dropout: Share of units that a registered network drops, if it drops any.
        precision: Keras's dtype policy of a registered network; the embedding layer's is float32.

    Returns:
        A Keras model, shape (b, ...) -> (b, embedding_dims), with `input_shape` after b.

    Raises:
        ConfigError: if no base network of that name is registered.
    """
    with seeded_layers(seed):
        base = _named(model, input_shape, dropout, precision) if isinstance(model, str) else model
        if embedding_dims is None:
            return base
        output = base.outputs[0]
        if len(output.shape) != 2:
            raise ConfigError(
                f"the model returns rows of shape {tuple(output.shape[1:])}; it must return one vector per row: "
                "end it with a pooling or Flatten layer"
            )
        return keras.Model(
            base.inputs[0], keras.layers.Dense(embedding_dims, name="embedding", dtype="float32")(output)
        )


def dense_network(model: keras.Model) -> DenseNetwork | None:
    """Return the network as arrays for a forward pass in NumPy, or None if it has anything but Dense layers of vectors.

    Dropout and noise layers are left out; Dense and Activation layers must form one chain.
    """
    layers: list[DenseLayer] = []
    chain = _chain(model)
    if chain is None or len(model.inputs[0].shape) != 2:
        return None
    for layer in chain:
        if isinstance(layer, _INERT_LAYERS):
            continue
        activation = getattr(getattr(layer, "activation", None), "__name__", None)
        if activation not in ACTIVATIONS:
            return None
        if type(layer) is keras.layers.Dense:
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            bias = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else None
            layers.append(DenseLayer.of(kernel, bias, activation))
        elif type(layer) is keras.layers.Activation and layers and layers[-1].activation == "linear":
            layers[-1] = DenseLayer(layers[-1].kernel, layers[-1].bias, activation)
        else:
            return None
    return DenseNetwork(tuple(layers)) if layers else None


def _chain(model: keras.Model) -> list[keras.layers.Layer] | None:
    """Return the layers from input to output, nested models unfolded, or None if they are not one chain."""
    if len(getattr(model, "inputs", None) or ()) != 1 or len(model.outputs) != 1:
        return None
    layers: list[keras.layers.Layer] = []
    tensor = model.outputs[0]
    while tensor is not model.inputs[0]:
        layer, node_index, _ = tensor._keras_history
        parents = layer._inbound_nodes[node_index].input_tensors
        inner = _chain(layer) if isinstance(layer, keras.Model) else [layer]
        if len(parents) != 1 or inner is None:
            return None
        layers = inner + layers
        tensor = parents[0]
    return layers


def _named(model: str, input_shape: InputShape, dropout: float, precision: str) -> keras.Model:
    with _dtype_policy(precision):
        network = named_network(model, input_shape)
    for layer in network.layers:
        if isinstance(layer, PooledAlphaDropout):
            layer.rate = dropout
    return network


def named_network(model: str, input_shape: InputShape) -> keras.Model:
    """Build the base network registered as `model`, or that of a function `package.module:function`.

    Raises: ConfigError: if there is none of that name.
    """
    if ":" in model:
        return import_named(model, "model")(input_shape)
    if model not in base_networks:
        raise ConfigError(
            f"model={model!r} is not one of: {', '.join(base_networks)}, and not a Keras model"
            f"{did_you_mean(model, base_networks)}; add yours with ivis_spark.nn.networks.register_network"
        )
    return base_networks[model](input_shape)


def _selu_network(input_shape: InputShape, units: tuple[int, ...]) -> keras.Model:
    network = keras.Sequential([keras.Input(shape=input_shape)])
    for position, width in enumerate(units):
        if position:
            network.add(PooledAlphaDropout(TrainConfig.dropout))
        network.add(keras.layers.Dense(width, activation=selu, kernel_initializer="lecun_normal"))
    return network


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Make layers inside with Keras's dtype policy of that name."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
