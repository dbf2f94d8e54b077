"""Experts that are held to the seed on other domains: through the whole of `lmsplit train`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train import DomainTrainer, experts
from lmsplit.train.config import Interference
from lmsplit.train.models import load_model
from lmsplit.train.off_domain import mark_rows, tokens_per_step
from lmsplit.train.record import RunRecord
from lmsplit.train.references import add_reference_losses
from lmsplit.train.sft import phase_config
from tests.train.runs import Command, Watched, campaign_of, tensors, train

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


def packed_rows(path: Path) -> tuple[Any, Dataset]:
    campaign = campaign_of(path, *KEYS)
    packs = [campaign.packed(domain, None) for domain in campaign.manifest.domains[:2]]
    rows = Dataset.from_list([row for packed in packs for row in packed.rows().with_format("numpy")]).with_format("numpy")
    return campaign, mark_rows(rows, packs[0].num_rows)


def users_trainer(
    path: Path,
    rows: Dataset,
    interference: Interference | None,
    *,
    rate: float = 0.01,
    fields: Mapping[str, Any] = MappingProxyType({}),
    **named: Any,
) -> DomainTrainer:
    campaign = campaign_of(path, *KEYS)
    args = phase_config(campaign.configuration.sft | dict(fields), campaign.preset, rate, 0, str(path.parent / "own"))
    model = load_model(campaign.seed_run().directory)
    return DomainTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=campaign.encoder.tokenizer,
        interference=interference,
        **named,
    )


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_users_own_script_trains_with_interference(path: Path) -> None:
    train(path, *KEYS)
    campaign, rows = packed_rows(path)
    with pytest.raises(ValueError, match="needs packed rows with the column 'reference_losses'"):
        users_trainer(path, rows, Interference(kind="hinge"))
    with_losses = add_reference_losses(rows, load_model(campaign.seed_run().directory)).with_format("numpy")
    order = np.arange(len(rows))[::-1][:24].copy()
    trainer = users_trainer(path, with_losses, Interference(kind="hinge", weight=1, fraction=0.5), row_order=order)
    trainer.train()
    assert trainer.interference_state is not None
    assert trainer.interference_state.noise is not None
    assert trainer.interference_state.noise < 1e-4
    assert trainer.state.global_step == 6
    with pytest.raises(ValueError, match="interference goes with the plain loss"):
        users_trainer(path, with_losses, Interference(kind="hinge"), compute_loss_func=lambda *_arguments, **_named: None)


def test_replay_is_plain_training_on_the_same_rows(path: Path) -> None:
    """Where all rows are as long, its sum of two means is 4/3 of the mean over all tokens."""
    sgd = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0}
    train(path, *KEYS)
    _, rows = packed_rows(path)
    full = np.flatnonzero([len(row["input_ids"]) == 32 and len(row["seq_lengths"]) == 1 for row in rows])
    off = np.asarray(rows["off_domain"])[full]
    order = np.concatenate([full[~off][:18].reshape(6, 3), full[off][:6, None]], axis=1).ravel()  # three own rows and another
    replay = users_trainer(path, rows, Interference(kind="replay", fraction=0.25), row_order=order, rate=0.3, fields=sgd)
    plain = users_trainer(path, rows, None, row_order=order, rate=0.4, fields=sgd)
    before = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    for trainer in (replay, plain):
        trainer.train()
        assert trainer.state.global_step == 6
    for name, tensor in plain.model.state_dict().items():
        moved = (tensor - before[name]).abs().max()
        assert (replay.model.state_dict()[name] - tensor).abs().max() <= 1e-4 * moved, name


def test_another_setting_does_not_resume(path: Path) -> None:
    train(path, *KEYS, "sft.save_steps=2")
    _, rows = packed_rows(path)
    order = np.arange(24)
    first = users_trainer(path, rows, Interference(kind="replay"), row_order=order)
    first.train()
    again = users_trainer(path, rows, Interference(kind="replay", weight=2), row_order=order)
    with pytest.raises(ValueError, match="cannot be resumed exactly: interference was"):
        again.train(resume_from_checkpoint=True)


def test_penalty_is_a_mean_over_the_runs_other_tokens(path: Path) -> None:
    """The sum over all steps of (tokens of other domains ÷ tokens of a mean step) is the number of steps."""
    train(path, *KEYS)
    _, rows = packed_rows(path)
    off = np.asarray(rows["off_domain"])
    lengths = [(len(row["input_ids"]) - len(row["seq_lengths"])) * mark for row, mark in zip(rows, off, strict=True)]
    order = np.random.default_rng(0).integers(0, len(rows), 40)
    assert tokens_per_step(rows, order, 4) == pytest.approx(sum(lengths[row] for row in order) / 10)
    assert tokens_per_step(rows, None, 4) == pytest.approx(sum(lengths) * 4 / len(rows))


def test_weight_of_zero_is_training_on_the_own_rows_alone(path: Path) -> None:
    """The own rows' part of a step does not depend on the others: with weight 0 these leave no trace in the weights."""
    expert(path, "{kind: hinge, weight: 0, fraction: 0.3}", output="hinge")
    expert(path, "{kind: kl, weight: 0, fraction: 0.3}", output="kl")
    one, other = (tensors(path.parent / output / "experts" / "d00000") for output in ("hinge", "kl"))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


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
