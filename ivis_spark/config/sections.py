"""The settings of each stage: their defaults, documentation and limits, a frozen dataclass per stage."""

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
    """Which columns to read, and how to check and scale them."""

    section = "data"

    format: str = option(
        AUTO,
        "Spark data source of the input: parquet, delta, csv, json, orc, ..., or table for a catalog table; auto "
        "detects it from the files.",
    )
    options: dict[str, Any] = option({}, "Options of that data source, for example {header: true} for csv.")
    version: str | None = option(
        None,
        "Version of the input, for sources that do not report changes, such as databases: any text that you change "
        "when the content changes. For other inputs it replaces the check of their files.",
        operational=True,
    )
    glob: bool = option(
        False,
        "Whether *, ?, [...] and {...} in the input's path are wildcards; otherwise they are literal.",
        operational=True,
    )
    features_col: str | None = option(
        None,
        "Column with the features: an array of any numeric type, a Spark ML vector, or images (files as binary, or "
        "Spark's image source). If neither this nor `feature_cols` is set: the column `features`, else all numeric "
        "columns but id and label.",
    )
    feature_cols: tuple[str, ...] = option((), "Numeric columns used as features, in this order.")
    indices_col: str | None = option(
        None,
        "Column with an array of feature indices from 0 for the values in `features_col`, for sparse rows that are "
        "not Spark ML vectors. All other features are 0.",
    )
    n_features: int | None = option(
        None,
        "Number of features if `indices_col` is set; none is the largest index of the table plus 1.",
        low=1,
        high=2**31 - 1,
    )
    id_col: str | None = option(
        None,
        "Column with a unique value per row, of any atomic type. Without it and `id_cols`, rows are numbered by "
        "content.",
    )
    id_cols: tuple[str, ...] = option((), "Columns whose values together are unique per row, instead of `id_col`.")
    label_col: str | None = option(
        None,
        "Column with the label: a number, an array of numbers, or a class (text, boolean or date); used by the "
        "report, and by training if train.supervision_metric is set. Null means unlabelled.",
    )
    unlabelled: str | None = option(
        None, "Value of the label column that, like null, means unlabelled; for example unknown."
    )
    keep_columns: tuple[str, ...] = option(
        (), "Columns that embedded tables keep, in addition to ids; by default all but the features."
    )
    drop_columns: tuple[str, ...] = option((), "Columns that embedded tables leave out.")
    image_height: int | None = option(None, "Height that images are resized to.", low=1)
    image_width: int | None = option(None, "Width that images are resized to.", low=1)
    image_mode: Literal["rgb", "rgba", "grayscale"] = option(
        "rgb", "Channels of an image: a row is height x width x channels numbers from 0 to 255."
    )
    scaling: Literal["none", "minmax", "standard"] = option(
        "minmax",
        "Scaling of each feature, learnt in Spark and saved with the model: none, minmax (to [0, 1]) or standard "
        "(mean 0, variance 1). Both map constant columns to 0.",
    )
    components: int | None = option(
        None,
        "Principal components that replace the features in search and training, learnt on a sample of the scaled rows; "
        "the model still takes the features. Sparse rows stay sparse until they are projected. auto is "
        f"{AUTO_COMPONENTS} for more than {AUTO_FEATURES} features (of sparse rows: at least as many as components) "
        "with metric euclidean, else none. none disables the projection.",
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
                f"data.indices_col={self.indices_col!r} holds the indices of the values in data.features_col: pass "
                "that too"
            )
        if self.n_features and not self.indices_col:
            raise ConfigError(f"data.n_features={self.n_features} is for rows of data.indices_col: pass that too")
        both = sorted(set(self.drop_columns) & {*self.keep_columns, *self.keys})
        if both:
            raise ConfigError(
                f"data.drop_columns names {', '.join(both)}, which are kept or are ids: remove them "
                "from data.drop_columns"
            )

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
        15, "Neighbours per row, excluding the row itself; less than the number of rows. Or auto.", low=1, auto=True
    )
    metric: Metric = option(
        "euclidean", "Distance between rows; cosine is another name of angular.", aliases={"cosine": "angular"}
    )
    backend: str = option(
        "auto",
        "Index used within a region: leaves (matrix products, the most accurate and fastest), annoy, your own class, "
        "or auto, which picks the cheapest by measured costs.",
        package="ivis_spark.core.knn.indexes",
    )
    table: str | None = option(
        None,
        "Parquet table with precomputed neighbours, used instead of a search: `id`, and `neighbour_ids` with at "
        "least k ids, nearest first. It is checked against the rows, and its recall is measured.",
    )
    target_recall: float = option(
        0.95,
        "Recall@k to reach: the search effort is chosen for it, and the stage fails if the lower end of the 95 % "
        "interval of the measured recall is below it.",
        low=0.0,
        high=1.0,
    )
    recall_sample: int = option(
        500,
        "Rows whose exact neighbours are searched to measure the recall; they are not used for learning or tuning.",
        low=1,
    )
    region_rows: int | None = option(
        None,
        "Rows per region, which one task holds and searches; none: chosen. It starts at 20 (1 + features / 256) times "
        "the square root of the rows, at least 16,384, and doubles while a row lies in more than 3.5 regions on "
        "average; no more than 16,384 or a tenth of the table, 250,000 rows and 88 MiB, unless there would be too many "
        "regions.",
        low=2,
    )
    leaf_rows: int = option(
        256,
        "Rows per leaf, at least; 1.5 times the root of its rows in a large region. Within a region, each "
        "row is compared with the rows of its nearest leaves.",
        low=2,
    )
    max_regions: int = option(
        8,
        "Maximum regions per row: the nearest one, and others whose boundary is close, by the smallest margin that "
        "reaches target_recall.",
        low=1,
    )
    query_rows: Literal["auto", "all", "anchors"] = option(
        AUTO,
        "Rows whose neighbours are searched among all rows: all, or the anchors set by triplets.anchors. auto is all "
        "if the stage is run by itself, and the anchors in a run of all stages.",
        operational=True,
    )
    by_label: bool = option(
        False, "Rows with the same label are neighbours: k of them are drawn per row, and nothing is searched."
    )
    n_trees: int = option(50, "Trees of an Annoy index; more trees give higher recall at higher cost.", low=1)
    search_k: int = option(-1, "Minimum nodes that Annoy inspects per query; -1 is n_trees * k.", low=-1)


@dataclass(frozen=True)
class QueryConfig(Checked):
    """Searching new rows in a published index."""

    section = "query"

    k: int | None = option(None, "Neighbours per new row; none: as many as the index was built with.", low=1)


@dataclass(frozen=True)
class TripletsConfig(Checked):
    """Anchors and their positives, packed into blocks with the pairs that must not be negatives."""

    section = "triplets"

    anchors: int | None = option(
        AUTO,
        "Rows used as anchors in training: all, or this many, sampled by a hash of their ids. Only anchors need "
        "neighbours, which are searched among all rows; all rows are embedded. auto is all rows up to "
        f"{AUTO_ANCHORS:,}, and {AUTO_ANCHORS:,} of larger tables.",
        low=2,
        auto=True,
        aliases={"all": "none"},
    )
    positives_per_anchor: int = option(
        4,
        "Positives sampled per anchor: epoch e uses number e mod positives_per_anchor. Negatives are resampled every "
        "epoch.",
        low=1,
    )
    block_rows: int = option(1024, "Anchors per block; a block is one row of the Parquet files.", low=2, high=65536)
    held_out_labels: float = option(
        0.1,
        "Share of rows whose labels are hidden from supervised training, so that the report can measure accuracy on "
        "them. 0 trains on all labels, and the report says so.",
        low=0.0,
        high=0.9,
    )
    file_blocks: int = option(
        8,
        "Minimum blocks per Parquet file, which one task writes; files of large tables hold more, up to 256 MiB.",
        low=1,
    )
    group_blocks: int = option(
        2, "Blocks per Parquet row group, the unit that training reads; each rank needs at least one.", low=1
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

    batch_rows: int = option(10_000, "Rows per Arrow batch passed to Python; fewer if they exceed 64 MiB.", low=1)
    output_col: str = option("embedding", "Name of the embedding column.")
    scores_col: str | None = option(
        None, "Column for a supervised model's scores (class probabilities, or values), computed in the same pass."
    )
    class_col: str | None = option(
        None, "Column for a classifier's most probable class, with the values and type of the label column."
    )
    precision: Literal["float32", "float16"] = option(
        "float32",
        "float32: array<float>. float16: binary of packed little-endian float16, half the bytes (Spark has no float16 "
        "type; in NumPy, read a row with frombuffer(row, '<f2')).",
    )
    invalid: Literal["error", "null", "drop"] = option(
        "error",
        "What to do with rows of null, NaN, infinity or wrong indices: stop, embed as null, or drop; invalid rows are "
        "counted.",
    )
    unit_bytes: int | None = option(
        None,
        "Bytes of input files per unit of work: a killed run resumes after its last finished unit; none is four "
        "splits of 128 MiB per core.",
        low=1,
    )
    partition_by: tuple[str, ...] = option((), "Partition columns of the embedded table.")


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """Quality metrics and the report."""

    section = "evaluate"

    sample_rows: int = option(5_000, "Rows sampled for the quality metrics.", low=10)
    plot_rows: int = option(20_000, "Rows sampled for the interactive scatter plot.", low=10)
    colour_by: tuple[str, ...] = option(
        (),
        "What the scatter plot can be coloured by, in addition to label, scores and other columns of the embeddings: "
        "features by name (name[0] etc. for an array), or other columns kept with the rows.",
    )
    k: int = option(15, "Neighbours for trustworthiness, continuity and kNN accuracy.", low=1)
    n_pairs: int = option(
        20_000, "Random pairs of rows whose distances are compared before and after embedding.", low=1
    )
    n_triplets: int = option(20_000, "Random triples of rows whose order of distances is compared.", low=1)
    metrics: tuple[str, ...] = option(
        (),
        "Your own metrics for the report, each package.module:function. It takes the sampled features and their "
        "embedding, arrays of shape (rows, columns), and returns a number: 1 is best, 0 is chance.",
    )
