"""What a rank of Horovod is told, and a Horovod that does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ivis_spark.config import TrainConfig
from ivis_spark.errors import DependencyError
from ivis_spark.train.backends import horovod as backend


def test_ranks_know_their_place_among_hosts() -> None:
    """Two ranks on a, one on b: b's rank has no partner of local rank 1."""
    hosts = ["localhost", "127.0.0.1", "localhost"]
    found = [backend.ring_environment(rank, hosts, 99, stall_timeout_seconds=60) for rank in range(3)]
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    assert [[each[f"HOROVOD_{name}"] for name in names] for each in found] == [
        ["0", "3", "0", "2", "0", "2"],
        ["1", "3", "0", "1", "1", "2"],
        ["2", "3", "1", "2", "0", "1"],
    ]
    assert {each["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for each in found} == {"127.0.0.1"}
    assert found[0]["HOROVOD_GLOO_IFACE"] == "lo" and found[0]["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == "60"
    chosen = backend.ring_environment(0, hosts, 9, stall_timeout_seconds=60, environ={"HOROVOD_GLOO_IFACE": "ib0"})
    assert chosen["HOROVOD_GLOO_IFACE"] == "ib0"


@pytest.mark.tf
def test_a_horovod_of_another_tensorflow_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "horovod" / "tensorflow").mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").touch()
    (tmp_path / "horovod" / "tensorflow" / "__init__.py").write_text(
        "raise ImportError('HorovodVersionMismatchError: built with 2.15')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DependencyError, match=r"TensorFlow 2\.\d+.*built with 2.15.*HOROVOD_WITH_GLOO"):
        backend.Ranks(TrainConfig())
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.split(".")[0] == "horovod"]:
        del sys.modules[name]
