"""Every parser of ours, fed with anything: it gives what it should, or one of our errors, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivis_spark import storage
from ivis_spark.config import Config, load_config
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.core.knn.indexes import IndexSettings, load_index
from ivis_spark.core.knn.regions import Regions
from ivis_spark.core.scaling import SCALER, Scaler
from ivis_spark.core.triplets.blocks import unpack_false_negatives, unpack_vectors
from ivis_spark.errors import ArtifactError, ConfigError, InputError, IvisError
from ivis_spark.operations.inspect import show, status, verify
from ivis_spark.runtime.lock import Owner, read_owner
from ivis_spark.serving.folder import DENSE, SERVING, ModelFolder, read_model, write_model
from ivis_spark.serving.index import INDEX_FORMAT, PartitionedIndex
from ivis_spark.spark.embedding.history import Origin
from ivis_spark.spark.embedding.target import Target
from ivis_spark.spark.embedding.units import run_units
from ivis_spark.storage import Manifest, RunFolder

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PATHS = ["../precious.txt", "/etc/passwd", "_ivis_spark/../../precious.txt", "x::file:///etc/passwd", "", "a\0b"]
HOSTILE = [*PATHS, [[PATHS[0], "a"]], [["_ivis_spark/w/a", PATHS[0]]], [[]], [None], -1, 2**70, 1e300]
SERVING_FACTS = {"format": 1, "input_shape": [4], "n_outputs": 2, "features": ["a"]}
OWNER = {
    **{"token": "t", "host": "elsewhere", "pid": 7, "user": "u", "born": None},
    **{"started": 1.7e9, "heartbeat": 1.7e9},
}
STATE = {
    **{"epoch": 1, "step": 2, "sums": {"loss": 0.5}, "history": {"loss": [1.0]}, "best": 0.5, "wait": 0},
    **{"rate": 0.1, "cooldown_from": None, "stopped": False},
}
JOURNAL = {
    "number": 1,
    "key": "a",
    "mode": "append",
    "info": {"rows": 1},
    "removals": ["day=1/old"],
    "moves": [["_ivis_spark/work-a/parts/0/new", "day=1/new"]],
}
NESTED = b"[" * 100_000  # deeper than any parser goes

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


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from places(item, (*at, key))


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> Any:
    """Draw documents that differ from a good one in up to three places, and some that are none."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        inner = value
        for key in way:
            inner = inner[key]
        if draw(st.booleans()) and isinstance(inner, dict):
            del inner[last]
        else:
            inner[last] = copy.deepcopy(draw(ANYTHING | st.sampled_from(HOSTILE)))
    return value


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


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
@example(text="random_state: " + "[" * 1500)
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
    for read in (lambda: show(status(folder.root)), lambda: verify(folder.root)):
        with contextlib.suppress(ArtifactError):
            read()
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


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=80) | as_json(spoilt(OWNER)))
@example(content=json.dumps({**OWNER, "heartbeat": float("nan")}).encode())
@example(content=json.dumps({**OWNER, "pid": -1}).encode())
@example(content=json.dumps({**OWNER, "started": 1e300}).encode())
def test_lock_of_any_bytes(content: bytes) -> None:
    uri = f"memory://{uuid.uuid4().hex}/.lock-run.json"
    fs, path = storage.filesystem(uri)
    fs.makedirs(fs._parent(path))
    fs.pipe_file(path, content)
    owner = read_owner(uri, pauses=(0.0,))
    assert isinstance(owner, Owner) and str(owner)
    # What is not an owner is a dead one; what is may hold the lock, but not for ever.
    assert owner.seems_dead() or owner.heartbeat > 0


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
        codes = unpack_false_negatives(content, rows)
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
@given(arrays=nearly({"kind": "minmax", "offset": [0.0], "factor": [1.0], "mean": [0.0], "axes": [[1.0]], "unit": 1.0}))
def test_scaler_of_any_arrays(arrays: Any) -> None:
    content = io.BytesIO()
    named = arrays if isinstance(arrays, dict) else {"kind": arrays}
    with contextlib.suppress(ValueError):  # what is no array is left out
        np.savez(content, **{str(name): np.asarray(value) for name, value in named.items()})
    try:
        scaler = Scaler.from_bytes(content.getvalue())
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


def put(uri: str, content: bytes) -> None:
    fs, path = storage.filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, content)


NETWORK = DenseNetwork((DenseLayer.of(np.ones((4, 2)), None, "tanh"),)).to_bytes()


@MANY
@given(serving=st.binary(max_size=60) | as_json(spoilt(SERVING_FACTS)), scaler=st.none() | st.binary(max_size=60))
@example(serving=b"[]", scaler=None)
@example(serving=NESTED, scaler=None)
@example(serving=json.dumps(SERVING_FACTS).encode(), scaler=b"not JSON")
def test_model_folder_with_any_facts(serving: bytes, scaler: bytes | None) -> None:
    root = f"memory://{uuid.uuid4().hex}/out"
    files = {SERVING: serving, DENSE: NETWORK} | ({} if scaler is None else {SCALER: scaler})
    write_model(root, ModelFolder({}, {}, files))  # so that size and digest are right
    said = ""
    try:
        model = read_model(root)
        model.encoder()
    except ArtifactError as err:
        said = str(err)
    if said:
        assert SERVING in said or SCALER in said
        return
    assert model.n_inputs >= 1 and model.serving["n_outputs"] >= 1


def write_index(folder: Path) -> dict[str, Any]:
    """Write an index of three rows in one region; return what `index.json` says."""
    rows, files = np.eye(3, dtype=np.float32), {}
    index = load_index("leaves").build(rows, np.arange(3), "euclidean", IndexSettings(10, 1))
    for suffix in index.save(str(folder / "region")):
        files[suffix] = {"path": f"region{suffix}", **storage.digest_file(str(folder / f"region{suffix}"))}
    names = Regions.one("euclidean", 3).save(str(folder))
    quantiser = [{"path": name, **storage.digest_file(str(folder / name))} for name in names]
    head = {"format": INDEX_FORMAT, "backend": "leaves", "metric": "euclidean", "dims": 3, "rows": 3, "k": 1}
    head |= {"recall": 1.0, "scaler": None, "quantiser": quantiser}
    head |= {"regions": [{"region": 0, "rows": 3, "home": 3, "effort": None, "files": files}]}
    (folder / "index.json").write_text(json.dumps(head))
    return head


@MANY
@given(data=st.data())
def test_index_of_any_json(tmp_path: Path, data: st.DataObject) -> None:
    good = write_index(tmp_path) if not (tmp_path / "good.json").exists() else None
    if good is not None:
        (tmp_path / "good.json").write_text(json.dumps(good))
    content = data.draw(as_json(spoilt(json.loads((tmp_path / "good.json").read_text()))) | st.binary(max_size=60))
    (tmp_path / "index.json").write_bytes(content)
    try:
        ids, _ = PartitionedIndex.load(str(tmp_path)).query(np.zeros((1, 3)), 1)
    except (ArtifactError, InputError):  # of the query: k or the width is not what the altered index says
        return
    assert ids.shape == (1, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: head.pop("quantiser"),
        lambda head: head["regions"][0].update(region=9),
        lambda head: head["regions"].clear(),
        lambda head: head["regions"][0].update(rows=2**70),
        lambda head: head["regions"][0].update(effort=10**400),
    ],
)
def test_index_that_lacks_something_is_named(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]) -> None:
    head = write_index(tmp_path)
    spoil(head)
    (tmp_path / "index.json").write_text(json.dumps(head))
    with pytest.raises(ArtifactError, match=r"index\.json .*remove the neighbours"):
        PartitionedIndex.load(str(tmp_path))


@MANY
@given(content=st.binary(max_size=200), head=ANYTHING)
def test_regions_of_any_bytes(tmp_path: Path, content: bytes, head: Any) -> None:
    (tmp_path / "regions.json").write_text(json.dumps(head))
    (tmp_path / "regions.npz").write_bytes(content)
    with pytest.raises(ArtifactError):
        Regions.load(str(tmp_path))


def write_unit(files: list[str], folder: str) -> dict[str, Any]:
    for name in files:
        put(storage.join(folder, name), name.encode())
    return {"rows": len(files)}


PLAN = [["a", "b"], ["c"]]
UNIT = {"input": ["a", "b"], "folder": "parts/000000-0", "files": [["a", 1], ["b", 1]], "info": {"rows": 2}}


@MANY
@given(plan=as_json(spoilt(PLAN)) | st.binary(max_size=40), unit=as_json(spoilt(UNIT)) | st.binary(max_size=40))
@example(plan=b'[["a"]]', unit=json.dumps(UNIT).encode())
@example(plan=json.dumps(PLAN).encode(), unit=json.dumps({**UNIT, "folder": "../../secret", "files": []}).encode())
@example(plan=json.dumps(PLAN).encode(), unit=NESTED)
def test_units_with_any_records_lose_no_row(plan: bytes, unit: bytes) -> None:
    work = f"memory://{uuid.uuid4().hex}/work"
    put(f"{work}/plan.json", plan)
    put(f"{work}/units/000000.json", unit)
    write_unit(["a", "b"], f"{work}/parts/000000-0")
    done = run_units(work, PLAN, write_unit)
    assert sorted(name for each in done for name, _ in each.files) == ["a", "b", "c"]
    assert all(each.folder.startswith(work) for each in done)


@MANY
@given(journal=as_json(spoilt(JOURNAL)) | st.binary(max_size=40))
@example(journal=json.dumps({**JOURNAL, "removals": ["../precious.txt"]}).encode())
@example(journal=json.dumps({**JOURNAL, "moves": [["../precious.txt", "a"]]}).encode())
@example(journal=json.dumps({**JOURNAL, "moves": [["_ivis_spark/work-a/parts/0/new", "../precious.txt"]]}).encode())
@example(journal=json.dumps({**JOURNAL, "removals": ["_ivis_spark/000000-other.done"]}).encode())
def test_target_with_any_journal_touches_no_other_file(tmp_path: Path, journal: bytes) -> None:
    precious, table = tmp_path / "precious.txt", tmp_path / "table"
    precious.write_text("mine")
    shutil.rmtree(table, ignore_errors=True)
    for name in ("_ivis_spark/work-a/parts/0/new", "_ivis_spark/000000-other.done"):
        put(f"file://{table}/{name}", json.dumps({**JOURNAL, "number": 0, "key": "other", "files": []}).encode())
    put(f"file://{table}/_ivis_spark/000001-a.json", journal)
    said = ""
    try:
        Target(str(table), "append", ()).put("next", lambda *_: ([], {"rows": 0}), Origin(None, {"a": "1"}))
    except ArtifactError as err:
        said = str(err)
    except FileNotFoundError:  # of a file that it says is to be moved and that nobody wrote
        pass
    assert not said or ("_ivis_spark/000001-a.json" in said and "restore it; or remove it" in said)
    assert precious.read_text() == "mine" and (table / "_ivis_spark" / "000000-other.done").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt", "table"]


@pytest.mark.tf
@MANY
@given(content=as_json(spoilt({"sha256": "0", "state": STATE})) | st.binary(max_size=40))
@example(content=json.dumps({"sha256": "0", "state": {**STATE, "foreign": 1}}).encode())
@example(content=json.dumps({"sha256": "0", "state": None}).encode())
def test_checkpoint_of_any_json(content: bytes) -> None:
    from ivis_spark.train.checkpoints import read_index
    from ivis_spark.train.loop import TrainingState

    try:
        _, state = storage.parse_json(content, "checkpoint.json", read_index)
    except ArtifactError:
        return
    assert isinstance(state, TrainingState) and state.epoch >= 0


@MANY
@given(content=as_json(spoilt({"kind": "refused", "type": "InputError", "error": "no"})) | st.binary(max_size=40))
@example(content=b'[["kind", "lost"]]')
def test_result_of_a_rank_of_any_json(content: bytes) -> None:
    from ivis_spark.spark import training

    try:
        result = storage.parse_json(content, "result.json", training.read_result)
    except ArtifactError:
        return
    with contextlib.suppress(IvisError):
        assert "facts" in result or training._explain([{"rank": 0, **result}])


MODEL_INDEX = {"format": 1, "keras": "3", "extra": {}, "files": {"encoder.keras": "0"}}


@pytest.mark.tf
@MANY
@given(content=as_json(spoilt(MODEL_INDEX)) | st.binary(max_size=40))
@example(content=NESTED)
@example(content=json.dumps({**MODEL_INDEX, "files": {"../../encoder.keras": "0"}}).encode())
def test_model_index_of_any_json(tmp_path: Path, content: bytes) -> None:
    from ivis_spark.nn import persistence

    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        persistence.load_model(str(tmp_path))
    with contextlib.suppress(ArtifactError):
        assert isinstance(persistence.load_extra(str(tmp_path)), dict)


@pytest.mark.tf
@MANY
@given(content=as_json(ANYTHING) | st.binary(max_size=40))
@example(content=NESTED)
def test_keras_file_of_any_description(tmp_path: Path, content: bytes) -> None:
    from ivis_spark.nn.safety import check_code

    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", content)
    with contextlib.suppress(ArtifactError):
        check_code(str(tmp_path / "x.keras"), {})
