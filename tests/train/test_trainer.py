import dataclasses
import json
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from lmsplit.train import DomainConfig, DomainTrainer
from lmsplit.train.batches import RowCollator
from lmsplit.train.tokenizer import train_tokenizer
from lmsplit.train.trainer import cpu_has_bf16

TEXTS = ["the fox and the dog", "the dog and the fox", "a fox, a dog, a day"] * 8
TOKENIZER = train_tokenizer([TEXTS], 290)

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]


OLD = pytest.mark.filterwarnings("ignore:`(label_smoothing_factor|compute_loss_func)` is deprecated:FutureWarning")
"""What TRL means to drop, and has until then."""


def small_model(**fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        **fields,
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


DEFAULTS: dict[str, Any] = {
    "max_length": 32,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
}


def text_trainer(kind: type[SFTTrainer], config: type[SFTConfig], directory: Path, **fields: Any) -> SFTTrainer:
    """Construct either trainer with the very same arguments, on raw text."""
    return kind(
        model=small_model(),
        args=config(output_dir=str(directory), **(DEFAULTS | fields)),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=TOKENIZER,
    )


def domain_trainer(directory: Path, *, rows: Any = None, fields: dict[str, Any] | None = None, **named: Any) -> DomainTrainer:
    """Construct ours; `fields` are those of its configuration, `named` its own arguments."""
    arguments = {"model": small_model(), "processing_class": TOKENIZER} | named
    rows = Dataset.from_dict({"text": TEXTS}) if rows is None else rows
    return DomainTrainer(
        args=DomainConfig(output_dir=str(directory), **(DEFAULTS | (fields or {}))), train_dataset=rows, **arguments
    )


def weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name, tensor in first.items() if not tensor.equal(second[name])]


def lines(trainer: SFTTrainer, *names: str) -> list[tuple[Any, ...]]:
    """Return these fields of every log line of the training."""
    return [tuple(entry[name] for name in names) for entry in trainer.state.log_history if "loss" in entry]


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
    shapes = [trainer.data_collator([trainer.train_dataset[row]])["input_ids"].numel() for row in range(len(TEXTS))]
    assert 30 * 4 * min(shapes) <= logs[-1]["num_tokens"] <= 30 * 4 * max(shapes)
    assert logs[-1]["num_tokens"] == trainer.meter.num_tokens
    for entry in logs:
        assert entry["tokens_per_s"] > 0
        assert 0 < entry["data_wait_fraction"] < 1
        assert 0 < entry["model_flops_utilization"] < 1
        assert not {"entropy", "mean_token_accuracy"} & set(entry)


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
    assert {entry.name for entry in dataclasses.fields(DomainConfig)} == theirs | {"num_processes"}


def test_collator_pads_a_short_row_where_the_loss_does_not_look() -> None:
    model = small_model()
    rows = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}]
    batch = RowCollator(0)(rows)
    assert set(batch) == {"input_ids", "labels"}
    together = model(**batch).loss * 4
    alone = sum(model(**RowCollator(0)([row])).loss * (len(row["input_ids"]) - 1) for row in rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


MANY = [*TEXTS, "a dog", "the day"]
"""In batches of 4 and two of them to a step: 7 batches and 4 steps to an epoch, of which the last have a remainder."""
RESUMED: dict[str, Any] = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
}


def resumable(directory: Path, rows: list[str] = MANY, *, fields: dict[str, Any] | None = None, **named: Any) -> DomainTrainer:
    """Construct a trainer whose model draws random numbers in every step."""
    columns = Dataset.from_dict({"text": rows})
    model = small_model(attention_dropout=0.1)
    return domain_trainer(directory, rows=columns, fields=RESUMED | (fields or {}), model=model, **named)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> DomainTrainer:
    """A run over two epochs that kept all of its checkpoints. Read it; do not train it on."""
    trainer = resumable(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    assert trainer.state.global_step == 8
    return trainer


@pytest.mark.parametrize("step", [2, 4, 6])
def test_resumed_run_is_the_undisturbed_one(undisturbed: DomainTrainer, tmp_path: Path, step: int) -> None:
    """From the middle of the first epoch, from its end, and from the middle of the second."""
    trainer = resumable(tmp_path)
    assert differing(weights(trainer), weights(undisturbed))
    torch.manual_seed(99)  # what the process drew before must not matter
    trainer.train(resume_from_checkpoint=str(Path(undisturbed.args.output_dir) / f"checkpoint-{step}"))
    assert differing(weights(trainer), weights(undisturbed)) == []
    names = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "epoch")
    assert lines(trainer, *names) == lines(undisturbed, *names)
    assert [step for (step,) in lines(trainer, "step")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_dropout_matters_to_these_runs(undisturbed: DomainTrainer, tmp_path: Path) -> None:
    """Else a resumed run would prove nothing about random numbers."""
    trainer = domain_trainer(tmp_path, rows=Dataset.from_dict({"text": MANY}), fields=RESUMED)
    trainer.train()
    assert differing(weights(trainer), weights(undisturbed))


def test_resuming_finds_the_newest_checkpoint_by_itself(tmp_path: Path) -> None:
    first = resumable(tmp_path, fields={"num_train_epochs": 1})
    first.train()
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    again = resumable(tmp_path, fields={"num_train_epochs": 1})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert differing(weights(first), weights(again)) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": MANY[1:]}, "rows was .*, is "),
        ({"rows": ["a fox", *MANY[1:]]}, "rows was .*, is "),
        ({"row_order": np.arange(26)[::-1]}, "row_order was None, is "),
        ({"fields": {"per_device_train_batch_size": 2}}, "rows_per_batch was 4, is 2"),
        ({"fields": {"gradient_accumulation_steps": 1}}, "accumulation was 2, is 1"),
    ],
)
def test_other_data_cannot_be_resumed_with(
    undisturbed: DomainTrainer, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    checkpoint = Path(undisturbed.args.output_dir) / "checkpoint-5"
    with pytest.raises(ValueError, match=f"checkpoint-5 cannot be resumed exactly: {message}"):
        resumable(tmp_path, **changed).train(resume_from_checkpoint=str(checkpoint))


def test_another_order_cannot_be_resumed_with(tmp_path: Path) -> None:
    resumable(tmp_path, row_order=np.arange(26), fields={"max_steps": 1}).train()
    for order in (np.arange(26)[::-1], np.arange(25), None):
        with pytest.raises(ValueError, match=r"row_order was .*, is "):
            resumable(tmp_path, row_order=order).train(resume_from_checkpoint=True)


def test_another_number_of_processes_cannot_be_resumed_with(undisturbed: DomainTrainer, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(Path(undisturbed.args.output_dir) / "checkpoint-5", tmp_path / "checkpoint-5"))
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["Meter"]["args"]["data"]["processes"] = 2
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="processes was 2, is 1"):
        resumable(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_checkpoint_keeps_the_counts(undisturbed: DomainTrainer) -> None:
    """Tokens grow from checkpoint to checkpoint, and the last has those of the whole run."""
    paths = [Path(undisturbed.args.output_dir) / f"checkpoint-{step}" / "trainer_state.json" for step in range(1, 9)]
    counts = [json.loads(path.read_text())["stateful_callbacks"]["Meter"]["args"] for path in paths]
    for name in ("num_tokens", "train_s", "data_wait_s"):
        found = [each[name] for each in counts]
        assert found == sorted(set(found))
    assert counts[-1]["num_tokens"] == undisturbed.meter.num_tokens


class Watching(DomainTrainer):
    """Keeps what the first token of each row says of which row it is."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        self.__dict__.setdefault("seen", []).extend(inputs["input_ids"][:, 0].sub(3).tolist())
        return super().compute_loss(model, inputs, *arguments, **named)


@pytest.mark.parametrize("order", [None, np.array([7, 1, 1, 0, 9, 3])])
def test_model_is_given_the_rows_in_their_order(tmp_path: Path, order: np.ndarray | None) -> None:
    """Each epoch has a permutation of its own, or the order that is given."""
    rows = Dataset.from_dict({"input_ids": [[row + 3, row + 4] for row in range(10)]})
    args = DomainConfig(output_dir=str(tmp_path), **(DEFAULTS | {"num_train_epochs": 2, "data_seed": 5}))
    trainer = Watching(model=small_model(), args=args, train_dataset=rows, processing_class=TOKENIZER, row_order=order)
    trainer.train()
    drawn = [np.random.default_rng([5, epoch]).permutation(10) for epoch in (0, 1)] if order is None else [order, order]
    assert trainer.seen == np.concatenate(drawn).tolist()


def test_number_of_processes_is_held_to(tmp_path: Path) -> None:
    message = r"asked for 2 processes and has 1: start it with torchrun --nproc_per_node 2"
    with pytest.raises(ValueError, match=message):
        DomainConfig(output_dir=str(tmp_path), num_processes=2)
    assert DomainConfig(output_dir=str(tmp_path), num_processes=1).world_size == 1


def long_texts() -> Dataset:
    """Documents of which some do not fit into a row of 32 tokens."""
    return Dataset.from_dict({"text": [" ".join(TEXTS[: number % 7 + 1]) for number in range(24)]})


def test_packing_of_trls_keeps_every_token_and_our_mask(tmp_path: Path) -> None:
    tokens = Counter(
        token
        for row in domain_trainer(tmp_path, rows=long_texts(), fields={"max_length": None}).train_dataset
        for token in row["input_ids"]
    )
    trainer = domain_trainer(tmp_path, rows=long_texts(), fields={"packing": True})
    assert trainer.args.packing_strategy == "bfd_split"
    assert isinstance(trainer.data_collator, RowCollator)
    assert Counter(token for row in trainer.train_dataset for token in row["input_ids"]) == tokens
    assert max(len(row["seq_lengths"]) for row in trainer.train_dataset) > 1
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    assert "document_ids" in batch
    with torch.no_grad():
        together = trainer.compute_loss(trainer.model, dict(batch)).item() * int(batch["labels"][:, 1:].ne(-100).sum())
        alone = 0.0
        for row in trainer.train_dataset.select(range(4)):
            for piece in torch.tensor(row["input_ids"]).split(row["seq_lengths"]):
                alone += 0.0 if len(piece) < 2 else trainer.model(piece[None], labels=piece[None]).loss.item() * (len(piece) - 1)
    assert together == pytest.approx(alone, rel=1e-5)
    trainer.train()
    assert trainer.state.global_step == len(trainer.get_train_dataloader()) * 3


def packed_rows(number: int = 8) -> Dataset:
    return Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9, 10]] * number, "seq_lengths": [[4, 2]] * number})


def test_packed_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = packed_rows()
    trainer = domain_trainer(tmp_path, rows=rows, fields={"max_length": 4})
    assert trainer.train_dataset is rows


@OLD
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_packed_rows_are_counted_on_every_path(tmp_path: Path, fields: dict[str, Any], kind: str) -> None:
    """A row's tokens, whatever shape the mask has that keeps its documents apart."""
    model = small_model(attn_implementation=kind)
    trainer = domain_trainer(tmp_path, rows=packed_rows(), fields=fields | {"max_steps": 2}, model=model)
    trainer.train()
    assert lines(trainer, "step", "num_tokens") == [(2, 2 * 4 * 6)]
    assert trainer.meter.num_tokens == 48
    assert lines(trainer, "tokens_per_s")[0][0] > 0


def test_collator_of_ones_own_stays(tmp_path: Path) -> None:
    called: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        called.append(len(rows))
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    trainer = domain_trainer(tmp_path, rows=packed_rows(), fields={"max_steps": 2}, data_collator=collate)
    trainer.train()
    assert trainer.data_collator is collate
    assert called == [4, 4]


@OLD
@pytest.mark.parametrize("rows", [None, packed_rows()])
def test_loss_function_of_ones_own_stays(tmp_path: Path, rows: Dataset | None) -> None:
    shapes = []

    def constant(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        shapes.append((outputs.logits.shape[:2], labels.shape))
        return outputs.logits.sum() * 0 + 3

    trainer = domain_trainer(tmp_path, rows=rows, fields={"max_steps": 2}, compute_loss_func=constant)
    trainer.train()
    assert lines(trainer, "step", "loss", "grad_norm") == [(2, 3.0, 0.0)]
    assert len(shapes) == 2
    assert all(logits == labels for logits, labels in shapes)


@OLD
def test_smoothing_of_labels_is_trls(tmp_path: Path) -> None:
    fields = {"label_smoothing_factor": 0.2}
    theirs = text_trainer(SFTTrainer, SFTConfig, tmp_path / "theirs", activation_checkpointing=False, **fields)
    ours = text_trainer(DomainTrainer, DomainConfig, tmp_path / "ours", **fields)
    plain = text_trainer(DomainTrainer, DomainConfig, tmp_path / "plain")
    batch = ours.data_collator([ours.train_dataset[index] for index in range(4)])
    found, expected = (each.compute_loss(each.model, dict(batch)).item() for each in (ours, theirs))
    assert found == expected
    ours.model.lm_head.weight.data.mul_(50)  # smoothing shows where the model is sure
    plain.model.lm_head.weight.data.mul_(50)
    smooth, sharp = (each.compute_loss(each.model, dict(batch)).item() for each in (ours, plain))
    assert abs(smooth - sharp) > 0.01 * sharp


@pytest.mark.parametrize("rows", [None, packed_rows()])
def test_evaluation_gives_the_loss(tmp_path: Path, rows: Dataset | None) -> None:
    held_out = Dataset.from_dict({"text": ["the fox and the day", "a dog and a fox, and the day"]}) if rows is None else rows
    fields = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
    trainer = domain_trainer(tmp_path, rows=rows, fields=fields, eval_dataset=held_out)
    trainer.train()
    [entry] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert entry["step"] == 2
    assert not {"eval_entropy", "eval_tokens_per_s"} & set(entry)
    total, count = 0.0, 0
    trainer.model.eval()
    for row in trainer.eval_dataset:
        for piece in torch.tensor(row["input_ids"]).split(row.get("seq_lengths", [len(row["input_ids"])])):
            with torch.no_grad():
                total += trainer.model(piece[None], labels=piece[None]).loss.item() * (len(piece) - 1)
            count += len(piece) - 1
    if rows is not None:  # of rows of unlike lengths transformers takes the mean over batches
        assert entry["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert entry["eval_loss"] == pytest.approx(total / count, rel=0.1)
    assert trainer.meter.num_tokens == lines(trainer, "num_tokens")[-1][0]  # evaluation is not training


MASK_OF_PADDING = "__bool__ in _ignore_causal_mask_sdpa"
"""Of raw text TRL makes a mask of padding, which transformers looks at for each batch; that of rows of ours it does not see."""


@pytest.mark.parametrize(("rows", "read"), [(None, {MASK_OF_PADDING}), (packed_rows(64), set())])
def test_nothing_is_read_from_the_device_between_log_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Dataset | None, read: set[str]
) -> None:
    """Neither in a step nor in a part of one."""
    reads: list[str] = []
    by_step: dict[int, set[str]] = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, _args, _state, _control, **_named):
            reads.clear()

        def on_step_end(self, _args, state, _control, **_named):
            by_step[state.global_step] = {*reads}

    def counted(name: str) -> Callable[..., Any]:
        own = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *arguments: Any) -> Any:
            reads.append(f"{name} in {sys._getframe(1).f_code.co_name}")
            return own(self, *arguments)

        return call

    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    fields = {"max_steps": 6, "logging_steps": 4, "gradient_accumulation_steps": 2}
    domain_trainer(tmp_path, rows=rows, fields=fields, callbacks=[Watch()]).train()
    assert by_step == dict.fromkeys(range(1, 7), read)
    assert reads, "the log lines read the loss"
