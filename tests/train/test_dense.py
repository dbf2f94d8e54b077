"""The dense baselines: one copy of the seed, continued on what all experts are trained on."""

import json
from pathlib import Path

import pytest

from lmsplit.train.record import RunRecord, read_record
from tests.train.runs import Command, weights, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

DOMAINS = ("d00000", "d00001", "d00002")
TOKENS = ("--set", "expert.domain_tokens={d00001: 3000}")


@pytest.fixture
def path(tmp_path: Path, licensed_manifest: Path, lmsplit: Command) -> Path:
    """A configuration whose seed is trained."""
    path = write_configuration(tmp_path, licensed_manifest)
    assert lmsplit("train", str(path), "--seed-model").code == 0
    return path


def trained(path: Path, lmsplit: Command, which: str) -> RunRecord:
    result = lmsplit("train", str(path), "--dense", which, *TOKENS)
    assert result.code == 0, result.err
    assert "dense loss" in result.out
    return read_record(path.parent / "out" / "dense" / which)


def test_total_sees_as_much_of_each_domain_as_its_expert(path: Path, lmsplit: Command) -> None:
    assert lmsplit("train", str(path), "--all", *TOKENS).code == 0
    record, seed = trained(path, lmsplit, "total"), read_record(path.parent / "out" / "seed")
    experts = {name: read_record(path.parent / "out" / "experts" / name) for name in DOMAINS}
    assert (record.kind, record.domain, record.seed_weights_sha256) == ("dense", None, seed.weights_sha256)
    row = record.max_length
    for name, expert in experts.items():
        assert abs(record.domains[name].trained_tokens - expert.specialization_tokens) <= row * (record.batch_rows + len(DOMAINS))
        losses = record.losses[name]
        assert losses.before == seed.loss(name) != losses.after
    assert record.specialization_tokens >= sum(expert.configuration["tokens"] for expert in experts.values())
    assert record.pretraining_tokens == seed.pretraining_tokens
    assert record.flops == 6.0 * record.num_parameters * record.specialization_tokens


def test_per_model_sees_the_mean(path: Path, lmsplit: Command) -> None:
    record = trained(path, lmsplit, "per-model")
    wanted = [record.configuration["mixture"][name] for name in DOMAINS]
    assert record.configuration["tokens"] == round(sum(wanted) / len(wanted))
    card = (path.parent / "out" / "dense" / "per-model" / "README.md").read_text()
    assert "# Dense baseline of 3 domains" in card
    assert f"| tokens, after the seed | {record.specialization_tokens:,} |" in card


def test_it_is_done_once_and_shown(path: Path, lmsplit: Command) -> None:
    trained(path, lmsplit, "per-model")
    before = weights(path.parent / "out" / "dense" / "per-model")
    trained(path, lmsplit, "per-model")
    assert weights(path.parent / "out" / "dense" / "per-model") == before
    rows = json.loads(lmsplit("status", str(path.parent / "out"), "--json").out)["runs"]
    assert [row["state"] for row in rows if row["run"] == "dense-per-model"] == ["done"]
    result = lmsplit("train", str(path), "--dense", "per-model")  # other tokens for the experts
    assert result.code == 2
    assert "was trained with another mixture" in result.err


def test_it_can_be_traced(path: Path, lmsplit: Command) -> None:
    trained(path, lmsplit, "total")
    result = lmsplit("trace", str(path.parent / "out" / "dense" / "total"), "--audit")
    assert result.code == 0, result.err


def test_a_plan_takes_it_for_no_run(path: Path, lmsplit: Command) -> None:
    trained(path, lmsplit, "total")
    result = lmsplit("plan", str(path.parent / "out" / "dense"), "--budget", "1e12")
    assert result.code == 3
    assert "holds no finished run" in result.err


def test_no_other_tokens_than_there_are_names_for(path: Path, lmsplit: Command) -> None:
    result = lmsplit("train", str(path), "--dense", "half")
    assert result.code == 2
    assert "per-model" in result.err
