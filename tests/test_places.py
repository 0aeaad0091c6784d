"""What is read and what is written keep apart, however their places are spelled; folders of others stay untouched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.config import Config, load_config
from ivis_spark.errors import ArtifactError, ConfigError, InputError
from ivis_spark.operations.clean import clean
from ivis_spark.pipeline import Pipeline
from ivis_spark.runtime.lock import RunLock
from ivis_spark.stages.outputs import check_places, check_table
from ivis_spark.storage import RunFolder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table `t`, a link `link` to it, and a file `conf.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t" / "day=1").mkdir(parents=True)
    (tmp_path / "t" / "day=1" / "a.parquet").write_bytes(b"rows")
    (tmp_path / "link").symlink_to("t")
    (tmp_path / "conf.yaml").write_text("")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    found = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


CLASHES = [
    "t",
    "./t/",
    "t/../t",
    "t/out",
    "link",
    "link/out",
    ".",
    "file:{home}/t",
    "file://{home}/t/day=1",
    "FILE:///{home}//t",
    "file://localhost{home}/t",
    "{home}/other/../t",
]


@pytest.mark.parametrize("output", CLASHES)
@pytest.mark.parametrize("source", ["t", "link"])
def test_output_never_touches_the_input(home: Path, output: str, source: str) -> None:
    output = output.format(home=home)
    before = snapshot(home)
    with pytest.raises(InputError, match=r"^\S*output .* (is|holds|lies in) \S*input"):
        Pipeline(output, Config(), get_spark=lambda: pytest.fail("not asked"), input_uri=source)
    with pytest.raises(InputError, match=r"^\S*log.file .* (is|holds|lies in) \S*input"):
        check_places(Config(), "new", input_uri=source, log_file=output)
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output": None}, "^output is a NoneType; it must be the path or URI of the run folder"),
        ({"config": {}}, r"^config is a dict; it must be a Config, such as load_config\(\.\.\.\) returns"),
        ({"get_spark": object()}, "^get_spark is a object; it must be a function .*get_spark=lambda: spark"),
        ({"input_uri": object()}, "^input_uri is a object; it must be a path .* pass a DataFrame as source"),
        ({"source": "t.parquet"}, "^source is a str; it must be a DataFrame of Spark"),
    ],
)
def test_arguments_of_other_types_are_refused(wrong: dict[str, Any], message: str) -> None:
    given = {"output": "run", "config": Config(), "get_spark": lambda: None, **wrong}
    with pytest.raises(ConfigError, match=message):
        Pipeline(given.pop("output"), given.pop("config"), **given)


@pytest.mark.parametrize(
    ("source", "output", "clash"),
    [
        ("t/*", "t/out", True),
        ("t/*", "t", True),
        ("t/day=?", "t/out", False),
        ("t/day=?", "t/day=2/out", True),
        ("t/day=1/a.parquet", "t/out", False),
        ("t/day=1/a.parquet", "t/day=1", True),
    ],
)
@pytest.mark.usefixtures("home")
def test_files_and_patterns(source: str, output: str, clash: bool) -> None:
    globbed = Config.from_mapping({"data": {"glob": True}})
    if clash:
        with pytest.raises(InputError, match="is read"):
            check_places(globbed, output, input_uri=source)
    else:
        check_places(globbed, output, input_uri=source)


@pytest.mark.parametrize("folder", ["{home}/", "s3://bucket/", "memory://"])
@pytest.mark.parametrize("name", ["a[1]", "a?", "a*", "a{b,c}"])
def test_names_that_could_be_patterns_are_none(home: Path, folder: str, name: str) -> None:
    source = folder.format(home=home) + name
    check_places(Config(), f"{folder.format(home=home)}a1/out", input_uri=source)
    with pytest.raises(InputError, match=r"--output .* lies in --input"):
        check_places(Config(), f"{source}/out", input_uri=source)


REMOTE = [
    ("s3a://bucket/x", "s3://bucket/x/y", True),
    ("s3n://bucket//x/./y", "s3://bucket/x", True),
    ("s3://bucket/x", "s3://other/x", False),
    ("s3://bucket/x", "s3://bucket/xy", False),
    ("hdfs://node:8020/x", "hdfs:///x", True),
    ("hdfs://node:8020/x", "hdfs://node/x/y", True),
    ("hdfs://node/x", "hdfs://other/x", False),
    ("dbfs:/x", "/dbfs/x/out", True),
    ("abfss://c@a.dfs.core.windows.net/x", "abfs://c@a.dfs.core.windows.net/x", True),
    ("abfss://c@a.dfs.core.windows.net/x", "abfss://d@a.dfs.core.windows.net/x", False),
    ("s3://bucket/x/*.parquet", "s3://bucket/x", True),
    ("s3://bucket/x/*.parquet", "s3://bucket/x/out", False),
    ("s3://bucket/x/*.parquet", "s3://bucket/x/a.parquet/out", True),
    ("s3://bucket/x", "/bucket/x", False),
]


@pytest.mark.parametrize(("source", "output", "clash"), REMOTE)
def test_spellings_elsewhere(source: str, output: str, clash: bool) -> None:
    if clash:
        with pytest.raises(InputError, match="is read"):
            storage.keep_apart({"--output": output}, {"--input": source}, patterns=True)
    else:
        storage.keep_apart({"--output": output}, {"--input": source}, patterns=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "--output", "run", "--input", "t", "--target", "link", "--mode", "overwrite"],
        ["embed", "--output", "run", "--input", "t", "--target", "t/new"],
        ["embed", "--output", "run", "--target", "run/embeddings"],
        ["embed", "--output", "run", "--target", "."],
        ["embed", "--output", "run", "--target", "other", "--log-file", "other/log"],
        ["neighbours", "--output", "run", "--input", "x", "--neighbours-table", "t", "--log-file", "t/log"],
        ["neighbours", "--output", "t", "--input", "x", "--neighbours-table", "link"],
        ["run", "--output", "run", "--input", "t", "--spark-conf", "spark.local.dir=t/scratch"],
        ["query", "--output", "t/q", "--input", "t"],
        ["evaluate", "--output", "t", "--input", "t"],
        ["triplets", "--output", "run", "--config", "conf.yaml", "--log-file", "conf.yaml"],
    ],
    ids=" ".join,
)
def test_every_command(home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    before = snapshot(home)
    assert main([*arguments, "--quiet"]) == 2
    assert snapshot(home) == before
    assert "Choose another place" in capsys.readouterr().err


def test_temporary_files_stay_out_of_the_input(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(home / "t"))
    with pytest.raises(InputError, match="the temporary folder"):
        Pipeline("run", Config(), get_spark=lambda: None, input_uri="t")  # type: ignore[arg-type, return-value]
    monkeypatch.setattr("tempfile.tempdir", str(home))  # above the input: its files have names of their own
    Pipeline("run", Config(), get_spark=lambda: None, input_uri="t")  # type: ignore[arg-type, return-value]


def test_a_table_by_name(home: Path) -> None:
    """The catalog's name says nothing of its place; its files and what it was opened by do."""
    config = load_config(None, ["data.format=table"])
    Pipeline("t", config, get_spark=lambda: None, input_uri="t")  # type: ignore[arg-type, return-value]
    file = f"file://{home}/t/day=1/a.parquet"
    for output in ("t", "link", "t/day=1", "."):
        with pytest.raises(InputError, match=r"holds the input table|is the input table"):
            check_table([file], [], output)
    for output in ("t/out", "link/out"):
        check_table([file], [file], output)  # beside the one file that is read
        with pytest.raises(InputError, match="lies in the input table"):
            check_table([file], [f"file:{home}/t"], output)


def users_folder(folder: Path) -> Path:
    """Return a folder of somebody's with names that stages have, too."""
    for name in ("report/quarterly.txt", "embeddings/glove.txt", "Documents/letter.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
    return folder


COMMANDS = ("run", "neighbours", "query", "triplets", "train", "embed", "evaluate", "demo", "clean")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    safe = users_folder(tmp_path / "safe")
    before = snapshot(tmp_path)
    output = [str(safe)] if command == "clean" else ["--output", str(safe)]
    more = ["--input", str(tmp_path / "x")] if command in ("run", "neighbours", "query") else []
    assert main([command, *output, *more, *(["--stages", "Documents"] if command == "clean" else [])]) == 2
    assert snapshot(tmp_path) == before
    said = capsys.readouterr().err
    assert "is not a run folder" in said and (command == "clean" or "it holds Documents, embeddings, report" in said)


def test_no_api_writes_into_it_either(tmp_path: Path) -> None:
    safe = users_folder(tmp_path / "safe")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="is not a run folder"), RunFolder(str(safe)).build("report", {}):
        raise AssertionError
    pipeline = Pipeline(str(safe), Config(), get_spark=lambda: pytest.fail("not asked"))
    for step in (pipeline.run, pipeline.neighbours, pipeline.triplets, pipeline.train, pipeline.embed):
        with pytest.raises((InputError, ArtifactError)):
            step()
    with pytest.raises(ArtifactError, match="is not a run folder"):
        clean(str(safe), stages=["report"])
    assert snapshot(tmp_path) == before


def test_an_empty_folder_becomes_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folder = RunFolder(str(tmp_path / "out"))
    assert not folder.is_run()
    folder.claim()
    assert os.listdir(tmp_path / "out") == [storage.MARK]
    (tmp_path / "out" / "mine.txt").write_text("")
    folder.claim()
    with RunLock(folder.root):
        pass
    assert sorted(os.listdir(tmp_path / "out")) == [storage.MARK, "mine.txt"]


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(str(tmp_path / "out")).claim()
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_of_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in a console, it is an object named like the folder, which a listing of it holds."""
    root = "memory://bucket/out"
    storage.write_json(f"{root}/x", 1)
    fs, path = storage.filesystem(root)
    fs.rm_file(f"{path}/x")
    monkeypatch.setattr(fs, "ls", lambda *_, **__: [f"{path}/"])
    assert storage.children(fs, path) == []
    RunFolder(root).check()


def test_what_the_user_put_into_a_run_folder_stays(tmp_path: Path) -> None:
    root = tmp_path / "out"
    folder = RunFolder(str(root))
    for text in ("old", "new"):
        with folder.build("rows", {"text": text}) as build:
            storage.write_json(build.path("data", "part-0"), text)
        (root / "notes.txt").write_text("mine")
        (root / "report").mkdir(exist_ok=True)
        (root / "report" / "quarterly.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="has no stage 'report'"):
        clean(str(root), stages=["report"])
    clean(str(root), stages=["rows"])
    assert (root / "notes.txt").exists() and (root / "report" / "quarterly.txt").exists()
