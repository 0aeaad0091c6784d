"""The settings of training: the losses and networks that there are by name, and how long and how fast to train."""

from __future__ import annotations

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
        "How to train: local in this process, the others by num_ranks tasks of the Spark session. auto is local for "
        "one rank, and what is installed for several.",
        package="ivis_spark.train.backends",
        operational=True,
    )
    reader: str = option(
        "auto",
        "What reads the triplets from Parquet; all give the same batches. auto takes what is installed.",
        package="ivis_spark.train.readers",
        operational=True,
    )
    num_ranks: int = option(
        1, "Processes that train together, each on a Spark task's cores, and on its GPU if Spark gives it one.", low=1
    )
    model: str = option(
        "szubert",
        f"Base network: {_NETWORKS}, by the units of its layers; or package.module:function, which is called with the "
        "shape of a row, (d,), and returns the model without its embedding layer. Or auto.",
        importable=True,
        auto=True,
        choices=NETWORK_UNITS,
    )
    embedding_dims: int = option(2, "Dimensions of the embedding.", low=1)
    distance: str = option(
        "pn",
        "Loss: of triplets, or infonce, in which a positive must stand out among all rows of the batch; or "
        "package.module:function of (y_true, y_pred), where y_pred stacks the embeddings of anchors, positives and "
        "negatives in shape (3, b, e).",
        importable=True,
        choices=LOSSES,
    )
    negatives: int = option(
        8,
        "Negatives of each anchor in a step, drawn from the anchors of its batch (of its rank's part of it); more cost "
        "little and make the steps less noisy. infonce takes all, and a package.module:function one.",
        low=1,
    )
    margin: float = option(1.0, "Margin of the triplet losses.", low=0.0)
    temperature: float = option(
        1.0, "Temperature of infonce: lower ones look at the nearest rows only, and spread the embedding.", low=0.01
    )
    clip: float | None = option(
        None, "Maximum infonce loss of a pair: pairs further apart are no longer attracted; none disables it.", low=0.0
    )
    shared_negatives: int | None = option(
        None,
        "Negatives of infonce: the first shared_negatives positives of a batch, shared by all its anchors. None "
        "is all rows of the batch, which costs several times as much per step.",
        low=1,
    )
    exaggeration: float = option(
        1.0,
        "Early exaggeration of infonce: in the first exaggeration_share of the epochs of a cosine schedule, attraction "
        "counts exaggeration times as much as repulsion; 1 disables it.",
        low=1.0,
    )
    exaggeration_share: float = option(0.33, "Share of the epochs with early exaggeration.", low=0.0, high=1.0)
    gather_negatives: bool = option(
        False, "Whether infonce takes its negatives from the batches of all ranks, and not of each rank alone."
    )
    global_weight: float = option(
        0.0,
        "Weight of a global term added to the loss: 1 - the correlation of distances between random rows before and "
        "after embedding.",
        low=0.0,
    )
    dropout: float = option(0.1, "Share of units that the networks named above drop in training.", low=0.0, high=0.9)
    compute_precision: Literal["float32", "mixed_bfloat16"] = option(
        "float32",
        "Numbers that the network computes with: mixed_bfloat16 is faster where the hardware has it (GPUs, CPUs with "
        "AMX) and slower elsewhere; weights and embedding stay float32.",
    )
    epochs: int = option(
        1000,
        f"Maximum number of passes over the anchors; auto is enough for {STEPS:,} steps, {EPOCHS[0]} to {EPOCHS[1]}.",
        low=1,
        auto=True,
    )
    patience: int = option(5, "Epochs without a lower loss after which training stops. Or auto.", low=1, auto=True)
    cooldown_epochs: int = option(
        8,
        "Number of last epochs, after the loss stopped falling, in which the learning rate falls to 0; at most half of "
        "`epochs`.",
        low=0,
    )
    batch_size: int = option(
        IVIS_BATCH_SIZE,
        "Triplets of a step, over all ranks; a multiple of num_ranks. auto is "
        f"{BATCH_SIZES[0]}, or less, down to {BATCH_SIZES[-1]}, where the epochs would not make {LEAST_STEPS:,} steps.",
        low=1,
        auto=True,
    )
    optimizer: Literal["adam", "adamw", "sgd"] = option(
        "adam", "Adam, Adam with Keras's weight decay, or gradient descent with Nesterov's momentum of 0.9."
    )
    learning_rate: float = option(
        0.001,
        f"Learning rate of the optimizer. auto is {AUTO_RATE} for layers of up to {AUTO_WIDTH} units and batches of "
        f"{BATCH_SIZES[0]} or more; it falls with the square root of the widest layer, and of a smaller batch.",
        low=0.0,
        auto=True,
    )
    schedule: Literal["constant", "cosine"] = option(
        "constant",
        "Learning rate after the warm-up: constant until the loss stops falling, then the cool-down; or a cosine that "
        "falls to 0 over all of `epochs`, without looking at `patience` and `cooldown_epochs`.",
    )
    clipnorm: float | None = option(
        None,
        "Gradients of a layer's weights are clipped to this norm; none disables clipping.",
        low=0.0,
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = option(
        "none",
        "How a learning rate that is a number grows with batch_size: it is taken as it is, or times the square root "
        f"of, or times batch_size / {IVIS_BATCH_SIZE}.",
    )
    warmup_epochs: int = option(0, "Number of first epochs, in which the learning rate rises from 0.", low=0)
    gradient_compression: Literal["none", "fp16"] = option(
        "none", "How gradients travel between ranks: fp16 halves the bytes, for slow networks."
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
        "Keras callbacks of rank 0: csv and tensorboard write into model/logs; package.module:function is called "
        "without arguments and returns one.",
    )
    rank_callbacks: tuple[str, ...] = option(
        (), "Keras callbacks of every rank, as package.module:function. They must not wait for other ranks."
    )
    checkpoint_steps: int = option(
        0, "Steps between checkpoints, rounded up to a multiple of 256 in an epoch; 0: epochs end with one.", low=0
    )
    checkpoint_seconds: float = option(
        10.0, "Minimum seconds between two checkpoints; 0 skips none.", low=0.0, operational=True
    )
    keep_checkpoints: int = option(2, "Checkpoints kept while training; 0 makes none.", low=0, operational=True)
    max_restarts: int = option(
        2, "How often lost ranks are restarted, from the last checkpoint.", low=0, operational=True
    )
    start_timeout_seconds: float = option(
        300.0, "Maximum seconds to wait until all ranks run at once.", low=1.0, operational=True
    )
    stall_timeout_seconds: float = option(
        300.0, "Seconds after which a rank that others wait for counts as lost.", low=1.0, operational=True
    )

    def _check_together(self) -> None:
        batch_size: Any = self.batch_size
        if batch_size != AUTO and batch_size % self.num_ranks:
            below = self.batch_size - self.batch_size % self.num_ranks
            raise ConfigError(
                f"train.batch_size={self.batch_size} is over all ranks and cannot be shared by "
                f"train.num_ranks={self.num_ranks}: pass {below + self.num_ranks}, or another multiple"
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
