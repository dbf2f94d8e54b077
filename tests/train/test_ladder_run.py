"""Ladders that are run: on a tiny manifest with models of a few thousand parameters."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import InlineModel, Training
from lmsplit.train.ladder import Ladder
from lmsplit.train.ladder_run import LadderRun
from lmsplit.train.presets import Preset
from lmsplit.train.record import read_record
from lmsplit.train.runs import read_runs
from tests.train.runs import MODEL, Command, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

LADDER = Ladder((5000, 9000), (1500, 3000), (600, 1200), 3, 2)
DEFAULTS = Preset(0, 0, 0, 0, 350, True, 32, 4, 0.01, 0.01)
SHAPES = {
    5000: (InlineModel(config=MODEL), DEFAULTS),
    9000: (InlineModel(config=MODEL | {"hidden_size": 24, "intermediate_size": 32}), DEFAULTS),
}


def ladder_run(path: Path, ladder: Ladder = LADDER, seen: list[tuple[int, int]] | None = None) -> LadderRun:
    """Open a ladder over a configuration."""
    report = (lambda done, total: None) if seen is None else (lambda done, total: seen.append((done, total)))
    return LadderRun(Campaign.open(load(Training, path, ())), ladder, SHAPES, report)


def test_run_measures_every_point_with_the_tokens_really_trained_on(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    small = Ladder(LADDER.sizes, LADDER.pretraining, LADDER.specialization[:1], 3, 1)
    table = ladder_run(path, small, seen).run()
    assert len(table) == small.num_points == seen[-1][0] == seen[-1][1]
    assert table["loss"].is_finite().all()
    seeds = table.filter(pl.col("specialization_tokens") == 0)
    assert seeds.group_by("num_parameters", "pretraining_tokens").len()["len"].to_list() == [3] * 4
    for wanted, found in zip(LADDER.pretraining, sorted(set(seeds["pretraining_tokens"])), strict=True):
        assert abs(found - wanted) <= 128  # a step
    output = path.parent / "out"
    for segment in (output / "segments").iterdir():
        facts = json.loads((segment / "segment.json").read_text())
        assert facts["tokens"] > 0
    runs = read_runs([str(output)])
    assert runs.domains == ("d00000", "d00001", "d00002")
    assert set(runs.tokens) == set(runs.domains)
    assert set(runs.models) == {int(each) for each in runs.points.num_parameters_R}
    assert runs.configuration == output / "config.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, licensed_manifest: Path) -> Path:
    """A configuration over whose output a whole ladder was run. Copy it before you change it."""
    path = write_configuration(tmp_path_factory.mktemp("ladder"), licensed_manifest)
    ladder_run(path).run()
    return path


@pytest.mark.slow
def test_run_goes_on_where_it_was_cut_off(path: Path, finished: Path) -> None:
    output = path.parent / "out"
    shutil.copytree(finished.parent / "out", output)
    whole = (output / "runs.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (output / "runs.jsonl").write_bytes(b"".join(lines[:4]))
    segments = sorted((output / "segments").iterdir(), key=lambda each: each.stat().st_mtime_ns)
    kept = {each.name: (each / "model.safetensors").stat().st_mtime_ns for each in segments[: len(segments) // 2]}
    for each in segments[len(segments) // 2 :]:
        shutil.rmtree(each)
    ladder_run(path).run()
    assert (output / "runs.jsonl").read_bytes() == whole
    assert all((output / "segments" / name / "model.safetensors").stat().st_mtime_ns == time for name, time in kept.items())


@pytest.mark.slow
def test_plan_of_a_ladder_is_a_configuration_that_trains(path: Path, finished: Path, lmsplit: Command) -> None:
    directory = finished.parent / "out"
    size = read_runs([str(directory)]).points.num_parameters_R.max()
    options = ("--num-parameters", str(size), "-o", str(path.parent / "plan"), "--json")
    planned = lmsplit("plan", str(directory), "--budget", str(6 * size * 6000), *options)
    assert planned.code == 0, planned.err
    found = json.loads(planned.out)
    configuration = load(Training, found["configuration"], (f"output={path.parent / 'planned'}",))
    assert configuration.seed_model.learning_rate == 0.01
    assert configuration.seed_model.sft["lr_scheduler_type"] == "warmup_stable_decay"
    assert configuration.sft["max_length"] == 32
    assert configuration.model == SHAPES[9000][0]
    trained = lmsplit("train", found["configuration"], "--seed-model", "--set", f"output={path.parent / 'planned'}")
    assert trained.code == 0, trained.err
    record = read_record(path.parent / "planned" / "seed")
    assert abs(record.pretraining_tokens - configuration.seed_model.tokens) < 256


def test_run_refuses_the_directory_of_another_ladder(path: Path) -> None:
    ladder_run(path)._describe()
    other = Ladder((5000, 9000), (1500, 4500), (600, 1200), 3, 2)
    with pytest.raises(ConfigurationError, match="holds a ladder with another ladder: choose another --output"):
        ladder_run(path, other).run()


def test_plan_command_proposes_a_ladder(path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    values = {"manifest": str(licensed_manifest), "output": "x", "model": "1m", "seed_model": {"tokens": 8_000_000}}
    path.write_text(json.dumps(values | {"expert": {"tokens": 1_000_000}}))
    found = lmsplit("plan", str(path), "--ladder", "--budget", "1e16", "--json")
    assert found.code == 0, found.err
    proposed = json.loads(found.out)
    assert proposed["flops"] <= 1e16
    assert proposed["standard_error"] <= 0.01
    assert not (path.parent / "ladder").exists()
    poor = lmsplit("plan", str(path), "--ladder", "--budget", "1e6")
    assert (poor.code, "the cheapest ladder takes" in poor.err) == (2, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert": {"tokens": 1_000_000, "interference": {"fraction": 0.1}}}, "remove expert.interference from"),
        ({"seed_model": {"tokens": 8_000_000, "mixture": "uniform"}}, "remove seed_model.mixture from"),
        ({"model": {"config": MODEL}}, "--ladder needs a preset"),
        ({"expert": {"tokens": 1000}}, "leaves no room for three smaller ones of at least 20 steps"),
    ],
)
def test_plan_command_refuses_a_ladder_for_what_it_does_not_train(
    keys: dict[str, object], message: str, path: Path, licensed_manifest: Path, lmsplit: Command
) -> None:
    values = {"manifest": str(licensed_manifest), "output": "x", "model": "1m", "seed_model": {"tokens": 8_000_000}}
    path.write_text(json.dumps(values | {"expert": {"tokens": 1_000_000}} | keys))
    found = lmsplit("plan", str(path), "--ladder", "--budget", "1e16")
    assert found.code == 2
    assert message in found.err


def test_run_refuses_numbers_of_tokens_of_a_few_steps(path: Path) -> None:
    short = Ladder((5000, 9000), (1500, 3000), (100, 200), 3, 2)
    with pytest.raises(ConfigurationError, match=r"100 tokens, at .* for a step, are too few"):
        ladder_run(path, short).run()


def test_runs_of_two_manifests_are_refused(path: Path) -> None:
    ladder_run(path)._describe()
    output = path.parent / "out"
    row = {"num_parameters": 1e3, "pretraining_tokens": 1e3, "specialization_tokens": 0, "domain": "d00000", "loss": 3.0}
    (output / "runs.jsonl").write_text(json.dumps(row) + "\n")
    other = path.parent / "other"
    other.mkdir()
    facts = json.loads((output / "ladder.json").read_text())
    (other / "ladder.json").write_text(json.dumps(facts | {"manifest_digest": "another"}))
    (other / "runs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="the runs are of 2 manifests"):
        read_runs([str(output), str(other)])
    assert read_runs([str(output / "runs.jsonl")]).manifest == facts["manifest"]
    del facts["models"]
    (other / "ladder.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="is not what lmsplit plan --ladder writes"):
        read_runs([str(other)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--ladder"], "--ladder takes one training configuration, found 2 paths"),
        (["a", "--ladder", "--law", "F1"], "--law and --manifest go with runs, not with --ladder"),
        (["a", "--run"], "--run goes with --ladder"),
        (["a", "--ladder", "--precision", "0"], "--precision is 0.0, expected a share"),
    ],
)
def test_plan_command_refuses_options_that_do_not_go_together(arguments: list[str], message: str, lmsplit: Command) -> None:
    found = lmsplit("plan", *arguments, "--budget", "1e16")
    assert found.code == 2
    assert message in found.err
