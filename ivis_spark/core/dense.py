"""The forward pass of a dense network in NumPy: embedding without TensorFlow."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.projection import is_sparse
from ivis_spark.errors import UNREADABLE, ArtifactError, InputError

Array = NDArray[np.float32]

_SELU_SCALE = np.float32(1.0507009873554805)
_SELU_ALPHA = np.float32(1.6732632423543772)
_KNEE = np.log(_SELU_ALPHA)
_BENT_ZERO = _KNEE + _SELU_ALPHA
# A chunk's widest layer should stay in the second-level cache between the product and the activation.
_CHUNK_BYTES = 1 << 20
_MIN_CHUNK_ROWS = 128


def _selu(x: Array) -> None:
    x += _KNEE
    _bend(x, np.empty_like(x))
    x *= _SELU_SCALE
    x -= _SELU_SCALE * _BENT_ZERO


def _bend(x: Array, spare: Array) -> None:
    """Turn z + `_KNEE` into selu(z) / scale + `_BENT_ZERO`: four passes over the rows, where SELU takes eight.

    What is missing is linear, so the next layer's weights take it in: see `DenseNetwork._folded`.
    """
    np.minimum(x, _KNEE, out=spare)
    np.exp(spare, out=spare)
    np.maximum(x, _KNEE, out=x)
    x += spare


def _elu(x: Array) -> None:
    below = np.exp(np.minimum(x, 0))
    np.maximum(x, 0, out=x)
    x += below
    x -= 1


def _sigmoid(x: Array) -> None:
    x *= 0.5
    np.tanh(x, out=x)
    x += 1
    x *= 0.5


def _softmax(x: Array) -> None:
    x -= x.max(axis=1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=1, keepdims=True)


ACTIVATIONS: dict[str, Callable[[Array], Any]] = {
    "linear": lambda x: None,
    "relu": lambda x: np.maximum(x, 0, out=x),
    "selu": _selu,
    "elu": _elu,
    "tanh": lambda x: np.tanh(x, out=x),
    "sigmoid": _sigmoid,
    "softmax": _softmax,
}


_BENT = "bent selu"  # of a folded layer only


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """One layer: kernel float32 (inputs, units), bias float32 (units,), name of the activation."""

    kernel: Array
    bias: Array
    activation: str

    @classmethod
    def of(cls, kernel: NDArray[Any], bias: NDArray[Any] | None, activation: str) -> DenseLayer:
        """Make a layer of arrays of any float type; without a bias it is 0."""
        kernel = np.ascontiguousarray(kernel, dtype=np.float32)
        bias = np.zeros(kernel.shape[1]) if bias is None else bias
        return cls(kernel, np.ascontiguousarray(bias, dtype=np.float32), activation)


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """A chain of dense layers that embeds rows."""

    layers: tuple[DenseLayer, ...]

    @property
    def n_inputs(self) -> int:
        """Features of a row."""
        return int(self.layers[0].kernel.shape[0])

    @property
    def n_outputs(self) -> int:
        """Dimensions of the output."""
        return int(self.layers[-1].kernel.shape[1])

    def __call__(self, X: Any) -> Array:
        """Return the output of each row.

        Runs on: driver or executor. Memory: the output, and about 1 MB a layer for a chunk of rows.

        Args:
            X: Features of any numeric type, shape (n, n_inputs); an array, or a SciPy CSR matrix, which stays sparse.

        Returns:
            float32, shape (n, n_outputs).

        Raises:
            InputError: if X has another shape.
        """
        if X.ndim != 2 or X.shape[1] != self.n_inputs:
            raise InputError(
                f"X has shape {X.shape}; it must have rows of {self.n_inputs} features, as the model was trained on: "
                f"pass an array of shape (n, {self.n_inputs})"
            )
        output = np.empty((X.shape[0], self.n_outputs), dtype=np.float32)
        widest = max(layer.kernel.shape[1] for layer in self.layers)
        rows = min(max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // (4 * widest)), max(1, X.shape[0]))
        # Used again for every chunk: fresh memory of this size costs a page fault each 4 kB.
        buffers = [np.empty((rows, layer.kernel.shape[1]), np.float32) for layer in self.layers[:-1]]
        spare = np.empty((rows, widest), np.float32)
        for start in range(0, X.shape[0], rows):
            hidden: Any = X[start : start + rows]
            hidden = hidden.astype(np.float32) if is_sparse(X) else np.ascontiguousarray(hidden, dtype=np.float32)
            count = hidden.shape[0]
            targets = [*(buffer[:count] for buffer in buffers), output[start : start + rows]]
            for layer, target in zip(self._folded, targets, strict=True):
                if is_sparse(hidden):
                    target[:] = hidden @ layer.kernel
                    hidden = target
                else:
                    hidden = np.matmul(hidden, layer.kernel, out=target)
                hidden += layer.bias
                if layer.activation == _BENT:
                    _bend(hidden, spare.reshape(-1)[: hidden.size].reshape(hidden.shape))
                else:
                    ACTIVATIONS[layer.activation](hidden)
        return output

    @functools.cached_property
    def _folded(self) -> tuple[DenseLayer, ...]:
        """The layers as they are run: what SELU does after `_bend` is done by the weights of the next layer."""
        folded: list[DenseLayer] = []
        bent = False
        for position, layer in enumerate(self.layers):
            kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
            if bent:
                kernel *= _SELU_SCALE
                bias -= _BENT_ZERO * kernel.sum(axis=0)
            bent = layer.activation == "selu" and position < len(self.layers) - 1
            folded.append(DenseLayer.of(kernel, bias + _KNEE * bent, _BENT if bent else layer.activation))
        return tuple(folded)

    def to_bytes(self) -> bytes:
        """Return the network as an npz file: arrays and JSON, nothing that could run."""
        arrays: dict[str, NDArray[Any]] = {}
        for position, layer in enumerate(self.layers):
            arrays[f"kernel_{position}"], arrays[f"bias_{position}"] = layer.kernel, layer.bias
        names = json.dumps([layer.activation for layer in self.layers]).encode()
        buffer = io.BytesIO()
        np.savez(buffer, activations=np.frombuffer(names, dtype=np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> DenseNetwork:
        """Read what `to_bytes` wrote.

        Raises: ArtifactError: if the content is corrupt or not a network.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(_read_layers(arrays))
        except UNREADABLE as err:
            raise ArtifactError(
                f"the network of {len(content)} bytes cannot be read ({err}): it is corrupt or not a network; train "
                f"again"
            ) from err


def _read_layers(arrays: Mapping[str, NDArray[Any]]) -> tuple[DenseLayer, ...]:
    activations = json.loads(arrays["activations"].tobytes())
    if not isinstance(activations, list):
        raise ValueError(f"activations {activations!r} are not a list")
    unknown = [name for name in activations if not isinstance(name, str) or name not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"activations {unknown} are not among {list(ACTIVATIONS)}")
    layers = tuple(
        DenseLayer(arrays[f"kernel_{position}"], arrays[f"bias_{position}"], activation)
        for position, activation in enumerate(activations)
    )
    for layer in layers:
        kernel, bias = layer.kernel, layer.bias
        if kernel.dtype != np.float32 or kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
            raise ValueError(f"a layer has a kernel {kernel.dtype} {kernel.shape} and a bias {bias.shape}")
    return layers
