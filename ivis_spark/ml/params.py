"""Spark ML's Params made of the configuration's dataclasses, where names, documentation, defaults and checks stand.

A setting `section.some_name` is the Param `someName`; where two sections have the same name, `sectionSomeName`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsReader

from ivis_spark import storage
from ivis_spark.config import Config, check_value, did_you_mean, top_settings
from ivis_spark.errors import ArtifactError, ConfigError

_P = TypeVar("_P", bound=Params)
_SECTIONS = ("data", "neighbours", "triplets", "train", "embed")
# A DataFrame is read already; sizes of its files and folders are the job's.
_LEFT_OUT = (
    *("data.format", "data.options", "data.glob", "embed.unit_bytes", "embed.partition_by", "embed.batch_rows"),
    *("data.keep_columns", "data.drop_columns"),  # `transform` keeps all columns of what it is given
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of the configuration as a Param."""

    section: str
    name: str
    doc: str
    default: Any

    @property
    def full_name(self) -> str:
        """The name in the configuration."""
        return f"{self.section}.{self.name}" if self.section else self.name


def settings(sections: tuple[str, ...] = _SECTIONS) -> dict[str, Setting]:
    """Return the settings of some sections, and `random_state`, by the names of their Params."""
    hints, defaults = typing.get_type_hints(Config), Config()
    fields = [(section, field) for section in _SECTIONS for field in dataclasses.fields(hints[section])]
    fields = [(section, field) for section, field in fields if f"{section}.{field.name}" not in _LEFT_OUT]
    times = Counter(field.name for _, field in fields)
    by_param = {}
    for section, field in fields:
        name = camel(field.name if times[field.name] == 1 else f"{section}_{field.name}")
        if section in sections:
            default = getattr(getattr(defaults, section), field.name)
            by_param[name] = Setting(section, field.name, field.metadata["doc"], default)
    for top in top_settings():
        by_param[camel(top.name)] = Setting("", top.name, top.metadata["doc"], top.default)
    return by_param


def add_params(cls: type[_P], chosen: Mapping[str, Setting]) -> type[_P]:
    """Give a class of Params a Param, a getter and a setter for each setting."""
    for name, setting in chosen.items():
        convert = functools.partial(_convert, full_name=setting.full_name)
        setattr(cls, name, Param(Params._dummy(), name, setting.doc, typeConverter=convert))
        add_accessors(cls, name)
    return cls


def add_accessors(cls: type[Params], name: str) -> None:
    """Give a class `getName` and `setName` for one of its Params."""

    def get(self: Params) -> Any:
        return self.getOrDefault(name)

    def put(self: Params, value: Any) -> Params:
        return self._set(**{name: value})

    title = name[0].upper() + name[1:]
    get.__doc__, put.__doc__ = f"Return `{name}`.", f"Set `{name}` and return this."
    setattr(cls, f"get{title}", get)
    setattr(cls, f"set{title}", put)


def set_defaults(instance: Params, chosen: Mapping[str, Setting]) -> None:
    """Set the configuration's defaults."""
    instance._setDefault(**{name: setting.default for name, setting in chosen.items()})


def set_params(instance: Params, values: Mapping[str, Any]) -> None:
    """Set Params by name.

    Raises:
        ConfigError: if one is unknown (lists the valid ones) or its value is not allowed.
    """
    valid = [param.name for param in instance.params]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        hint = "".join(did_you_mean(name, valid) for name in unknown) or f"; valid: {', '.join(valid)}"
        raise ConfigError(f"{type(instance).__name__} has no {', '.join(unknown)}{hint}")
    instance._set(**values)


def config_of(instance: Params, chosen: Mapping[str, Setting]) -> Config:
    """Return the configuration that the Params set on an instance make, the others as the preset has them.

    Raises:
        ConfigError: if settings exclude each other.
    """
    mapping: dict[str, Any] = {}
    for name, setting in chosen.items():
        if not instance.isSet(name):
            continue
        value = instance.getOrDefault(name)
        (mapping.setdefault(setting.section, {}) if setting.section else mapping)[setting.name] = value
    return Config.from_mapping(mapping)


def _convert(value: Any, *, full_name: str) -> Any:
    """Return a value as its setting's type, tuples as lists."""
    value = check_value(full_name, value)
    return list(value) if isinstance(value, tuple) else value


class ParamsReader(DefaultParamsReader[Any]):
    """Reads saved Params. Spark's own reader takes *, ?, [ and commas in a path for a pattern of several paths."""

    def load(self, path: str) -> Any:
        """Read an instance.

        Raises:
            ArtifactError: if there is none.
        """
        instance: Any = self.cls()
        restore(instance, path)
        return instance


class ReadableParams(DefaultParamsReadable[Any]):
    """Gives a class of Params `load` and `read`."""

    @classmethod
    def read(cls) -> ParamsReader:
        """Return a reader for `load`."""
        return ParamsReader(cls)


def restore(instance: Any, uri: str) -> None:
    """Set on an instance the uid and the Params that Spark's writer saved below a URI.

    Raises:
        ArtifactError: if there are none, or they are those of another class.
    """
    folder = storage.join(storage.normalise_uri(uri), "metadata")
    parts = [name for name, _ in storage.list_files(folder) if name.startswith("part-")]
    if not parts:
        raise ArtifactError(f"{uri} holds no saved {type(instance).__name__}: its folder metadata is missing")
    metadata = storage.read_json(storage.join(folder, parts[0]), remedy="save it again")
    if metadata["class"].rpartition(".")[2] != type(instance).__name__:
        raise ArtifactError(f"{uri} holds a {metadata['class']}, not a {type(instance).__name__}")
    instance._resetUid(metadata["uid"])
    DefaultParamsReader.getAndSetParams(instance, metadata)


def camel(name: str) -> str:
    """Return the name of a setting as a Param's."""
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
