"""The other domains' part of a trainer's steps, in a script of one's own: against losses and gradients written out by hand."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedModel, TrainerCallback

from lmsplit.train import DomainTrainer
from lmsplit.train.attention import confine
from lmsplit.train.batches import IGNORED, RowCollator
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Interference
from lmsplit.train.models import load_model
from lmsplit.train.off_domain import mark_rows
from lmsplit.train.off_domain_loss import tokens_per_step
from lmsplit.train.references import add_reference_losses
from lmsplit.train.sft import phase_config
from tests.train.runs import campaign_of, train, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

EXACT = MappingProxyType({"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0})
KINDS: dict[str, dict[str, Any]] = {
    "hinge": {"kind": "hinge", "weight": 0.7},
    "document": {"kind": "hinge", "level": "document", "weight": 0.7, "margin": 0.05},
    "replay": {"kind": "replay", "weight": 0.7},
    "kl": {"kind": "kl", "weight": 0.7},
}


class Script(NamedTuple):
    """A seed and packed rows of two domains, for a script of one's own."""

    campaign: Campaign
    rows: Dataset
    """With the seed's losses on those of the second domain."""
    off_R: npt.NDArray[np.bool_]

    def seed(self) -> PreTrainedModel:
        return load_model(self.campaign.seed_run().directory)

    def trainer(
        self,
        directory: Path,
        order: npt.NDArray[np.int64],
        interference: Interference | None,
        fields: Mapping[str, Any] = MappingProxyType({}),
        rows: Dataset | None = None,
        model: PreTrainedModel | None = None,
        rate: float = 0.01,
        **named: Any,
    ) -> DomainTrainer:
        campaign = self.campaign
        wanted = campaign.configuration.sft | {"logging_steps": 1} | dict(fields)
        return DomainTrainer(
            model=model or self.seed(),
            args=phase_config(wanted, campaign.preset, rate, 0, str(directory)),
            train_dataset=self.rows if rows is None else rows,
            processing_class=campaign.encoder.tokenizer,
            interference=interference,
            row_order=order,
            **named,
        )

    def some(self, *pattern: bool) -> npt.NDArray[np.int64]:
        """Return different rows that are of the other domain where the pattern says so."""
        own, others = iter(np.flatnonzero(~self.off_R)), iter(np.flatnonzero(self.off_R))
        return np.array([next(others if off else own) for off in pattern], np.int64)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory, licensed_manifest: Path) -> Script:
    """A trained seed; read it."""
    path = write_configuration(tmp_path_factory.mktemp("script"), licensed_manifest)
    train(path)
    campaign = campaign_of(path)
    packs = [campaign.packed(domain, None) for domain in campaign.manifest.domains[:2]]
    found = Dataset.from_list([row for packed in packs for row in packed.rows().with_format("numpy")])
    rows = mark_rows(found, packs[0].num_rows)
    with_losses = add_reference_losses(rows, load_model(campaign.seed_run().directory)).with_format("numpy")
    return Script(campaign, with_losses, np.arange(len(rows)) >= packs[0].num_rows)


def moved(script: Script) -> PreTrainedModel:
    """Return a model that is not the seed any more."""
    model = script.seed()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return model


def predicted(model: PreTrainedModel, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logits and the labels of what is predicted in a row, and where that is."""
    batch = RowCollator(0)([{name: row[name] for name in ("input_ids", "seq_lengths")}])
    labels = batch.pop("labels")[0, 1:]
    kept = labels != IGNORED
    return model(**confine(batch, model)).logits[0, :-1][kept], labels[kept], kept


def penalty_of(row: dict[str, Any], model: PreTrainedModel, seed: PreTrainedModel, settings: Interference) -> torch.Tensor:
    logits, labels, kept = predicted(model, row)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    excess = losses - torch.from_numpy(row["reference_losses"])[1:][kept]
    if settings.kind == "replay":
        return losses.sum()
    if settings.kind == "kl":
        with torch.no_grad():
            before = predicted(seed, row)[0].log_softmax(-1)
        return (before.exp() * (before - logits.log_softmax(-1))).sum()
    if settings.level == "token":
        return (excess - settings.margin).clamp(min=0).sum()
    pieces = np.repeat(np.arange(len(row["seq_lengths"])), row["seq_lengths"])[1:][kept.numpy()]
    parts = [excess[torch.from_numpy(pieces == piece)] for piece in np.unique(pieces)]
    return sum(len(part) * (part.mean() - settings.margin).clamp(min=0) for part in parts)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_objective_and_its_gradient_are_those_by_hand(script: Script, tmp_path: Path, kind: str, accumulation: int) -> None:
    """Own mean over the step's own tokens, and the weight times the penalty's sum over the other tokens of a mean step."""
    settings = Interference(fraction=0.5, **KINDS[kind])
    order = script.some(False, True, False, True, False, False, False, False, False, True, True, True)
    fields = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation} | EXACT
    model, seed = moved(script), script.seed()
    trainer = script.trainer(tmp_path, order, settings, fields)
    trainer.interference_state.noise = 0.0  # or it would be measured with the model as it is below
    trainer.model.load_state_dict(model.state_dict())
    gradients: list[dict[str, torch.Tensor]] = []

    class Notes(TrainerCallback):
        def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_named: Any) -> None:
            gradients.append({name: each.grad.clone() for name, each in trainer.model.named_parameters()})

    trainer.add_callback(Notes())
    trainer.train()
    rows, off = [script.rows[int(row)] for row in order], script.off_R[order]
    own = [functional.cross_entropy(*predicted(model, row)[:2], reduction="sum") for row in [rows[0], rows[2]]]
    num_own = sum(len(predicted(model, row)[1]) for row in [rows[0], rows[2]])
    per_step = sum(len(predicted(model, row)[1]) for row, is_off in zip(rows, off, strict=True) if is_off) / 3
    penalties = [penalty_of(row, model, seed, settings) for row in (rows[1], rows[3])]
    expected = sum(own) / num_own + 0.7 * sum(penalties) / per_step
    expected.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[0][name], parameter.grad, rtol=1e-3, atol=1e-5 * parameter.grad.abs().max().item())


def test_cosine_is_that_of_the_two_gradients(script: Script, tmp_path: Path) -> None:
    order = script.some(False, True, False, True)
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | EXACT
    trainer = script.trainer(tmp_path, order, Interference(kind="kl", weight=5, fraction=0.5), fields)
    trainer.train()
    model, rows = script.seed(), [script.rows[int(row)] for row in order]
    own, off = (
        torch.cat(
            [
                each.flatten()
                for each in torch.autograd.grad(
                    sum(functional.cross_entropy(*predicted(model, row)[:2], reduction="sum") for row in chosen),
                    list(model.parameters()),
                )
            ]
        )
        for chosen in (rows[::2], rows[1::2])
    )
    expected = functional.cosine_similarity(own, off, dim=0).item()
    assert abs(expected) > 0.05
    assert trainer.state.log_history[0]["gradient_cosine"] == pytest.approx(expected, rel=1e-3)


def test_reentrant_checkpoints_have_no_cosine(script: Script, tmp_path: Path) -> None:
    fields = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = script.trainer(tmp_path, script.some(False, True, False, True), Interference(), fields)
    trainer.train()
    assert "off_domain_loss" in trainer.state.log_history[0]
    assert "gradient_cosine" not in trainer.state.log_history[0]


def test_replay_is_plain_training_on_the_same_rows(script: Script, tmp_path: Path) -> None:
    """Where all rows are as long, its sum of two means is 4/3 of the mean over all tokens; marked rows are rows like others."""
    full = np.flatnonzero([len(row["input_ids"]) == 32 and len(row["seq_lengths"]) == 1 for row in script.rows])
    own, others = full[~script.off_R[full]][:18], full[script.off_R[full]][:6]
    order = np.concatenate([own.reshape(6, 3), others[:, None]], axis=1).ravel()  # three own rows and another
    replay = script.trainer(tmp_path / "one", order, Interference(kind="replay", fraction=0.25), EXACT, rate=0.3)
    plain = script.trainer(tmp_path / "other", order, None, EXACT, rate=0.4)
    for trainer in (replay, plain):
        trainer.train()
        assert trainer.state.global_step == 6
    assert "off_domain_excess" not in replay.state.log_history[0]  # nothing is compared
    ours, theirs, before = (each.state_dict() for each in (replay.model, plain.model, script.seed()))
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-4 * (tensor - before[name]).abs().max(), name


def test_noise_is_measured_in_the_precision_of_the_training(script: Script, tmp_path: Path) -> None:
    order = script.some(*[False, True] * 12)
    unmeasured = script.rows.remove_columns("reference_losses")
    noise = {}
    for precise in (False, True):
        rows = add_reference_losses(unmeasured, script.seed(), bf16=not precise).with_format("numpy")
        trainer = script.trainer(tmp_path, order, Interference(kind="hinge", margin=1e-9), {"bf16": True}, rows)
        trainer.train()
        noise[precise] = trainer.interference_state.noise
        assert trainer.interference_state.margin == max(noise[precise], 1e-9)
    assert noise[False] < 1e-4 < noise[True]
    trainer.train()  # the model is not the seed any more, which is no noise
    assert trainer.interference_state.noise == noise[True]


def test_seed_computes_in_the_precision_of_the_expert(script: Script, tmp_path: Path) -> None:
    trainer = script.trainer(tmp_path, script.some(False, True, False, True), Interference(), {"bf16": True})
    found = []
    for model in (trainer.model, trainer._others._seed):
        layer = model.model.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.dtype))
    trainer.train()
    assert set(found) == {torch.bfloat16}
    assert trainer.state.log_history[0]["off_domain_excess"] == pytest.approx(0, abs=1e-5)


def test_losses_of_another_model_are_no_noise(script: Script, tmp_path: Path) -> None:
    trainer = script.trainer(tmp_path, script.some(False, True), Interference(kind="hinge"), model=moved(script))
    with pytest.raises(ValueError, match=r"nats per token from the losses of the model as it is given, .* measure them"):
        trainer.train()


def test_penalty_is_a_mean_over_the_runs_other_tokens(script: Script) -> None:
    """The sum over all steps of (tokens of other domains ÷ tokens of a mean step) is the number of steps."""
    rows = script.rows
    lengths = [(len(row["input_ids"]) - len(row["seq_lengths"])) * off for row, off in zip(rows, script.off_R, strict=True)]
    order = np.random.default_rng(0).integers(0, len(rows), 40)
    assert tokens_per_step(rows, order, 4) == pytest.approx(sum(lengths[row] for row in order) / 10)
    assert tokens_per_step(rows, None, 4) == pytest.approx(sum(lengths) * 4 / len(rows))


def test_tokens_without_a_label_count_nowhere(script: Script, tmp_path: Path) -> None:
    labels = [[IGNORED if place % 3 else int(token) for place, token in enumerate(row["input_ids"])] for row in script.rows]
    columns = {name: script.rows[name] for name in ("input_ids", "seq_lengths")}
    rows = mark_rows(Dataset.from_dict(columns | {"labels": labels}), int((~script.off_R).sum()))
    collated = [RowCollator(0)([row])["labels"][0, 1:] for row in rows.remove_columns("off_domain")]
    counts = [int((each != IGNORED).sum()) * off for each, off in zip(collated, script.off_R, strict=True)]
    assert tokens_per_step(rows, None, 4) == pytest.approx(sum(counts) * 4 / len(rows))
    with_losses = add_reference_losses(rows, script.seed()).with_format("numpy")
    trainer = script.trainer(tmp_path, script.some(False, True, False, True), Interference(kind="hinge"), rows=with_losses)
    trainer.train()
    assert trainer.interference_state.noise < 1e-4


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_what_does_not_go_with_interference_is_refused(script: Script, tmp_path: Path) -> None:
    order, hinge = script.some(False, True), Interference(kind="hinge")
    with pytest.raises(ValueError, match="needs packed rows with the column 'reference_losses'"):
        script.trainer(tmp_path, order, hinge, rows=script.rows.remove_columns("reference_losses"))
    with pytest.raises(ValueError, match="interference goes with the plain loss"):
        script.trainer(tmp_path, order, hinge, compute_loss_func=lambda *_arguments, **_named: None)


def test_another_setting_or_seed_does_not_resume(script: Script, tmp_path: Path) -> None:
    order, saved = script.some(*[False, True] * 12), {"save_steps": 2}
    for number, (first, second, model, found) in enumerate(
        [
            (Interference(kind="replay"), Interference(kind="replay", weight=2), None, "interference was"),
            (Interference(), Interference(), moved(script), "seed was"),
        ]
    ):
        script.trainer(tmp_path / str(number), order, first, saved).train()
        again = script.trainer(tmp_path / str(number), order, second, saved, model=model)
        with pytest.raises(ValueError, match=f"cannot be resumed exactly: {found}"):
            again.train(resume_from_checkpoint=True)
