"""Experts that are held to the seed on other domains: through the whole of `lmsplit train`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.train import experts
from lmsplit.train.record import RunRecord
from tests.partition.corpora import topical, write
from tests.train.runs import Command, Watched, campaign_of, tensors, train, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

KEYS = ("sft.logging_steps=1", "expert.tokens=3000", "expert.learning_rate=0.02")
CLOCK = {"wall_time_s", "tokens_per_s", "data_wait_fraction", "model_flops_utilization"}


def expert(path: Path, interference: str, *overrides: str, output: str = "out") -> RunRecord:
    """Train the seed where it is missing, and one expert."""
    keys = (*KEYS, f"output={path.parent / output}", f"expert.interference={interference}", *overrides)
    seed = train(path, *keys)
    campaign = campaign_of(path, *keys)
    record = experts.train_expert(campaign, campaign.manifest.domains[0], seed)
    assert record is not None
    return record


def excess(record: RunRecord) -> float:
    """Return how much worse than the seed's the loss on the other domains is, on average."""
    found = [each.after.nats_per_token - each.before.nats_per_token for name, each in record.losses.items() if name != "d00000"]
    return float(np.mean(found))


def lines(watched: Watched) -> list[dict[str, Any]]:
    return [line for line in watched.log() if "interference_weight" in line]


def test_hinge_holds_the_other_domains_and_says_what_it_did(path: Path, watched: Watched) -> None:
    plain = expert(path, "null", output="plain")
    held = expert(path, "{kind: hinge, weight: 3, fraction: 0.3}", output="held")
    assert excess(plain) > 0.1  # or there would be nothing to hold
    assert excess(held) < excess(plain) / 2
    others = held.interference
    assert others is not None
    assert others.num_tokens == sum(each.trained_tokens for name, each in held.domains.items() if name != "d00000")
    assert others.num_tokens == pytest.approx(900, abs=3 * 32 + 128)
    assert held.flops == held.num_parameters * (6 * held.specialization_tokens + 2 * others.num_tokens)
    assert 0 <= others.margin == others.noise < 1e-4  # float32
    assert others.reference_losses is not None
    assert (path.parent / "held" / "references" / others.reference_losses / "losses.arrow").exists()
    log = lines(watched)
    assert len(log) == held.num_steps
    card = (path.parent / "held" / "experts" / "d00000" / "README.md").read_text()
    assert f"| tokens of other domains | {others.num_tokens:,} of the expert's (hinge) |" in card
    assert {"own_loss", "off_domain_loss", "off_domain_excess", "interference_weight"} <= {name for line in log for name in line}
    assert max(line.get("off_domain_excess", 0) for line in log) > 0.01
    cosines = [line["gradient_cosine"] for line in log if "gradient_cosine" in line]
    assert cosines
    assert all(-1 <= each <= 1 for each in cosines)


@pytest.mark.parametrize(
    "settings", ["{kind: kl, weight: 3, fraction: 0.3}", "{kind: hinge, level: document, weight: 3, fraction: 0.3}"]
)
def test_other_kinds_hold_the_other_domains(path: Path, settings: str) -> None:
    plain, held = expert(path, "null", output="plain"), expert(path, settings, output="held")
    assert excess(held) < excess(plain) / 2


def test_kinds_see_the_same_rows(path: Path, watched: Watched) -> None:
    replay = expert(path, "{kind: replay, fraction: 0.3, temperature: null}", output="one")
    hinge = expert(path, "{kind: hinge, fraction: 0.3, temperature: null}", output="other")
    assert lines(watched)
    assert replay.domains == hinge.domains  # the very same rows
    assert replay.interference is not None
    assert replay.interference.end_weight == pytest.approx(0.3 / 0.7)
    assert replay.interference.reference_losses is None
    assert replay.flops == replay.num_parameters * 6 * replay.specialization_tokens  # no pass of the seed


def test_weight_follows_its_target(path: Path, watched: Watched) -> None:
    expert(path, "{kind: hinge, weight: 0, fraction: 0.3, dual: {target: 0.0, rate: 5}}")
    weights = [line["interference_weight"] for line in lines(watched)]
    assert weights == sorted(weights)
    assert weights[0] == pytest.approx(0, abs=1e-3)
    assert weights[-1] > 0.05


@pytest.mark.parametrize("settings", ["{kind: hinge, fraction: 0.3, dual: {target: 0.01, rate: 1}}", "{kind: kl, fraction: 0.3}"])
def test_run_that_was_cut_off_goes_on_bit_for_bit(path: Path, watched: Watched, settings: str) -> None:
    keys = (*KEYS, "sft.save_steps=4", f"expert.interference={settings}")
    seed = train(path, *keys)
    shutil.copytree(path.parent / "out", path.parent / "undisturbed")
    ours, theirs = campaign_of(path, *keys), campaign_of(path, *keys, f"output={path.parent / 'undisturbed'}")
    undisturbed = experts.train_expert(theirs, theirs.manifest.domains[1], seed)
    log = watched.log()
    watched.cut_off(10, lambda: experts.train_expert(ours, ours.manifest.domains[1], seed))
    resumed = experts.train_expert(ours, ours.manifest.domains[1], seed)
    assert undisturbed is not None
    assert resumed is not None
    for each in (undisturbed, resumed):
        assert each.num_steps > 12
    records = [{name: value for name, value in each.model_dump().items() if name not in CLOCK} for each in (resumed, undisturbed)]
    assert records[0] == records[1]
    assert [line for line in watched.log() if line["step"] > 8] == [line for line in log if line["step"] > 8]


def test_seed_losses_are_measured_once(path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    first = expert(path, "{kind: hinge, fraction: 0.3}")
    shutil.rmtree(path.parent / "out" / "experts")
    monkeypatch.setattr("lmsplit.train.references._measured", None)  # a second measurement would fail
    again = expert(path, "{kind: hinge, fraction: 0.3, level: document, weight: 2}")
    assert first.interference is not None
    assert again.interference is not None
    assert again.interference.reference_losses == first.interference.reference_losses
    monkeypatch.undo()
    shutil.rmtree(path.parent / "out" / "experts")
    other = expert(path, "{kind: hinge, fraction: 0.4}")
    assert other.interference is not None
    assert other.interference.reference_losses != first.interference.reference_losses
    shutil.rmtree(path.parent / "out")
    other = expert(path, "{kind: hinge, fraction: 0.3}", "seed_model.learning_rate=0.02")  # another seed
    assert other.interference is not None
    assert other.interference.reference_losses != first.interference.reference_losses


def test_weight_of_zero_is_training_on_the_own_rows_alone(path: Path) -> None:
    """The own rows' part of a step does not depend on the others: with weight 0 these leave no trace in the weights."""
    expert(path, "{kind: hinge, weight: 0, fraction: 0.3}", output="hinge")
    expert(path, "{kind: kl, weight: 0, fraction: 0.3}", output="kl")
    one, other = (tensors(path.parent / output / "experts" / "d00000") for output in ("hinge", "kl"))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_others_keep_their_share_where_repetitions_cut_the_budget(path: Path) -> None:
    record = expert(path, "{fraction: 0.2}", "expert.tokens=60000", "expert.max_repetitions=1.5")
    own = record.domains["d00000"]
    assert own.repetitions == pytest.approx(1.5, abs=0.1)
    assert record.interference is not None
    assert record.interference.num_tokens == pytest.approx(own.trained_tokens / 4, abs=3 * 32)


def test_one_domain_is_trained_without_others_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "corpus.jsonl", topical(60, words=20))
    keys = {"input": {"paths": str(tmp_path / "corpus.jsonl"), "group": "group"}, "output": str(tmp_path / "manifest")}
    keys |= {"near_duplicate_threshold": None, "executor": {"workers": 0}}
    partition(Partition.model_validate(keys | {"domains": 1, "encoder": "lexical"}))
    record = expert(write_configuration(tmp_path, tmp_path / "manifest"), "{}")
    assert (list(record.domains), record.interference) == (["d00000"], None)
    assert "d00000 has no documents of other domains that it could be held to the seed on" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{kind: kl, level: document}", "level and margin are those of the hinge"),
        ("{kind: replay, margin: 0.1}", "level and margin are those of the hinge"),
        ("{kind: replay, dual: {target: 0.1}}", "replay has no excess"),
        ("{fraction: 0}", "Input should be greater than 0"),
        ("{weigth: 0.3}", "did you mean"),
        ("{kind: distill}", "Input should be 'hinge', 'replay' or 'kl'"),
    ],
)
def test_settings_that_cannot_be_are_refused(path: Path, settings: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        campaign_of(path, f"expert.interference={settings}")


def test_all_shows_what_the_experts_cost_elsewhere(path: Path, lmsplit: Command) -> None:
    found = lmsplit("train", str(path), "--all", "--set", "expert.interference={kind: hinge}", "--set", "expert.tokens=2000")
    assert found.code == 0, found.err
    assert "specialization" in found.out
    assert "interference" in found.out
    record = json.loads((path.parent / "out" / "experts" / "d00001" / "run.json").read_text())
    assert record["interference"]["margin"] >= record["interference"]["noise"] >= 0
