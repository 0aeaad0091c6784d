"""Settings: files only override, what is unknown or out of range is refused with what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.config import (
    LOSSES,
    PRESETS,
    Config,
    TrainConfig,
    TripletsConfig,
    check_value,
    command_without_secrets,
    describe,
    load_config,
    without_secrets,
)
from ivis_spark.config.checks import RENAMED
from ivis_spark.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "conf" / "example.yaml"


def test_example_file_overrides_and_set_wins() -> None:
    config = load_config(str(EXAMPLE), ["neighbours.k=7"])
    assert (config.neighbours.k, config.neighbours.target_recall, config.data.scaling) == (7, 0.98, "standard")
    assert config.train.batch_size == Config().train.batch_size
    assert Config.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("neighbours.kk=3", r"neighbours has no setting 'kk'; did you mean neighbours\.k\?"),
        ("epochs=3", r"the configuration has no setting 'epochs'; did you mean train\.epochs\?"),
        ("train.k=3", r"did you mean neighbours\.k or query\.k or evaluate\.k\?"),
        ("cls=3", "has no setting 'cls'"),
        ("train.self=3", "train has no setting 'self'"),
        ("query.nothing=3", "query has no setting 'nothing'; valid: k"),
        ("nothing.k=3", "has no setting 'nothing'; valid: data, neighbours"),
        ("train.learning_rate=fast", "must be a number, for example 0.001"),
        ("train.gather_negatives=1", "must be true or false"),
        ("neighbours.k=0", "neighbours.k"),
        ("neighbours.k=abc", "neighbours.k"),
        ("train.distance=cosin", r"is not one of: pn, .*; did you mean cosine\?"),
        ("neighbours.target_recall=1.5", "target_recall"),
        ("neighbours.metric=cosin", r"is not one of: euclidean, .*; did you mean cosine\?"),
        ("triplets.block_rows=70000", "65536"),
        ("train.learning_rate_scaling=linear", "scales a numeric learning rate"),
        ("neighbours", "neighbours"),
    ],
)
def test_wrong_settings_name_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [setting])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    for text in ("- a\n- b\n", "train: [1", "train:\n  epoch: 3\n"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError):
            load_config(str(tmp_path / "x.yaml"), [])
    (tmp_path / "x.yaml").write_text("train:\n  epochs: 3\n  model: maaten\n  epochs: 4\n")
    with pytest.raises(ConfigError, match=r"x\.yaml.*repeated: epochs"):
        load_config(str(tmp_path / "x.yaml"), [])
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(str(tmp_path / "missing.yaml"), [])


def test_settings_that_leave_the_result_alone_are_no_reason_to_train_anew() -> None:
    plain = Config().result_settings("train")
    assert load_config(None, ["train.max_restarts=7", "train.keep_checkpoints=5"]).result_settings("train") == plain
    changed = load_config(None, ["train.num_ranks=2"]).result_settings("train")
    assert [key for key in plain if plain[key] != changed[key]] == ["num_ranks"]
    assert Config(random_state=4).result_settings("random_state") == 4


def test_a_preset_replaces_defaults_and_explicit_settings_replace_both(tmp_path: Path) -> None:
    for name, sections in PRESETS.items():
        config = load_config(None, [f"preset={name}"])
        assert config == Config(preset=name) == Config.from_mapping(config.to_mapping())
        for section, values in sections.items():
            assert {key: getattr(getattr(config, section), key) for key in values} == values
    (tmp_path / "x.yaml").write_text("train:\n  batch_size: 96\npreset: ivis\n")
    config = load_config(str(tmp_path / "x.yaml"), ["neighbours.k=7"])
    assert (config.train.batch_size, config.train.patience, config.neighbours.k) == (96, 20, 7)
    assert config.neighbours.metric == "angular"
    assert load_config(str(tmp_path / "x.yaml"), ["preset=fast"]).train.batch_size == 96
    assert Config() == Config(preset="fast")
    for wrong in ("quick", "[]"):
        with pytest.raises(ConfigError, match=r"preset=.* is not one of: fast, ivis"):
            load_config(None, [f"preset={wrong}"])


def test_sections_given_in_python_leave_the_rest_to_the_preset() -> None:
    assert Config(train=TrainConfig(embedding_dims=3)) == load_config(None, ["train.embedding_dims=3"])
    ours = Config(preset="ivis", train=TrainConfig(patience=7))
    assert ours == load_config(None, ["preset=ivis", "train.patience=7"])
    assert Config(train=TrainConfig(distance="infonce", epochs=1000)).train.epochs == 1000  # a default that was passed
    changed = dataclasses.replace(ours, preset="fast")
    assert changed == load_config(None, ["train.patience=7"])
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert dataclasses.replace(copied, preset="fast") == changed
    assert Config(preset="ivis", train={"patience": 7}) == ours  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train=3 must be a section of settings"):
        Config(train=3)  # type: ignore[arg-type]
    kept = dataclasses.replace(Config().train, epochs=3)
    assert Config(preset="ivis", train=kept).train == kept


@pytest.mark.parametrize("loss", ["pn", "softmax_ratio", "mine:loss"])
def test_the_learning_rate_of_a_preset_is_not_used_with_another_loss(
    caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    config = load_config(None, [f"train.distance={loss}", "train.schedule=cosine"])
    assert (config.train.learning_rate, config.train.schedule) == (0.004, "cosine")
    assert f"train.distance={loss}: " in caplog.text and "so train.learning_rate=0.004 is used" in caplog.text
    caplog.clear()
    dataclasses.replace(config, random_state=1).for_rows(100)
    load_config(None, [f"train.distance={loss}", "train.schedule=cosine", "train.learning_rate=0.01"])
    load_config(None, [f"train.distance={loss}", "preset=ivis"])
    assert not caplog.text


def test_a_removed_name_says_its_new_one() -> None:
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match=f"{old} is now called {new}"):
            load_config(None, [f"{old}=3"])
        for name in new.split(" and "):
            check_value(name, getattr(getattr(Config(), name.split(".")[0]), name.split(".")[1]))
    with pytest.raises(ConfigError, match=r"triplets\.positives_per_anchor"):
        TripletsConfig(draws=3)  # type: ignore[call-arg]


def test_words_that_yaml_takes_for_something_else_are_names_of_columns() -> None:
    for name in ("no", "12", "1e3", "on"):
        assert load_config(None, [f"data.id_col={name}"]).data.id_col == name
        assert load_config(None, [f"data.feature_cols={name}"]).data.feature_cols == (name,)
    assert load_config(None, ["data.id_col=none"]).data.id_col is None
    assert load_config(None, ["data.feature_cols=a, b"]).data.feature_cols == ("a", "b")


def test_cosine_is_a_name_of_angular() -> None:
    assert load_config(None, ["neighbours.metric=cosine"]).neighbours.metric == "angular"


def test_the_help_shows_what_holds() -> None:
    lines = describe().splitlines()
    assert any(line.startswith(f"  train.batch_size = {Config().train.batch_size}: ") for line in lines)
    loss = next(line for line in lines if line.startswith("  train.distance = "))
    assert loss.endswith("One of: " + ", ".join([*LOSSES, "package.module:function."]))
    assert any("cosine is another name of angular. One of: euclidean, angular" in line for line in lines)
    assert any(line.endswith("One of: adam, adamw, sgd.") for line in lines)
    assert "  train.patience = 20" in lines[lines.index("with preset=ivis, unless set:") :]


@pytest.mark.parametrize(
    ("rows", "k", "patience", "model", "epochs"),
    [
        (12, 10, 20, "maaten", 200),
        (1_797, 15, 15, "maaten", 200),
        (70_000, 15, 10, "maaten", 80),
        (700_000, 15, 3, "szubert", 8),
    ],
)
def test_auto_follows_from_the_number_of_rows(rows: int, k: int, patience: int, model: str, epochs: int) -> None:
    """10,800 steps of 512 rows are 79.4 epochs of 70,000."""
    names = ("neighbours.k", "train.patience", "train.model", "train.epochs")
    config = load_config(None, [*[f"{name}=auto" for name in names], "train.batch_size=512"]).for_rows(rows)
    found = (config.neighbours.k, config.train.patience, config.train.model, config.train.epochs)
    assert found == (k, patience, model, epochs)
    assert config.train.backend == config.neighbours.backend == "auto"
    with pytest.raises(ConfigError, match=r"train\.embedding_dims='auto'"):
        load_config(None, ["train.embedding_dims=auto"])


@pytest.mark.parametrize(
    ("rows", "settings", "batch_size"),
    [
        (70_000, [], 512),
        (8_000, ["train.epochs=60"], 512),
        (8_000, ["train.epochs=20"], 128),
        (1_797, ["train.epochs=15"], 64),
        (1_797, ["train.epochs=15", "train.num_ranks=3", "train.batch_size=auto"], 66),
        (8_000, ["train.epochs=60", "train.batch_size=300"], 300),
    ],
)
def test_the_batch_follows_the_rows(rows: int, settings: list[str], batch_size: int) -> None:
    """8,000 rows 60 times are 900 steps of 512, 20 times 620 of 256."""
    assert load_config(None, settings).for_rows(rows).train.batch_size == batch_size


@pytest.mark.parametrize(
    ("rows", "settings", "warmup"),
    [
        (1_000_000, [], 1),
        (70_000, [], 1),
        (8_000, ["train.epochs=60"], 6),
        (8_000, ["train.epochs=2"], 1),
        (150, [], 20),
        (8_000, ["train.warmup_epochs=2"], 2),
        (8_000, ["preset=ivis"], 0),
    ],
)
def test_the_warm_up_is_enough_steps(rows: int, settings: list[str], warmup: int) -> None:
    """8,000 rows are 15 steps of 512 per epoch."""
    assert load_config(None, settings).for_rows(rows).train.warmup_epochs == warmup


def test_the_learning_rate_follows_the_network_and_the_batch() -> None:
    train = Config().for_rows(70_000).train
    assert [round(train.learning_rate_of(width), 6) for width in (64, 128, 512, 2000)] == [0.01, 0.01, 0.005, 0.00253]
    small = load_config(None, ["train.epochs=20"]).for_rows(8_000).train
    assert small.learning_rate_of(128) == 0.005
    assert load_config(None, ["train.learning_rate=0.02"]).for_rows(8_000).train.learning_rate_of(2000) == 0.02


def test_numbers_as_numpy_and_yaml_have_them() -> None:
    config = load_config(None, ["train.learning_rate=1e-3", "train.margin=2E0", "evaluate.sample_rows=1e4"])
    assert (config.train.learning_rate, config.train.margin, config.evaluate.sample_rows) == (0.001, 2.0, 10_000)
    assert isinstance(config.evaluate.sample_rows, int)
    numbers = {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "batch_size": np.float64(64), "margin": 1}
    train = TrainConfig(**numbers)
    assert [type(getattr(train, name)) for name in numbers] == [int, float, int, float]
    assert json.loads(json.dumps(Config(train=train).to_mapping()))["train"]["epochs"] == 3
    refused = (("epochs", np.float64(1.5)), ("epochs", np.True_), ("margin", "1e-3"), ("epochs", np.arange(3)))
    for name, wrong in refused:
        with pytest.raises(ConfigError, match=f"train.{name}=.* number, for example"):
            TrainConfig(**{name: wrong})


@pytest.mark.parametrize(
    ("components", "n_features", "kind", "expected"),
    [
        ("auto", 128, {}, None),
        ("auto", 129, {}, 50),
        ("auto", 51, {"sparse": True}, 50),
        ("auto", 50, {"sparse": True}, None),
        ("auto", 3000, {"images": True}, None),
        ("none", 3000, {}, None),
        (20, 3000, {}, 20),
        (20, 8, {}, 8),
    ],
)
def test_components_follow_the_width(components: object, n_features: int, kind: dict, expected: int | None) -> None:
    data = Config.from_mapping({"data": {"components": components}}).data
    assert data.components_of(n_features, **{"sparse": False, "images": False, **kind}) == expected


def test_components_keep_euclidean_distances_alone() -> None:
    assert Config().data.components is None and Config(preset="ivis").data.components is None
    auto = {"data": {"components": "auto"}}
    assert Config.from_mapping(auto).data.components == "auto"
    assert Config.from_mapping({**auto, "neighbours": {"metric": "manhattan"}}).data.components is None
    for metric in ("angular", "manhattan"):
        with pytest.raises(ConfigError, match=f"data.components=20 .*metric={metric}.*data.components=none"):
            Config.from_mapping({"data": {"components": 20}, "neighbours": {"metric": metric}})


def test_indices_need_values() -> None:
    for data in ({"indices_col": "i"}, {"n_features": 3}):
        with pytest.raises(ConfigError, match="pass that too"):
            Config.from_mapping({"data": data})


def test_texts_that_look_like_dates_are_texts(tmp_path: Path) -> None:
    assert load_config(None, ["data.version=2026-11-27", "data.unlabelled=2026-01-01"]).data.version == "2026-11-27"
    (tmp_path / "run.yaml").write_text("data: {version: 2026-11-27 10:00:00, drop_columns: [2026-01-01]}")
    data = load_config(str(tmp_path / "run.yaml")).data
    assert (data.version, data.drop_columns) == ("2026-11-27 10:00:00", ("2026-01-01",))


def test_a_file_of_settings_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data.id_col: x\n")
    with pytest.raises(ConfigError, match=r"^data\.id_col must stand in its section: data: \{id_col: \.\.\.\}$"):
        load_config(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("data: [\n")
    with pytest.raises(ConfigError, match=r"a\.yaml' is not valid YAML: .* in line 2, column 1: ") as caught:
        load_config(str(tmp_path / "a.yaml"))
    assert "unicode" not in str(caught.value)


def test_options_of_a_table_are_kept_without_secrets() -> None:
    secret = ["dbpass", "password", "sfPassword", "passwd2", "PWD", "keyStorePassword", "accessToken", "AWSSecretKey"]
    secret += [
        "fs.azure.account.key",
        "storageaccountkey",
        "apiKey",
        "dbPass",
        "secret",
        "sas",
        "SASToken",
        "credentials",
        "truststorepass",
        "api_keys",
        "secretvalue",
    ]
    kept = [
        "bypass_cache",
        "compass",
        "passage",
        "tokenizer",
        "secretary",
        "keyspace",
        "partition_key",
        "sep",
        "monkey",
    ]
    assert list(without_secrets(dict.fromkeys(secret + kept, 1))) == kept


def test_a_command_is_shown_without_secrets() -> None:
    for word, shown in {
        "--set=data.options.password=x": "--set=...",
        "data.options={user: me, password: x}": "data.options=...",
        "spark.hadoop.fs.s3a.access.key=x": "spark.hadoop.fs.s3a.access.key=...",
        "s3a://key:x@bucket/day=1": "=...",
        "jdbc:x?password=x": "'jdbc:x?password=...'",
        "runs/tokens": "runs/tokens",
        "data.id_col=token_id": "data.id_col=token_id",
        "s3a://b/tokens/day=1": "s3a://b/tokens/day=1",
        "--input=s3a://b/tokens/day=1": "--input=s3a://b/tokens/day=1",
        "data.options={user: me, dbpass: hunter2}": "data.options=...",
        'data.options={"dbpass":hunter2}': "data.options=...",
        "data.options.passphrase=x": "data.options.passphrase=...",
        "data.options={compass: north}": "'data.options={compass: north}'",
        "data.options={sep: ;}": "'data.options={sep: ;}'",
    }.items():
        assert command_without_secrets([word]) == shown
