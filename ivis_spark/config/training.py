"""The settings of training: losses and networks by name, and how long and how fast to train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ivis_spark.config.checks import AUTO, Checked, option
from ivis_spark.errors import ConfigError

# The networks and the units of their layers, by which `plan` counts operations; of those registered later, none.
NETWORK_UNITS: dict[str, tuple[int, ...]] = {
    "szubert": (128, 128, 128),
    "hinton": (2000, 1000, 500),
    "maaten": (500, 500, 2000),
}


def multiplications(dims: int, units: Sequence[int], embedding_dims: int) -> int:
    """Return the multiplications of one row's way through layers of these units."""
    return sum(a * b for a, b in itertools.pairwise([dims, *units, embedding_dims]))


_NETWORKS = ", ".join(f"{name} {'-'.join(map(str, units))}" for name, units in NETWORK_UNITS.items())
# The losses, and whether their negatives are the other rows of a batch, so that none are drawn: `in_batch` of a loss.
_TRIPLET_LOSSES = (
    *("pn", "euclidean", "manhattan_pn", "manhattan", "chebyshev_pn", "chebyshev", "cosine_pn", "cosine"),
    *("softmax_ratio_pn", "softmax_ratio"),
)
LOSSES: dict[str, bool] = {**dict.fromkeys(_TRIPLET_LOSSES, False), "infonce": True}
# ivis's batch size, to which its learning rate belongs.
IVIS_BATCH_SIZE = 128
# Steps that training needs, and the fewest and most epochs to make them in.
STEPS, EPOCHS = 10_800, (5, 200)
# Steps of the warm-up, and the largest share of the epochs it may take: with 15 steps the wide networks lose .03 kNN
# accuracy on 8,000 digits.
WARMUP_STEPS, WARMUP_SHARE = 90, 0.1
# Batches that `auto` chooses from, and the steps that it makes them smaller for.
BATCH_SIZES, LEAST_STEPS = (512, 256, 128, 64), 800
# Learning rate of infonce, measured with layers of 128 and the largest of those batches.
AUTO_RATE, AUTO_WIDTH = 0.01, 128


@dataclass(frozen=True)
class TrainConfig(Checked):
    """The network and its training."""

    section = "train"

    backend: str = option(
        "auto",
        "How to train: local in this process, the others in num_ranks tasks of the Spark session. auto is local for "
        "one rank, and an installed backend for several.",
        package="ivis_spark.train.backends",
        operational=True,
    )
    reader: str = option(
        "auto",
        "Library that reads the triplets from Parquet; current versions all give the same batches. auto uses an "
        "installed one.",
        package="ivis_spark.train.readers",
        operational=True,
    )
    num_ranks: int = option(
        1, "Processes that train together, each on a Spark task's cores, and on its GPU if Spark assigns one.", low=1
    )
    model: str = option(
        "szubert",
        f"Base network, with the units of its layers: {_NETWORKS}; or package.module:function, which is called with "
        "the shape of a row, (d,), and returns the model without its embedding layer. Or auto.",
        importable=True,
        auto=True,
        choices=NETWORK_UNITS,
    )
    embedding_dims: int = option(2, "Dimensions of the embedding.", low=1)
    distance: str = option(
        "pn",
        "Loss: a triplet loss, or infonce, in which a positive must stand out among all rows of the batch; or "
        "package.module:function of (y_true, y_pred), where y_pred stacks the embeddings of anchors, positives and "
        "negatives in shape (3, b, e).",
        importable=True,
        choices=LOSSES,
    )
    negatives: int = option(
        8,
        "Negatives per anchor and step, sampled from the anchors of its batch (its rank's part of it); more cost "
        "little and make the steps less noisy. infonce has its own, and a package.module:function gets one.",
        low=1,
    )
    margin: float = option(1.0, "Margin of the triplet losses.", low=0.0)
    temperature: float = option(
        1.0, "Temperature of infonce: lower values focus on the nearest rows and spread the embedding.", low=0.01
    )
    clip: float | None = option(
        None, "Maximum infonce loss of a pair: pairs further apart are no longer attracted; none disables it.", low=0.0
    )
    shared_negatives: int | None = option(
        None,
        "Negatives of infonce: the first shared_negatives positives of a batch, shared by all its anchors. none uses "
        "all rows of the batch, at several times the cost per step.",
        low=1,
    )
    exaggeration: float = option(
        1.0,
        "Early exaggeration of infonce: during the first exaggeration_share of the epochs of a cosine schedule, "
        "attraction is weighted by this factor; 1 disables it.",
        low=1.0,
    )
    exaggeration_share: float = option(0.33, "Share of the epochs with early exaggeration.", low=0.0, high=1.0)
    gather_negatives: bool = option(False, "Whether infonce uses negatives from all ranks, not only from its own.")
    global_weight: float = option(
        0.0,
        "Weight of a global term added to the loss: 1 - the correlation of distances between random rows before and "
        "after embedding.",
        low=0.0,
    )
    dropout: float = option(0.1, "Dropout rate of the networks named above.", low=0.0, high=0.9)
    compute_precision: Literal["float32", "mixed_bfloat16"] = option(
        "float32",
        "Precision of the network's computations: mixed_bfloat16 is faster where the hardware has it (GPUs, CPUs with "
        "AMX) and slower elsewhere; weights and embedding stay float32.",
    )
    epochs: int = option(
        1000,
        f"Maximum number of passes over the anchors; auto is enough for {STEPS:,} steps, between {EPOCHS[0]} and "
        f"{EPOCHS[1]}.",
        low=1,
        auto=True,
    )
    patience: int = option(5, "Epochs without a lower loss before training stops. Or auto.", low=1, auto=True)
    cooldown_epochs: int = option(
        8,
        "Number of final epochs, after the loss has stopped falling, in which the learning rate falls to 0; at most "
        "half of `epochs`.",
        low=0,
    )
    batch_size: int = option(
        IVIS_BATCH_SIZE,
        "Triplets per step, over all ranks; a multiple of num_ranks. auto is "
        f"{BATCH_SIZES[0]}, or less, down to {BATCH_SIZES[-1]}, if the epochs would make fewer than {LEAST_STEPS:,} "
        "steps.",
        low=1,
        auto=True,
    )
    optimizer: Literal["adam", "adamw", "sgd"] = option(
        "adam", "Adam, Adam with Keras's weight decay, or gradient descent with Nesterov momentum 0.9."
    )
    learning_rate: float = option(
        0.001,
        f"Learning rate of the optimizer. auto is {AUTO_RATE} for layers of up to {AUTO_WIDTH} units and batches of "
        f"{BATCH_SIZES[0]} or more; wider layers and smaller batches reduce it in proportion to the square root.",
        low=0.0,
        auto=True,
    )
    schedule: Literal["constant", "cosine"] = option(
        "constant",
        "Learning rate after the warm-up: constant until the loss stops falling, then the cool-down; or a cosine that "
        "falls to 0 over all of `epochs`, ignoring `patience` and `cooldown_epochs`.",
    )
    clipnorm: float | None = option(
        None, "Gradients of a layer's weights are clipped to this norm; none disables clipping.", low=0.0
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = option(
        "none",
        "How a numeric learning rate scales with batch_size: not at all, or with batch_size / "
        f"{IVIS_BATCH_SIZE} or its square root.",
    )
    warmup_epochs: int = option(
        0,
        "Number of initial epochs in which the learning rate rises from 0; auto is enough for "
        f"{WARMUP_STEPS} steps, at most a tenth of the epochs.",
        low=0,
        auto=True,
    )
    gradient_compression: Literal["none", "fp16"] = option(
        "none", "Compression of gradients sent between ranks: fp16 halves the bytes, for slow networks."
    )
    supervision_metric: str | None = option(
        None,
        "Keras loss of the labels, for example sparse_categorical_crossentropy or mae; none trains without labels.",
    )
    supervision_weight: float = option(
        0.5, "Weight of the supervised loss; the triplet loss gets the rest.", low=0.0, high=1.0
    )
    callbacks: tuple[str, ...] = option(
        (),
        "Keras callbacks on rank 0: csv and tensorboard write into model/logs; package.module:function is called "
        "without arguments and returns a callback.",
    )
    rank_callbacks: tuple[str, ...] = option(
        (), "Keras callbacks on every rank, as package.module:function. They must not wait for other ranks."
    )
    checkpoint_steps: int = option(
        0, "Steps between checkpoints, rounded up to a multiple of 256 within an epoch; 0: one after each epoch.", low=0
    )
    checkpoint_seconds: float = option(
        10.0, "Minimum seconds between two checkpoints; 0 disables the limit.", low=0.0, operational=True
    )
    keep_checkpoints: int = option(2, "Checkpoints kept during training; 0 writes none.", low=0, operational=True)
    max_restarts: int = option(
        2, "How often lost ranks are restarted, from the last checkpoint.", low=0, operational=True
    )
    start_timeout_seconds: float = option(
        300.0, "Maximum seconds to wait until all ranks are running.", low=1.0, operational=True
    )
    stall_timeout_seconds: float = option(
        300.0,
        "Seconds after which a rank that others wait for is considered lost; a frozen process may be before.",
        low=1.0,
        operational=True,
    )

    def _check_together(self) -> None:
        batch_size: Any = self.batch_size
        if batch_size != AUTO and batch_size % self.num_ranks:
            below = self.batch_size - self.batch_size % self.num_ranks
            raise ConfigError(
                f"train.batch_size={self.batch_size} is over all ranks and cannot be divided among "
                f"train.num_ranks={self.num_ranks}: pass {below + self.num_ranks}, or another multiple"
            )
        rate: Any = self.learning_rate
        if rate == AUTO and self.learning_rate_scaling != "none":
            raise ConfigError(
                f"train.learning_rate_scaling={self.learning_rate_scaling} scales a numeric learning rate, and "
                "train.learning_rate=auto follows the batch size by itself: set train.learning_rate, or leave the "
                "scaling out"
            )

    @property
    def needs_negatives(self) -> bool:
        """Whether the loss reads negatives."""
        return not LOSSES.get(self.distance, False)

    def learning_rate_of(self, width: int) -> float:
        """Return the learning rate of a network whose widest layer has so many units."""
        rate: Any = self.learning_rate
        if rate == AUTO:
            share = min(1.0, AUTO_WIDTH / width) * min(1.0, self.batch_size / BATCH_SIZES[0])
            return float(AUTO_RATE * share**0.5)
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.learning_rate_scaling]
        return float(rate * (self.batch_size / IVIS_BATCH_SIZE) ** power)
