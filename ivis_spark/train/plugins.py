"""Classes found by the name of a setting: a file of one of our folders, or `package.module:Class` of the user's."""

from __future__ import annotations

import importlib
from typing import Any

from ivis_spark.config.checks import is_import_name, module_names
from ivis_spark.errors import ConfigError, DependencyError


def load_class(package: str, name: str, attribute: str) -> Any:
    """Return a class.

    Args:
        package: Name of the folder's package.
        name: A file of the folder, or `package.module:Class`.
        attribute: Name of the class in a file of the folder.

    Raises:
        ConfigError: if there is none; lists those of the folder.
    """
    module, _, attribute = name.partition(":") if is_import_name(name) else (f"{package}.{name}", "", attribute)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"{name!r} cannot be loaded ({err}); choose one of {', '.join(module_names(package))}, or a "
            "package.module:Class that every machine can import, for example by --py-files"
        ) from err


def load_installed(package: str, attribute: str) -> tuple[dict[str, Any], dict[str, DependencyError]]:
    """Return the classes of a folder that can be used here, by name, and why the others cannot."""
    usable, refused = {}, {}
    for name in module_names(package):
        kind = load_class(package, name, attribute)
        try:
            kind.check()
        except DependencyError as err:
            refused[name] = err
        else:
            usable[name] = kind
    return usable, refused
