"""Which backend is chosen, and what a rank's process is told of its devices."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import ivis_spark
from ivis_spark.config import TrainConfig
from ivis_spark.config.checks import module_names
from ivis_spark.errors import ConfigError, DependencyError
from ivis_spark.train import backends
from ivis_spark.train.backends import load_backend, name_of, resolve_backend
from ivis_spark.train.rank import rank_environment

BACKENDS = "ivis_spark.train.backends"


def chosen(**settings) -> str:
    return resolve_backend(TrainConfig(**settings)).__module__.rpartition(".")[2]


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    hidden = {"horovod", "tensorflow"} - set(names)

    def found(name: str, package: str | None = None) -> object:
        return None if name in hidden else object() if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "horovod", "tensorflow")
    assert (chosen(), chosen(num_ranks=2), chosen(num_ranks=2, backend="tensorflow")) == (
        "local", "horovod", "tensorflow",
    )  # fmt: skip
    install(monkeypatch, "tensorflow")
    assert (chosen(), chosen(num_ranks=2)) == ("local", "tensorflow")
    with pytest.raises(DependencyError, match=r"Horovod is not installed.*HOROVOD_WITH_GLOO.*backend=tensorflow"):
        chosen(num_ranks=2, backend="horovod")
    monkeypatch.undo()
    install(monkeypatch)
    assert chosen() == "local"
    with pytest.raises(DependencyError, match=r"train.num_ranks=2: several ranks cannot .*pip install 'ivis_spark"):
        chosen(num_ranks=2)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.num_ranks=2 needs a train.backend for several ranks.*local runs one"):
        chosen(backend="local", num_ranks=2)
    with pytest.raises(ConfigError, match=r"batch_size=128 .*num_ranks=3: pass 129"):
        TrainConfig(num_ranks=3)
    with pytest.raises(ConfigError, match=r"backend='horovodd' is not one of: auto, horovod, local, tensorflow"):
        TrainConfig(backend="horovodd")
    with pytest.raises(ConfigError, match=r"train.backend='no.such:Ranks' cannot be imported"):
        chosen(backend="no.such:Ranks")
    with pytest.raises(ConfigError, match=r"train.backend='os:getcwd' must be a subclass of .*backends.Backend"):
        chosen(backend="os:getcwd")


def test_a_third_backend_is_one_file(tmp_path: Path) -> None:
    """A file in the folder joins the settings, their help and the choice of `auto`."""
    (tmp_path / "mine.py").write_text(
        "from ivis_spark.train.backends import Backend\nclass Ranks(Backend):\n    preference = 9\n"
    )
    backends.__path__.append(str(tmp_path))
    try:
        assert chosen(num_ranks=2) == chosen(num_ranks=2, backend="mine") == "mine"
        kind = resolve_backend(TrainConfig(backend="mine"))
        assert load_backend(name_of(kind)) is kind and "mine" in module_names(BACKENDS)
    finally:
        backends.__path__.remove(str(tmp_path))


def test_only_its_own_file_names_a_backend() -> None:
    package = Path(ivis_spark.__file__).parent
    for file in (
        "config/sections.py",
        "config/training.py",
        "train/rank.py",
        "train/job.py",
        "train/loop.py",
        "spark/training.py",
    ):
        text = (package / file).read_text()
        assert not re.search(r"horovod|hvd|gloo|petastorm|TF_CONFIG", text, re.IGNORECASE), file


def test_a_rank_keeps_to_its_gpu_or_to_the_cpu() -> None:
    assert rank_environment(0, [], 3)["CUDA_VISIBLE_DEVICES"] == "-1"
    environment = rank_environment(1, ["2", "5"], 3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2" and environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert environment["OMP_NUM_THREADS"] == environment["TF_NUM_INTRAOP_THREADS"] == "3"
