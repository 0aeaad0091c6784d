"""The configuration: the only defaults, the only documentation and the only checks of every setting.

One frozen dataclass a stage, nested in `Config`. A setting's full name is `section.key`, as in `neighbours.k`;
`random_state` stands at the top. YAML files and `--set section.key=value` only override what stands here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
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
]

_Section = TypeVar("_Section", bound="_Checked")


def _option(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    """Declare a setting: its default, its documentation and (inclusive) limits."""
    metadata = {"doc": doc, "low": low, "high": high}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _Checked:
    """Checks every field against its type and limits when an instance is made.

    Raises: ConfigError: naming the setting, the value given and the values allowed.
    """

    section = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            name = f"{self.section}.{item.name}" if self.section else item.name
            value = _coerce(name, getattr(self, item.name), hints[item.name])
            low, high = item.metadata.get("low"), item.metadata.get("high")
            if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
                allowed = f"between {low} and {high}" if high is not None else f"at least {low}"
                raise ConfigError(f"{name}={value!r} is out of range: it must be {allowed}")
            object.__setattr__(self, item.name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Check settings that depend on each other."""


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

    format: str = _option("parquet", "Spark data source of the input: parquet, delta, csv, json, orc, ...")
    options: dict[str, Any] = _option({}, "Options of that data source, for example {header: true} for csv.")
    features_col: str | None = _option(
        None,
        "Column with the features: an array of any numeric type, or a Spark ML vector. Without it and "
        "`feature_cols`: the column `features`, else all numeric columns but id and label.",
    )
    feature_cols: tuple[str, ...] = _option((), "Numeric columns that together are the features, in this order.")
    id_col: str | None = _option(
        None,
        "Column with a unique integer a row. Without it, ids are derived from the content of the row: the same on "
        "a rerun and for any partitioning; equal rows are numbered.",
    )
    label_col: str | None = _option(
        None, "Numeric column with the label; used by the report, and by training when train.supervision_metric is set."
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

    k: int = _option(15, "Neighbours of each row, itself not counted. Must be less than the number of rows.", low=1)
    metric: Metric = _option("euclidean", "Distance between rows.")
    backend: IndexBackend = _option(
        "auto", "Index of a cell: annoy, exact (one matrix product), or auto, which picks the cheaper by cell size."
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
    overlap: int = _option(6, "Most cells that a row is searched in, nearest first; the fewest that do are.", low=1)
    overlap_cut: float = _option(
        1.0,
        "A row joins a further cell only when it is at most this far behind the border to it, in units of the mean "
        "distance of a cell's rows to their centroid; the smallest cut that suffices is used.",
        low=0.0,
    )
    n_trees: int = _option(50, "Trees of an Annoy index; more trees, higher recall and cost.", low=1)
    search_k: int = _option(-1, "Nodes Annoy inspects a query; -1 is n_trees * k.", low=-1)


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
    file_blocks: int = _option(8, "Blocks of a Parquet file; more files than ranks are needed.", low=1)
    group_blocks: int = _option(2, "Blocks of a Parquet row group, the unit that training reads.", low=1)


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """The network and its training."""

    section = "train"

    backend: Literal["auto", "local"] = _option("auto", "Where to train: local is this process.")
    num_ranks: int = _option(1, "Processes that train together.", low=1, high=1)
    model: Network = _option(
        "szubert", "Base network: szubert (3 x 128), hinton (2000-1000-500) or maaten (500-500-2000)."
    )
    embedding_dims: int = _option(2, "Dimensions of the embedding.", low=1)
    distance: Distance = _option("pn", "Triplet loss.")
    margin: float = _option(1.0, "Margin of the triplet loss.", low=0.0)
    epochs: int = _option(1000, "Most passes over the anchors.", low=1)
    patience: int = _option(5, "Epochs without a lower loss after which training stops.", low=1)
    cooldown_epochs: int = _option(
        4,
        "Last epochs, after the loss stopped falling, in which the learning rate falls to 0; at most half of `epochs`.",
        low=0,
    )
    batch_size: int = _option(128, "Triplets of a step, over all ranks.", low=1)
    learning_rate: float = _option(0.001, "Learning rate of Adam.", low=0.0)
    supervision_metric: str | None = _option(
        None,
        "Keras loss of the labels, for example sparse_categorical_crossentropy or mae; none trains without labels.",
    )
    supervision_weight: float = _option(
        0.5, "Weight of the supervised loss; the triplet loss gets the rest.", low=0.0, high=1.0
    )


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

    data: DataConfig = field(default_factory=DataConfig)
    neighbours: NeighboursConfig = field(default_factory=NeighboursConfig)
    triplets: TripletsConfig = field(default_factory=TripletsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    random_state: int = _option(0, "Seed of everything drawn at random.", low=0, high=2**31 - 1)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Config:
        """Make a configuration from nested mappings, as YAML and JSON give them.

        Raises: ConfigError: if a key is unknown (the message lists the valid ones) or a value is not allowed.
        """
        sections = _sections()
        values: dict[str, Any] = {}
        _refuse_unknown("configuration", mapping, [f.name for f in dataclasses.fields(cls)])
        for key, value in mapping.items():
            values[key] = section_from_mapping(sections[key], value) if key in sections else value
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Return nested plain dicts and lists that `from_mapping` and JSON understand."""
        return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(self)))

    def override(self, assignments: Iterable[str]) -> Config:
        """Apply `section.key=value` texts, values in YAML, over this configuration.

        Raises: ConfigError: if an assignment has no `=`, names an unknown key or holds a value not allowed.
        """
        mapping = self.to_mapping()
        for text in assignments:
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"{text!r} is not of the form section.key=value, like neighbours.k=15")
            *parents, key = name.strip().split(".")
            target = mapping
            for parent in parents:
                _refuse_unknown("configuration", {parent: None}, [k for k, v in target.items() if isinstance(v, dict)])
                target = target[parent]
            target[key] = _parse_yaml(value, f"--set {text}")
        return Config.from_mapping(mapping)


def section_from_mapping(section: type[_Section], mapping: Any) -> _Section:
    """Make one section from a mapping.

    Raises: ConfigError: if `mapping` is no mapping, or a key is unknown.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{section.section}={mapping!r} must be a section of settings: {{key: value, ...}}")
    _refuse_unknown(section.section, mapping, [f.name for f in dataclasses.fields(section)])  # type: ignore[arg-type]
    return section(**mapping)


def check_value(name: str, value: Any) -> Any:
    """Return a value as the type of the setting `section.key`, or of one at the top.

    Raises: ConfigError: if it is of another type or out of range.
    """
    section, _, key = name.rpartition(".")
    owner: Any = _sections()[section] if section else Config
    return getattr(owner(**{key: value}), key)


def load_config(path: str | None = None, assignments: Iterable[str] = ()) -> Config:
    """Read a YAML file of overrides (or none), then apply `section.key=value` assignments.

    Raises: ConfigError: if the file cannot be read, is not YAML or holds anything not allowed.
    """
    config = Config()
    if path is not None:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except OSError as err:
            raise ConfigError(f"configuration file {path!r} cannot be read: {err.strerror or err}") from err
        loaded = _parse_yaml(text, f"configuration file {path!r}")
        if loaded is not None and not isinstance(loaded, Mapping):
            raise ConfigError(f"configuration file {path!r} must hold sections of settings, like neighbours: {{k: 15}}")
        config = Config.from_mapping(loaded or {})
    return config.override(assignments)


def describe() -> str:
    """Return every setting with its default and documentation, a line each, for `--help`."""
    lines = []
    for name, section in _sections().items():
        lines.append(f"{name}: {(section.__doc__ or '').strip().splitlines()[0]}")
        for item in dataclasses.fields(section):
            default = section.__dataclass_fields__[item.name].default
            shown = "{}" if default is dataclasses.MISSING else default
            lines.append(f"  {name}.{item.name} = {'none' if shown is None else shown}: {item.metadata['doc']}")
    top = Config.__dataclass_fields__["random_state"]
    lines.append(f"random_state = {top.default}: {top.metadata['doc']}")
    return "\n".join(lines)


def _sections() -> dict[str, Any]:
    hints = typing.get_type_hints(Config)
    return {f.name: hints[f.name] for f in dataclasses.fields(Config) if dataclasses.is_dataclass(hints[f.name])}


def _refuse_unknown(where: str, given: Iterable[Any], valid: Iterable[str]) -> None:
    unknown = sorted(str(key) for key in set(given) - set(valid))
    if unknown:
        raise ConfigError(f"{where} has no {', '.join(map(repr, unknown))}; valid: {', '.join(valid)}")


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{what} is not valid YAML: {' '.join(str(err).split())}") from err


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
