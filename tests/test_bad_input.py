"""Input that cannot be used, through the command line: one line that names the column and a row, nothing published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import published

from ivis_spark.cli import main
from ivis_spark.storage import MARK

pytestmark = pytest.mark.spark

GOOD = [[0.0, 1.0, 5.0], [2.0, 1.5, 7.0], [4.0, 1.0, 6.0], [1.0, 1.25, 5.5], [3.0, 1.0, 6.5], [2.5, 0.5, 6.0]]
IDS = [10, 11, 12, 13, 14, 15]


@pytest.fixture(autouse=True)
def _use_session(spark: object) -> None:
    """Let the commands find the tests' session."""


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def rows(bad: Any) -> dict[str, Any]:
    """Good rows with a bad one, of id 77, among them."""
    features = pa.array([*GOOD[:3], bad, *GOOD[3:]], pa.list_(pa.float64()))
    return {"key": [10, 11, 12, 77, 13, 14, 15], "values": features, "y": pa.array([0, 1, 0, 1, 0, 1, 1])}


def refused(path: Path, columns: dict[str, Any], *options: str, command: str = "neighbours") -> None:
    """Run a command on a table and check that it returns 2 and publishes nothing."""
    source, output = write(path / "table.parquet", **columns), path / "out"
    ours = ["--features-col", "values"] if "values" in columns else []
    ours += ["--id-col", "key"] if "key" in columns else []
    argv = [command, "--input", source, "--output", str(output), "--quiet", "--set", "neighbours.k=3", *ours, *options]
    assert main(argv) == 2
    left = sorted(entry.name for entry in output.iterdir() if entry.name != MARK) if output.exists() else []
    assert left in ([], ["ivis-spark.log"])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr that is the command's own."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ivis-spark ")]
    assert len(lines) == 1
    return lines[0]


UNUSABLE = {
    "null": (
        None,
        "1 row has null in column 'values' (for example id 77): fix them, or drop them with --set data.invalid=drop",
    ),
    "null element": ([1.0, None, 2.0], "1 row has null in column 'values' (for example id 77): fix them"),
    "nan": ([1.0, math.nan, 2.0], "1 row has NaN in column 'values' (for example id 77): fix them, or drop them"),
    "infinity": (
        [1.0, -math.inf, 2.0],
        "1 row has infinity in float32 in column 'values' (for example id 77): fix them",
    ),
    "ragged": ([1.0, 2.0], "1 row does not have 3 features in column 'values' (for example id 77): all rows"),
    "empty array": ([], "1 row does not have 3 features in column 'values' (for example id 77): all rows"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_row_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    row, text = UNUSABLE[name]
    refused(tmp_path, rows(row), "--label-col", "y")
    assert f"ivis-spark neighbours: {text}" in said(capsys)


def test_all_arrays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {"key": IDS, "values": pa.array([[]] * 6, pa.list_(pa.float64()))})
    assert (
        "features column 'values' holds an empty array; all rows need the same number of features, at least 1"
        in said(capsys)
    )


def test_all_rows_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {"key": IDS, "values": pa.array([None] * 6, pa.list_(pa.float64()))})
    assert "no row with features in column 'values'" in said(capsys)


def test_all_rows_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {"key": IDS, "values": [[math.nan, 1.0]] * 6}, "--set", "data.invalid=drop")
    assert "the input has no usable row (6 dropped); check column 'values'" in said(capsys)


def test_null_in_a_feature_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"key": IDS, "a": pa.array([1.0, 2.0, None, 4.0, 5.0, 6.0]), "b": [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]}
    refused(tmp_path, columns)
    assert "1 row has null in the features (for example id 12); by column: a (1 null): fix" in said(capsys)


def test_null_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {"key": pa.array([10, None, 12, 13, 14, 15]), "values": GOOD})
    assert "1 row has null" in said(capsys)


def test_repeated_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {"key": [10, 11, 12, 13, 11, 15], "values": GOOD})
    assert "id 11 occurs 2 times in id column 'key'. Ids must be unique; without an id" in said(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--id-col", "nope"], "data.id_col='nope' is not in the table; it has: key, values, text"),
        (["--label-col", "nope"], "data.label_col='nope' is not in the table; it has: key, values, text"),
        (["--id-col", "text"], "id 'x' occurs 6 times in id column 'text'. Ids must be unique"),
        (
            ["--features-col", "text"],
            "features column 'text' is string; it must be an array of numbers or a Spark ML vector",
        ),
        (["--set", "neighbours.k=5"], "neighbours.k=5 needs at least 7 rows, so that each has 5 neighbours and one"),
        (["--set", "neighbours.k=600"], "the input has 6. Pass --set neighbours.k=4 or less"),
        (["--set", "neighbours.k=0"], "neighbours.k=0 is out of range: it must be at least 1"),
    ],
)
def test_options_that_do_not_fit_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    refused(tmp_path, {"key": IDS, "values": GOOD, "text": ["x"] * 6}, *options)
    assert message in said(capsys)


def test_text_among_the_feature_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"key": IDS, "a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "text": ["x"] * 6}
    refused(tmp_path, columns, "--feature-cols", "a,text")
    assert "feature column 'text' is string; it must be numeric" in said(capsys)


def test_no_row_has_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supervised = ["--label-col", "y", "--set", "train.supervision_metric=sparse_categorical_crossentropy"]
    refused(tmp_path, {"key": IDS, "values": GOOD, "y": [-1] * 6}, *supervised)
    assert "label column 'y': no row has a label, all are -1, None or NaN: label some rows" in said(capsys)


@pytest.mark.parametrize("command", ["neighbours", "run"])
def test_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    nothing = {"key": pa.array([], pa.int64()), "values": pa.array([], pa.list_(pa.float32()))}
    refused(tmp_path, nothing, command=command)
    assert "the input has no row with features in column 'values'; at least 3 rows are needed" in said(capsys)


def test_no_rows_of_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, {name: pa.array([], pa.float64()) for name in "ab"})
    assert "the input has no usable row (0 dropped); check columns a, b" in said(capsys)


@pytest.mark.parametrize("k", [1, 3])
def test_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], k: int) -> None:
    refused(tmp_path, {"key": [10], "values": GOOD[:1]}, "--set", f"neighbours.k={k}")
    assert f"neighbours.k={k} needs at least {k + 2} rows" in (line := said(capsys))
    assert "the input has 1. Pass more rows" in line


def found(output: Path) -> dict[int, list[int]]:
    table = pq.read_table(published(output, "neighbours") / "data")
    return dict(zip(table["id"].to_pylist(), table["neighbour_ids"].to_pylist(), strict=True))


def test_a_constant_column_is_told_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"key": IDS, "a": [1.0, 2.0, 4.0, 7.0, 11.0, 16.0], "still": [5.0] * 6}
    source, output = write(tmp_path / "table.parquet", **columns), tmp_path / "out"
    argv = ["neighbours", "--input", source, "--output", str(output), "--id-col", "key", "--set", "neighbours.k=2"]
    assert main(argv) == 0
    assert "1 of 2 features are constant and carry no information (still)" in capsys.readouterr().err
    assert json.loads((output / "rows" / "manifest.json").read_text())["info"]["constant_features"] == 1
    assert found(output) == {10: [11, 12], 11: [10, 12], 12: [11, 10], 13: [12, 14], 14: [13, 15], 15: [14, 13]}


@pytest.mark.parametrize("ids", [range(-3, 3), [-(2**62), -1, 0, 1, 2**40, 2**62]], ids=["narrow", "wide"])
def test_ids_may_be_negative(tmp_path: Path, ids: Any) -> None:
    ids = list(ids)
    source = write(tmp_path / "table.parquet", key=ids, a=[1.0, 2.0, 4.0, 7.0, 11.0, 16.0])
    output = tmp_path / "out"
    argv = ["neighbours", "--input", source, "--output", str(output), "--id-col", "key", "--set", "neighbours.k=2"]
    assert main([*argv, "--quiet"]) == 0
    nearest = [[1, 2], [0, 2], [1, 0], [2, 4], [3, 5], [4, 3]]
    assert found(output) == {ids[row]: [ids[other] for other in others] for row, others in enumerate(nearest)}


@pytest.mark.tf
@pytest.mark.slow
def test_all_rows_equal_warns_and_says_what_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "table.parquet", key=list(range(40)), values=[[3.0, 1.0]] * 40)
    argv = ["run", "--input", source, "--output", str(tmp_path / "out"), "--id-col", "key", "--features-col", "values"]
    assert main([*argv, "--quiet", "--set", "neighbours.k=3", "--set", "train.epochs=2"]) == 0
    error = capsys.readouterr().err
    assert (
        "all 40 rows are equal in column 'values': the embedding will be a single point. Check which columns" in error
    )
    assert "the embedding seems to have collapsed" in error and "Traceback" not in error
    figures = json.loads((published(tmp_path / "out", "report") / "metrics.json").read_text())
    assert figures["collapsed"] is True
