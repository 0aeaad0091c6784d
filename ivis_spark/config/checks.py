"""How a setting is declared, checked and read: types, limits, messages and YAML."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import math
import pkgutil
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from ivis_spark.errors import ConfigError

# A setting that follows from the number of rows.
AUTO = "auto"
# Settings that were renamed, and what they are called now; whoever sets the old name is told the new one.
RENAMED = {
    "neighbours.max_cell_rows": "neighbours.region_rows and neighbours.leaf_rows",
    "neighbours.overlap": "neighbours.max_regions",
    "neighbours.overlap_cut": "neighbours.max_regions",
    "triplets.draws": "triplets.positives_per_anchor",
    "evaluate.draws": "evaluate.n_pairs and evaluate.n_triplets",
}
SectionT = TypeVar("SectionT", bound="Checked")


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    operational: bool = False,
    importable: bool = False,
    auto: bool = False,
    aliases: Mapping[str, str] | None = None,
    package: str | None = None,
    choices: Mapping[str, Any] | None = None,
) -> Any:
    """Declare a setting.

    Args:
        default: Its default.
        doc: Its documentation.
        low: Smallest value allowed, inclusive.
        high: Largest value allowed, inclusive.
        operational: Whether the result does not depend on it.
        importable: Whether it may name the user's own code.
        auto: Whether it may be `auto`, which `Config.for_rows` replaces.
        aliases: Other names of allowed values.
        package: Package whose files are the allowed values, besides `auto`.
        choices: The values allowed, as its keys; other modules may add to it.
    """
    metadata: dict[str, Any] = {"doc": doc, "low": low, "high": high, "aliases": aliases or {}, "package": package}
    metadata["choices"] = choices
    metadata |= {"operational": operational, "importable": importable or package is not None, "auto": auto}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_import_name(value: Any) -> bool:
    """Tell whether a value is of the form package.module:function."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value) is not None


def module_names(package: str) -> list[str]:
    """Return the names of the files of a package, which is not imported, sorted."""
    spec = importlib.util.find_spec(package)
    return sorted(each.name for each in pkgutil.iter_modules(spec.submodule_search_locations)) if spec else []


class Checked:
    """Checks every field against its type and limits when an instance is made.

    Raises: ConfigError: naming the setting, the value given and the values allowed.
    """

    section = ""
    given: ClassVar[frozenset[str]]  # of each instance: names of the settings that were passed to it

    def __new__(cls, /, *args: Any, **settings: Any) -> Any:
        """Note which settings are passed, so that a preset can decide the others."""
        names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
        refuse_unknown(cls.section, settings, names)
        instance = super().__new__(cls)
        object.__setattr__(instance, "given", frozenset(names[: len(args)]).union(settings))
        return instance

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
    item, hint = owner.__dataclass_fields__[key], hints_of(owner)[key]
    name, value = f"{owner.section}.{key}" if owner.section else key, _as_python(value)
    word = value if isinstance(value, str) else ""
    if (item.metadata.get("importable") and is_import_name(word)) or (item.metadata.get("auto") and word == AUTO):
        return value
    aliases = item.metadata.get("aliases", {})
    if isinstance(value, str):
        value = aliases.get(value, value)
    words = [AUTO] * bool(item.metadata.get("auto")) + [n for n, of in aliases.items() if of == "none"]
    value = _coerce(name, value, hint, "".join(f", or {' or '.join(words)}" for _ in words[:1]))
    allowed = allowed_values(owner, key)
    if allowed and value not in allowed:
        hint = did_you_mean(value, [*allowed, *aliases])
        raise ConfigError(f"{name}={value!r} is not one of: {', '.join(allowed)}{hint}")
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not a finite number")
    if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
        bounds = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise ConfigError(f"{name}={value!r} is out of range: it must be {bounds}")
    return value


def allowed_values(owner: Any, key: str) -> list[str]:
    """Return the values that a setting may have, if they have names."""
    item, hint = owner.__dataclass_fields__[key], hints_of(owner)[key]
    package, choices = item.metadata.get("package"), item.metadata.get("choices")
    if package is not None:
        return [AUTO, *module_names(package), "package.module:Class"]
    names = list(typing.get_args(hint)) if typing.get_origin(hint) is Literal else list(choices or ())
    if names and item.metadata["importable"]:
        names.append("package.module:function")
    return [*names, AUTO] if names and item.metadata["auto"] else names


def _coerce(name: str, value: Any, hint: Any, words: str = "") -> Any:
    """Return `value` as the type `hint`, or raise ConfigError saying what is allowed, `words` at its end."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value == "none"):
            return None
        return _coerce(name, value, next(a for a in args if a is not type(None)), words)
    if origin is Literal:
        if value is None:  # YAML reads a bare `none` as text but `null` and `~` as None
            value = next((word for word in ("none", "null") if word in args), None)
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{name}={value!r} must be a list, like a,b,c")
        return tuple(item.strip() if items is not value else str(_as_python(item)) for item in items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r} must be a mapping, like {{key: value}}")
        return {str(key): _as_python(item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast(type, hint)):
            raise ConfigError(f"{name}={value!r} must be a section of settings, like {name}: {{key: value}}")
        return value
    if hint in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if hint is float or isinstance(value, int):
            return hint(value)
        if value.is_integer():  # 1e5 rows
            return int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        shown = " ".join(repr(value).split())
        raise ConfigError(f"{name}={shown} must be {_KINDS.get(hint, hint.__name__)}{words}")
    return value


def _as_python(value: Any) -> Any:
    """Return a NumPy number, text or bool, or an array that holds a single one, as Python's; all else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def section_from_mapping(section: type[SectionT], mapping: Any) -> SectionT:
    """Make one section from a mapping.

    Raises: ConfigError: if `mapping` is not a mapping, or a key is unknown.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{section.section}={mapping!r} must be a section of settings: {{key: value, ...}}")
    return section(**{str(key): value for key, value in mapping.items()})


@functools.cache
def hints_of(owner: type) -> dict[str, Any]:
    """Return the types of a section's fields."""
    return typing.get_type_hints(owner)


def refuse_unknown(section: str, given: Iterable[Any], valid: Iterable[str]) -> None:
    """Refuse settings that a section, or the top if it is empty, does not have.

    Raises: ConfigError: with the new name of a setting that was renamed, else the one that was probably meant, else
        all valid ones.
    """
    valid = list(valid)
    unknown = sorted({str(key) for key in given} - set(valid))
    if unknown:
        raise ConfigError("; ".join(_not_a_setting(section, key, valid) for key in unknown))


def _not_a_setting(section: str, key: str, valid: list[str]) -> str:
    name = f"{section}.{key}" if section else key
    if name in RENAMED:
        return f"{name} is now called {RENAMED[name]}"
    sections = {owner.section: owner for owner in Checked.__subclasses__() if owner.section}
    outer, _, inner = key.partition(".")
    if not section and inner and outer in sections:
        return f"{key} must stand in its section: {outer}: {{{inner}: ...}}"
    same = [f"{other}.{key}" for other, owner in sections.items() if key in vars(owner)["__dataclass_fields__"]]
    hint = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(key, valid, section and f"{section}.")
    return f"{section or 'the configuration'} has no setting {key!r}{hint or '; valid: ' + ', '.join(valid)}"


def did_you_mean(given: Any, valid: Iterable[Any], prefix: str = "") -> str:
    """Return the end of a message that suggests the closest valid name in any case; empty if none is close."""
    names = {str(name).casefold(): str(name) for name in valid}
    closest = difflib.get_close_matches(str(given).casefold(), names, n=1)
    return f"; did you mean {prefix}{names[closest[0]]}?" if closest else ""


def what_it_has(given: Any, names: Sequence[Any]) -> str:
    """Return the end of a message that a table or the like lacks a name: the closest that it has, else the first."""
    return did_you_mean(given, names) or f"; it has: {listed(names)}"


def listed(names: Sequence[Any], most: int = 10) -> str:
    """Return names as text: the first ones, and how many there are beside them."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# What a value must be, by the type of its setting.
_KINDS = {
    int: "a whole number, for example 15",
    float: "a number, for example 0.001",
    bool: "true or false",
    str: "text",
}


class _Loader(yaml.SafeLoader):
    """Plain YAML: no objects, and no aliases, with which a few lines can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in settings")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.YAMLError(f"repeated: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


# No setting is a date; a version or a label may look like one.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1, which PyYAML reads, wants a dot in 1.0e-3; everybody else writes 1e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)


def parse_yaml(text: str, what: str) -> Any:
    """Return the value of a text in YAML, or raise ConfigError that names `what` it is."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as err:  # endless brackets
        reason = " ".join(str(err).split()).replace('"<unicode string>", ', "")
        raise ConfigError(f"{what} is not valid YAML: {reason}") from err


# As Spark's own default for what it keeps out of its pages (spark.redaction.regex), a few words more, and without names
# that are known to be harmless: bypass, compass, tokenizer, secretary. Rather too many names than too few.
_SECRET = re.compile(
    r"secret(?!ar)|passw|passphrase|pwd|(?<!by|om)pass(?![a-z])|token(?!iz)|credential"
    r"|(access|account|api|private|encryption)[._-]?keys?|^sas|[._]sas",
    re.IGNORECASE,
)
_SECRET_IN_VALUE = re.compile(r"(password|pwd|secret|token)=|://[^/@\s]+:[^/@\s]+@", re.IGNORECASE)


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name))


def without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that hold no password, by name or value: what is written to disk, and decides a result."""
    return {
        name: value
        for name, value in options.items()
        if not _is_secret(name) and not _SECRET_IN_VALUE.search(str(value))
    }


def command_without_secrets(words: Sequence[str]) -> str:
    """Return a command line without values whose names look like passwords or keys, or that hold one in a URL."""
    shown = []
    for word in words:
        name, equals, _ = word.partition("=")
        named = equals and any(map(_is_secret, re.findall(r"[\w.-]+(?=[\"']?\s*[=:])", word)))
        if named or _SECRET_IN_VALUE.search(word):
            word = f"{name if equals and not _SECRET_IN_VALUE.search(name) else ''}{equals}..."
        shown.append(word)
    return shlex.join(shown)


def plain(value: Any) -> Any:
    """Return a value with tuples made lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
