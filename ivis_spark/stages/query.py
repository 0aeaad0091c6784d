"""The stages `queries-<table>`: the neighbours, among the rows of the run, of the rows of another table."""

from __future__ import annotations

from ivis_spark.config.checks import plain
from ivis_spark.errors import InputError
from ivis_spark.stages.input_table import COLUMNS
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild


def publish(run: Run, name: str | None) -> Manifest:
    """Search the input table in the published index.

    Raises:
        InputError: if no table was given.
    """
    neighbours, rows = run.require("neighbours"), run.require("rows")
    table = run.input.read()
    if table is None:
        raise InputError("query needs the table with the new rows: --input TABLE")
    data = run.input.columns_like(rows, table)

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.neighbours.query import query_into
        from ivis_spark.spark.rows.tables import read_parquet
        from ivis_spark.spark.session import describe_job

        describe_job(run.get_spark(), "query")
        query_into(
            stage.path("data"),
            table,
            run.folder.uri(neighbours, "index"),
            run.config.query.k,
            data=data,
            backend=run.config.neighbours.backend,
            batch_rows=run.config.embed.batch_rows,
        )
        stage.info["rows"] = read_parquet(run.get_spark(), stage.path("data")).count()

    # Which columns are read and kept decides the result as much as the rows do.
    columns = plain({name: getattr(data, name) for name in (*COLUMNS, "invalid")})
    spec = run.spec("query", neighbours=neighbours.fingerprint, source=run.source(table), columns=columns)
    return run.publish(run.name_of("query", "queries", name), spec, build)
