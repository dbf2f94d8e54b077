"""Trains one model and publishes it: rows, trainer, held-out loss, record and card.

```
packed rows ─draw_rows─► order ─► DomainTrainer ─► weights ─► evaluate ─► run.json, README.md
```

The directory of a model appears when all of it is written. A loss that is no number ends the run with an
error, so no broken model is ever published. The optimizer is always fresh. This does *not* decide what to
train: see `experts`.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from datasets import concatenate_datasets
from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import TrainOutput

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.reader import Domain
from lmsplit.train.campaign import Campaign, Run
from lmsplit.train.card import render_card
from lmsplit.train.directory import whole_directory, write_whole
from lmsplit.train.evaluate import evaluate_domain
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.models import count_parameters, load_model
from lmsplit.train.order import RowOrder, draw_rows
from lmsplit.train.pack import Packed
from lmsplit.train.progress import ProgressCallback
from lmsplit.train.record import (
    RECORD,
    DomainLosses,
    Loss,
    ManifestReference,
    RunRecord,
    read_record,
    software_versions,
    weights_sha256,
)
from lmsplit.train.sft import phase_config
from lmsplit.train.trainer import DomainTrainer, RowCollator


class Start(NamedTuple):
    """What a run starts from."""

    model: PreTrainedModel
    pretraining_tokens: int
    """Tokens that the model was trained on before, in the seed's run."""
    seed_weights_sha256: str | None
    losses: dict[str, Loss | None]
    """The model's loss on each domain to evaluate, where it is known; None: not to be measured before
    training.
    """


class _Trained(NamedTuple):
    trainer: DomainTrainer
    output: TrainOutput
    order: RowOrder
    wall_time_s: float


def finished_record(run: Run) -> RunRecord | None:
    """Return the record of a run that is done, or None.

    Raises:
        ConfigurationError: the run's directory holds a model that was trained otherwise.
        ManifestError: it holds no readable record.
    """
    if not run.directory.exists():
        return None
    record = read_record(run.directory)
    if record.configuration_digest != run.digest:
        names = {*record.configuration, *run.content}
        changed = sorted(name for name in names if record.configuration.get(name) != run.content.get(name))
        raise ConfigurationError(
            f"{run.directory} was trained with another {', '.join(changed)}: "
            "choose another output, or remove that directory to train it again"
        )
    return record


def run_phase(campaign: Campaign, run: Run, start: Start, packs: Sequence[Packed]) -> RunRecord:
    """Train one model and publish it.

    Args:
        campaign: what the runs share.
        run: what to train; its directory must not exist.
        start: the model, trained in place.
        packs: the packed documents to train on.

    Returns:
        The record, as it was written.

    Raises:
        ConflictError: another process is training the same model.
        LmsplitError: there is nothing to train on, or the loss is no number.
    """
    campaign.write_configuration()
    with whole_directory(run.directory) as partial:
        trained = _train(campaign, run, start.model, packs, partial)
        start.model.save_pretrained(partial)
        # What was written is what is measured: the model in memory may still compute in the trainer's mixed precision.
        losses = _evaluate(campaign, load_model(partial).to(trained.trainer.args.device), list(start.losses))
        campaign.encoder.tokenizer.save_pretrained(partial)
        record = _record(campaign, run, start, packs, trained, losses, weights_sha256(partial))
        write_whole(partial / RECORD, record.to_json())
        write_whole(partial / "README.md", render_card(record, campaign.manifest.domains))
    return record


def _train(campaign: Campaign, run: Run, model: PreTrainedModel, packs: Sequence[Packed], scratch: Path) -> _Trained:
    packs = [packed for packed in packs if packed.num_rows]
    if not packs:
        raise LmsplitError(f"{run.name} has no training documents: lmsplit show names each domain's splits")
    lengths_R = np.concatenate([packed.row_lengths() for packed in packs])
    order = draw_rows(lengths_R, run.tokens, campaign.configuration.seed)
    rows = concatenate_datasets([packed.rows() for packed in packs]).select(order.rows)
    tokenizer = campaign.encoder.tokenizer
    progress = ProgressCallback(run.name, order.num_tokens)
    seed = campaign.configuration.seed
    trainer = DomainTrainer(
        model=model,
        args=phase_config(campaign.configuration.sft, campaign.preset, run.learning_rate, seed, str(scratch)),
        data_collator=RowCollator(campaign.encoder.end_id),
        train_dataset=rows.with_format("numpy"),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log on standard output
    started = time.monotonic()
    try:
        output = trainer.train()
    except ValueError as error:
        raise ConfigurationError(f"{run.name}: {error}") from error
    finally:
        progress.stop()
    if not math.isfinite(output.training_loss):
        raise LmsplitError(f"{run.name}: the loss is {output.training_loss} after {output.global_step} steps: {_ADVICE}")
    return _Trained(trainer, output, order, time.monotonic() - started)


_ADVICE = "lower its learning_rate (or set sft.bf16 to false)"


def _evaluate(campaign: Campaign, model: PreTrainedModel, domains: Sequence[str]) -> dict[str, HeldOutLoss]:
    losses = {}
    for domain in domains:
        loss = evaluate_domain(model, campaign.encoder, campaign.manifest, domain, campaign.max_length)
        if not math.isfinite(loss.nats):
            raise LmsplitError(f"the held-out loss on {domain} is {loss.nats}: {_ADVICE}")
        losses[domain] = loss
    return losses


def _record(
    campaign: Campaign,
    run: Run,
    start: Start,
    packs: Sequence[Packed],
    trained: _Trained,
    losses: dict[str, HeldOutLoss],
    weights: str,
) -> RunRecord:
    parameters = count_parameters(start.model)
    tokens, args = trained.order.num_tokens, trained.trainer.args
    is_seed = run.kind == "seed"
    return RunRecord(
        kind=run.kind,
        domain=run.domain.domain if run.domain else None,
        label=run.domain.label if run.domain else None,
        manifest=ManifestReference(path=campaign.configuration.manifest, digest=campaign.manifest.digest),
        tokenizer_digest=campaign.encoder.digest,
        configuration_digest=run.digest,
        configuration=run.content,
        num_parameters=parameters.total,
        num_parameters_non_embedding=parameters.non_embedding,
        pretraining_tokens=tokens if is_seed else start.pretraining_tokens,
        specialization_tokens=0 if is_seed else tokens,
        num_documents=sum(packed.num_documents for packed in packs),
        num_tokens=sum(packed.num_tokens for packed in packs),
        num_epochs=trained.order.num_epochs,
        num_steps=trained.output.global_step,
        batch_rows=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        max_length=campaign.max_length,
        losses={domain: _domain_losses(start.losses[domain], loss) for domain, loss in losses.items()},
        train_loss=trained.output.training_loss,
        flops=6.0 * parameters.total * tokens,
        wall_time_s=trained.wall_time_s,
        tokens_per_s=tokens / trained.wall_time_s,
        precision=_precision(args.bf16, args.fp16),
        device=start.model.device.type,
        weights_sha256=weights,
        seed_weights_sha256=start.seed_weights_sha256,
        software=software_versions(),
    )


def _domain_losses(before: Loss | None, after: HeldOutLoss) -> DomainLosses:
    return DomainLosses(
        before=before,
        after=Loss.of(after),
        num_documents=after.num_documents,
        num_tokens=after.num_tokens,
        num_bytes=after.num_bytes,
    )


def _precision(bf16: bool, fp16: bool) -> Literal["fp32", "bf16", "fp16"]:
    return "bf16" if bf16 else "fp16" if fp16 else "fp32"


def known_losses(record: RunRecord, domains: Sequence[Domain]) -> dict[str, Loss | None]:
    """Return what a record knows of the loss on each domain."""
    return {domain.domain: record.loss(domain.domain) for domain in domains}
