"""The folder of a trained model: read with its digests checked, made into an encoder, written somewhere else.

| file | holds |
|---|---|
| `encoder.keras`, `head.keras`, `model.json` | the Keras networks, for training on and for Python on one machine |
| `dense.npz`, `head.npz` | the same networks as plain arrays; `dense.npz` only of a chain of dense layers |
| `scaler.npz` | scaling of the features, and their projection; missing if the network takes rows as they are |
| `serving.json` | shape of a row, dimensions of the embedding, names of the features, size of images |
| `manifest.json`, in the folder above | settings, figures, and the digest of every file here |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ivis_spark import storage
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.scaling import FORMER_SCALER, SCALER, Scaler
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import check_fields, check_list
from ivis_spark.serving.encoder import Encoder, KerasNetwork, Network
from ivis_spark.storage import Manifest, RunFolder

STAGE = "model"
DENSE, HEAD, SERVING, KERAS = "dense.npz", "head.npz", "serving.json", "encoder.keras"
_FORMAT = 1
_REMEDY = "copy the model's folder again, or train again with --overwrite"


class HasFolder(Protocol):
    """A model that gives its files, as `IvisModel` does."""

    def to_folder(self) -> ModelFolder:
        """Return its files."""


def folder_of(model: HasFolder | ModelFolder) -> ModelFolder:
    """Return the files of a model.

    Raises:
        InputError: if it is something else.
    """
    if isinstance(model, ModelFolder):
        return model
    if hasattr(model, "to_folder"):
        return model.to_folder()
    raise InputError(
        f"cannot export a {type(model).__name__}: pass an IvisModel, like IvisModel.from_run('runs/digits'), "
        "IvisModel.load(path), or IvisModel.from_local(ivis) of an Ivis"
    )


@dataclass(frozen=True)
class ModelFolder:
    """A model in memory: what stands in its manifest, and its files by name."""

    spec: dict[str, Any]
    info: dict[str, Any]
    files: dict[str, bytes]

    @property
    def serving(self) -> dict[str, Any]:
        """What `serving.json` says."""
        return storage.parse_json(self.files[SERVING], SERVING, _read_serving, remedy=_REMEDY)

    @property
    def n_inputs(self) -> int:
        """Features of a row as the user has it."""
        scaler = self.scaler()
        return math.prod(self.serving["input_shape"]) if scaler is None else scaler.n_inputs

    def encoder(self, *, scaled: bool = False, custom_objects: Mapping[str, Any] | None = None) -> Encoder:
        """Return what embeds rows.

        Args:
            scaled: Whether rows come scaled already.
            custom_objects: Layers and functions of a custom backbone by name.
        """
        head = DenseNetwork.from_bytes(self.files[HEAD]) if HEAD in self.files else None
        network: Network
        if DENSE in self.files:
            network = DenseNetwork.from_bytes(self.files[DENSE])
        else:
            network = KerasNetwork(
                self.files[KERAS],
                input_shape=tuple(self.serving["input_shape"]),
                n_outputs=self.serving["n_outputs"],
                custom_objects=custom_objects,
            )
        return Encoder(network, None if scaled else self.scaler(), head)

    def scaler(self) -> Scaler | None:
        """Return the scaling of the features, or None if the network takes rows as they are."""
        for name in (SCALER, FORMER_SCALER):
            if name in self.files:
                try:
                    return Scaler.from_bytes(self.files[name])
                except ArtifactError as err:
                    raise ArtifactError(f"{name}: {err}; {_REMEDY}") from err
        return None

    @property
    def images(self) -> dict[str, Any]:
        """Settings of `data` that convert images to the network's input; empty if the features are not images."""
        images: dict[str, Any] = self.serving.get("images") or {}
        return images

    @property
    def indices_col(self) -> str | None:
        """Name of the column with the indices of sparse features; None if they are not given so."""
        name: str | None = self.serving.get("indices_col")
        return name

    @property
    def classes(self) -> dict[str, Any]:
        """`values`, the label of each class in the order of the scores, and `type` of the label; empty without them."""
        classes: dict[str, Any] = self.serving.get("classes") or {}
        return classes

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[str]:
        """Yield a local folder with the files; it is removed after."""
        with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
            for name, content in self.files.items():
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(content)
            yield folder


def read_model(root: str, manifest: Manifest | None = None) -> ModelFolder:
    """Read the model of a run folder, or of a folder that `write_model` wrote. Runs on: driver.

    Args:
        root: URI of the folder.
        manifest: That of the model, if it was read before: another may be published meanwhile.

    Raises:
        ArtifactError: if there is none, it is of a newer format, or a file is missing or modified (names the file).
    """
    run = RunFolder(root)
    manifest = manifest or run.require(STAGE, "train")
    files = {}
    for record in manifest.files:
        uri = run.uri(manifest, record["path"])
        fs, path = storage.filesystem(uri)
        content: bytes = fs.cat_file(path)
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ArtifactError(f"{uri} was modified: its digest is not the one in the manifest; {_REMEDY}")
        files[record["path"]] = content
    model = ModelFolder(manifest.spec, manifest.info, files)
    _check(model, run.uri(manifest))
    return model


def write_model(root: str, model: ModelFolder) -> None:
    """Publish a model as the stage `model` of a folder; what stood there is replaced. Runs on: driver."""
    with RunFolder(root).build(STAGE, model.spec) as build:
        build.info.update(model.info)
        with model.on_disk() as folder:
            storage.put_folder(folder, build.uri)


def load_folder(folder: str, *, spec: dict[str, Any], info: dict[str, Any]) -> ModelFolder:
    """Return the files of a local folder as a model in memory. Runs on: driver."""
    files = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            files[name] = file.read()
    return ModelFolder(spec, info, files)


def add_serving_files(
    folder: str,
    *,
    features: list[str],
    scaler: Scaler | None = None,
    images: dict[str, Any] | None = None,
    indices_col: str | None = None,
    classes: dict[str, Any] | None = None,
) -> None:
    """Add to a folder that `nn.persistence.save_model` wrote what embedding without TensorFlow needs.

    Runs on: driver.

    Args:
        folder: Local path.
        features: Names of the feature columns.
        scaler: Of raw rows; None if the network takes them as they are.
        indices_col: Name of the column with the indices of sparse features.
        images: `image_height`, `image_width` and `image_mode` if the features are images.
        classes: `values`, the label of each class in the order of the scores, and `type`, that of the label column.
    """
    from ivis_spark.nn.networks import dense_network
    from ivis_spark.nn.persistence import load_model

    saved = load_model(folder)
    for name, model in ((DENSE, saved.encoder), (HEAD, saved.head)):
        network = None if model is None else dense_network(model)
        if network is not None:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(network.to_bytes())
    serving = {
        "format": _FORMAT,
        "input_shape": [int(size) for size in saved.encoder.input_shape[1:]],
        "n_outputs": int(saved.encoder.output_shape[-1]),
        "features": features,
        **({"images": images} if images else {}),
        **({"indices_col": indices_col} if indices_col else {}),
        **({"classes": classes} if classes else {}),
    }
    written = {SERVING: json.dumps(serving).encode()}
    if scaler is not None:
        written[SCALER] = scaler.to_bytes()
    for name, content in written.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def _check(model: ModelFolder, uri: str) -> None:
    if SERVING not in model.files or not (DENSE in model.files or KERAS in model.files):
        raise ArtifactError(f"{uri} lacks {SERVING} or the encoder; it was written by an older version: train again")
    storage.parse_json(model.files[SERVING], f"{uri}/{SERVING}", _read_serving, remedy=_REMEDY)


def _read_serving(value: Any) -> dict[str, Any]:
    serving = check_fields(value, format=int)
    version = serving["format"]
    if version != _FORMAT:
        remedy = "update ivis_spark" if version > _FORMAT else "train again"
        raise ArtifactError(f"it has format {version}; this version reads format {_FORMAT}: {remedy}")
    check_fields(serving, input_shape=list, n_outputs=int, features=list)
    check_list(serving["features"], str, "features")
    check_fields({"indices_col": None, **serving}, indices_col=(str, type(None)))
    if serving.get("classes"):
        check_fields(serving["classes"], values=list, type=str)
    if min([serving["n_outputs"], *check_list(serving["input_shape"], int, "input_shape")]) < 1:
        raise ValueError("a size is not positive")
    return serving
