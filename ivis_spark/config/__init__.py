"""The configuration: the only defaults, the only documentation and the only checks of every setting.

One frozen dataclass per stage, nested in `Config`. A setting's full name is `section.key`, as in `neighbours.k`;
`random_state` and `preset` are at the top level. A preset replaces some defaults; YAML files and `--set
section.key=value` override both. `sections` holds the settings, `checks` what they share.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ivis_spark.config.checks import (
    AUTO,
    Checked,
    SectionT,
    allowed_values,
    check_field,
    command_without_secrets,
    did_you_mean,
    hints_of,
    is_import_name,
    listed,
    option,
    parse_yaml,
    plain,
    section_from_mapping,
    what_it_has,
    without_secrets,
)
from ivis_spark.config.sections import (
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    Metric,
    NeighboursConfig,
    QueryConfig,
    TripletsConfig,
)
from ivis_spark.config.training import (
    BATCH_SIZES,
    EPOCHS,
    LEAST_STEPS,
    LOSSES,
    NETWORK_UNITS,
    STEPS,
    WARMUP_SHARE,
    WARMUP_STEPS,
    TrainConfig,
)
from ivis_spark.errors import ConfigError, advice

log = logging.getLogger(__name__)

__all__ = [
    "AUTO",
    "IVIS_COOLDOWN",
    "IVIS_K",
    "IVIS_METRIC",
    "IVIS_PATIENCE",
    "IVIS_SUPERVISION",
    "LOSSES",
    "NETWORK_UNITS",
    "PRESETS",
    "Config",
    "DataConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "Metric",
    "NeighboursConfig",
    "QueryConfig",
    "TrainConfig",
    "TripletsConfig",
    "check_value",
    "command_without_secrets",
    "describe",
    "did_you_mean",
    "is_import_name",
    "listed",
    "load_config",
    "section_from_mapping",
    "setting_names",
    "top_settings",
    "what_it_has",
    "without_secrets",
]

# Defaults of the local API that are ivis's and not the pipeline's.
IVIS_K = 150
IVIS_METRIC: Metric = "angular"
IVIS_PATIENCE = 20
IVIS_COOLDOWN = 0  # its users count the epochs
IVIS_SUPERVISION = "sparse_categorical_crossentropy"
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
# What each preset sets where nothing else does. docs/howto/tune.md says which to take, by what was measured.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ivis": {
        "neighbours": {"k": IVIS_K, "metric": IVIS_METRIC},
        "train": {"patience": IVIS_PATIENCE, "cooldown_epochs": IVIS_COOLDOWN},
    },
    "fast": {
        "train": {
            "distance": "infonce",
            "shared_negatives": 128,
            "exaggeration": 4.0,
            "dropout": 0.0,
            "epochs": AUTO,
            "batch_size": AUTO,
            "learning_rate": AUTO,
            "schedule": "cosine",
            "warmup_epochs": AUTO,
            "clipnorm": 4.0,
            "global_weight": 0.1,
        }
    },
}
# With another loss than the preset's, its learning rate and schedule are far off; these are ivis's, for its batch size.
OTHER_LOSS = {"learning_rate": 0.004, "schedule": "constant"}


def _by_preset() -> Any:
    """Declare a section, whose defaults depend on the preset."""
    return field(default=None)


@dataclass(frozen=True)
class Config(Checked):
    """All settings of a run.

    Raises: ConfigError: if a value is of the wrong type or out of range.

    Example:
        >>> from ivis_spark import Config
        >>> config = Config(neighbours={"k": 20}, train={"embedding_dims": 3})
        >>> config.neighbours.k, config.train.embedding_dims, config.preset
        (20, 3, 'fast')
        >>> Config.from_mapping(config.to_mapping()) == config
        True
    """

    data: DataConfig = _by_preset()
    neighbours: NeighboursConfig = _by_preset()
    query: QueryConfig = _by_preset()
    triplets: TripletsConfig = _by_preset()
    train: TrainConfig = _by_preset()
    embed: EmbedConfig = _by_preset()
    evaluate: EvaluateConfig = _by_preset()
    preset: Literal["fast", "ivis"] = option("fast", "Which defaults apply: fast, or ivis (those of the ivis package).")
    random_state: int = option(0, "Seed of all random sampling.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        """Let the preset decide what was set neither here nor in a section that was passed, and check all."""
        preset = PRESETS[check_field(type(self), "preset", self.preset)]
        for name, section in _sections().items():
            passed = getattr(self, name)
            if isinstance(passed, Mapping):
                passed = section_from_mapping(section, passed)
            if passed is None or isinstance(passed, section):
                object.__setattr__(self, name, _with_preset(section, passed, preset.get(name, {})))
        super().__post_init__()
        self._choose_components()

    def _choose_components(self) -> None:
        """Let `auto` project nothing where that would change which rows are near: components keep Euclidean distances.

        Angles and inner products depend on the origin, the other metrics on the axes.
        """
        count: Any = self.data.components
        if count is None or self.neighbours.metric == "euclidean":
            return
        if count != AUTO:
            source = "" if "metric" in self.neighbours.given else f" (of preset={self.preset})"
            raise ConfigError(
                f"data.components={count} keeps Euclidean distances, not neighbours.metric={self.neighbours.metric}"
                f"{source}: set data.components=none, or the metric to euclidean"
            )
        data, given = dataclasses.replace(self.data, components=None), self.data.given
        object.__setattr__(data, "given", given)
        object.__setattr__(self, "data", data)

    @property
    def trains_on_labels(self) -> bool:
        """Whether labels change the model: by supervision, or by neighbours of the same label."""
        return self.data.label_col is not None and (
            self.train.supervision_metric is not None or self.neighbours.by_label
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Config:
        """Make a configuration from nested mappings, as YAML and JSON give them.

        Raises: ConfigError: if a key is unknown (the message lists the valid ones) or a value is not allowed.
        """
        return cls(**{str(key): value for key, value in mapping.items()})

    def for_rows(self, rows: int, *, anchors: int | None = None) -> Config:
        """Return the configuration for a table of this size, with a value for each setting that is `auto`.

        Args:
            rows: Rows of the table.
            anchors: Rows used as anchors; by default set by `triplets.anchors`.
        """
        patience, model = next(rule[1:] for rule in _RULES_OF_THUMB if rows < rule[0])
        rules = {"k": max(1, min(_RULE_K, rows - 2)), "patience": patience, "model": model}
        anchors = anchors or self.triplets.anchors_of(rows)
        rules |= {"anchors": anchors, **_steps_for(anchors or rows, self.train)}
        sections = {}
        for name in ("neighbours", "triplets", "train"):
            section = getattr(self, name)
            auto = [item.name for item in dataclasses.fields(section) if getattr(section, item.name) == AUTO]
            sections[name] = dataclasses.replace(section, **{key: rules[key] for key in auto if key in rules})
        return dataclasses.replace(self, **sections)

    def to_mapping(self) -> dict[str, Any]:
        """Return nested plain dicts and lists that `from_mapping` and JSON understand."""
        return typing.cast("dict[str, Any]", plain(dataclasses.asdict(self)))

    def result_settings(self, name: str) -> Any:
        """Return a section, or a setting of the top, without passwords and settings that leave the result alone."""
        value = self.to_mapping()[name]
        section = _sections().get(name)
        if section is None:
            return value
        if "options" in value:
            value["options"] = without_secrets(value["options"])
        operational = {f.name for f in dataclasses.fields(section) if f.metadata.get("operational")}
        return {key: item for key, item in value.items() if key not in operational}

    def default_settings(self, name: str, *, preset: bool) -> Any:
        """Return what `result_settings` gives where nothing is set, or nothing but the preset."""
        section = _sections().get(name)
        if section is None:
            return getattr(type(self), name)
        changed = PRESETS[self.preset].get(name, {}) if preset else {}
        return plain(dataclasses.asdict(_with_preset(section, None, changed)))


def _steps_for(anchors: int, train: TrainConfig) -> dict[str, int]:
    """Return the epochs, batch size and warm-up that suit a number of anchors, each if it is `auto`."""
    epochs: Any = train.epochs
    batch_size: Any = train.batch_size
    if epochs == AUTO:
        largest = BATCH_SIZES[0] if batch_size == AUTO else batch_size
        epochs = min(max(-(-STEPS // max(1, anchors // largest)), EPOCHS[0]), EPOCHS[1])
    if batch_size == AUTO:
        enough = (size for size in BATCH_SIZES if epochs * (anchors // size) >= LEAST_STEPS)
        batch_size = next(enough, BATCH_SIZES[-1])
        batch_size = -(-batch_size // train.num_ranks) * train.num_ranks
    warmup = min(-(-WARMUP_STEPS // max(1, anchors // batch_size)), max(1, int(WARMUP_SHARE * epochs)))
    return {"epochs": epochs, "batch_size": batch_size, "warmup_epochs": warmup}


def _with_preset(section: type[SectionT], passed: SectionT | None, preset: Mapping[str, Any]) -> SectionT:
    """Return a section as the preset has it, except for the settings that were passed to the section by name."""
    given = {name: getattr(passed, name) for name in passed.given} if passed is not None else {}
    values = {**preset, **given}
    if "distance" in preset and values["distance"] != preset["distance"]:
        values = {**preset, **OTHER_LOSS, **given}
        adjusted = [f"{section.section}.{name}={value}" for name, value in OTHER_LOSS.items() if name not in given]
        if any(getattr(passed, name) != value for name, value in OTHER_LOSS.items() if name not in given):
            log.warning(
                advice("train.distance=%s: the learning rate and schedule of this preset belong to %s, so %s is used"),
                *(values["distance"], preset["distance"], advice(" and ".join(adjusted))),
            )
    complete = section(**values)
    object.__setattr__(complete, "given", frozenset(given))
    return complete


def _put(mapping: dict[str, Any], name: str, value: Any) -> None:
    """Put a value into the nested mappings that `section.key` names."""
    *parents, key = name.split(".")
    for parent in parents:
        mapping = mapping.setdefault(parent, {})
        if not isinstance(mapping, dict):
            raise ConfigError(f"{name}={value!r}: {parent!r} is {mapping!r}, not a section of settings")
    mapping[key] = value


def is_text(name: str, value: Any) -> bool:
    """Tell whether YAML reads a word, like no or 12, as something that it is not for a setting that takes text."""
    section, _, key = name.rpartition(".")
    owner = _sections().get(section) if section else Config
    takes_text = owner is not None and hints_of(owner).get(key) in (str, str | None, tuple[str, ...])
    return takes_text and isinstance(value, (bool, int, float))


def check_value(name: str, value: Any) -> Any:
    """Return a value as the type of the setting `section.key`, or of one at the top.

    Raises: ConfigError: if it is of another type or out of range.
    """
    section, _, key = name.rpartition(".")
    return check_field(_sections()[section] if section else Config, key, value)


def load_config(
    path: str | None = None, assignments: Iterable[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file of overrides (or none), then apply assignments, then settings.

    Args:
        path: The file.
        assignments: Strings of the form `section.key=value`, the value in YAML.
        settings: Values by `section.key`, as they are.

    Raises: ConfigError: if the file cannot be read, is not YAML or holds a setting that is not allowed.

    Example:
        >>> from ivis_spark import load_config
        >>> load_config(None, ["neighbours.k=20", "preset=ivis"]).neighbours.k
        20
        >>> load_config(None, ["train.epoch=20"])
        Traceback (most recent call last):
        ivis_spark.errors.ConfigError: train has no setting 'epoch'; did you mean train.epochs?
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
        loaded = parse_yaml(text, f"configuration file {path!r}")
        if loaded is not None and not isinstance(loaded, Mapping):
            raise ConfigError(f"configuration file {path!r} must hold sections of settings, like neighbours: {{k: 15}}")
        mapping = dict(loaded or {})
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form section.key=value, like neighbours.k=15")
        parsed = parse_yaml(value, f"--set {text}")
        _put(mapping, name.strip(), value.strip() if is_text(name.strip(), parsed) else parsed)
    for name, value in (settings or {}).items():
        _put(mapping, name, value)
    return Config.from_mapping(mapping)


def describe() -> str:
    """Return every setting with its default and documentation, one per line, for `--help`."""
    lines, defaults = [], Config()
    for name, section in _sections().items():
        lines.append(f"{name}: {(section.__doc__ or '').strip().splitlines()[0]}")
        for item in dataclasses.fields(section):
            lines.append("  " + _described(section, item, getattr(getattr(defaults, name), item.name)))
    lines += [_described(Config, item, item.default) for item in top_settings()]
    lines.append("with preset=ivis, unless set:")
    lines += [f"  {name} = {value}" for name, value in _differences(Config(preset="ivis"), defaults)]
    return "\n".join(lines)


def _described(owner: Any, item: Any, value: Any) -> str:
    """Return the line of a setting: name, value, documentation and, where they are few, the values it may have."""
    name = f"{owner.section}.{item.name}" if owner.section else item.name
    allowed = allowed_values(owner, item.name)
    choice = f" One of: {', '.join(allowed)}." if allowed else ""
    return f"{name} = {'none' if value in (None, ()) else value}: {item.metadata['doc']}{choice}"


def _differences(one: Config, other: Config) -> Iterator[tuple[str, Any]]:
    """Yield the settings of `one` that `other` has otherwise."""
    settings, others = one.to_mapping(), other.to_mapping()
    for section in _sections():
        for name, value in settings[section].items():
            if value != others[section][name]:
                yield f"{section}.{name}", "none" if value is None else value


def setting_names() -> list[str]:
    """Return the names of all settings, `section.key`."""
    inner = [f"{name}.{item.name}" for name, owner in _sections().items() for item in dataclasses.fields(owner)]
    return inner + [item.name for item in top_settings()]


def top_settings() -> list[Any]:
    """Return the fields of the settings that are in no section."""
    return [item for item in dataclasses.fields(Config) if item.name not in _sections()]


def _sections() -> dict[str, Any]:
    return {name: hint for name, hint in hints_of(Config).items() if dataclasses.is_dataclass(hint)}
