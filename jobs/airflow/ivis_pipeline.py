"""An Airflow DAG: one task a stage, each a spark-submit of a job of this project.

Put this file into the DAGs folder; it needs Airflow 3, or 2.10 and later, and its Spark provider alone. What differs
from place to place stands in the DAG's params, whose defaults come from the Airflow Variable `ivis_spark` (JSON):

    {"input": "s3a://lake/cells", "runs": "s3a://lake/runs/cells", "jobs": "/opt/ivis_spark/jobs",
     "py_files": "/opt/ivis_spark/ivis_spark.zip", "options": ["--id-col", "id"],
     "spark_conf": {"spark.executor.memory": "8g"}}

Every logical date has a run folder of its own below `runs`. Stages skip what they find finished, so a retry, or a task
that is cleared, resumes where the one before it stopped. When the embeddings stand, the asset is updated, and its event
carries their URI for DAGs that are scheduled on it.
"""

from __future__ import annotations

import datetime
import itertools
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

try:
    from airflow.sdk import DAG, Asset, Param
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.datasets import Dataset as Asset
    from airflow.models.param import Param

STAGES = ("neighbours", "triplets", "train", "embed", "evaluate")
EMBEDDINGS = Asset("x-ivis-spark://embeddings")
DEFAULTS: dict[str, Any] = {
    "input": "",
    "runs": "",
    "jobs": "/opt/ivis_spark/jobs",
    "py_files": "",
    "options": [],
    "spark_conf": {},
}


def setting(name: str, params: dict[str, Any], variable: dict[str, Any]) -> Any:
    """Return a param that was given for this run, else the Variable's, else the default."""
    given = params.get(name)
    return given if given not in (None, "", [], {}) else variable.get(name, DEFAULTS[name])


def run_folder(params: dict[str, Any], variable: dict[str, Any], dag_run: Any) -> str:
    """Return the folder of a logical date; runs started by hand may have none, and then the time counts."""
    date = dag_run.logical_date or dag_run.run_after
    return f"{setting('runs', params, variable).rstrip('/')}/{date:%Y-%m-%dT%H%M%S}"


def arguments(stage: str, params: dict[str, Any], variable: dict[str, Any], dag_run: Any) -> list[str]:
    """Return the command line of a stage's job."""
    found = ["--output", run_folder(params, variable, dag_run), "--run-id", dag_run.run_id, "--log-format", "json"]
    if stage == STAGES[0]:
        # The lists of the rows that are trained on are enough here, as in `ivis-spark run`.
        found += ["--input", setting("input", params, variable), "--set", "neighbours.query_rows=anchors"]
    return found + [str(option) for option in setting("options", params, variable)]


def tell_where(context: Any, result: Any = None) -> None:
    """Write into the asset's event the manifest of this run's embeddings, whose `folder` holds the table `data`."""
    variable = context["var"]["json"].get("ivis_spark", {})
    folder = run_folder(context["params"], variable, context["dag_run"])
    context["outlet_events"][EMBEDDINGS].extra = {"uri": f"{folder}/embeddings/manifest.json"}


def from_settings(name: str) -> str:
    """Return the template of a setting."""
    return f"{{{{ setting('{name}', params, var.json.get('ivis_spark', {{}})) }}}}"


with DAG(
    dag_id="ivis_pipeline",
    description="Embed a table: neighbours, triplets, training, embeddings, report",
    schedule=None,
    start_date=datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    max_active_runs=1,  # runs of a date have folders of their own; one at a time spares the cluster
    render_template_as_native_obj=True,  # arguments() returns a list
    user_defined_macros={"setting": setting, "arguments": arguments},
    default_args={
        "retries": 2,
        # Longer than the time after which the lock of a dead run on another machine is taken over.
        "retry_delay": datetime.timedelta(minutes=3),
    },
    params={
        "input": Param("", type="string", description="The table; empty: the Variable's"),
        "runs": Param("", type="string", description="Folder of the run folders; empty: the Variable's"),
        "options": Param([], type="array", description="More options of the jobs, like --set train.epochs=20"),
        "spark_conf": Param({}, type="object", description="Spark settings of all stages"),
    },
    tags=["ivis_spark"],
) as dag:
    tasks = [
        SparkSubmitOperator(
            task_id=stage,
            application=f"{from_settings('jobs')}/{stage}.py",
            application_args=f"{{{{ arguments('{stage}', params, var.json.get('ivis_spark', {{}}), dag_run) }}}}",
            py_files=from_settings("py_files"),
            conf=from_settings("spark_conf"),
            name=f"ivis-spark-{stage}",
            outlets=[EMBEDDINGS] if stage == "embed" else [],
            post_execute=tell_where if stage == "embed" else None,
        )
        for stage in STAGES
    ]
    for before, after in itertools.pairwise(tasks):
        before >> after
