"""Classes found by the name of a setting: a file of one of our folders, or `package.module:Class` of the user's."""

from __future__ import annotations

import importlib
from typing import Protocol, TypeVar

from ivis_spark.config.checks import is_import_name, module_names
from ivis_spark.config.imports import import_named
from ivis_spark.errors import ConfigError, DependencyError


class _Checked(Protocol):
    @classmethod
    def check(cls) -> None: ...


Kind = TypeVar("Kind", bound=_Checked)


def load_class(package: str, name: str, attribute: str, base: type[Kind]) -> type[Kind]:
    """Return a class.

    Args:
        package: Name of the folder's package; the setting is called as the folder, without its s.
        name: A file of the folder, or `package.module:Class`.
        attribute: Name of the class in a file of the folder.
        base: What the class must be a subclass of.

    Raises:
        ConfigError: if there is none; lists those of the folder.
    """
    setting = f"train.{package.rpartition('.')[2].removesuffix('s')}"
    if is_import_name(name):
        found = import_named(name, setting)
    elif name in module_names(package):
        found = getattr(importlib.import_module(f"{package}.{name}"), attribute)
    else:
        raise ConfigError(f"{setting}={name!r} is not one of: {', '.join(module_names(package))}, package.module:Class")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{setting}={name!r} must be a subclass of {base.__module__}.{base.__qualname__}")
    return found


def load_installed(
    package: str, attribute: str, base: type[Kind]
) -> tuple[dict[str, type[Kind]], dict[str, DependencyError]]:
    """Return the classes of a folder that can be used here, by name, and why the others cannot."""
    usable, refused = {}, {}
    for name in module_names(package):
        kind = load_class(package, name, attribute, base)
        try:
            kind.check()
        except DependencyError as err:
            refused[name] = err
        else:
            usable[name] = kind
    return usable, refused
