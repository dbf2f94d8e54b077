"""The average of all experts: one model, as a baseline for the experts and for the seed.

Each weight is the mean of the experts' own (arXiv 2203.05482 calls it a uniform soup); they share the seed that they were
continued from, without which a mean of weights means nothing. Cost: two models in memory, and one evaluation. This does *not*
train.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.campaign import Campaign, Run
from lmsplit.train.card import render_card
from lmsplit.train.directory import whole_directory, write_whole
from lmsplit.train.experts import seed_record
from lmsplit.train.heldout import HeldOut
from lmsplit.train.layout import MERGED
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.models import load_model
from lmsplit.train.phase import finished_record
from lmsplit.train.record import (
    RECORD,
    Evaluation,
    Loss,
    RunRecord,
    content_digest,
    domain_losses,
    read_record,
    weights_sha256,
)


def merge_experts(campaign: Campaign) -> RunRecord:
    """Average the experts of all domains, or return the record where that was done before.

    Raises:
        ConfigurationError: an expert is missing, or was trained otherwise; or the average is of other experts.
    """
    seed = seed_record(campaign)
    runs = [campaign.expert_run(domain, seed.weights_sha256) for domain in campaign.manifest.domains]
    records = [finished_record(run) for run in runs]
    if missing := [run.name for run, record in zip(runs, records, strict=True) if record is None]:
        raise ConfigurationError(f"there is no expert of {', '.join(missing)}: train them first with --all")
    experts = [record for record in records if record is not None]
    content = {"kind": "merged", "experts": {str(record.domain): record.weights_sha256 for record in experts}}
    directory = campaign.output / MERGED
    if directory.exists():
        record = read_record(directory)
        if record.configuration != content:
            raise ConfigurationError(f"{directory} is the average of other experts: remove it to average these")
        return record
    with whole_directory(directory) as scratch:
        model = _average(runs)
        model.save_pretrained(scratch)
        campaign.encoder.tokenizer.save_pretrained(scratch)
        measured = HeldOut.of(campaign).measure(model)
        record = _record(seed, experts, content, measured, weights_sha256(scratch))
        write_whole(scratch / RECORD, record.to_json())
        write_whole(scratch / "README.md", render_card(record, campaign.manifest.domains))
    return record


def _average(runs: Sequence[Run]) -> PreTrainedModel:
    """Return the experts' mean, added up in float64 so that the order does not matter."""
    model = load_model(runs[0].directory)
    total = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for run in runs[1:]:
        for name, tensor in load_model(run.directory).state_dict().items():
            total[name] += tensor
    model.load_state_dict({name: (tensor / len(runs)).to(torch.float32) for name, tensor in total.items()})
    return model


def _record(
    seed: RunRecord, experts: Sequence[RunRecord], content: dict[str, Any], measured: dict[str, HeldOutLoss], weights: str
) -> RunRecord:
    """Return the seed's record with what is another in the average; nothing was trained for it."""
    losses = {name: Loss.of(loss) for name, loss in measured.items()}
    return seed.model_copy(
        update={
            "kind": "merged",
            "configuration": content,
            "configuration_digest": content_digest(content),
            "specialization_tokens": sum(each.specialization_tokens for each in experts),
            "domains": {},
            "losses": domain_losses({name: each.after for name, each in seed.losses.items()}, measured),
            "evaluations": [Evaluation(step=0, tokens=0, losses=losses)],
            "num_steps": 0,
            "flops": 0.0,
            "wall_time_s": 0.0,
            "tokens_per_s": 0.0,
            "data_wait_fraction": 0.0,
            "train_loss": None,
            "model_flops_utilization": None,
            "energy_kwh": None,
            "weights_sha256": weights,
            "seed_weights_sha256": seed.weights_sha256,
        }
    )
