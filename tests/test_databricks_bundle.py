"""The asset bundle: the structure that Databricks publishes for bundles, jobs and clusters, and commands that exist."""

from __future__ import annotations

import configparser
import re
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
    "library": {"whl", "pypi", "jar", "maven", "cran", "requirements"},
    "target": {"mode", "default", "workspace", "variables", "run_as"},
}
# Of keys whose values are not any text: what they may be, as the same structure says. A number may be a variable.
NUMBER = re.compile(r"\d+|\$\{var\.\w+\}")
VALUES: dict[str, Any] = {
    "type": {"whl"},
    "mode": {"development", "production"},
    "default": (bool, str, int),
    "max_concurrent_runs": NUMBER,
    "num_workers": NUMBER,
    "max_retries": NUMBER,
    "timeout_seconds": NUMBER,
    "data_security_mode": {
        "NONE",
        "SINGLE_USER",
        "USER_ISOLATION",
        "DATA_SECURITY_MODE_AUTO",
        "DATA_SECURITY_MODE_DEDICATED",
        "DATA_SECURITY_MODE_STANDARD",
    },
    "new_cluster": dict,
    "python_wheel_task": dict,
    "spark_conf": dict,
    "spark_env_vars": dict,
    "autoscale": dict,
    "tasks": list,
    "job_clusters": list,
    "libraries": list,
    "depends_on": list,
    "parameters": list,
    "variables": dict,
}


def check(kind: str, value: dict[str, Any]) -> None:
    assert set(value) <= ALLOWED[kind], f"{kind}: {set(value) - ALLOWED[kind]}"
    for key, item in value.items():
        wanted = VALUES.get(key, str)
        if isinstance(wanted, set):
            assert item in wanted, f"{kind}.{key}: {item!r} is none of {sorted(wanted)}"
        elif isinstance(wanted, re.Pattern):
            assert wanted.fullmatch(str(item)), f"{kind}.{key}: {item!r} is no number"
        else:
            assert isinstance(item, wanted), f"{kind}.{key}: {item!r}"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("library", {"wheel": "dist/a.whl"}),
        ("library", {"whl": ["dist/a.whl"]}),
        ("new_cluster", {"data_security_mode": "SINGLE"}),
        ("new_cluster", {"num_workers": "four"}),
        ("target", {"mode": "dev"}),
        ("task", {"depends_on": "neighbours"}),
    ],
)
def test_wrong_bundles_are_seen(kind: str, value: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(kind, value)


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
        for library in task["libraries"]:
            check("library", library)
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


def test_targets_name_variables_and_files_that_are_there() -> None:
    for target in BUNDLE["targets"].values():
        assert set(target.get("variables", {})) <= set(BUNDLE["variables"])
        given = {name: entry["default"] for name, entry in BUNDLE["variables"].items()} | target.get("variables", {})
        assert (HERE / "conf" / "databricks" / given["requirements"]).is_file()
        assert re.fullmatch(r"\d+\.\d+\.x-cpu-ml-scala2\.1[23]", given["spark_version"])
    assert "15.4" in BUNDLE["targets"]["classic"]["variables"]["spark_version"]


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
