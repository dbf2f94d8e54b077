import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from lmsplit.train import DomainConfig, DomainTrainer
from lmsplit.train.tokenizer import train_tokenizer
from lmsplit.train.trainer import RowCollator, cpu_has_bf16

TEXTS = ["the fox and the dog", "the dog and the fox", "a fox, a dog, a day"] * 8
TOKENIZER = train_tokenizer([TEXTS], 290)

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    return LlamaForCausalLM(config)


def text_trainer(kind: type[SFTTrainer], config: type[SFTConfig], directory: Path, **fields: Any) -> SFTTrainer:
    """Construct either trainer with the very same arguments, on raw text."""
    defaults = {"max_length": 32, "per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True}
    args = config(output_dir=str(directory), use_cpu=True, bf16=False, report_to="none", **(defaults | fields))
    return kind(
        model=small_model(),
        args=args,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=TOKENIZER,
    )


def test_trainer_is_constructed_as_trls_is_and_has_the_same_loss(tmp_path: Path) -> None:
    theirs = text_trainer(SFTTrainer, SFTConfig, tmp_path / "theirs", activation_checkpointing=False)
    ours = text_trainer(DomainTrainer, DomainConfig, tmp_path / "ours")
    assert ours.train_dataset[:] == theirs.train_dataset[:]
    batch = ours.data_collator([ours.train_dataset[index] for index in range(4)])
    for count in (None, torch.tensor(7)):
        expected = theirs.compute_loss(theirs.model, dict(batch), num_items_in_batch=count)
        found = ours.compute_loss(ours.model, dict(batch), num_items_in_batch=count)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_trainer_brings_the_loss_down_and_counts_tokens(tmp_path: Path) -> None:
    trainer = text_trainer(DomainTrainer, DomainConfig, tmp_path, max_steps=30, learning_rate=0.02, logging_steps=5)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"] - 1
    assert logs[-1]["num_tokens"] > 30 * 4


def test_trainer_keeps_trls_own_losses(tmp_path: Path) -> None:
    trainer = text_trainer(DomainTrainer, DomainConfig, tmp_path, loss_type="dft")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    dft = trainer.compute_loss(trainer.model, dict(batch)).item()
    trainer.args.loss_type = "nll"
    assert dft < trainer.compute_loss(trainer.model, dict(batch)).item()


def test_trainer_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("called out"))
    monkeypatch.delenv("CI", raising=False)
    text_trainer(DomainTrainer, DomainConfig, tmp_path)


def test_config_needs_nothing_but_a_directory(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = DomainConfig(output_dir=str(tmp_path))
    assert config.report_to == []
    assert config.gradient_checkpointing is False
    if not torch.accelerator.is_available():
        assert config.use_cpu
        assert config.bf16 is cpu_has_bf16()


def test_config_has_every_field_of_trls() -> None:
    theirs = {entry.name for entry in dataclasses.fields(SFTConfig)}
    assert theirs == {entry.name for entry in dataclasses.fields(DomainConfig)}


def test_collator_pads_a_short_row_where_the_loss_does_not_look() -> None:
    model = small_model()
    rows = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}]
    batch = RowCollator(0)(rows)
    assert set(batch) == {"input_ids", "labels"}
    together = model(**batch).loss * 4
    alone = sum(model(**RowCollator(0)([row])).loss * (len(row["input_ids"]) - 1) for row in rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
