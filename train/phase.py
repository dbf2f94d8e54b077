"""Trains one model and publishes it: rows, trainer, held-out loss, record and card.

```
packs ─shares─► draw_rows ─► lineage ─► DomainTrainer ─► weights ─► held-out loss ─► run.json, README.md
                                          ▲   │
                             checkpoint-N ┴◄──┘
```

The directory of a model appears when all of it is written. Until then it is a hidden sibling with the newest checkpoint, from
which the same command goes on, bit for bit on a CPU; what another configuration began is refused. A loss that is no number
ends the run with an error, so no broken model is ever published. This does *not* decide what to train: see `experts`.
"""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.train.campaign import Campaign, Run
from lmsplit.train.card import render_card
from lmsplit.train.directory import write_whole
from lmsplit.train.energy import Energy, measured_energy
from lmsplit.train.heldout import HeldOut, HeldOutCallback
from lmsplit.train.layout import PROGRESS, REFERENCES
from lmsplit.train.lineage import Lineage, PackReference, checkpoint_steps, write_lineage
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.models import count_parameters, load_model
from lmsplit.train.optimizer import load_optimizer_state, save_optimizer_state
from lmsplit.train.order import RowOrder, draw_rows
from lmsplit.train.processes import is_main, run_directory, wait_for_all
from lmsplit.train.progress import ProgressCallback
from lmsplit.train.record import (
    RECORD,
    DomainTokens,
    Evaluation,
    InterferenceRecord,
    Loss,
    ManifestReference,
    RunRecord,
    domain_losses,
    read_record,
    software_versions,
    weights_sha256,
)
from lmsplit.train.sft import phase_config
from lmsplit.train.shares import Share, joined_rows, tokens_of_steps, with_others_marked
from lmsplit.train.trainer import DomainTrainer

logger = logging.getLogger(__name__)

_CONTENT: Final = "content.json"
_EVALUATIONS: Final = "evaluations.json"
_ADVICE: Final = "lower its learning_rate (or set sft.bf16 to false)"


class Start(NamedTuple):
    """What a run starts from."""

    model: PreTrainedModel
    """Trained in place."""
    pretraining_tokens: int
    """Tokens that the model was trained on before, in the seed's run."""
    seed_weights_sha256: str | None
    losses: dict[str, Loss] | None
    """The model's loss on each domain; None for fresh weights, which are not worth measuring."""
    optimizer_state: Path | None
    """Directory of the run whose optimizer goes on; None for a fresh one."""


class _Trained(NamedTuple):
    trainer: DomainTrainer
    output: TrainOutput
    energy: Energy
    train_loss: float
    references: str | None
    """Digest of the seed's losses that the run was given; None where it needed none."""


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
        raise ConfigurationError(
            f"{run.directory} was trained with another {_difference(record.configuration, run.content)}: "
            "choose another output, or remove that directory to train it again"
        )
    return record


def run_phase(campaign: Campaign, run: Run, start: Start, shares: Sequence[Share]) -> RunRecord | None:
    """Train one model and publish it, or go on where an earlier attempt was cut off.

    Args:
        campaign: what the runs share.
        run: what to train; its directory must not exist.
        start: the model.
        shares: the packed documents to train on.

    Returns:
        The record, as it was written; None in every process but the main one.

    Raises:
        ConfigurationError: an earlier attempt had another configuration.
        ConflictError: another command is training the same model.
        LmsplitError: there is nothing to train on, or the loss is no number.
    """
    rows_per_step = _rows_per_step(campaign, run)
    order = _draw(campaign, run, shares, rows_per_step)
    if is_main():
        campaign.write_configuration()
    with run_directory(run.directory) as scratch:
        if is_main():
            _begin(campaign, run, shares, order, rows_per_step, scratch)
        wait_for_all()
        heldout = HeldOut.of(campaign)
        watch = HeldOutCallback(heldout, tokens_of_steps(shares, order), scratch / _EVALUATIONS, start.losses)
        trained = _train(campaign, run, start, shares, order, watch, scratch)
        if not is_main():
            return None
        start.model.save_pretrained(scratch)
        if run.kind == "seed" and campaign.configuration.expert.optimizer_state == "kept":
            save_optimizer_state(trained.trainer, scratch)
        # What was written is what is measured: the model in memory may still compute in the trainer's mixed precision.
        losses = heldout.measure(load_model(scratch).to(trained.trainer.args.device))
        _check_losses(losses)
        watch.add(order.num_steps, losses)
        campaign.encoder.tokenizer.save_pretrained(scratch)
        record = _record(campaign, run, start, shares, order, trained, losses, watch.evaluations, weights_sha256(scratch))
        _clean(campaign, scratch)
        write_whole(scratch / RECORD, record.to_json())
        write_whole(scratch / "README.md", render_card(record, campaign.manifest.domains))
    return record


def _rows_per_step(campaign: Campaign, run: Run) -> int:
    args = run.content["sft"]
    accumulation = int(args.get("gradient_accumulation_steps", 1))
    return int(args["per_device_train_batch_size"]) * accumulation * campaign.configuration.executor.processes


def _draw(campaign: Campaign, run: Run, shares: Sequence[Share], rows_per_step: int) -> RowOrder:
    own = shares[:1] if run.kind == "expert" else shares
    if not any(share.packed.num_rows and share.share for share in own):
        let_in = " that where lets in" if run.where else ""
        raise LmsplitError(f"{run.name} has no training documents{let_in}: lmsplit show names each domain's splits")
    lengths = [share.packed.row_lengths() for share in shares]
    repetitions = run.content["max_repetitions"]
    weights = [share.share for share in shares]
    tokens = run.tokens
    if run.kind == "expert" and repetitions is not None:  # or the others would have more than their share
        tokens = min(tokens, max(1, math.ceil(repetitions * shares[0].packed.num_tokens * sum(weights) / weights[0])))
    return draw_rows(lengths, weights, tokens, rows_per_step, campaign.configuration.seed, repetitions)


def _begin(campaign: Campaign, run: Run, shares: Sequence[Share], order: RowOrder, rows_per_step: int, scratch: Path) -> None:
    """Write what the run is before its first step; refuse what another one left here, and drop half-written checkpoints."""
    path, whole = scratch / _CONTENT, {f"checkpoint-{step}" for step in checkpoint_steps(scratch)}
    if whole and path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != json.loads(json.dumps(run.content)):
            raise ConfigurationError(
                f"{scratch} holds an unfinished run with another {_difference(found, run.content)}: "
                "go back to that configuration, choose another output, or remove that directory"
            )
    write_whole(path, json.dumps(run.content, indent=1) + "\n")
    packs = tuple(PackReference(domain=share.packed.domain, digest=share.packed.digest) for share in shares)
    lineage = Lineage(
        run=run.name,
        manifest=campaign.manifest.digest,
        tokenizer=campaign.encoder.digest,
        packs=packs,
        rows_per_step=rows_per_step,
        where=run.where,
        seed_run=None if run.kind == "seed" else "../../seed",
    )
    write_lineage(scratch, lineage, order)
    for path in scratch.glob("checkpoint-*"):
        if path.name not in whole:
            shutil.rmtree(path)


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    wanted = json.loads(json.dumps(wanted))
    return ", ".join(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)))


def _train(
    campaign: Campaign,
    run: Run,
    start: Start,
    shares: Sequence[Share],
    order: RowOrder,
    watch: TrainerCallback,
    scratch: Path,
) -> _Trained:
    progress = ProgressCallback(run.name, order.num_tokens, scratch)
    configuration = campaign.configuration
    processes = configuration.executor.processes
    args = phase_config(run.fields, campaign.preset, run.learning_rate, configuration.seed, str(scratch), processes)
    rows, positions = joined_rows(shares, order)
    interference = configuration.expert.interference if run.kind == "expert" else None
    references = None
    if interference is not None and not order.tokens_P[1:].any():
        logger.warning("%s has no documents of other domains that it could be held to the seed on", run.name)
        interference = None
    if interference is not None:
        seed, cache = (start.model, start.seed_weights_sha256), campaign.output / REFERENCES
        rows, references = with_others_marked(rows, positions, shares, interference, seed, args, cache)
    try:
        trainer = DomainTrainer(
            model=start.model,
            args=args,
            train_dataset=rows,
            row_order=positions,
            interference=interference,
            processing_class=campaign.encoder.tokenizer,
            callbacks=[watch, progress] if is_main() else [],
        )
    except ValueError as error:  # an option that does not go with the model or with another one
        raise ConfigurationError(f"{run.name}: {error}") from error
    trainer.remove_callback(PrinterCallback)  # it prints every log on standard output
    if start.optimizer_state is not None:
        load_optimizer_state(trainer, start.optimizer_state)
    newest = max(checkpoint_steps(scratch), default=None)
    try:
        with measured_energy(configuration.energy and is_main()) as energy:
            output = trainer.train(resume_from_checkpoint=str(scratch / f"checkpoint-{newest}") if newest else None)
    finally:
        progress.stop()
    loss = _mean_loss(trainer)
    if not math.isfinite(loss):
        _clean(campaign, scratch, everything=True)  # it would go on from there with the same configuration only
        raise LmsplitError(f"{run.name}: the loss is {loss} after {output.global_step} steps: {_ADVICE}")
    return _Trained(trainer, output, energy, loss, references)


def _mean_loss(trainer: DomainTrainer) -> float:
    """Return the mean of the logged losses over the steps, which a resumed run has in common with an undisturbed one."""
    total, before = 0.0, 0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else math.nan


def _check_losses(losses: dict[str, HeldOutLoss]) -> None:
    for domain, loss in losses.items():
        if not math.isfinite(loss.nats):
            raise LmsplitError(f"the held-out loss on {domain} is {loss.nats}: {_ADVICE}")


def _clean(campaign: Campaign, scratch: Path, *, everything: bool = False) -> None:
    """Remove what only an unfinished run needs; checkpoints stay where the configuration says how many to keep."""
    for name in (_CONTENT, _EVALUATIONS, PROGRESS, "training_args.bin"):
        (scratch / name).unlink(missing_ok=True)
    if everything or "save_total_limit" not in campaign.configuration.sft:
        for path in scratch.glob("checkpoint-*"):
            shutil.rmtree(path)


def _record(
    campaign: Campaign,
    run: Run,
    start: Start,
    shares: Sequence[Share],
    order: RowOrder,
    trained: _Trained,
    losses: dict[str, HeldOutLoss],
    evaluations: list[Evaluation],
    weights: str,
) -> RunRecord:
    parameters = count_parameters(start.model)
    trainer, meter, args = trained.trainer, trained.trainer.meter, trained.trainer.args
    is_seed = run.kind == "seed"
    flops = 6.0 * parameters.total * order.num_tokens
    others = _interference_record(trained, order)
    if others is not None and others.seed_passes:
        flops += 2.0 * parameters.total * others.num_tokens
    seconds = max(meter.train_s, 1e-9)
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
        pretraining_tokens=order.num_tokens if is_seed else start.pretraining_tokens,
        specialization_tokens=0 if is_seed else order.num_tokens,
        where=run.where,
        domains=_domain_tokens(shares, order),
        num_steps=order.num_steps,
        batch_rows=len(order.row_S) // order.num_steps,
        max_length=campaign.packing.max_length,
        losses=domain_losses(start.losses, losses),
        evaluations=evaluations,
        interference=others,
        train_loss=trained.train_loss,
        flops=flops,
        wall_time_s=seconds,
        tokens_per_s=order.num_tokens / seconds,
        data_wait_fraction=meter.data_wait_s / seconds,
        model_flops_utilization=flops / seconds / (trainer.peak * args.world_size) if trainer.peak else None,
        energy_kwh=trained.energy.kwh,
        num_processes=args.world_size,
        num_threads=torch.get_num_threads(),
        precision=_precision(args.bf16, args.fp16),
        device=start.model.device.type,
        weights_sha256=weights,
        seed_weights_sha256=start.seed_weights_sha256,
        software=software_versions(),
    )


def _interference_record(trained: _Trained, order: RowOrder) -> InterferenceRecord | None:
    state = trained.trainer.interference_state
    if state is None or trained.trainer.interference is None:
        return None
    return InterferenceRecord(
        num_tokens=int(order.tokens_P[1:].sum()),
        seed_passes=trained.trainer.interference.kind != "replay",
        reference_losses=trained.references,
        noise=state.noise,
        margin=state.margin,
        end_weight=state.weight.item(),
    )


def _domain_tokens(shares: Sequence[Share], order: RowOrder) -> dict[str, DomainTokens]:
    return {
        share.packed.domain: DomainTokens(
            pack=share.packed.digest,
            num_documents=share.packed.num_documents,
            num_filtered=share.packed.num_filtered,
            num_tokens=share.packed.num_tokens,
            trained_tokens=int(order.tokens_P[number]),
            not_reached_tokens=int(order.not_reached_P[number]),
            repetitions=float(order.repetitions_P[number]),
        )
        for number, share in enumerate(shares)
    }


def _precision(bf16: bool, fp16: bool) -> Literal["fp32", "bf16", "fp16"]:
    return "bf16" if bf16 else "fp16" if fp16 else "fp32"
