"""The configuration: the only defaults, the only documentation and the only checks of every setting.

One frozen dataclass a stage, nested in `Config`. A setting's full name is `section.key`, as in `neighbours.k`;
`random_state` and `preset` stand at the top. A preset replaces some defaults; YAML files and `--set section.key=value`
override both.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import yaml

from ivis_spark.errors import ConfigError

Metric = Literal["euclidean", "angular", "manhattan", "hamming", "dot"]
IndexBackend = Literal["auto", "annoy", "exact"]
Network = Literal["szubert", "hinton", "maaten"]
Distance = Literal[
    "pn",
    "euclidean",
    "manhattan_pn",
    "manhattan",
    "chebyshev_pn",
    "chebyshev",
    "cosine_pn",
    "cosine",
    "softmax_ratio_pn",
    "softmax_ratio",
    "infonce",
]
# Losses whose negatives are the other rows of a batch, so that none are drawn; `nn.losses` marks them with `in_batch`.
_IN_BATCH = ("infonce",)

# ivis's batch size, to which its learning rate belongs.
_IVIS_BATCH_SIZE = 128
# A setting that follows from the number of rows.
AUTO = "auto"
# ivis's documentation, "Hyperparameter Selection": below so many rows, the patience and the network that suit.
_RULES_OF_THUMB = (
    (1_000, 20, "maaten"),
    (50_000, 15, "maaten"),
    (100_000, 10, "maaten"),
    (500_000, 5, "maaten"),
    (1_000_000, 3, "szubert"),
    (math.inf, 2, "szubert"),
)
# A k that it recommends for any number of rows.
_RULE_K = 15
# Steps that training needs, and the fewest and most epochs to make them in.
_STEPS, _EPOCHS = 5_400, (5, 200)
# Defaults of the local API that are ivis's and not the pipeline's.
IVIS_K = 150
IVIS_METRIC: Metric = "angular"
IVIS_PATIENCE = 20
IVIS_SUPERVISION = "sparse_categorical_crossentropy"

# What each preset sets where nothing else does. README.md says which to take, by what was measured.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ivis": {
        "neighbours": {"k": IVIS_K, "metric": IVIS_METRIC},
        "train": {"patience": IVIS_PATIENCE, "cooldown_epochs": 0},
    },
    "fast": {
        "train": {
            "distance": "infonce",
            "dropout": 0.0,
            "epochs": AUTO,
            "batch_size": 512,
            "learning_rate": 0.01,
            "schedule": "cosine",
            "warmup_epochs": 1,
            "clipnorm": 4.0,
            "global_weight": 0.1,
        },
    },
}

_Section = TypeVar("_Section", bound="_Checked")


def _option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    operational: bool = False,
    importable: bool = False,
    auto: bool = False,
) -> Any:
    """Declare a setting.

    Args:
        default: Its default.
        doc: Its documentation.
        low: Smallest value allowed, inclusive.
        high: Largest value allowed, inclusive.
        operational: Whether it leaves the result alone.
        importable: Whether it may name code of the user's.
        auto: Whether it may be `auto`, which `Config.for_rows` replaces.
    """
    metadata: dict[str, Any] = {"doc": doc, "low": low, "high": high}
    metadata |= {"operational": operational, "importable": importable, "auto": auto}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _by_preset() -> Any:
    """Declare a section, whose defaults depend on the preset."""
    return field(default=None)


def is_import_name(value: Any) -> bool:
    """Tell whether a value is of the form package.module:function."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value) is not None


class _Checked:
    """Checks every field against its type and limits when an instance is made.

    Raises: ConfigError: naming the setting, the value given and the values allowed.
    """

    section = ""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, item.name, check_field(type(self), item.name, getattr(self, item.name)))
        self._check_together()

    def _check_together(self) -> None:
        """Check settings that depend on each other."""


def check_field(owner: Any, key: str, value: Any) -> Any:
    """Return a value as the type of a field of a section, or of `Config`.

    Raises: ConfigError: if it is of another type or out of range.
    """
    item, hint = owner.__dataclass_fields__[key], _hints(owner)[key]
    name = f"{owner.section}.{key}" if owner.section else key
    if (item.metadata.get("importable") and is_import_name(value)) or (item.metadata.get("auto") and value == AUTO):
        return value
    value = _coerce(name, value, hint)
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not a finite number")
    if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
        allowed = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise ConfigError(f"{name}={value!r} is out of range: it must be {allowed}")
    return value


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint`, or raise ConfigError saying what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return _coerce(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if value is None:  # YAML reads a bare `none` as text but `null` and `~` as None
            value = next((word for word in ("none", "null") if word in args), None)
        if value not in args:
            raise ConfigError(f"{name}={value!r} is not one of: {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{name}={value!r} must be a list, like a,b,c")
        return tuple(str(item).strip() for item in items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r} must be a mapping, like {{key: value}}")
        return {str(key): item for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast(type, hint)):
            raise ConfigError(f"{name}={value!r} must be a section of settings, like {name}: {{key: value}}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} is a {type(value).__name__}; a {hint.__name__} is wanted")
    return value


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Which columns to read, how to check and how to scale them."""

    section = "data"

    format: str = _option(
        "parquet",
        "Spark data source of the input: parquet, delta, csv, json, orc, ..., or table for one named in the catalog.",
    )
    options: dict[str, Any] = _option({}, "Options of that data source, for example {header: true} for csv.")
    features_col: str | None = _option(
        None,
        "Column with the features: an array of any numeric type, a Spark ML vector, or images (files as binary, or "
        "Spark's image source). Without it and `feature_cols`: the column `features`, else all numeric columns but id "
        "and label.",
    )
    feature_cols: tuple[str, ...] = _option((), "Numeric columns that together are the features, in this order.")
    id_col: str | None = _option(
        None,
        "Column with a unique integer a row. Without it, ids are derived from the content of the row: the same on "
        "a rerun and for any partitioning; equal rows are numbered.",
    )
    label_col: str | None = _option(
        None,
        "Column with the label, a number or an array of numbers; used by the report, and by training when "
        "train.supervision_metric is set.",
    )
    image_height: int | None = _option(None, "Height that a column of images is brought to.", low=1)
    image_width: int | None = _option(None, "Width that a column of images is brought to.", low=1)
    image_mode: Literal["rgb", "rgba", "grayscale"] = _option(
        "rgb", "Channels of an image: a row is height x width x channels numbers from 0 to 255."
    )
    scaling: Literal["none", "minmax", "standard"] = _option(
        "minmax",
        "Scaling of each feature, learnt in Spark and saved with the model: none, minmax (to [0, 1]) or standard "
        "(mean 0, variance 1). Constant columns become 0 in both.",
    )
    invalid: Literal["error", "drop"] = _option(
        "error", "What to do with rows that hold null, NaN or infinity: stop, or drop them and report how many."
    )

    def _check_together(self) -> None:
        if self.features_col and self.feature_cols:
            raise ConfigError(
                f"data.features_col={self.features_col!r} and data.feature_cols={','.join(self.feature_cols)!r} "
                "exclude each other: pass one of them"
            )


@dataclass(frozen=True)
class NeighboursConfig(_Checked):
    """Approximate nearest neighbours of every row, searched inside overlapping cells."""

    section = "neighbours"

    k: int = _option(
        15,
        "Neighbours of each row, itself not counted. Must be less than the number of rows. Or auto.",
        low=1,
        auto=True,
    )
    metric: Metric = _option("euclidean", "Distance between rows.")
    backend: IndexBackend = _option(
        "auto", "Index of a cell: annoy, exact (one matrix product), or auto, which picks the cheaper by cell size."
    )
    table: str | None = _option(
        None,
        "Parquet table with neighbours found elsewhere, used instead of a search: `id`, and `neighbour_ids` with at "
        "least k ids, nearest first. It is checked against the rows, and its recall is measured.",
    )
    target_recall: float = _option(
        0.95,
        "Recall@k that the stage must reach on a sample: the overlap of the cells is chosen for it, and a lower recall "
        "is an error.",
        low=0.0,
        high=1.0,
    )
    recall_sample: int = _option(500, "Rows whose exact neighbours are searched to measure the recall.", low=1)
    max_cell_rows: int = _option(2000, "Most rows that call a cell their nearest; bounds the memory of a task.", low=2)
    overlap: int = _option(12, "Most cells that a row lies in, nearest first; the fewest that do are.", low=1)
    overlap_cut: float = _option(
        1.0,
        "A row joins a further cell only when it is at most this far behind the border to it, in units of the mean "
        "distance of a cell's rows to their centroid; the smallest cut that suffices is used.",
        low=0.0,
    )
    by_label: bool = _option(
        False, "Rows with the same label are neighbours: k of them are drawn for each row, and no search is made."
    )
    n_trees: int = _option(50, "Trees of an Annoy index; more trees, higher recall and cost.", low=1)
    search_k: int = _option(-1, "Nodes Annoy inspects a query; -1 is n_trees * k.", low=-1)


@dataclass(frozen=True)
class QueryConfig(_Checked):
    """Searching new rows in a published index."""

    section = "query"

    k: int | None = _option(None, "Neighbours of each new row; none: as many as the index was built for.", low=1)


@dataclass(frozen=True)
class TripletsConfig(_Checked):
    """(anchor, positive, negative) triplets, drawn and packed into blocks."""

    section = "triplets"

    draws: int = _option(
        4,
        "Fresh positives of each anchor; epoch e trains on draw e mod draws. Negatives are drawn anew in every epoch.",
        low=1,
    )
    block_rows: int = _option(1024, "Anchors of a block; a block is one row of the Parquet files.", low=2, high=65536)
    file_blocks: int = _option(8, "Blocks of a Parquet file.", low=1)
    group_blocks: int = _option(
        2, "Blocks of a Parquet row group, the unit that training reads; at least one group a rank is needed.", low=1
    )


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """The network and its training."""

    section = "train"

    backend: Literal["auto", "local", "horovod"] = _option(
        "auto",
        "Where to train: local is this process; horovod is num_ranks tasks of the Spark session; auto is horovod when "
        "num_ranks is above 1 and Horovod is installed, else local.",
    )
    num_ranks: int = _option(
        1, "Processes that train together, each on a Spark task's cores, and on its GPU if Spark gives it one.", low=1
    )
    model: Network = _option(
        "szubert",
        "Base network: szubert (3 x 128), hinton (2000-1000-500) or maaten (500-500-2000); or package.module:function, "
        "which is called with the shape of a row, (d,), and returns the model without its embedding layer. Or auto.",
        importable=True,
        auto=True,
    )
    embedding_dims: int = _option(2, "Dimensions of the embedding.", low=1)
    distance: Distance = _option(
        "pn",
        "Loss: of triplets, or infonce, in which a positive must stand out among all rows of the batch; or "
        "package.module:function of (y_true, y_pred), where y_pred stacks the embeddings of anchors, positives and "
        "negatives in shape (3, b, e).",
        importable=True,
    )
    margin: float = _option(1.0, "Margin of the triplet losses.", low=0.0)
    temperature: float = _option(
        1.0, "Temperature of infonce: lower ones look at the nearest rows only, and spread the embedding.", low=0.01
    )
    clip: float | None = _option(
        None, "Largest infonce loss of a pair: pairs further apart no longer pull; none is no limit.", low=0.0
    )
    gather_negatives: bool = _option(
        False, "Whether infonce takes its negatives from the batches of all ranks, and not of each rank alone."
    )
    global_weight: float = _option(
        0.0,
        "Weight of a global term added to the loss: 1 - the correlation of distances between random rows before and "
        "after embedding.",
        low=0.0,
    )
    dropout: float = _option(0.1, "Share of units that the networks named above drop in training.", low=0.0, high=0.9)
    compute_precision: Literal["float32", "mixed_bfloat16"] = _option(
        "float32",
        "Numbers that the network computes with: mixed_bfloat16 is faster where the hardware has it (GPUs, CPUs with "
        "AMX) and slower elsewhere; weights and embedding stay float32.",
    )
    epochs: int = _option(
        1000,
        f"Most passes over the anchors; auto is as many as make {_STEPS:,} steps, {_EPOCHS[0]} to {_EPOCHS[1]}.",
        low=1,
        auto=True,
    )
    patience: int = _option(5, "Epochs without a lower loss after which training stops. Or auto.", low=1, auto=True)
    cooldown_epochs: int = _option(
        8,
        "Last epochs, after the loss stopped falling, in which the learning rate falls to 0; at most half of `epochs`.",
        low=0,
    )
    batch_size: int = _option(_IVIS_BATCH_SIZE, "Triplets of a step, over all ranks; a multiple of num_ranks.", low=1)
    optimizer: Literal["adam", "adamw", "sgd"] = _option(
        "adam", "Adam, Adam with Keras's weight decay, or gradient descent with Nesterov's momentum of 0.9."
    )
    learning_rate: float = _option(0.001, "Learning rate of the optimizer.", low=0.0)
    schedule: Literal["constant", "cosine"] = _option(
        "constant",
        "Learning rate after the warm-up: constant until the loss stops falling, then the cool-down; or a cosine that "
        "falls to 0 over all of `epochs`, without looking at `patience` and `cooldown_epochs`.",
    )
    clipnorm: float | None = _option(
        None,
        "Largest norm of the gradient of a layer's weights, to which longer ones are cut; none: as they are.",
        low=0.0,
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = _option(
        "none",
        "How the learning rate grows with batch_size: it is taken as it is, or times the square root of, or times "
        f"batch_size / {_IVIS_BATCH_SIZE}.",
    )
    warmup_epochs: int = _option(0, "First epochs, in which the learning rate rises from 0.", low=0)
    gradient_compression: Literal["none", "fp16"] = _option(
        "none", "How gradients travel between ranks: fp16 halves the bytes, for slow networks."
    )
    supervision_metric: str | None = _option(
        None,
        "Keras loss of the labels, for example sparse_categorical_crossentropy or mae; none trains without labels.",
    )
    supervision_weight: float = _option(
        0.5, "Weight of the supervised loss; the triplet loss gets the rest.", low=0.0, high=1.0
    )
    callbacks: tuple[str, ...] = _option(
        (),
        "Keras callbacks of rank 0: csv and tensorboard write into model/logs; package.module:function is called "
        "without arguments and returns one.",
    )
    rank_callbacks: tuple[str, ...] = _option(
        (), "Keras callbacks of every rank, as package.module:function. They must not wait for other ranks."
    )
    checkpoint_steps: int = _option(
        0, "Steps between checkpoints, rounded up to a multiple of 256 in an epoch; 0: epochs end with one.", low=0
    )
    checkpoint_seconds: float = _option(
        10.0, "Least seconds between two checkpoints; 0: none is left out.", low=0.0, operational=True
    )
    keep_checkpoints: int = _option(2, "Checkpoints kept while training; 0 makes none.", low=0, operational=True)
    max_restarts: int = _option(
        2, "Times that lost ranks are started again, from the last checkpoint.", low=0, operational=True
    )
    start_timeout_seconds: float = _option(
        300.0, "Most seconds to wait until all ranks run at once.", low=1.0, operational=True
    )
    stall_timeout_seconds: float = _option(
        300.0, "Seconds after which a rank that others wait for counts as lost.", low=1.0, operational=True
    )

    def _check_together(self) -> None:
        if self.batch_size % self.num_ranks:
            below = self.batch_size - self.batch_size % self.num_ranks
            raise ConfigError(
                f"train.batch_size={self.batch_size} is over all ranks and cannot be shared by "
                f"train.num_ranks={self.num_ranks}: pass {below + self.num_ranks}, or another multiple"
            )
        if self.backend == "local" and self.num_ranks > 1:
            raise ConfigError(
                f"train.num_ranks={self.num_ranks} needs train.backend=horovod or auto; local is one process"
            )

    @property
    def needs_negatives(self) -> bool:
        """Whether the loss reads negatives."""
        return self.distance not in _IN_BATCH

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate that goes with the batch size."""
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.learning_rate_scaling]
        return float(self.learning_rate * (self.batch_size / _IVIS_BATCH_SIZE) ** power)


@dataclass(frozen=True)
class EmbedConfig(_Checked):
    """Applying the trained encoder to a table."""

    section = "embed"

    batch_rows: int = _option(10_000, "Rows of an Arrow batch handed to Python.", low=1)
    output_col: str = _option("embedding", "Column of the embedding.")
    scores_col: str | None = _option(
        None, "Column of a supervised model's scores (class probabilities, or values), made in the same pass."
    )
    precision: Literal["float32", "float16"] = _option(
        "float32",
        "float32: array<float>. float16: binary of packed little-endian float16, half the bytes (Spark has no such "
        "number; NumPy reads a row with frombuffer(row, '<f2')).",
    )
    invalid: Literal["error", "null", "drop"] = _option(
        "error", "What to do with rows that hold null, NaN or infinity: stop, embed as null, or drop; both counted."
    )
    unit_bytes: int | None = _option(
        None,
        "Bytes of input files after which the job notes what is done, so that a run that died goes on from there; none "
        "is four splits of 128 MiB a core.",
        low=1,
    )
    partition_by: tuple[str, ...] = _option((), "Columns whose values make the folders of the embedded table.")


@dataclass(frozen=True)
class EvaluateConfig(_Checked):
    """The report."""

    section = "evaluate"

    sample_rows: int = _option(5_000, "Rows sampled for the quality figures.", low=10)
    plot_rows: int = _option(20_000, "Rows sampled for the interactive scatter.", low=10)
    k: int = _option(15, "Neighbours in trustworthiness, continuity and kNN accuracy.", low=1)
    draws: int = _option(20_000, "Random triples, and pairs, whose distances are compared.", low=1)


@dataclass(frozen=True)
class Config(_Checked):
    """All settings of a run.

    Raises: ConfigError: if a value is of the wrong type or out of range.
    """

    data: DataConfig = _by_preset()
    neighbours: NeighboursConfig = _by_preset()
    query: QueryConfig = _by_preset()
    triplets: TripletsConfig = _by_preset()
    train: TrainConfig = _by_preset()
    embed: EmbedConfig = _by_preset()
    evaluate: EvaluateConfig = _by_preset()
    preset: Literal["fast", "ivis"] = _option("fast", "Whose defaults hold: fast, or ivis, those of the package ivis.")
    random_state: int = _option(0, "Seed of everything drawn at random.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        """Make the sections that were not given, as the preset has them, and check all."""
        preset = check_field(type(self), "preset", self.preset)
        for name, section in _sections().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, section(**PRESETS[preset].get(name, {})))
        super().__post_init__()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Config:
        """Make a configuration from nested mappings, as YAML and JSON give them.

        Raises: ConfigError: if a key is unknown (the message lists the valid ones) or a value is not allowed.
        """
        sections = _sections()
        _refuse_unknown("configuration", mapping, [f.name for f in dataclasses.fields(cls)])
        values = dict(mapping)
        preset = PRESETS[check_field(cls, "preset", values.get("preset", cls.preset))]
        for key in sections.keys() & values.keys():
            values[key] = section_from_mapping(sections[key], values[key], preset.get(key, {}))
        return cls(**values)

    def for_rows(self, rows: int) -> Config:
        """Return the configuration for a table of so many rows, with a value for each setting that is `auto`."""
        patience, model = next(rule[1:] for rule in _RULES_OF_THUMB if rows < rule[0])
        epochs = -(-_STEPS // max(1, rows // self.train.batch_size))
        epochs = min(max(epochs, _EPOCHS[0]), _EPOCHS[1])
        rules = {"k": max(1, min(_RULE_K, rows - 2)), "patience": patience, "model": model, "epochs": epochs}
        found = {}
        for name in ("neighbours", "train"):
            section = getattr(self, name)
            auto = [item.name for item in dataclasses.fields(section) if getattr(section, item.name) == AUTO]
            found[name] = dataclasses.replace(section, **{key: rules[key] for key in auto if key in rules})
        return dataclasses.replace(self, **found)

    def to_mapping(self) -> dict[str, Any]:
        """Return nested plain dicts and lists that `from_mapping` and JSON understand."""
        return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(self)))

    def result_settings(self, name: str) -> Any:
        """Return a section, or a setting of the top, without the settings that leave the result alone."""
        value = self.to_mapping()[name]
        section = _sections().get(name)
        if section is None:
            return value
        operational = {f.name for f in dataclasses.fields(section) if f.metadata.get("operational")}
        return {key: item for key, item in value.items() if key not in operational}


def section_from_mapping(section: type[_Section], mapping: Any, preset: Mapping[str, Any] | None = None) -> _Section:
    """Make one section from a mapping, what it leaves out as the preset has it.

    Raises: ConfigError: if `mapping` is no mapping, or a key is unknown.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{section.section}={mapping!r} must be a section of settings: {{key: value, ...}}")
    _refuse_unknown(section.section, mapping, [f.name for f in dataclasses.fields(section)])  # type: ignore[arg-type]
    return section(**{**(preset or {}), **mapping})


def _assign(mapping: dict[str, Any], text: str) -> None:
    """Put the value, in YAML, of a text `section.key=value` into a mapping.

    Raises: ConfigError: if it has no `=`, or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not of the form section.key=value, like neighbours.k=15")
    *parents, key = name.strip().split(".")
    for parent in parents:
        mapping = mapping.setdefault(parent, {})
        if not isinstance(mapping, dict):
            raise ConfigError(f"--set {text}: {parent!r} is {mapping!r}, not a section of settings")
    mapping[key] = _parse_yaml(value, f"--set {text}")


def check_value(name: str, value: Any) -> Any:
    """Return a value as the type of the setting `section.key`, or of one at the top.

    Raises: ConfigError: if it is of another type or out of range.
    """
    section, _, key = name.rpartition(".")
    return check_field(_sections()[section] if section else Config, key, value)


def load_config(path: str | None = None, assignments: Iterable[str] = ()) -> Config:
    """Read a YAML file of overrides (or none), then apply `section.key=value` assignments.

    Raises: ConfigError: if the file cannot be read, is not YAML or holds anything not allowed.
    """
    mapping: dict[str, Any] = {}
    if path is not None:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except OSError as err:
            raise ConfigError(f"configuration file {path!r} cannot be read: {err.strerror or err}") from err
        except UnicodeDecodeError as err:
            raise ConfigError(f"configuration file {path!r} is not UTF-8 text: {err}") from err
        loaded = _parse_yaml(text, f"configuration file {path!r}")
        if loaded is not None and not isinstance(loaded, Mapping):
            raise ConfigError(f"configuration file {path!r} must hold sections of settings, like neighbours: {{k: 15}}")
        mapping = dict(loaded or {})
    for text in assignments:
        _assign(mapping, text)
    return Config.from_mapping(mapping)


def describe() -> str:
    """Return every setting with its default and documentation, a line each, for `--help`."""
    lines, defaults = [], Config()
    for name, section in _sections().items():
        lines.append(f"{name}: {(section.__doc__ or '').strip().splitlines()[0]}")
        for item in dataclasses.fields(section):
            shown = getattr(getattr(defaults, name), item.name)
            lines.append(f"  {name}.{item.name} = {'none' if shown is None else shown}: {item.metadata['doc']}")
    for item in top_settings():
        lines.append(f"{item.name} = {item.default}: {item.metadata['doc']}")
    lines.append("with preset=ivis, unless set:")
    lines += [f"  {name} = {value}" for name, value in _differences(Config(preset="ivis"), defaults)]
    return "\n".join(lines)


def _differences(one: Config, other: Config) -> Iterator[tuple[str, Any]]:
    """Yield the settings of `one` that `other` has otherwise."""
    found, others = one.to_mapping(), other.to_mapping()
    for section in _sections():
        for name, value in found[section].items():
            if value != others[section][name]:
                yield f"{section}.{name}", "none" if value is None else value


def top_settings() -> list[Any]:
    """Return the fields of the settings that are in no section."""
    return [item for item in dataclasses.fields(Config) if item.name not in _sections()]


def _sections() -> dict[str, Any]:
    return {name: hint for name, hint in _hints(Config).items() if dataclasses.is_dataclass(hint)}


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _refuse_unknown(where: str, given: Iterable[Any], valid: Iterable[str]) -> None:
    unknown = sorted(str(key) for key in set(given) - set(valid))
    if unknown:
        raise ConfigError(f"{where} has no {', '.join(map(repr, unknown))}; valid: {', '.join(valid)}")


class _Loader(yaml.SafeLoader):
    """Plain YAML: no objects, and no aliases, with which a few lines can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in settings")
        return super().compose_node(parent, index)


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as err:  # dates that are none; endless brackets
        raise ConfigError(f"{what} is not valid YAML: {' '.join(str(err).split())}") from err


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
