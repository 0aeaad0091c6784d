"""The encoder that embeds: scaling, the network, and the supervised head on top of it."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.projection import is_sparse
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import InputError, NotFittedError

Floats = NDArray[np.float32]

_CHUNK_BYTES = 8 << 20  # of sparse rows that must be made dense
_KERAS_BATCH = 256  # the one shape a graph is traced for; the last rows of a batch are padded to it


class Network(Protocol):
    """A forward pass: shape (n, n_inputs) -> (n, n_outputs)."""

    @property
    def n_inputs(self) -> int:
        """Features of a row."""

    @property
    def n_outputs(self) -> int:
        """Dimensions of the output."""

    def __call__(self, X: NDArray[Any]) -> Floats:
        """Return the output of each row."""


class Encoder:
    """What a process needs to embed: the network and, for rows as the user has them, the scaler.

    Args:
        network: Forward pass: in NumPy, or of Keras for a backbone that is not a chain of dense layers.
        scaler: Scaling of raw rows, and their projection; None for rows that went through it already.
        head: From the embedding to the scores of a supervised model.
    """

    def __init__(self, network: Network, scaler: Scaler | None, head: DenseNetwork | None = None) -> None:
        self.network = network
        self.scaler = scaler
        self.head = head

    @property
    def n_inputs(self) -> int:
        """Features of a row as it comes."""
        return self.network.n_inputs if self.scaler is None else self.scaler.n_inputs

    def __call__(self, X: Any) -> Floats:
        """Embed rows of shape (n, d), in float64 where float32 would lose digits: float32, shape (n, e).

        A SciPy CSR matrix stays sparse up to the projection, or to the first layer where nothing is scaled.

        Raises:
            InputError: if d is not the width the network was trained on, or rows lie so far from what it was trained on
                that the embedding exceeds float32.
        """
        embedding = self.embed(X)
        beyond = ~np.isfinite(embedding).all(axis=1)
        if beyond.any():
            raise InputError(
                f"{int(beyond.sum())} of {len(beyond)} rows, the first {int(beyond.argmax())}, are so far from the "
                f"training data that their embedding exceeds float32: fix or drop them"
            )
        return embedding

    def embed(self, X: Any) -> Floats:
        """Embed rows as `__call__` does, but leave what exceeds float32 infinite or NaN, for the caller to handle.

        Raises:
            InputError: if d is not the width the network was trained on.
        """
        if X.shape[0] == 0:
            return np.empty((0, self.network.n_outputs), np.float32)
        if is_sparse(X) and not self._takes_sparse:
            step = max(1, _CHUNK_BYTES // (8 * X.shape[1]))
            starts = range(0, X.shape[0], step)
            return np.concatenate([self.embed(X[start : start + step].toarray()) for start in starts])
        with np.errstate(over="ignore", invalid="ignore"):
            return self.network(X if self.scaler is None else self.scaler.transform(X))

    @property
    def _takes_sparse(self) -> bool:
        if self.scaler is None:
            return isinstance(self.network, DenseNetwork)
        return self.scaler.projection is not None

    @property
    def border(self) -> float:
        """The score of one output above which it says the second of two classes: of a hinge loss 0, else .5."""
        return 0.0 if self.head is not None and self.head.layers[-1].activation == "linear" else 0.5

    def score(self, embedding: NDArray[Any]) -> Floats:
        """Return the head's output for rows embedded already: class probabilities, or values; (n, e) -> (n, c).

        Raises:
            NotFittedError: if the model was trained without labels.
        """
        if self.head is None:
            raise NotFittedError("the model has no supervised head and returns no scores: train with labels")
        return self.head(embedding)


class KerasNetwork:
    """The forward pass of any Keras model, loaded once a process when it is first called.

    It is sent to tasks as the bytes of its file. Rows pass in batches of one size, so that the graph is traced once.

    Args:
        content: A `.keras` file.
        input_shape: Shape of a row; flat rows are reshaped to it.
        n_outputs: Dimensions of the output.
        custom_objects: Layers and functions of the backbone by name, as the caller passed them.
    """

    def __init__(
        self,
        content: bytes,
        *,
        input_shape: tuple[int, ...],
        n_outputs: int,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> None:
        self.n_inputs = math.prod(input_shape)
        self.n_outputs = n_outputs
        self._content = content
        self._input_shape = input_shape
        self._custom_objects = dict(custom_objects or {})
        self._digest = hashlib.sha256(content).hexdigest()

    def __call__(self, X: NDArray[Any]) -> Floats:
        """Return the output of rows of shape (n, n_inputs): float32, shape (n, n_outputs).

        Runs on: driver or executor; loads TensorFlow.

        Raises:
            InputError: if X has another shape.
        """
        if X.ndim != 2 or X.shape[1] != self.n_inputs:
            raise InputError(
                f"X has shape {X.shape}; it must have rows of {self.n_inputs} features, as the model was trained on"
            )
        if self._digest not in _loaded:
            _loaded[self._digest] = self._load()
        predict = _loaded[self._digest]
        output = np.empty((len(X), self.n_outputs), np.float32)
        for start in range(0, len(X), _KERAS_BATCH):
            rows = X[start : start + _KERAS_BATCH]
            padded = np.zeros((_KERAS_BATCH, self.n_inputs), np.float32)
            padded[: len(rows)] = rows
            output[start : start + len(rows)] = predict(padded)[: len(rows)]
        return output

    def _load(self) -> Callable[[Floats], Floats]:
        import tensorflow as tf

        from ivis_spark.nn.persistence import load_keras

        try:  # one thread a task: Spark runs a task a core
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            pass  # this process has used TensorFlow already and keeps its threads
        with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
            path = os.path.join(folder, "network.keras")
            with open(path, "wb") as file:
                file.write(self._content)
            model = load_keras(path, self._custom_objects)
        shape = (_KERAS_BATCH, *self._input_shape)

        @tf.function(input_signature=[tf.TensorSpec((_KERAS_BATCH, self.n_inputs), tf.float32)])  # type: ignore[untyped-decorator]
        def forward(rows: Any) -> Any:
            return model(tf.reshape(rows, shape), training=False)

        return lambda rows: forward(rows).numpy()


_loaded: dict[str, Callable[[Floats], Floats]] = {}
