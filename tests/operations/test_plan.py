"""Plans: formulas against numbers worked out by hand, limits that are passed, rates taken from a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.config import NETWORK_UNITS, Config, NeighboursConfig, load_config
from ivis_spark.core.knn.sizes import MOST_COPIES, build_sizes
from ivis_spark.errors import ConfigError
from ivis_spark.operations.measured import measure, plan_of_run, run_manifests
from ivis_spark.operations.plan import make_plan
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.storage import RunFolder

CLUSTER = Cluster(10, 8, 32 * 2**30)


def plan(
    rows: float, dims: int, *settings: str, cluster: Cluster = CLUSTER, replicas: float = 2.0
) -> dict[str, Estimate]:
    config = load_config(None, ["data.id_col=id", "triplets.anchors=all", "neighbours.query_rows=all", *settings])
    seen = {"neighbours": {"replicas": replicas}, "model": {"epochs": 10}}
    stages = make_plan(rows, dims, config, cluster, seen=seen)
    return {stage.stage: stage for stage in stages}


def test_by_hand() -> None:
    """12 million rows of 10 features: 40-byte vectors; regions of 20 sqrt(rows), 15 neighbours, 4 draws."""
    stages = plan(12e6, 10)
    assert stages["rows"].storage_bytes == 12e6 * (40 + 16)
    assert stages["rows"].shuffle_bytes == 12e6 * 5
    assert "167 regions" in stages["neighbours"].formula
    assert stages["neighbours"].shuffle_bytes == 2 * 12e6 * (40 + 9)
    assert stages["neighbours"].storage_bytes == 12e6 * (2 * 48 + 12 * 15)
    assert stages["triplets"].tasks == 64
    assert stages["triplets"].storage_bytes == (12e6 + 64 * 512) * 5 * 40
    assert stages["embeddings"].storage_bytes == 12e6 * (8 + 8)
    assert not any(stage.advice for stage in stages.values() if stage.stage != "model")


def test_tasks_fill_whole_rounds() -> None:
    sizes = [build_sizes(rows, 100, NeighboursConfig(), copies=2.0, slots=8) for rows in (1e6, 6e6, 5e7)]
    assert [size.tasks for size in sizes] == [min(16, sizes[0].regions), 24, 160]


def test_derived_ids_are_shuffled() -> None:
    assert plan(1e6, 10, "data.id_col=none")["rows"].shuffle_bytes == 64e6


def test_work_grows_as_it_should() -> None:
    small, large = plan(2e8, 32), plan(8e8, 32)
    for name in ("rows", "neighbours", "triplets", "model", "embeddings", "report"):
        assert large[name].core_seconds == pytest.approx(4 * small[name].core_seconds, rel=1e-3)
    assert large["report"].task_bytes == small["report"].task_bytes


def test_training_grows_with_anchors() -> None:
    """Triplets and training of 2 million of 400 million rows cost what those of 2 million rows do."""
    few, all_of_few = plan(4e8, 32, "triplets.anchors=2000000", "neighbours.query_rows=auto"), plan(2e6, 32)
    assert few["model"].core_seconds == all_of_few["model"].core_seconds
    assert few["triplets"].storage_bytes == all_of_few["triplets"].storage_bytes
    assert few["neighbours"].core_seconds < plan(4e8, 32)["neighbours"].core_seconds


def test_twice_the_cluster_takes_half_the_time() -> None:
    one, two = plan(1e9, 32), plan(1e9, 32, cluster=Cluster(20, 8, 32 * 2**30))
    assert one["neighbours"].seconds / two["neighbours"].seconds == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "cluster", "stage", "text"),
    [
        ([], Cluster(10, 8, 2**30), "neighbours", "a task needs"),
        (
            ["triplets.anchors=50000", "train.num_ranks=64"],
            CLUSTER,
            "triplets",
            "too few row groups for the ranks: lower triplets.block_rows",
        ),
        (["train.model=hinton"], CLUSTER, "model", "h of training: raise train.num_ranks"),
        ([], CLUSTER, "model", "79 of 80 cores are idle for "),
        (["triplets.block_rows=65536"], Cluster(1, 16, 2**30), "triplets", "a task needs"),
        (["train.num_ranks=128"], CLUSTER, "model", "the cluster has 80 cores: training will not start"),
        ([], Cluster(10, 8, 32 * 2**30, 10 * 2**30), "neighbours", "of an executor's disk, which has 10.0: larger"),
        (["train.model=hinton"], Cluster(1, 1, 2**28), "model", "lower triplets.block_rows or triplets.group_blocks"),
    ],
)
def test_limits_say_what_to_change(settings: list[str], cluster: Cluster, stage: str, text: str) -> None:
    assert text in " ".join(plan(1e9, 100, *settings, cluster=cluster)[stage].advice)


def test_advice_works() -> None:
    stages = plan(1e9, 100)
    assert not stages["neighbours"].advice and not stages["triplets"].advice


def test_limits_are_those_of_the_work_as_measured() -> None:
    config = load_config(None, ["data.id_col=id", "train.epochs=20", "triplets.anchors=all"])
    for factor, advised in ((0.01, False), (1.0, True)):
        model = make_plan(1e9, 100, config, CLUSTER, factors={"model": factor})[3]
        assert any("h of training" in text for text in model.advice) is advised


def test_disk_of_another_form() -> None:
    assert Cluster.parse("2x2", "8g", "500g").disk == 500 * 2**30
    with pytest.raises(ConfigError, match="--executor-disk '500'"):
        Cluster.parse("2x2", "8g", "500")


@pytest.mark.parametrize(
    ("executors", "memory", "fault"),
    [
        ("50", "8g", "--executors '50' must be executors x cores of each, like 50x16"),
        ("4x", "8g", "--executors '4x' must"),
        ("0x2", "8g", "--executors '0x2' must"),
        ("4x2", "8", "--executor-memory '8' must be a number above 0 with m, g or t, like 64g"),
        ("4x2", "g", "--executor-memory 'g' must"),
        ("4x2", "0g", "--executor-memory '0g' must"),
    ],
)
def test_only_the_wrong_option_is_named(executors: str, memory: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^{fault}"):
        Cluster.parse(executors, memory)


def test_rows_and_dims() -> None:
    with pytest.raises(ConfigError, match=r"rows at least neighbours\.k \+ 2 = 17"):
        plan(16, 3)
    with pytest.raises(ConfigError, match="dims must be at least 1"):
        plan(100, 0)


@pytest.mark.tf
@pytest.mark.parametrize("name", NETWORK_UNITS)
def test_networks_are_as_built(name: str) -> None:
    from ivis_spark.nn.networks import build_encoder

    encoder = build_encoder(name, (7,), 2, seed=0)
    widths = [layer.units for layer in encoder.layers if hasattr(layer, "units")]
    assert tuple(widths[:-1]) == NETWORK_UNITS[name]


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """Manifests of a run of 2 million rows whose growing work took 8 times as long as planned."""
    return write_run(tmp_path, 2_000_000, 8.0)


def write_run(folder: Path, rows: int, factor: float, *settings: str) -> str:
    """Write the manifests of a run whose growing work took so many times what was planned on two cores."""
    config, run = load_config(None, settings), RunFolder(str(folder / "out"))
    stages = make_plan(rows, 20, config, Cluster(1, 2, 64e9), seen={"neighbours": {"replicas": 3.0}})
    sections = {"rows": "data", "neighbours": "neighbours", "triplets": "triplets", "model": "train"}
    for stage in stages:
        name = sections.get(stage.stage)
        spec = {"config": {name: config.to_mapping()[name]} if name else {}, "inputs": {}}
        with run.build(stage.stage, spec) as build:
            build.info.update(rows=rows, dims=20, replicas=3.0)
        manifest = folder / "out" / stage.stage / "manifest.json"
        content = json.loads(manifest.read_text())
        content["info"]["seconds"] = stage.fixed_seconds + factor * stage.core_seconds / stage.slots
        storage.write_json(str(manifest), content)
    return str(folder / "out")


def test_rates_of_a_run(measured: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is fixed is not carried over, and a stage whose growing part is small beside it keeps its built-in rate."""
    factors, seen = measure(measured, 2)
    assert seen["neighbours"]["replicas"] == 3.0 and set(seen) == set(factors)
    assert factors == {name: pytest.approx(8.0) for name in ("neighbours", "triplets", "model", "embeddings")}
    options = ["plan", "--rows", "1e8", "--dims", "20", "--executors", "2x2", "--json"]
    assert main([*options, "--measured", measured, "--measured-cores", "2"]) == 0
    scaled = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)}
    plain = {stage.stage: stage for stage in make_plan(1e8, 20, Config(), Cluster(2, 2, 8 * 2**30), seen=seen)}
    assert scaled["neighbours"]["core_seconds"] == pytest.approx(8 * plain["neighbours"].core_seconds)
    assert scaled["neighbours"]["fixed_seconds"] == plain["neighbours"].fixed_seconds
    assert scaled["report"]["core_seconds"] == plain["report"].core_seconds
    assert main([*options[:-1], "--measured", measured, "--measured-cores", "2"]) == 0
    text = capsys.readouterr().out
    assert "scaled by the finished run: neighbours 8.00, triplets 8.00" in text
    assert "built-in, because the run tells no rate of them: rows, report" in text
    assert main([*options, "--measured", measured]) == 2
    assert "--measured and --measured-cores must be passed together" in capsys.readouterr().err


def test_a_run_that_is_too_small_tells_no_rate(tmp_path: Path) -> None:
    """Eight times as long as planned, and still less than what starting takes."""
    with pytest.raises(ConfigError, match="its 5,000 rows are too few: fixed costs dominate"):
        measure(write_run(tmp_path, 5_000, 8.0, "train.epochs=1"), 2)
    factors, seen = measure(write_run(tmp_path / "trained", 5_000, 8.0), 2)
    assert set(factors) == set(seen) == {"model"}  # nor what else it says of the neighbours of more rows


def test_one_region_tells_no_copies(tmp_path: Path) -> None:
    root = write_run(tmp_path, 2_000_000, 8.0)
    manifest = Path(root) / "neighbours" / "manifest.json"
    content = json.loads(manifest.read_text())
    for regions, known in ((1, False), (8, True)):
        content["info"]["n_regions"] = regions
        storage.write_json(str(manifest), content)
        assert ("replicas" in measure(root, 2)[1]["neighbours"]) is known


def test_a_plan_of_a_run_takes_its_settings(measured: str) -> None:
    stages = {stage.stage: stage for stage in plan_of_run(run_manifests(measured), 2)}
    assert "3 copies" in stages["neighbours"].formula and stages["triplets"].tasks == 65


@pytest.mark.parametrize("facts", [{"by": "label"}, {"backend": "given"}])
def test_neighbours_that_were_not_searched_tell_no_rate(tmp_path: Path, facts: dict[str, str]) -> None:
    root = write_run(tmp_path, 2_000_000, 8.0)
    path = tmp_path / "out" / "neighbours" / "manifest.json"
    content = json.loads(path.read_text())
    storage.write_json(str(path), {**content, "info": {**content["info"], **facts}})
    assert set(measure(root, 2)[0]) == {"triplets", "model", "embeddings"}


@pytest.mark.parametrize(("anchors", "lists"), [({}, "10,000,000"), ({"anchors": 5_000_000}, "5,000,000")])
def test_a_plan_of_a_run_has_the_lists_that_the_run_made(tmp_path: Path, anchors: dict[str, int], lists: str) -> None:
    """Those of all rows, if the stage was run by itself, or of the anchors."""
    manifests = run_manifests(write_run(tmp_path, 10_000_000, 1.0))
    held = dataclasses.replace(manifests["neighbours"], info={**manifests["neighbours"].info, **anchors})
    stages = plan_of_run({**manifests, "neighbours": held}, 2)
    assert f"A = {lists} lists" in stages[1].formula


def test_stages_after_the_rows_are_planned_for_components(measured: str) -> None:
    wide, narrow = (plan(1e6, 784, f"data.components={count}") for count in ("none", "50"))
    assert narrow["rows"].storage_bytes == wide["rows"].storage_bytes
    for stage in ("neighbours", "triplets", "model"):
        assert narrow[stage].core_seconds < wide[stage].core_seconds
    # The run of an older version had none, whatever is the default now
    manifests = run_manifests(measured)
    info = {**manifests["rows"].info, "dims": 784}
    found = plan_of_run({**manifests, "rows": dataclasses.replace(manifests["rows"], info=info)}, 2)
    info |= {"dims": 50, "n_features": 784, "components": {"count": 50}}
    projected = plan_of_run({**manifests, "rows": dataclasses.replace(manifests["rows"], info=info)}, 2)
    sizes = [{stage.stage: stage.storage_bytes for stage in stages} for stages in (found, projected)]
    assert sizes[0]["rows"] == sizes[1]["rows"] and sizes[0]["triplets"] > 10 * sizes[1]["triplets"]


@pytest.mark.parametrize("anchors", ["auto", "all"])
@pytest.mark.parametrize("components", ["auto", "none"])
@pytest.mark.parametrize(("rows", "dims"), [(1e9, 128), (1e8, 784), (3e9, 64)])
def test_no_task_and_no_driver_grows_with_the_table(rows: float, dims: int, components: str, anchors: str) -> None:
    """By the constants of the code; and no more files or tasks than storage and Spark's driver take."""
    settings = (f"triplets.anchors={anchors}", f"data.components={components}")
    for stage in plan(rows, dims, *settings, replicas=MOST_COPIES).values():
        assert stage.task_bytes < 2.75 * 2**30, stage.stage
        assert stage.driver_bytes < 2**30, stage.stage
        assert stage.tasks < 20_000, stage.stage


def test_cores_are_held_while_one_trains() -> None:
    """The hours that all cores are held, and which stage lets them idle."""
    stages = plan(1e8, 32, "train.epochs=10")
    assert stages["model"].seconds == pytest.approx(stages["model"].fixed_seconds + stages["model"].core_seconds)
    idle = 79 * stages["model"].seconds / 3600
    assert any(f"{idle:,.0f} of " in text for text in stages["model"].advice)
    busy = plan(1e8, 32, "train.epochs=10", "train.num_ranks=80", "train.batch_size=8000")
    assert not any("idle" in text for text in busy["model"].advice)


def test_the_page_says_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "embed.md").read_text()
    assert main(["plan", "--rows", "1e9", "--dims", "128"]) == 0
    text = capsys.readouterr().out
    [hours] = [float(line.split()[-3]) for line in text.splitlines() if line.startswith("embeddings ")]
    assert f"about {hours:.1f} for 1e9 rows x 128." in page
    assert "not compared with what it has: pass --executor-disk" in text
    assert main(["plan", "--rows", "1e9", "--dims", "128", "--executor-disk", "9t"]) == 0
    assert "not compared" not in capsys.readouterr().out


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "1e9", "--dims", "128", "--executors", "50x16", "--executor-memory", "64g"]) == 0
    text = capsys.readouterr().out
    for part in (
        "5,549 regions",
        "core-hours",
        "shuffles c N (4 d + 9)",
        "fixed s",
        "held",
        "memory of the driver: ",
        "799 of 800 cores are idle",
    ):
        assert part in text
