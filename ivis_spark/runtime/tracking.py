"""MLflow tracking of a run: its settings, each stage's figures, the loss of every epoch, and the report.

One MLflow run per run folder: its id is kept in the folder, so that a rerun, or the next Airflow task, resumes it.
Where and how MLflow is reached is MLflow's own affair (`MLFLOW_TRACKING_URI`, Databricks). A package that it needs for
that place, which mlflow-skinny leaves out for many, is checked at the start; a server that does not answer causes a
warning and never fails the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, DependencyError
from ivis_spark.storage import Manifest, RunFolder

log = logging.getLogger(__name__)

_FILE = ".mlflow.json"
_MOST_PARAM_CHARACTERS = 500
# What MLflow needs to reach a store, by the scheme of its URI.
_NEEDS = {
    **dict.fromkeys(("sqlite", "mysql", "mssql", "postgresql"), ("sqlalchemy", "alembic")),
    "s3": ("boto3",),
    "gs": ("google.cloud.storage",),
    **dict.fromkeys(("wasb", "wasbs"), ("azure.storage.blob",)),
    **dict.fromkeys(("abfs", "abfss"), ("azure.storage.filedatalake",)),
    "hdfs": ("pyarrow",),
}
_RETRIES = "2"  # MLflow's own 7 hold a stage up for minutes


class Tracker:
    """Reports published stages to MLflow. Runs on: driver.

    Args:
        folder: The run folder.
        experiment: Name of the experiment; made if it is not there.

    Raises:
        DependencyError: if mlflow, or what it needs to reach the store of the runs or of their files, is not installed.
    """

    def __init__(self, folder: RunFolder, experiment: str) -> None:
        try:
            import mlflow
        except ImportError as err:
            raise DependencyError("tracking needs MLflow: pip install 'ivis_spark[mlflow]'") from err
        self._make_client = mlflow.MlflowClient
        self._client: Any = None
        self._folder, self._experiment = folder, experiment
        self._run_id: str | None = None
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        uri = mlflow.get_tracking_uri()
        if _scheme(uri) in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks; the URI has answered
        _require(uri)
        with _only_warn("this run"):
            current = self._connect().get_experiment_by_name(experiment)
            _require(current.artifact_location if current else "")

    def stage_published(self, manifest: Manifest) -> None:
        """Log a stage, unless this very build of it was logged before."""
        with _only_warn(manifest.stage):
            run_id = self._run()
            tag = f"ivis_spark.{manifest.stage}"
            if self._client.get_run(run_id).data.tags.get(tag) == manifest.created:
                return
            for name, text in _params(manifest.spec.get("config", {})).items():
                self._client.log_param(run_id, name, text)
            for name, value, step in _metrics(manifest):
                self._client.log_metric(run_id, name, value, step=step)
            if manifest.stage == "report":
                with storage.local_copy(self._folder.uri(manifest)) as local:
                    self._client.log_artifacts(run_id, local, "report")
            self._client.set_tag(run_id, tag, manifest.created)

    def ended(self, status: str) -> None:
        """Close the MLflow run as FINISHED, FAILED or KILLED."""
        with _only_warn("the end of the run"):
            self._client.set_terminated(self._run(), status)

    def _run(self) -> str:
        self._connect()
        if self._run_id is None:
            self._run_id = self._kept() or self._new()
        return self._run_id

    def _connect(self) -> Any:
        if self._client is None:
            self._client = self._make_client()
        return self._client

    def _kept(self) -> str | None:
        """Return the run that the folder remembers, open again, if the server still has it."""
        try:
            run_id = str(storage.read_json(self._folder.path(_FILE))["run_id"])
        except (ArtifactError, KeyError, TypeError):
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _new(self) -> str:
        current = self._client.get_experiment_by_name(self._experiment)
        experiment = current.experiment_id if current else self._client.create_experiment(self._experiment)
        name = self._folder.root.rsplit("/", 1)[-1]
        run = self._client.create_run(experiment, run_name=name, tags={"ivis_spark.folder": self._folder.root})
        run_id = str(run.info.run_id)
        storage.write_json(self._folder.path(_FILE), {"experiment": self._experiment, "run_id": run_id})
        return run_id


@contextlib.contextmanager
def _only_warn(what: str) -> Iterator[None]:
    try:
        yield
    except DependencyError:
        raise
    except Exception as err:  # noqa: BLE001 - whatever a tracking server does, the run goes on
        log.warning(
            "%s could not be logged to MLflow: %s", what, str(err).splitlines()[0] if str(err) else type(err).__name__
        )


def _scheme(uri: str) -> str:
    """Return the scheme of a URI without the driver: postgresql of postgresql+psycopg2://..."""
    scheme, colon, _ = uri.partition(":")
    return scheme.partition("+")[0].lower() if colon and len(scheme) > 1 else ""


def _require(uri: str) -> None:
    """Raise DependencyError if a package is missing that MLflow needs to reach `uri`."""
    missing = [name for name in _NEEDS.get(_scheme(uri), ()) if not _is_installed(name)]
    if missing:
        package = "mlflow" if "sqlalchemy" in missing else " ".join(name.replace(".", "-") for name in missing)
        raise DependencyError(
            f"MLflow needs {' and '.join(missing)} for {_scheme(uri)} URIs, which mlflow-skinny does not install: pip "
            f"install {package}; or use a tracking server, MLFLOW_TRACKING_URI=http://..."
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent is missing, or the module is blocked
        return False


def _params(config: dict[str, Any]) -> dict[str, str]:
    flat = {}
    for section, value in config.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{section}.{key}".rstrip("."): str(item)[:_MOST_PARAM_CHARACTERS] for key, item in items})
    return flat


def _metrics(manifest: Manifest) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step): numbers of the manifest, and those of every epoch by its number."""
    for name, value in manifest.info.items():
        if isinstance(value, dict) and _is_number(value.get("value")):  # recall with its interval
            yield f"{manifest.stage}.{name}", float(value["value"]), 0
        elif isinstance(value, list) and value and all(map(_is_number, value)) and manifest.stage == "model":
            for epoch, figure in enumerate(value):
                yield f"{manifest.stage}.{name}", float(figure), epoch
        elif _is_number(value):
            yield f"{manifest.stage}.{name}", float(value), 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
