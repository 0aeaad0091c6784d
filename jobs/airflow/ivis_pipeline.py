"""Airflow DAGs: `ivis_pipeline`, a task per stage, and `ivis_embed`, which embeds a day's rows with a trained model.

Every task is a spark-submit of a job of this project.

Put this file into the DAGs folder; it needs Airflow 3, or 2.10 and later, and its Spark provider alone. What differs
from place to place stands in the DAGs' params, whose defaults come from the Airflow Variable `ivis_spark` (JSON):

    {"jobs": "/opt/ivis_spark/jobs", "py_files": "/opt/ivis_spark/ivis_spark.zip",
     "spark_conf": {"spark.executor.memory": "8g"},
     "input": "s3a://lake/cells", "runs": "s3a://lake/runs/cells", "options": ["--id-col", "id"],
     "run": "s3a://lake/runs/cells/2026-01-01T000000", "new_rows": "s3a://lake/new/{date}",
     "target": "s3a://lake/embedded", "partition_by": "day", "embed_options": []}

Every logical date of `ivis_pipeline` has a run folder of its own below `runs`. Stages skip what they find finished, so
a retry, or a task that is cleared, resumes where the one before it stopped. When the embeddings stand, the asset is
updated, and its event carries their URI for DAGs that are scheduled on it. `ivis_embed` replaces the partitions of
`target` that are in the new rows, so a date that is run again changes nothing twice.

Exit code 2, a wrong input or setting, fails without a retry, which would fail too. 75, a folder that another process is
writing, is retried like any other.
"""

from __future__ import annotations

import datetime
import itertools
import re
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

try:
    from airflow.sdk import DAG, Asset, Param
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.datasets import Dataset as Asset
    from airflow.models.param import Param
try:
    from airflow.sdk.exceptions import AirflowFailException
except ImportError:  # before 3.1
    from airflow.exceptions import AirflowFailException

STAGES = ("neighbours", "triplets", "train", "embed", "evaluate")
EMBEDDINGS = Asset("x-ivis-spark://embeddings")
DEFAULTS: dict[str, Any] = {
    "input": "",
    "runs": "",
    "jobs": "/opt/ivis_spark/jobs",
    "py_files": "",
    "options": [],
    "spark_conf": {},
    "run": "",
    "new_rows": "",
    "target": "",
    "partition_by": "",
    "embed_options": [],
}


class Job(SparkSubmitOperator):
    """A job of this project."""

    def execute(self, context: Any) -> None:
        """Submit the job; its exit code 2 ends the task for good."""
        try:
            super().execute(context)
        except Exception as err:
            if re.search(r"Error code is: 2\b", str(err)):
                raise AirflowFailException(f"invalid input or setting, see the log above; not retried. {err}") from err
            raise


def setting(name: str, params: dict[str, Any], variable: dict[str, Any]) -> Any:
    """Return a param that was given for this run, else the Variable's, else the default."""
    given = params.get(name)
    return given if given not in (None, "", [], {}) else variable.get(name, DEFAULTS[name])


def date_of(dag_run: Any) -> datetime.datetime:
    """Return the logical date; runs started by hand may have none, and then the time counts."""
    found: datetime.datetime = dag_run.logical_date or dag_run.run_after
    return found


def run_folder(params: dict[str, Any], variable: dict[str, Any], dag_run: Any) -> str:
    """Return the folder of a logical date."""
    return f"{setting('runs', params, variable).rstrip('/')}/{date_of(dag_run):%Y-%m-%dT%H%M%S}"


def arguments(stage: str, params: dict[str, Any], variable: dict[str, Any], dag_run: Any) -> list[str]:
    """Return the command line of a stage's job."""
    found = ["--output", run_folder(params, variable, dag_run), "--run-id", dag_run.run_id, "--log-format", "json"]
    if stage == STAGES[0]:
        # The lists of the rows that are trained on are enough here, as in `ivis-spark run`.
        found += ["--input", setting("input", params, variable), "--set", "neighbours.query_rows=anchors"]
    return found + [str(option) for option in setting("options", params, variable)]


def embed_arguments(params: dict[str, Any], variable: dict[str, Any], dag_run: Any) -> list[str]:
    """Return the command line that embeds the rows of a logical date; `{date}` in their URI stands for it."""

    def given(name: str) -> Any:
        return setting(name, params, variable)

    rows = given("new_rows").replace("{date}", f"{date_of(dag_run):%Y-%m-%d}")
    found = ["--output", given("run"), "--input", rows, "--target", given("target"), "--mode", "replace"]
    found += ["--set", f"embed.partition_by={given('partition_by')}"]
    found += ["--run-id", dag_run.run_id, "--log-format", "json"]
    return found + [str(option) for option in given("embed_options")]


def tell_where(context: Any, result: Any = None) -> None:
    """Write into the asset's event the manifest of this run's embeddings, whose `folder` holds the table `data`."""
    variable = context["var"]["json"].get("ivis_spark", {})
    folder = run_folder(context["params"], variable, context["dag_run"])
    context["outlet_events"][EMBEDDINGS].extra = {"uri": f"{folder}/embeddings/manifest.json"}


def from_settings(name: str) -> str:
    """Return the template of a setting."""
    return f"{{{{ setting('{name}', params, var.json.get('ivis_spark', {{}})) }}}}"


def job(name: str, command_line: str, **more: Any) -> Job:
    """Return the task that submits a job with the command line that a function above returns."""
    return Job(
        task_id=name,
        application=f"{from_settings('jobs')}/{name}.py",
        application_args=f"{{{{ {command_line} }}}}",
        py_files=from_settings("py_files"),
        conf=from_settings("spark_conf"),
        name=f"ivis-spark-{name}",
        **more,
    )


VARIABLE = "params, var.json.get('ivis_spark', {}), dag_run"
BOTH: dict[str, Any] = {
    "schedule": None,  # or "@daily", ...
    "start_date": datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc),
    "catchup": False,
    "max_active_runs": 1,  # one at a time spares the cluster, and a target takes one job at a time
    "render_template_as_native_obj": True,  # arguments() returns a list
    "user_defined_macros": {"setting": setting, "arguments": arguments, "embed_arguments": embed_arguments},
    "default_args": {
        "retries": 2,
        # Longer than the time after which the lock of a dead run on another machine is taken over.
        "retry_delay": datetime.timedelta(minutes=3),
    },
    "tags": ["ivis_spark"],
}

with DAG(
    dag_id="ivis_pipeline",
    description="Embed a table: neighbours, triplets, training, embeddings, report",
    params={
        "input": Param("", type="string", description="The table; empty: the Variable's"),
        "runs": Param("", type="string", description="Folder of the run folders; empty: the Variable's"),
        "options": Param([], type="array", description="More options of the jobs, like --set train.epochs=20"),
        "spark_conf": Param({}, type="object", description="Spark settings of all stages"),
    },
    **BOTH,
) as dag:
    told = {"embed": {"outlets": [EMBEDDINGS], "post_execute": tell_where}}
    tasks = [job(stage, f"arguments('{stage}', {VARIABLE})", **told.get(stage, {})) for stage in STAGES]
    for before, after in itertools.pairwise(tasks):
        before >> after

with DAG(
    dag_id="ivis_embed",
    description="Embed the rows of a date with a trained model into a partitioned table",
    params={
        "run": Param("", type="string", description="Run folder of the model; empty: the Variable's"),
        "new_rows": Param("", type="string", description="Their table, {date} stands for the logical date"),
        "target": Param("", type="string", description="The table whose partitions are replaced"),
        "partition_by": Param("", type="string", description="Its partition columns, A,B"),
        "embed_options": Param([], type="array", description="More options of the job"),
        "spark_conf": Param({}, type="object", description="Spark settings"),
    },
    **BOTH,
):
    job("embed", f"embed_arguments({VARIABLE})")
