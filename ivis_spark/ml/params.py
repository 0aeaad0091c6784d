"""Spark ML's Params made of the configuration's dataclasses, where names, documentation, defaults and checks stand.

A setting `section.some_name` is the Param `someName`; where two sections have the same name, `sectionSomeName`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
import re
import time
import typing
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import pyspark
from pyspark.ml.param import Param, Params
from pyspark.ml.util import DefaultParamsReader, MLReadable, MLReader, MLWritable, MLWriter

from ivis_spark import storage
from ivis_spark.config import Config, check_value, did_you_mean, top_settings
from ivis_spark.errors import ArtifactError, ConfigError, InputError, in_python, reworded

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
        setattr(cls, name, Param(Params._dummy(), name, _in_params(setting.doc, _NAME), typeConverter=convert))
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


# What stages of Spark ML call these.
_SPARKS_NAMES = {
    **{"seed": "randomState", "maxIter": "epochs", "stepSize": "learningRate", "inputCol": "featuresCol"},
    **{"predictionCol": "classCol", "probabilityCol": "scoresCol", "handleInvalid": "embedInvalid"},
}


def set_params(instance: Params, values: Mapping[str, Any]) -> None:
    """Set Params by name.

    Raises:
        ConfigError: if one is unknown (lists the valid ones) or its value is not allowed.
    """
    valid = [param.name for param in instance.params]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        hint = (
            "".join(did_you_mean(_SPARKS_NAMES.get(name, name), valid) for name in unknown)
            or f"; valid: {', '.join(valid)}"
        )
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
    with naming_params():
        return Config.from_mapping(mapping)


def naming_params() -> AbstractContextManager[None]:
    """Let errors name Params, not the settings or the command-line options that they stand for."""
    return reworded(lambda message: _in_params(in_python(message), _SETTING))


def check_spark_frame(dataset: Any, what: str) -> None:
    """Check that what a stage is given is Spark's.

    Raises: InputError: if it is a data frame of another package, or no data frame.
    """
    if not hasattr(dataset, "sparkSession"):
        kind = f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}"
        raise InputError(
            f"{what} takes a DataFrame of Spark, not a {kind}: make one with spark.createDataFrame(...), or use "
            "ivis_spark.Ivis, which takes data of this machine"
        )


# A setting as messages name it, with its section or before a value, and as its documentation may name it.
_SETTING = re.compile(r"(?<![\w./'])(?:[a-z]+\.[a-z_]+\b(?!/)|[a-z]+_[a-z_]+(?==))")
_NAME = re.compile(r"\b(?:[a-z]+\.)?[a-z]+(?:_[a-z]+)*\b")


@functools.cache
def _param_names() -> dict[str, str]:
    """Return the Params of settings, by the settings' full names; and by the last part if it tells them apart."""
    full = {setting.full_name: param for param, setting in settings().items()}
    short = Counter(name.rpartition(".")[2] for name in full)
    return full | {last: full[name] for name in full if short[last := name.rpartition(".")[2]] == 1 and "_" in last}


def _in_params(text: str, pattern: re.Pattern[str]) -> str:
    """Return a text that names Params where a pattern finds the names of settings."""
    return pattern.sub(lambda found: _param_names().get(found[0], found[0]), text)


def _convert(value: Any, *, full_name: str) -> Any:
    """Return a value as its setting's type, tuples as lists."""
    if full_name == "data.unlabelled" and type(value) is not bool and isinstance(value, numbers.Real):
        value = str(value)  # of a column of numbers
    with naming_params():
        value = check_value(full_name, value)
    return list(value) if isinstance(value, tuple) else value


class ParamsReader(MLReader[Any]):
    """Reads saved Params. Spark's own reader takes *, ?, [ and commas in a path for a pattern of several paths."""

    def __init__(self, cls: type[Any]) -> None:
        super().__init__()
        self._cls = cls

    def load(self, path: str) -> Any:
        """Read an instance.

        Raises:
            ArtifactError: if there is none.
        """
        instance = self._cls()
        restore(instance, path)
        return instance


class ParamsWriter(MLWriter):
    """Writes Params as Spark's own writer does, through the filesystem: Spark Connect offers no other way."""

    _names = frozenset({"metadata"})  # in a folder that was saved

    def __init__(self, instance: Params) -> None:
        super().__init__()
        self._instance = instance

    def _handleOverwrite(self, path: str) -> None:
        """Remove what stands at a path if it was saved by this class and nothing else."""
        uri = storage.normalise_uri(path)
        names = set(storage.children(*storage.filesystem(uri)))
        foreign = sorted(names - self._names - {storage.MARK})
        if names and (foreign or not self._names <= names):
            raise InputError(
                f"{uri} is not a saved {type(self._instance).__name__}; it holds {', '.join(foreign or sorted(names))}."
                " Choose another path"
            )
        storage.remove_folder(uri)

    def saveImpl(self, path: str) -> None:
        """Write below a path.

        Raises:
            InputError: if something is there.
        """
        uri = storage.normalise_uri(path)
        if storage.exists(*storage.filesystem(uri)):
            raise InputError(f"{uri} exists; save with write().overwrite().save(...), or choose another path")
        self._save(uri)

    def _save(self, uri: str) -> None:
        instance = self._instance
        metadata = {
            "class": f"{type(instance).__module__}.{type(instance).__name__}",
            "timestamp": int(time.time() * 1000),
            "sparkVersion": pyspark.__version__,
            "uid": instance.uid,
            "paramMap": {param.name: value for param, value in instance._paramMap.items()},
            "defaultParamMap": {param.name: value for param, value in instance._defaultParamMap.items()},
        }
        folder = storage.join(uri, "metadata")  # as a job of Spark leaves it, whose readers take no indented JSON
        storage.write_bytes(storage.join(folder, "part-00000"), json.dumps(metadata).encode() + b"\n")
        storage.write_bytes(storage.join(folder, "_SUCCESS"), b"")


class StoredParams(MLWritable, MLReadable[Any]):
    """Gives a class of Params `save`, `write`, `load` and `read`."""

    def write(self) -> ParamsWriter:
        """Return a writer for `save`."""
        return ParamsWriter(cast(Params, self))

    @classmethod
    def read(cls) -> ParamsReader:
        """Return a reader for `load`."""
        return ParamsReader(cls)


def restore(instance: Any, uri: str) -> None:
    """Set on an instance the uid and the Params that Spark's writer saved below a URI.

    Raises:
        ArtifactError: if there are none, or they are those of another class.
    """
    metadata = _metadata(uri)
    if metadata is None:
        raise ArtifactError(f"{uri} holds no saved {type(instance).__name__}: its folder metadata is missing")
    kind = metadata["class"].rpartition(".")[2]
    if kind != type(instance).__name__:
        raise ArtifactError(f"{uri} holds a saved {kind}, not a {type(instance).__name__}: load it with {kind}.load")
    instance._resetUid(metadata["uid"])
    DefaultParamsReader.getAndSetParams(instance, metadata)


def saved_class(uri: str) -> str | None:
    """Return the class, without its module, of what Spark's writer saved below a URI; None if nothing."""
    metadata = _metadata(uri)
    return None if metadata is None else str(metadata["class"].rpartition(".")[2])


def _metadata(uri: str) -> dict[str, Any] | None:
    folder = storage.join(storage.normalise_uri(uri), "metadata")
    parts = [name for name, _ in storage.list_files(folder) if name.startswith("part-")]
    read: dict[str, Any] | None = None
    if parts:
        read = storage.read_json(storage.join(folder, parts[0]), remedy="save it again")
    return read


def camel(name: str) -> str:
    """Return the name of a setting as a Param's."""
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
