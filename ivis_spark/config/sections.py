"""The settings of each stage: their defaults, documentation and limits, a frozen dataclass a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ivis_spark.config.checks import AUTO, Checked, option
from ivis_spark.errors import ConfigError

Metric = Literal["euclidean", "angular", "manhattan", "hamming", "dot"]
# Most anchors of `auto`: nearly as many as the steps of training see in the largest batches.
AUTO_ANCHORS = 5_000_000
# Principal components that `auto` takes: 50 and 100 gave maps of the same quality (MNIST: trustworthiness .947, kNN
# accuracy .948 with 784 columns, 100 and 50 components), and 50 cost the least (97, 69 and 58 CPU-s of fit). Up to so
# many features, projecting saves nothing.
AUTO_COMPONENTS, AUTO_FEATURES = 50, 128


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
    indices_col: str | None = option(
        None,
        "Column with an array of whole numbers from 0: which features the values of `features_col` are, for sparse "
        "rows that are not Spark ML vectors. All others are 0.",
    )
    n_features: int | None = option(
        None, "Features of a row given by `indices_col`; none is the largest index of the table plus 1.", low=1
    )
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
    components: int | None = option(
        None,
        "Principal components that stand for the features in search and training, learnt on a sample of the scaled "
        "rows; the model still takes the features. Sparse rows stay sparse until they are projected. auto is "
        f"{AUTO_COMPONENTS} where there are more than {AUTO_FEATURES} features, or as many as components in sparse "
        "rows, and the metric is euclidean, else none. None projects nothing.",
        low=1,
        auto=True,
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
        if self.indices_col and not self.features_col:
            raise ConfigError(
                f"data.indices_col={self.indices_col!r} says which features the values of data.features_col are: pass "
                "that too"
            )
        if self.n_features and not self.indices_col:
            raise ConfigError(f"data.n_features={self.n_features} is for rows of data.indices_col: pass that too")
        both = sorted(set(self.drop_columns) & {*self.keep_columns, *self.keys})
        if both:
            raise ConfigError(f"data.drop_columns names {', '.join(both)}, which are kept or ids: leave them out there")

    def components_of(self, n_features: int, *, sparse: bool, images: bool) -> int | None:
        """Return how many components rows of so many features are projected onto; None projects nothing."""
        count: Any = self.components
        if count != AUTO:
            return None if count is None else int(min(count, n_features))
        wide = n_features > (AUTO_COMPONENTS if sparse else AUTO_FEATURES)
        return AUTO_COMPONENTS if wide and not images else None

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
    metrics: tuple[str, ...] = option(
        (),
        "Metrics of your own for the report, each package.module:function. It takes the sampled features and their "
        "embedding, arrays of shape (rows, columns), and returns a number: 1 is best, 0 is chance.",
    )
