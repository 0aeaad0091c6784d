"""Checks what a Keras file would import before Keras reads it; older versions import anything that it names."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Container, Iterator
from typing import Any

import keras

from ivis_spark.errors import UNREADABLE, ArtifactError

# Imported so that our own layers are registered.
from ivis_spark.nn import activations, dropout, scaling  # noqa: F401

# They run code of the file, or read other files.
_FORBIDDEN = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def check_code(path: str, custom_objects: Container[str]) -> None:
    """Refuse a `.keras` file that names code neither Keras's, nor registered with it, nor passed by the caller.

    Raises:
        ArtifactError: if so, or if the file is corrupt; names the file and the code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except UNREADABLE as err:
        raise ArtifactError(f"{path!r} is not a Keras file ({err}): it is corrupt; train again") from err
    check_config(config, path, custom_objects)


def check_config(config: Any, path: str, custom_objects: Container[str]) -> None:
    """Refuse a network's configuration, as `check_code` does; of Keras 2's too, which names no modules.

    Raises:
        ArtifactError: if it names foreign code; names the file and the code.
    """
    for module, name, registered in _objects(config):
        passed = name in custom_objects or (registered or "") in custom_objects
        known = module in (None, "builtins", "keras") or module.startswith("keras.")
        known = known or keras.saving.get_registered_object(registered or name) is not None
        if not passed and (not known or name in _FORBIDDEN):
            raise ArtifactError(
                f"{path!r} needs {name!r} of {module!r}; only Keras's own layers are loaded automatically. If you "
                f"trust it, import it yourself and pass custom_objects={{{name!r}: ...}}"
            )


def _objects(config: Any) -> Iterator[tuple[str | None, str, str | None]]:
    """Yield module, name and registered name of every object in a serialised configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            module, registered = config.get("module"), config.get("registered_name")
            name = config["class_name"]
            if name == "function" and isinstance(config.get("config"), str):
                name = config["config"]
            yield (module if isinstance(module, str) else None), name, registered
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)
