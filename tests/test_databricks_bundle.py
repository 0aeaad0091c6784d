"""The asset bundle: the structure that Databricks publishes for bundles, jobs and clusters, and commands that exist."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml

from ivis_spark.cli import main

HERE = Path(__file__).parent.parent
BUNDLE = yaml.safe_load((HERE / "conf" / "databricks" / "databricks.yml").read_text())

# Keys of the published structure that a bundle of wheel tasks may use: https://docs.databricks.com/dev-tools/bundles
ALLOWED = {
    "bundle": {"name", "databricks_cli_version", "git"},
    "variable": {"description", "default", "lookup", "type"},
    "artifact": {"type", "path", "build", "files"},
    "job": {"name", "max_concurrent_runs", "job_clusters", "tasks", "schedule", "tags", "timeout_seconds"},
    "job_cluster": {"job_cluster_key", "new_cluster"},
    "new_cluster": {
        "spark_version",
        "node_type_id",
        "num_workers",
        "autoscale",
        "data_security_mode",
        "spark_conf",
        "spark_env_vars",
        "driver_node_type_id",
    },
    "task": {
        "task_key",
        "depends_on",
        "job_cluster_key",
        "libraries",
        "python_wheel_task",
        "max_retries",
        "timeout_seconds",
    },
    "python_wheel_task": {"package_name", "entry_point", "parameters", "named_parameters"},
    "target": {"mode", "default", "workspace", "variables", "run_as"},
}


def check(kind: str, value: dict[str, Any]) -> None:
    assert set(value) <= ALLOWED[kind], f"{kind}: {set(value) - ALLOWED[kind]}"


def job() -> dict[str, Any]:
    return BUNDLE["resources"]["jobs"]["ivis_pipeline"]


def test_structure() -> None:
    assert set(BUNDLE) == {"bundle", "variables", "artifacts", "resources", "targets"}
    check("bundle", BUNDLE["bundle"])
    for kind in ("variable", "artifact", "target"):
        for value in BUNDLE[f"{kind}s"].values():
            check(kind, value)
    check("job", job())
    for cluster in job()["job_clusters"]:
        check("job_cluster", cluster)
        check("new_cluster", cluster["new_cluster"])
        assert all(isinstance(value, str) for value in cluster["new_cluster"]["spark_conf"].values())
    for task in job()["tasks"]:
        check("task", task)
        check("python_wheel_task", task["python_wheel_task"])
        assert all(isinstance(item, str) for item in task["python_wheel_task"]["parameters"])


def test_tasks_form_one_chain_on_a_cluster_that_is_there() -> None:
    keys = [task["task_key"] for task in job()["tasks"]]
    clusters = {cluster["job_cluster_key"] for cluster in job()["job_clusters"]}
    for before, task in zip([None, *keys], job()["tasks"], strict=False):
        assert task["job_cluster_key"] in clusters
        assert [need["task_key"] for need in task.get("depends_on", [])] == ([before] if before else [])


def test_variables_are_declared() -> None:
    text = (HERE / "conf" / "databricks" / "databricks.yml").read_text()
    used = {part.split("}")[0] for part in text.split("${var.")[1:]}
    assert used == set(BUNDLE["variables"])


@pytest.mark.parametrize("task", job()["tasks"], ids=lambda task: task["task_key"])
def test_commands_are_real(task: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    wheel = task["python_wheel_task"]
    setup = configparser.ConfigParser()
    setup.read(HERE / "setup.cfg")
    assert wheel["package_name"] == setup["metadata"]["name"]
    assert f"{wheel['entry_point']} = " in setup["options.entry_points"]["console_scripts"]
    command, *options = wheel["parameters"]
    assert command == task["task_key"]
    with pytest.raises(SystemExit) as ended:  # --help ends the parser after every option before it was understood
        main([command, *options, "--help"])
    assert ended.value.code == 0


def test_a_failed_command_fails_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ivis_spark.cli import task
    from ivis_spark.errors import IvisError

    monkeypatch.setattr("sys.argv", ["ivis-spark-task", "verify", str(tmp_path)])
    with pytest.raises(IvisError, match="exit code 2"):
        task()
