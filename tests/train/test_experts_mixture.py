"""Whose tokens a run trains on, and with which schedule: mixture, replay, bounds, budgets of single domains."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train import experts
from lmsplit.train.record import RunRecord
from tests.train.runs import Command, Watched, campaign_of, train

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

ROW = 32
STEP = 4 * ROW
"""Tokens in a step at most."""
DOMAINS = ("d00000", "d00001", "d00002")


def train_expert(path: Path, domain: str, *overrides: str) -> RunRecord:
    campaign = campaign_of(path, *overrides)
    seed = experts.train_seed(campaign)
    assert seed is not None
    record = experts.train_expert(campaign, campaign.manifest.domain(domain), seed)
    assert record is not None
    return record


def check_shares(record: RunRecord, wanted: Mapping[str, float]) -> None:
    total = sum(wanted.values())
    assert set(record.domains) == set(wanted)
    for name, each in record.domains.items():
        assert abs(each.trained_tokens - record.configuration["tokens"] * wanted[name] / total) <= STEP, name
    trained = sum(each.trained_tokens for each in record.domains.values())
    assert trained == record.pretraining_tokens
    assert 0 <= trained - record.configuration["tokens"] < len(wanted) * ROW + STEP  # a row of each, and what fills the step
    assert trained <= record.num_steps * STEP


def test_natural_mixture_is_as_the_domains_are(path: Path) -> None:
    record = train(path, "seed_model.tokens=9000")
    sizes = {name: each.num_tokens for name, each in record.domains.items()}
    assert max(sizes.values()) - min(sizes.values()) > STEP  # else this could not be told from a uniform one
    check_shares(record, sizes)
    rounds = [each.repetitions for each in record.domains.values()]
    assert max(rounds) - min(rounds) < 0.1


def test_uniform_mixture_has_as_much_of_each(path: Path) -> None:
    check_shares(train(path, "seed_model.tokens=9000", "seed_model.mixture=uniform"), dict.fromkeys(DOMAINS, 1))


def test_given_mixture_has_its_ratios_and_leaves_out_the_others(path: Path) -> None:
    record = train(path, "seed_model.tokens=3000", "seed_model.mixture={d00002: 6, d00000: 2, d00001: 0}")
    check_shares(record, {"d00000": 2, "d00002": 6})
    assert set(record.losses) == set(DOMAINS)


def test_mixture_of_an_unknown_domain_is_a_clear_error(path: Path) -> None:
    for key in ("seed_model.mixture={d00009: 1}", "expert.domain_tokens={d00009: 10}"):
        with pytest.raises(ConfigurationError, match=rf"{key.partition('=')[0]}: .* has no domain 'd00009': it has d00000"):
            campaign_of(path, key)


def test_max_repetitions_cut_the_budget(path: Path) -> None:
    record = train(path, "seed_model.tokens=60000", "seed_model.max_repetitions=1.5")
    packed = sum(each.num_tokens for each in record.domains.values())
    assert 1.5 * packed - 2 * STEP < record.pretraining_tokens <= 1.5 * packed < 60_000 - STEP
    for each in record.domains.values():
        assert each.trained_tokens <= 1.5 * each.num_tokens
        assert each.repetitions == pytest.approx(1.5, abs=0.1)
        assert each.not_reached_tokens == 0


def test_expert_has_its_own_domain_alone_where_that_is_asked_for(path: Path) -> None:
    record = train_expert(path, "d00000", "expert.interference=null")
    assert list(record.domains) == ["d00000"]
    assert record.interference is None


def test_replay_comes_from_the_others_in_their_natural_ratios(path: Path) -> None:
    settings = "{kind: replay, fraction: 0.5, temperature: null}"
    record = train_expert(path, "d00000", "expert.tokens=4000", f"expert.interference={settings}")
    assert list(record.domains) == ["d00000", "d00001", "d00002"]
    others = {name: record.domains[name].num_tokens for name in ("d00001", "d00002")}
    wanted = {"d00000": 2000.0} | {name: 2000 * size / sum(others.values()) for name, size in others.items()}
    for name, tokens in wanted.items():
        assert abs(record.domains[name].trained_tokens - tokens) <= STEP
    assert record.specialization_tokens == sum(each.trained_tokens for each in record.domains.values())


def test_domain_tokens_are_for_that_domain_alone(path: Path) -> None:
    keys = ("expert.tokens=500", "expert.domain_tokens={d00001: 1500}")
    for name, tokens in (("d00000", 500), ("d00001", 1500)):
        found = train_expert(path, name, *keys).specialization_tokens
        assert tokens <= found < tokens + STEP


def test_expert_has_a_schedule_of_its_own(path: Path, watched: Watched) -> None:
    """By hand: warmup over two of 16 steps and then 14 down to 0; the expert goes from its own peak down over its 8."""
    shared = ("sft.logging_steps=1", "sft.lr_scheduler_type=linear", "sft.warmup_steps=2")
    train_expert(path, "d00000", *shared, "expert.learning_rate=0.004", "expert.sft={warmup_steps: 0}")
    seed, expert = ([line["learning_rate"] for line in each.state.log_history if "loss" in line] for each in watched.trainers)
    assert len(seed) == 16
    assert seed == pytest.approx([0, 0.005] + [0.01 * (14 - step) / 14 for step in range(14)])
    assert expert == pytest.approx([0.004 * (8 - step) / 8 for step in range(8)])


def test_schedule_of_one_phase_leaves_the_other_alone(path: Path, watched: Watched) -> None:
    seed_keys = ("seed_model.sft={lr_scheduler_type: constant}", "sft.logging_steps=1")
    train_expert(path, "d00000", *seed_keys, "expert.sft={lr_scheduler_type: constant, per_device_train_batch_size: 2}")
    seed, expert = watched.trainers
    assert {line["learning_rate"] for line in seed.state.log_history[1:] if "loss" in line} == {0.01}
    assert expert.args.per_device_train_batch_size == 2
    assert expert.state.max_steps > 8
    assert seed.args.per_device_train_batch_size == 4


@pytest.mark.parametrize("phase", ["seed_model", "expert"])
def test_what_both_phases_share_is_refused_in_one(path: Path, lmsplit: Command, phase: str) -> None:
    result = lmsplit("train", str(path), "--all", "--set", f"{phase}.sft={{max_length: 16}}")
    assert result.code == 2
    assert "max_length is the same for both phases: set sft.max_length" in result.err
