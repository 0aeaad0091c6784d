"""The settings of each stage: their defaults, documentation and limits, a frozen dataclass a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ivis_spark.config.checks import AUTO, Checked, option
from ivis_spark.errors import ConfigError

Metric = Literal["euclidean", "angular", "manhattan", "hamming", "dot"]
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
# Most anchors of `auto`: nearly as many as STEPS of the largest batches see.
AUTO_ANCHORS = 5_000_000
# Steps that training needs, and the fewest and most epochs to make them in.
STEPS, EPOCHS = 10_800, (5, 200)
# Batches that `auto` chooses from, and the steps that it makes them smaller for.
BATCH_SIZES, LEAST_STEPS = (512, 256, 128, 64), 800
# Learning rate of infonce, measured with layers of 128 and the largest of those batches.
AUTO_RATE, AUTO_WIDTH = 0.01, 128


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which columns to read, how to check and how to scale them."""

    section = "data"

    format: str = option(
        AUTO,
        "Spark data source of the input: parquet, delta, csv, json, orc, ..., or table for one named in the catalog; "
        "auto guesses it from the files.",
    )
    options: dict[str, Any] = option({}, "Options of that data source, for example {header: true} for csv.")
    version: str | None = option(
        None,
        "Which state the input is in, for inputs that do not tell when they change, like a database: any text that "
        "you change when the content does. Given for other inputs too, it stands for their files.",
        operational=True,
    )
    glob: bool = option(
        False,
        "Whether *, ?, [...] and {...} in the input's path select several paths; else they stand for themselves.",
        operational=True,
    )
    features_col: str | None = option(
        None,
        "Column with the features: an array of any numeric type, a Spark ML vector, or images (files as binary, or "
        "Spark's image source). Without it and `feature_cols`: the column `features`, else all numeric columns but id "
        "and label.",
    )
    feature_cols: tuple[str, ...] = option((), "Numeric columns that together are the features, in this order.")
    id_col: str | None = option(
        None,
        "Column with a unique value a row, of any atomic type. Without it and `id_cols`, rows are numbered by content.",
    )
    id_cols: tuple[str, ...] = option((), "Columns whose values together are unique in each row, instead of `id_col`.")
    label_col: str | None = option(
        None,
        "Column with the label: a number, an array of numbers, or text, a boolean or a date, whose values are "
        "classes; used by the report, and by training when train.supervision_metric is set. Null is no label.",
    )
    unlabelled: str | None = option(None, "Value of the label column that, like null, is no label, as unknown.")
    keep_columns: tuple[str, ...] = option((), "Columns that embedded tables keep beside ids; else all but features.")
    drop_columns: tuple[str, ...] = option((), "Columns that embedded tables leave out.")
    image_height: int | None = option(None, "Height that images are resized to.", low=1)
    image_width: int | None = option(None, "Width that images are resized to.", low=1)
    image_mode: Literal["rgb", "rgba", "grayscale"] = option(
        "rgb", "Channels of an image: a row is height x width x channels numbers from 0 to 255."
    )
    scaling: Literal["none", "minmax", "standard"] = option(
        "minmax",
        "Scaling of each feature, learnt in Spark and saved with the model: none, minmax (to [0, 1]) or standard "
        "(mean 0, variance 1). Constant columns become 0 in both.",
    )
    invalid: Literal["error", "drop"] = option(
        "error", "What to do with rows that hold null, NaN or infinity: stop, or drop them and report how many."
    )

    def _check_together(self) -> None:
        for one, several in (("features_col", "feature_cols"), ("id_col", "id_cols")):
            name, names = getattr(self, one), getattr(self, several)
            if name and names:
                raise ConfigError(
                    f"data.{one}={name!r} and data.{several}={','.join(names)!r} exclude each other: pass one of them"
                )
        both = sorted(set(self.drop_columns) & {*self.keep_columns, *self.keys})
        if both:
            raise ConfigError(f"data.drop_columns names {', '.join(both)}, which are kept or ids: leave them out there")

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that identify a row; none if rows are numbered by their content."""
        return (self.id_col,) if self.id_col else self.id_cols


@dataclass(frozen=True)
class NeighboursConfig(Checked):
    """Approximate nearest neighbours of every row, searched in regions and leaves."""

    section = "neighbours"

    k: int = option(
        15,
        "Neighbours of each row, itself not counted. Must be less than the number of rows. Or auto.",
        low=1,
        auto=True,
    )
    metric: Metric = option(
        "euclidean", "Distance between rows; cosine is another name of angular.", aliases={"cosine": "angular"}
    )
    backend: str = option(
        "auto",
        "Index library of a region: leaves (matrix products, the most accurate and fastest), annoy, one that was "
        "registered, or auto, which picks the cheapest by measured costs.",
    )
    table: str | None = option(
        None,
        "Parquet table with neighbours found elsewhere, used instead of a search: `id`, and `neighbour_ids` with at "
        "least k ids, nearest first. It is checked against the rows, and its recall is measured.",
    )
    target_recall: float = option(
        0.95,
        "Recall@k that the stage must reach: effort is chosen for it, and it is an error if the lower end of the 95 % "
        "interval of the measured recall is below it.",
        low=0.0,
        high=1.0,
    )
    recall_sample: int = option(
        500,
        "Rows whose exact neighbours are searched to measure the recall; nothing is learnt or chosen by them.",
        low=1,
    )
    region_rows: int | None = option(
        None,
        "Rows of a region, which one task holds and searches; none: a sixteenth of the table, at least 16,384 rows and "
        "at most 64 MiB of them.",
        low=2,
    )
    leaf_rows: int = option(
        256, "Rows of a leaf: a region is searched by comparing each row with the rows of its nearest leaves.", low=2
    )
    max_regions: int = option(
        8,
        "Most regions that hold a row: the nearest, and further ones where it is close behind the border, by the "
        "smallest margin that reaches target_recall.",
        low=1,
    )
    query_rows: Literal["auto", "all", "anchors"] = option(
        AUTO,
        "Rows whose neighbours are sought, among all rows: all, or the anchors of triplets.anchors. auto is all where "
        "the stage is run by itself, and the anchors in a run of all stages.",
        operational=True,
    )
    by_label: bool = option(
        False, "Rows with the same label are neighbours: k of them are drawn for each row, and no search is made."
    )
    n_trees: int = option(50, "Trees of an Annoy index; more trees, higher recall and cost.", low=1)
    search_k: int = option(-1, "Nodes that Annoy inspects per query, at least; -1 is n_trees * k.", low=-1)


@dataclass(frozen=True)
class QueryConfig(Checked):
    """Searching new rows in a published index."""

    section = "query"

    k: int | None = option(None, "Neighbours of each new row; none for as many as the index was built for.", low=1)


@dataclass(frozen=True)
class TripletsConfig(Checked):
    """Triplets: anchors and their positives packed into blocks, with which anchors are near one another."""

    section = "triplets"

    anchors: int | None = option(
        AUTO,
        "Rows that training sees as anchors: all, or a number of them, drawn by a hash of their ids. Only these need "
        f"neighbours, which are sought among all rows; all rows are embedded. auto is all up to {AUTO_ANCHORS:,} rows, "
        f"and {AUTO_ANCHORS:,} of more.",
        low=2,
        auto=True,
        aliases={"all": "none"},
    )
    positives_per_anchor: int = option(
        4,
        "Positives sampled for each anchor: epoch e trains on number e mod positives_per_anchor. Negatives are sampled "
        "again in every epoch.",
        low=1,
    )
    block_rows: int = option(1024, "Anchors of a block; a block is one row of the Parquet files.", low=2, high=65536)
    held_out_labels: float = option(
        0.1,
        "Share of the rows whose labels supervised training never sees, so that the report can measure on them what "
        "the embedding tells of labels. 0 trains on all labels, and the report says so.",
        low=0.0,
        high=0.9,
    )
    file_blocks: int = option(
        8,
        "Fewest blocks of a Parquet file, which a task writes; those of a large table hold more, up to 256 MiB.",
        low=1,
    )
    group_blocks: int = option(
        2, "Blocks of a Parquet row group, the unit that training reads; at least one group a rank is needed.", low=1
    )

    def anchors_of(self, rows: int) -> int | None:
        """Return how many of so many rows are anchors; None if all are."""
        anchors: Any = self.anchors
        if anchors == AUTO:
            anchors = AUTO_ANCHORS
        return None if anchors is None or anchors >= rows else int(anchors)


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


@dataclass(frozen=True)
class EmbedConfig(Checked):
    """Applying the trained encoder to a table."""

    section = "embed"

    batch_rows: int = option(10_000, "Rows of an Arrow batch handed to Python.", low=1)
    output_col: str = option("embedding", "Column of the embedding.")
    scores_col: str | None = option(
        None, "Column of a supervised model's scores (class probabilities, or values), made in the same pass."
    )
    class_col: str | None = option(
        None, "Column of a classifier's most probable class, with the values and the type of the label column."
    )
    precision: Literal["float32", "float16"] = option(
        "float32",
        "float32: array<float>. float16: binary of packed little-endian float16, half the bytes (Spark has no such "
        "number; NumPy reads a row with frombuffer(row, '<f2')).",
    )
    invalid: Literal["error", "null", "drop"] = option(
        "error", "What to do with rows that hold null, NaN or infinity: stop, embed as null, or drop; both counted."
    )
    unit_bytes: int | None = option(
        None,
        "Bytes of input files after which the job notes what is done, so that a killed run resumes from there; none is "
        "four splits of 128 MiB a core.",
        low=1,
    )
    partition_by: tuple[str, ...] = option((), "Columns whose values make the folders of the embedded table.")


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """The report."""

    section = "evaluate"

    sample_rows: int = option(5_000, "Rows sampled for the quality metrics.", low=10)
    plot_rows: int = option(20_000, "Rows sampled for the interactive scatter.", low=10)
    colour_by: tuple[str, ...] = option(
        (),
        "What the points of the scatter can be coloured by, beside label, scores and what else the embeddings hold: "
        "features by name, name[0] and so on of an array; other columns that were kept with the rows.",
    )
    k: int = option(15, "Neighbours in trustworthiness, continuity and kNN accuracy.", low=1)
    n_pairs: int = option(
        20_000, "Random pairs of rows whose distances are compared, before and after embedding.", low=1
    )
    n_triplets: int = option(20_000, "Random triples of rows whose order of distances is compared.", low=1)
