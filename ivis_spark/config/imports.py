"""Code found by the name of a setting: a file of one of our folders, or `package.module:name` of the user's.

Such a name is imported only where a caller passes it; none is ever read from a model's or an index's files.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, TypeVar

from ivis_spark.config.checks import is_import_name, module_names
from ivis_spark.errors import ConfigError, DependencyError


class _Checked(Protocol):
    @classmethod
    def check(cls) -> None: ...


Kind = TypeVar("Kind", bound=_Checked)


def import_named(name: str, setting: str) -> Any:
    """Import what a name stands for.

    Runs on: driver, executor, each rank. The module must be importable there: installed, or shipped with --py-files.

    Args:
        name: `package.module:function`.
        setting: The setting that holds the name, for messages.

    Raises:
        ConfigError: if it is not such a name, or there is no such module or function.
    """
    if not is_import_name(name):
        raise ConfigError(f"{setting}={name!r} must be of the form package.module:function")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"{setting}={name!r} cannot be imported ({err}): the module must be on the Python path of the driver "
            "and of every executor and rank, for example by --py-files"
        ) from err


def load_class(setting: str, package: str, name: str, attribute: str, base: type[Kind]) -> type[Kind]:
    """Return a class.

    Args:
        setting: The setting that holds the name, for messages.
        package: Name of the folder's package.
        name: A file of the folder, or `package.module:Class`.
        attribute: Name of the class in a file of the folder.
        base: What the class must be a subclass of.

    Raises:
        ConfigError: if there is none; lists those of the folder.
    """
    if is_import_name(name):
        chosen = import_named(name, setting)
    elif name in module_names(package):
        chosen = getattr(importlib.import_module(f"{package}.{name}"), attribute)
    else:
        raise ConfigError(f"{setting}={name!r} is not one of: {', '.join(module_names(package))}, package.module:Class")
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise ConfigError(f"{setting}={name!r} must be a subclass of {base.__module__}.{base.__qualname__}")
    return chosen


def load_installed(
    setting: str, package: str, attribute: str, base: type[Kind]
) -> tuple[dict[str, type[Kind]], dict[str, DependencyError]]:
    """Return the classes of a folder that can be used here, by name, and why the others cannot."""
    usable, refused = {}, {}
    for name in module_names(package):
        kind = load_class(setting, package, name, attribute, base)
        try:
            kind.check()
        except DependencyError as err:
            refused[name] = err
        else:
            usable[name] = kind
    return usable, refused
