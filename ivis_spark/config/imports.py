"""The user's own code by name: `package.module:function`, as written in the configuration.

Such a name is imported only where a caller passes it; none is ever read from a model's files.
"""

from __future__ import annotations

import importlib
from typing import Any

from ivis_spark.config.checks import is_import_name
from ivis_spark.errors import ConfigError


def import_named(name: str, setting: str) -> Any:
    """Import what a name stands for.

    Runs on: driver, each rank. The module must be importable there: installed, or shipped with --py-files.

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
            "and of every rank, for example by --py-files"
        ) from err
