"""A wrong path, format or column is found before Spark starts; what cannot be looked at is left to Spark."""

from __future__ import annotations

import gzip
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivis_spark.config import Config, DataConfig, load_config
from ivis_spark.errors import InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.spark.before_spark import in_folders, look_at_input


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "digits" / "day=1"
    folder.mkdir(parents=True)
    (folder.parent / "_SUCCESS").touch()
    pq.write_table(pa.table({"key": [1, 2], "Value": [0.5, 1.5], "label": [0, 1]}), folder / "part-0.zstd.parquet")
    return folder.parent


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.parquet", "parquet"),
        ("a.csv", "csv"),
        ("A.CSV.GZ", "csv"),
        ("a.jsonl.bz2", "json"),
        ("a.orc", "orc"),
        ("a.avro", "avro"),
        ("no_ending", "parquet"),
        ("folder/part-0.csv", "csv"),
        ("folder/_delta_log/0.json", "delta"),
        ("folder/day=1/hour=2/part-0.orc", "orc"),
    ],
)
def test_the_format_follows_from_the_files(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    uri = str(tmp_path / name.split("/")[0])
    assert look_at_input(uri, DataConfig()).format == found
    assert look_at_input(f"file://{uri}", DataConfig()).format == found
    assert look_at_input(uri, DataConfig(format="text")).format == "text"


def test_a_path_that_is_not_there(table: Path) -> None:
    with pytest.raises(InputError, match=r"digitz' does not exist; did you mean .*/digits\?"):
        look_at_input(str(table.parent / "digitz"), DataConfig())
    with pytest.raises(InputError, match=r"'memory://nothing/here' does not exist\. Check the path"):
        look_at_input("memory://nothing/here", DataConfig())


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "day=1").mkdir(parents=True)
    (tmp_path / "in" / "_SUCCESS").touch()
    for uri in (tmp_path / "in", tmp_path / "in" / "day=1"):
        with pytest.raises(InputError, match="holds no files"):
            look_at_input(str(uri), DataConfig())
    with pytest.raises(InputError, match="holds no files"):
        Pipeline(str(tmp_path / "out"), Config(), get_spark=lambda: None, input_uri=str(tmp_path / "in"))  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "_c0=1").mkdir()
    (tmp_path / "in" / "_c0=1" / "a.csv").touch()
    assert look_at_input(str(tmp_path / "in"), DataConfig()).format == "csv"
    for number in range(25):  # too many to look at
        (tmp_path / "many" / f"day={number}").mkdir(parents=True)
    look_at_input(str(tmp_path / "many"), DataConfig())


@pytest.mark.parametrize("setting", ["features_col", "feature_cols", "id_col", "label_col"])
def test_a_column_that_is_not_there(table: Path, setting: str) -> None:
    def look(name: str, **more: Any) -> DataConfig:
        value = ("key", name) if setting == "feature_cols" else name
        return look_at_input(str(table), DataConfig(**{setting: value, **more}))

    with pytest.raises(InputError, match=rf"data\.{setting}='lable' is not in the table; did you mean label\?"):
        look("lable")
    with pytest.raises(InputError, match=rf"data\.{setting}='zzz' is not in the table; it has: key, Value, label, day"):
        look("zzz")
    for name in ("label", "day"):  # folders are columns
        look(name)
    with pytest.raises(InputError, match=rf"data\.{setting}='value' is not in the table; did you mean Value\?"):
        look("value")
    look("zzz", options={"mergeSchema": True})
    look("zzz", format="orc")


def test_a_column_that_is_a_folder_of_the_path(table: Path, tmp_path: Path) -> None:
    day = next(path for path in table.rglob("*=*"))
    with pytest.raises(InputError, match=rf"id_col='day' .*the folder {day.name} of .*basePath={table}$"):
        look_at_input(str(day), DataConfig(id_col="day"))
    based = {"basePath": str(table)}
    look_at_input(str(day), DataConfig(id_col="day", options=based))
    with pytest.raises(InputError, match="id_col='keys' is not in the table; did you mean key"):
        look_at_input(str(day), DataConfig(id_col="keys", options=based))
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "a.csv").write_text("key;b;c\n")
    found = look_at_input(str(tmp_path / "day=1"), DataConfig(id_col="day", label_col="b", options=based))
    assert found.options == {**based, "sep": ";"}
    for path, base in {
        "new/day=1": "new",
        "day=1": ".",
        "/day=1": "/",
        "s3a://lake/a=b/new/month=1/day=*/x": "s3a://lake/a=b/new",
        "my: folder #/day=1/hour=2/": "my: folder #",
        "file:///day=1/x": "file:///",
        "file:/day=1/x": "file:/",
        "hdfs:///month=1/day=1": "hdfs:///",
        "s3a://lake/day=1": "s3a://lake",
    }.items():
        setting = shlex.split(in_folders("day", ["elsewhere", path]).partition(" of the path, pass --set ")[2])
        assert load_config(None, setting).data.options == {"basePath": base}
    assert in_folders("day", ["file:/new/day=1"], opened=True).endswith(
        'read a DataFrame with .option("basePath", "file:/new")'
    )
    assert in_folders("day", ["new/days=1", "new/day", "new"]) == ""


def test_the_first_line_of_text_is_read(tmp_path: Path) -> None:
    for name, text in (
        ("a.csv", 'key,"b, c",label\n1,2,3\n'),
        ("day=1/a.csv.gz", "\ufeffkey,b,label\n"),
        ("a.tsv", "key\tlabel\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with (gzip.open if name.endswith("gz") else open)(path, "wb") as file:
            file.write(text.encode())
        uri = str(path if path.parent == tmp_path else path.parent.parent / "day=1")
        assert look_at_input(uri, DataConfig(id_col="key")).format == "csv"
        with pytest.raises(InputError, match=r"data\.id_col='lable' is not in the table; did you mean label\?"):
            look_at_input(uri, DataConfig(id_col="lable"))
        look_at_input(uri, DataConfig(id_col="zzz", options={"header": False}))
    assert look_at_input(str(tmp_path / "a.tsv"), DataConfig()).options == {"sep": "\t"}
    for text in (",a,b\n", "x,x,y\n", 'a,"b\nc",d\n'):  # Spark calls some of these otherwise: it is asked
        (tmp_path / "c.csv").write_text(text)
        look_at_input(str(tmp_path / "c.csv"), DataConfig(id_col="zzz"))
    (tmp_path / "c.csv").write_text("\n  \nkey,label\n")
    with pytest.raises(InputError, match=r"did you mean label\?"):
        look_at_input(str(tmp_path / "c.csv"), DataConfig(id_col="lable"))
    (tmp_path / "b.csv").write_text("key;b;label\n")
    assert look_at_input(str(tmp_path / "b.csv"), DataConfig(id_col="key")).options == {"sep": ";"}
    with pytest.raises(InputError, match=r"did you mean label\?"):
        look_at_input(str(tmp_path / "b.csv"), DataConfig(id_col="lable"))
    assert look_at_input(str(tmp_path / "b.csv"), DataConfig(options={"sep": ","})).options == {"sep": ","}
    (tmp_path / "c.csv").write_bytes(b"k\xff\n")
    assert look_at_input(str(tmp_path / "c.csv"), DataConfig(id_col="x")).format == "csv"


def test_what_cannot_be_looked_at_is_left_to_spark(tmp_path: Path) -> None:
    for uri in ("nosuch://bucket/a.csv", str(tmp_path / "a[0-9]*.csv")):
        assert look_at_input(uri, DataConfig(id_col="x", glob=True)).format == "csv"
    with pytest.raises(InputError, match=r"does not exist\. Check the path, or pass --set data\.glob=true"):
        look_at_input(str(tmp_path / "a[0-9]*.csv"), DataConfig())
    assert look_at_input("main.a.cells", DataConfig(format="table", id_col="x")).format == "table"
    assert look_at_input(None, DataConfig(id_col="x")).format == "parquet"
    (tmp_path / "torn.parquet").write_text("PAR1")
    assert look_at_input(str(tmp_path / "torn.parquet"), DataConfig(id_col="x")).format == "parquet"


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.parquet").write_text("key,b,label\n")
    with pytest.raises(InputError, match=r"b\.parquet' is not a Parquet file: pass its format with --format"):
        look_at_input(str(tmp_path / "a" / "b.parquet"), DataConfig())
    assert look_at_input(str(tmp_path / "a"), DataConfig()).format == "parquet"  # Spark may be told to pass over it


def test_the_pipeline_starts_no_spark_for_it(tmp_path: Path, table: Path) -> None:
    def no_spark() -> Any:
        pytest.fail("Spark was started")

    for uri, config in ((str(tmp_path / "no"), Config()), (str(table), load_config(None, ["data.id_col=none_such"]))):
        with pytest.raises(InputError):
            Pipeline(str(tmp_path / "out"), config, get_spark=no_spark, input_uri=uri)
    made = Pipeline(str(tmp_path / "out"), Config(), get_spark=no_spark, input_uri=str(table))
    assert made.config.data.format == "parquet"
