"""Every parser of ours, fed with anything: it gives what it should, or one of our errors, and nothing else."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivis_spark import storage
from ivis_spark.config import Config, load_config
from ivis_spark.core.blocks import unpack_near, unpack_vectors
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ArtifactError, ConfigError
from ivis_spark.runtime.lock import Owner, read_owner
from ivis_spark.storage import Manifest, RunFolder

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SECTIONS = {name: sorted(section) for name, section in Config().to_mapping().items() if isinstance(section, dict)}
GOOD = {
    "stage": "rows",
    "spec": {"config": {}, "inputs": {}},
    "info": {"rows": 3},
    "files": [{"path": "data/a", "bytes": 1, "sha256": "0"}],
    "versions": {},
    "created": "2026-01-01T00:00:00Z",
    "format_version": 1,
}


def nearly(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings that differ from a good one in a few keys."""
    return st.dictionaries(st.sampled_from(sorted(good)), ANYTHING, max_size=3).map(lambda changed: {**good, **changed})


def config_or_error(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        config = load_config(str(path))
    except ConfigError:
        return
    assert Config.from_mapping(config.to_mapping()) == config


@MANY
@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=200))
@example(text="!!python/object/apply:os.system [touch /tmp/ivis-spark-was-here]")
@example(text="data: &a {format: *a}")
@example(text="a: &a [x, x]\nb: &b [*a, *a]\ndata: {format: [*b, *b]}")
@example(text="random_state: 2001-99-99")
@example(text="random_state: " + "[" * 5000)
@example(text="? [a]\n: b")
@example(text="train: {margin: .nan}")
@example(text="\x00")
def test_config_of_any_text(tmp_path: Path, text: str) -> None:
    config_or_error(tmp_path / "c.yaml", text)
    assert not Path("/tmp/ivis-spark-was-here").exists()


@MANY
@given(data=st.data())
def test_config_of_any_value(tmp_path: Path, data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    value = data.draw(ANYTHING)
    key = data.draw(st.sampled_from(SECTIONS[section]))
    config_or_error(tmp_path / "c.yaml", json.dumps({section: {key: value}}))
    try:
        load_config(None, [f"{section}.{key}={value}"])
    except ConfigError:
        pass


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(tmp_path / "c.yaml"))


@MANY
@given(value=ANYTHING | nearly(GOOD))
@example(value={**GOOD, "files": [{"path": "../../etc/passwd", "bytes": 1, "sha256": "0"}]})
@example(value={**GOOD, "files": [{"path": "/etc/passwd", "bytes": 1, "sha256": "0"}]})
def test_manifest_of_any_json(value: Any) -> None:
    folder = RunFolder(f"memory://{uuid.uuid4().hex}/out")
    storage.write_json(folder.path("rows", "manifest.json"), value)
    storage.write_json(folder.path("rows", "data", "a"), 1)
    try:
        manifest = folder.require("rows", "neighbours")
    except ArtifactError:
        return
    assert isinstance(manifest, Manifest) and isinstance(manifest.fingerprint, str)


@pytest.mark.parametrize("path", ["../secret", "data/../../secret", "/etc/passwd", ""])
def test_manifest_that_points_outside(path: str) -> None:
    with pytest.raises(ValueError, match="is not below the stage"):
        Manifest.from_mapping({**GOOD, "files": [{"path": path, "bytes": 1, "sha256": "0"}]})


@MANY
@given(content=st.binary(max_size=300))
def test_manifest_of_any_bytes(content: bytes) -> None:
    folder = RunFolder(f"memory://{uuid.uuid4().hex}/out")
    fs, path = storage.filesystem(folder.path("rows", "manifest.json"))
    fs.makedirs(fs._parent(path))
    fs.pipe_file(path, content)
    with pytest.raises(ArtifactError, match="manifest"):
        folder.manifest("rows")


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=80))
def test_lock_of_any_bytes(content: bytes) -> None:
    uri = f"memory://{uuid.uuid4().hex}/.lock-run.json"
    fs, path = storage.filesystem(uri)
    fs.makedirs(fs._parent(path))
    fs.pipe_file(path, content)
    owner = read_owner(uri, pauses=(0.0,))
    assert isinstance(owner, Owner) and owner.is_dead()


@MANY
@given(rows=st.integers(1, 50), width=st.integers(1, 50), data=st.data())
def test_packed_vectors(rows: int, width: int, data: st.DataObject) -> None:
    values = np.arange(rows * width, dtype="<f4").reshape(rows, width)
    np.testing.assert_array_equal(unpack_vectors(values.tobytes(), rows, width, "anchor"), values)
    torn = data.draw(st.binary(max_size=4 * rows * width + 9))
    if len(torn) != 4 * rows * width:
        with pytest.raises(ArtifactError, match="'anchor' holds"):
            unpack_vectors(torn, rows, width, "anchor")


@MANY
@given(content=st.binary(max_size=64), rows=st.integers(2, 300))
def test_packed_pairs(content: bytes, rows: int) -> None:
    try:
        codes = unpack_near(content, rows)
    except ArtifactError:
        return
    assert (codes < rows**2).all() and (np.diff(codes.astype(np.int64)) > 0).all()


@MANY
@given(content=st.binary(max_size=300))
def test_network_of_any_bytes(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        DenseNetwork.from_bytes(content)


@MANY
@given(activations=ANYTHING, arrays=st.dictionaries(st.sampled_from(["kernel_0", "bias_0"]), ANYTHING))
def test_network_of_any_archive(activations: Any, arrays: dict[str, Any]) -> None:
    content = io.BytesIO()
    named = {"activations": np.frombuffer(json.dumps(activations).encode(), np.uint8)}
    for name, value in arrays.items():
        try:
            named[name] = np.asarray(value)
        except ValueError:
            named[name] = np.asarray(str(value))
    np.savez(content, **named)
    try:
        DenseNetwork.from_bytes(content.getvalue())
    except ArtifactError:
        return
    assert activations == [] or "kernel_0" in arrays


@MANY
@given(value=ANYTHING | nearly({"kind": "minmax", "offset": [0.0], "factor": [1.0]}))
def test_scaler_of_any_json(value: Any) -> None:
    try:
        scaler = Scaler.from_mapping(value)
    except ArtifactError:
        return
    assert scaler.offset.shape == scaler.factor.shape


def test_pickle_inside_a_network_is_not_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "was-here",))

    content = io.BytesIO()
    np.savez(content, activations=np.array([Bomb()], dtype=object))
    with pytest.raises(ArtifactError):
        DenseNetwork.from_bytes(content.getvalue())
    assert zipfile.is_zipfile(content) and not (tmp_path / "was-here").exists()
