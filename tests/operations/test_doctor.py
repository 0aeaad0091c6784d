"""The doctor finds real faults: packages out of range or broken, storage that cannot be written, no Java."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_store import s3_bucket

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.errors import DependencyError, InputError
from ivis_spark.operations.doctor import Check, check_all, check_machine, check_spark, check_storage, show
from ivis_spark.storage import RunFolder

HERE = Path(__file__).parent.parent.parent


def checks_with(folder: Path) -> dict[str, dict[str, str]]:
    """Run the machine's checks in a process that finds the packages of `folder` first."""
    program = (
        "import dataclasses, json; from ivis_spark.operations.doctor import check_machine\n"
        "print('RESULT', json.dumps([dataclasses.asdict(c) for c in check_machine()]))"
    )
    environment = {"PYTHONPATH": f"{folder}:{HERE}", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return {check["name"]: check for check in json.loads(line.removeprefix("RESULT "))}


@pytest.mark.tf
@pytest.mark.slow
def test_this_machine_and_a_broken_one(tmp_path: Path) -> None:
    """This one as the tests' own process sees it, the broken one from a process of its own."""
    here = {check.name: check for check in check_machine()}
    assert {name for name, check in here.items() if check.state == "fail"} == set()
    assert "reads Parquet" in here["reader"].found and "several ranks train by" in here["ring"].found
    for name in ("petastorm", "horovod"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text("raise ImportError('cannot load lib.so')\n")
    metadata = tmp_path / "broken" / "pyarrow-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 99.0\n")
    found = checks_with(tmp_path / "broken")
    for name in ("reader", "ring"):
        assert found[name]["state"] == "warn" and "cannot load lib.so" in found[name]["found"]
    assert "pyarrow reads Parquet" in found["reader"]["found"]
    assert "train.backend=tensorflow" in found["ring"]["remedy"]
    assert found["packages"]["state"] == "fail" and "pyarrow 99.0 is not <15,>=14" in found["packages"]["found"]


def test_storage(tmp_path: Path) -> None:
    assert check_storage(str(tmp_path / "out")).state == "ok"
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    check = check_storage(str(tmp_path / "file" / "out"))
    assert check.state == "fail" and "NotADirectoryError" in check.found and "this user can create" in check.remedy
    check = check_storage("s4://bucket/out")
    assert check.state == "fail" and "s4://bucket/out" in check.found and "pip install s3fs" in check.remedy


def test_storage_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with s3fs: an object store has keys and no folders, and a folder that is moved is a key that is not there."""

    def files_only(self: MemoryFileSystem, old: str, new: str, **_: object) -> None:
        self.info(old)
        if self.isdir(old):
            raise FileNotFoundError("The specified key does not exist.")
        self.cp_file(old, new)
        self.rm_file(old)

    monkeypatch.setattr(MemoryFileSystem, "mv", files_only)
    assert check_storage("memory://doctored/out").state == "ok"
    storage.write_json("memory://doctored/raw/a/b.json", 1)
    storage.move_folder("memory://doctored/raw", "memory://doctored/data")
    assert storage.list_files("memory://doctored") == [("data/a/b.json", 1)]


def test_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        assert check_storage(f"{bucket}/out").state == "ok"
        assert storage.children(*storage.filesystem(bucket)) == []
        check = check_storage("s3a://nobucket/out")
        assert check.state == "fail" and "there is no 'nobucket'" in check.found
        monkeypatch.setattr("ivis_spark.storage.read_json", mock.Mock(side_effect=PermissionError("Forbidden")))
        check = check_storage(f"{bucket}/out")
        assert check.state == "fail" and "its credentials" in check.remedy and "pip install" not in check.remedy
        assert storage.children(*storage.filesystem(bucket)) == []


@pytest.mark.parametrize("new", [True, False])
def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    def broken(*_: object) -> None:
        raise OSError("broken")

    root = tmp_path / "runs" / "x"
    if not new:
        root.mkdir(parents=True)
    monkeypatch.setattr("ivis_spark.operations.doctor.check_machine", list)
    monkeypatch.setattr("ivis_spark.storage.read_json", broken)
    states = {check.name: check.state for check in check_all(broken, str(root))}
    assert states == {"storage": "fail", "spark": "fail"}
    assert list(tmp_path.rglob("*")) == ([] if new else [tmp_path / "runs", root])


def test_what_a_killed_doctor_leaves_keeps_no_run_out(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / ".doctor-host-1" / "old" / "a.json"), 1)
    RunFolder(str(tmp_path)).check()
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="it holds mine"):
        RunFolder(str(tmp_path)).check()


@pytest.mark.parametrize(
    ("root", "remedy"),
    [
        ("s3a://bucket/out", "spark.jars.packages=org.apache.hadoop:hadoop-aws:3.3.4 (with spark-submit: --packages "),
        ("s3://bucket/out", "Write s3a://"),
    ],
)
def test_spark_without_the_class_of_a_filesystem(root: str, remedy: str) -> None:
    spark = mock.MagicMock()
    hadoop = spark._jvm.org.apache.hadoop
    hadoop.util.VersionInfo.getVersion.return_value = "3.3.4"
    hadoop.fs.Path.return_value.getFileSystem.side_effect = RuntimeError(
        "ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found"
    )
    spark.sparkContext.master = "local[2]"
    check = check_spark(lambda: spark, root)[-1]
    assert (check.name, check.state) == ("spark storage", "fail")
    assert check.found.startswith(f"{root}: ") and "S3AFileSystem not found" in check.found and remedy in check.remedy
    hadoop.fs.Path.return_value.getFileSystem.side_effect = None
    assert check_spark(lambda: spark, root)[-1].state == "ok"


@pytest.mark.parametrize("error", [DependencyError("PySpark 3.5.9 needs Java 17; found: none"), Exception("Java 17")])
def test_no_session(error: Exception) -> None:
    def no_java() -> None:
        raise error

    (check,) = check_spark(no_java, None)
    assert check.state == "fail" and "Java 17" in check.found and "JAVA_HOME" in check.remedy


def test_no_python_worker() -> None:
    """The session is there, but its workers are not: a stand-in, since a session has its Python for life."""

    class Session:
        version, sparkContext, conf = "3.5", property(lambda self: self), {}
        master = "local[2]"

        def parallelize(self, *_: object) -> None:
            raise RuntimeError(
                "Job aborted\n\tat a.B.c(B.java:1)\nCaused by: java.io.IOException: Cannot run program "
                '"/nowhere/python"\n\tat a.B.c(B.java:1)\n'
            )

    _, check = check_spark(Session, None)
    assert (check.name, check.state) == ("python workers", "fail")
    assert check.found == 'IOException: Cannot run program "/nowhere/python"'
    assert "PYSPARK_PYTHON" in check.remedy and sys.executable in check.remedy


def test_whatever_breaks_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr("importlib.metadata.requires", broken)
    monkeypatch.setattr("ivis_spark.operations.doctor.wrong_core", broken)
    monkeypatch.setattr("shutil.disk_usage", broken)
    monkeypatch.setattr("os.sysconf", broken)
    monkeypatch.setattr("importlib.import_module", broken)
    checks = {check.name: check for check in check_machine()}
    assert {name for name, check in checks.items() if "broken" in check.found} == {*checks} - {"python"}
    assert all(check.remedy for name, check in checks.items() if name != "python")


def test_show() -> None:
    lines = show([Check("a", "ok", "fine", "never shown"), Check("b", "fail", "broken", "mend it")])
    assert lines == "ok    a: fine\nfail  b: broken\n      to fix: mend it"


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.usefixtures("spark")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--output", str(tmp_path / "out"), "--json"]) == 0
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert states["spark"] == states["python workers"] == states["storage"] == states["packages"] == "ok"
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--output", str(tmp_path / "file" / "out")]) == 1
