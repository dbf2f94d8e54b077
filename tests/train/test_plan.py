"""Plans: the optimum of a known law, what they are compared with, their warnings, and the command."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lmsplit.manifests.cli import main
from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.allocation import Predictor, Supply, allocate
from lmsplit.train.config import Training
from lmsplit.train.plan import Question, recommend
from lmsplit.train.runs import Runs, read_runs
from tests.train.laws import DOMAINS, measured, truth

N = 1.6e7
BUDGET = 6 * N * 5e8
QUICK = {"num_draws": 40}


def write(runs: Runs, path: Path) -> Path:
    """Write runs as a table."""
    points = runs.points
    table = pl.DataFrame(
        {
            "num_parameters": points.num_parameters_R,
            "pretraining_tokens": points.pretraining_R,
            "specialization_tokens": points.specialization_R,
            "domain": [DOMAINS[number] for number in points.domain_R],
            "loss": runs.loss_R,
            "note": "mine",
        }
    )
    if path.suffix == ".csv":
        table.write_csv(path)
    elif path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_ndjson(path)
    return path


@pytest.mark.parametrize("name", ["F1", "F2"])
def test_recommend_is_near_the_optimum_of_the_law_that_made_the_runs(name: str) -> None:
    plan = recommend(measured(name, noise=0.002), Question(BUDGET, (N,), **QUICK))
    best = allocate(Predictor(truth(name), 4), N, BUDGET, Supply(np.full(4, np.inf), 4.0))
    assert plan.choice.law == name
    assert plan.best.pretraining == pytest.approx(best.pretraining, rel=0.15)
    assert plan.best.loss == pytest.approx(best.loss, rel=0.01)
    assert plan.interval[0] < best.loss < plan.interval[1]
    assert plan.best.flops == pytest.approx(BUDGET)
    gains = {each.name: each for each in plan.alternatives}
    assert set(gains) == {"no split", "80/20", "dense continued"}
    assert all(each.gain > 0 and each.interval[0] <= each.gain <= each.interval[1] for each in gains.values())
    assert gains["no split"].allocation.flops == pytest.approx(BUDGET)
    assert gains["dense continued"].allocation.flops < BUDGET


def test_recommend_no_split_where_it_does_not_pay() -> None:
    plan = recommend(measured("F0"), Question(BUDGET, (N,), **QUICK))
    assert not plan.is_split
    assert plan.to_json()["specialization_tokens"] == 0
    assert plan.to_json()["pretraining_fraction"] == 1


def test_recommend_chooses_among_sizes_or_any() -> None:
    runs = measured("F1", noise=0.002)
    given = recommend(runs, Question(BUDGET, (4e6, N, 1e9), law="F1", **QUICK))
    free = recommend(runs, Question(BUDGET, law="F1", **QUICK))
    assert given.best.num_parameters in (4e6, N, 1e9)
    assert free.best.loss <= given.best.loss + 1e-9
    gains = {each.name: each.gain for each in free.alternatives}
    assert 0 < gains["no split, best size"] <= gains["no split"]


def test_recommend_warns() -> None:
    runs = measured("F1")
    far = recommend(runs, Question(BUDGET * 1000, (1e9,), law="F1", **QUICK), [1e8] * 4).warnings
    assert any("extrapolates: N = 1e+09 is 62.5 times the largest run's" in each for each in far)
    assert any("supply binds: " in each for each in far)
    split = runs.points.specialization_R > 0
    alone = Runs(runs.points.take(split), runs.loss_R[split], DOMAINS)
    assert any(
        "no run is without specialization" in each
        for each in recommend(alone, Question(BUDGET, (N,), law="F1", **QUICK)).warnings
    )
    noisy = Runs(runs.points, runs.loss_R * np.exp(np.random.default_rng(0).normal(0, 0.1, 200)), DOMAINS)
    assert any("poor fit" in each for each in recommend(noisy, Question(BUDGET, (N,), law="F1", **QUICK)).warnings)


def test_recommend_says_where_there_are_no_tokens() -> None:
    runs = measured("F1")
    some = recommend(runs, Question(BUDGET, (N,), law="F1", **QUICK), [0.0, 1e9, 1e9, 1e9])
    assert any(each == "supply binds: no training tokens of d00000" for each in some.warnings)
    assert some.domain_tokens["d00000"] == 0
    with pytest.raises(ConfigurationError, match="there are 0 training tokens for 4 repetitions: not one to train on"):
        recommend(runs, Question(BUDGET, (N,), law="F1", **QUICK), [0.0] * 4)


def test_recommend_counts_rows_that_are_there_twice_once(tmp_path: Path) -> None:
    table = str(write(measured("F1"), tmp_path / "runs.jsonl"))
    once, twice = read_runs([table]), read_runs([table, table])
    assert len(twice.loss_R) == len(once.loss_R) == 200
    assert twice.num_duplicates == 200
    warnings = recommend(twice, Question(BUDGET, (N,), law="F1", **QUICK)).warnings
    assert any("200 rows of the runs are there before" in each for each in warnings)


def test_names_of_domains_that_look_like_numbers_stay(tmp_path: Path) -> None:
    lines = [f"1e6,1e6,0,{name},3.0" for name in ("001", "1", "1e0", "1.10")]
    header = "num_parameters,pretraining_tokens,specialization_tokens,domain,loss"
    (tmp_path / "runs.csv").write_text("\n".join([header, *lines]))
    assert set(read_runs([str(tmp_path / "runs.csv")]).domains) == {"001", "1", "1e0", "1.10"}


def test_recommend_says_where_laws_disagree() -> None:
    runs = measured("F2", noise=0.03, num_runs=60)
    found = recommend(runs, Question(BUDGET * 30, (N,), **QUICK))
    assert any("laws disagree: F" in each for each in found.warnings), (found.choice.rivals(), found.warnings)


def test_recommend_refuses_runs_of_one_number_of_pretraining_tokens() -> None:
    runs = measured("F2")
    same = runs.points.pretraining_R == 2e7
    with pytest.raises(ConfigurationError, match="all runs have D = 20,000,000, so nothing says"):
        recommend(Runs(runs.points.take(same), runs.loss_R[same], DOMAINS), Question(BUDGET, (N,)))


def test_recommend_plans_one_model_where_no_run_is_an_expert() -> None:
    runs = measured("F1")
    alone = runs.points.specialization_R == 0
    dense = Runs(runs.points.take(alone), runs.loss_R[alone], DOMAINS)
    found = recommend(dense, Question(BUDGET, (N,), **QUICK))
    assert (found.choice.law, found.is_split) == ("F0", False)
    assert [each.name for each in found.alternatives] == ["no split"]
    assert any("no run has specialization tokens" in each for each in found.warnings)
    with pytest.raises(ConfigurationError, match="no run has specialization tokens, which law F1 is about"):
        recommend(dense, Question(BUDGET, (N,), law="F1"))


def test_recommend_says_which_laws_the_runs_are_too_few_for() -> None:
    found = recommend(measured("F1", num_runs=48), Question(BUDGET, (N,), own_laws=True, **QUICK))
    expected = "the runs of each domain are too few, or too much alike, for F1, F2, F3, F4: the choice was among F0"
    assert any(each.startswith(expected) and "leave --own-laws out" in each for each in found.warnings), found.warnings
    assert not any(
        "too few" in each for each in recommend(measured("F1", num_runs=100), Question(BUDGET, (N,), **QUICK)).warnings
    )


def test_recommend_by_own_laws_gives_each_domain_its_tokens() -> None:
    runs = measured("F1", noise=0.001, num_runs=400)
    slow = runs.points.domain_R == 3
    loss_R = runs.loss_R + slow * 30.0 / (runs.points.specialization_R + 1e5) ** 0.2
    found = recommend(Runs(runs.points, loss_R, DOMAINS), Question(BUDGET, (N,), law="F1", own_laws=True, num_draws=20))
    tokens = list(found.domain_tokens.values())
    assert tokens[3] > 1.5 * max(tokens[:3])
    few = Runs(runs.points.take(np.arange(400) < 40), loss_R[:40], DOMAINS)
    with pytest.raises(ConfigurationError, match="domain d00000: law F1 has 8 parameters, and there are 6 runs"):
        recommend(Runs(few.points.take(np.arange(40) < 24), few.loss_R[:24], DOMAINS), Question(BUDGET, own_laws=True, law="F1"))


def test_recommend_refuses_another_size_than_that_of_all_runs() -> None:
    runs = measured("F1")
    same = runs.points.num_parameters_R == 4e6
    alike = Runs(runs.points.take(same), runs.loss_R[same], DOMAINS)
    with pytest.raises(ConfigurationError, match="all runs have 4,000,000 parameters, which says nothing about 16,000,000"):
        recommend(alike, Question(BUDGET, (N,)))
    assert recommend(alike, Question(BUDGET, law="F1", **QUICK)).best.num_parameters == 4e6


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_plan_command_reads_any_table(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(measured("F1"), tmp_path / f"runs{suffix}")
    arguments = [
        "plan",
        str(table),
        "--budget",
        f"{BUDGET:g}",
        "--draws",
        "20",
        "--law",
        "F1",
        "-o",
        str(tmp_path / "plan"),
        "--json",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["law"] == "F1"
    assert set(found["laws"]["F1"]) >= {"mre", "r2"}
    constants = found["laws"]["F1"]["constants"]
    assert constants["alpha"] == pytest.approx(0.348, rel=0.1)
    assert constants["E"]["d00003"] == pytest.approx(2.2, rel=0.2)
    assert json.loads((tmp_path / "plan" / "plan.json").read_text()) == found
    tokens = found["pretraining_tokens"] + 4 * found["specialization_tokens"]
    assert 6 * found["num_parameters"] * tokens == pytest.approx(BUDGET, rel=1e-3)
    assert found["interval"][0] < found["predicted_loss"] < found["interval"][1]
    assert Path(found["picture"]).read_text(encoding="utf-8").startswith("<?xml")
    configuration = load(Training, found["configuration"])
    assert configuration.seed_model.tokens == pytest.approx(found["pretraining_tokens"], rel=0.1)


def test_plan_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(measured("F1"), tmp_path / "runs.jsonl")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(table), "--budget", "1e16", "--draws", "20", "-o", str(tmp_path / "plan")])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for part in ("parameters, D = ", "experts", "no split", "80/20", "dense continued", "F1 *", "picture:"):
        assert part in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": None}, "lacks the column 'loss'"),
        ({"loss": [0.0]}, "row 1: loss is 0.0, expected a finite number above 0"),
        ({"loss": [float("nan")]}, "row 1: loss is nan"),
        ({"specialization_tokens": [-1.0]}, "row 1: specialization_tokens is -1.0, expected a finite number of at least 0"),
        ({"num_parameters": ["many"]}, "cannot be read as a table of runs"),
        ({"domain": [None]}, "a row has no domain"),
        ({"loss": [{"nats": 3.1}]}, "the column 'loss' has values of type Struct"),
        ({"loss": [True]}, "the column 'loss' has values of type Boolean"),
    ],
)
def test_plan_command_refuses_a_table_that_cannot_be(
    change: dict[str, list[object] | None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, object] = {
        "num_parameters": [1e6],
        "pretraining_tokens": [1e6],
        "specialization_tokens": [0.0],
        "domain": ["d00000"],
        "loss": [3.0],
    }
    row = {name: values for name, values in (row | change).items() if values is not None}
    pl.DataFrame(row).write_parquet(tmp_path / "runs.parquet")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(tmp_path / "runs.parquet"), "--budget", "1e16", "-o", str(tmp_path / "plan")])
    assert stopped.value.code == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("budget", ["0", "-1", "inf", "nan", "1e31"])
def test_plan_command_refuses_a_budget_that_cannot_be(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "nowhere", "--budget", budget])
    assert stopped.value.code == 2
    assert "expected a number of FLOPs above 0" in capsys.readouterr().err
