"""`DomainTrainer`: TRL's `SFTTrainer`, constructed the same way, at the speed of the bare loop, with every token accounted for.

What differs from TRL 1.16, and nothing else:
- the loss is transformers' own, or the same without its logits (see `lean_loss`), where TRL's per-token loss and metrics halve
  the speed of small models (measured: `benchmarks/results/training_speed.md`); entropy and token accuracy are
  therefore not logged. `loss_type="dft"`, label smoothing, a loss function of your own and mixture-of-experts models keep
  TRL's path;
- nothing waits for the device but a log line (and, where text is padded instead of packed, transformers' look at the mask);
  `tokens_per_s`, `data_wait_fraction` and `model_flops_utilization` are logged;
- `packing_strategy` is `bfd_split` by default, so that packing keeps every token;
- rows that say where documents lie in them (`seq_lengths`: TRL's packing and ours) keep attention inside each document, on
  eager, SDPA and flash attention; a model that would let documents see each other is refused;
- rows that are packed already are taken as they are, neither copied nor cut;
- the order of rows is a permutation seeded by (seed, epoch), or the one that is given as `row_order`, and resuming starts in the
  middle of it without reading what came before;
- `interference` says what rows with the column `off_domain` are trained on (see `interference`);
- `num_processes` says how many processes a run must have: another number is refused, where launchers have been seen to start
  one process silently;
- `gradient_checkpointing` is off and `report_to` is "none" by default;
- `use_cpu` is set where there is no accelerator, and `bf16` is then on by default only where the CPU has bf16
  arithmetic (TRL asks for it everywhere and stops);
- nothing is reported to anybody: TRL's usage telemetry is off.

Every other option, the preparation of raw text included, is TRL's. This does *not* choose rows or steps (see `experts`).
"""

import atexit
import hashlib
import json
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lmsplit.train.attention import check_attention, confine, is_flat
from lmsplit.train.batches import IGNORED, MappedRows, RowBatches, RowCollator
from lmsplit.train.config import Interference
from lmsplit.train.interference import InterferenceState
from lmsplit.train.lean_loss import add_lean_loss
from lmsplit.train.meter import Meter, peak_flops
from lmsplit.train.off_domain_loss import OffDomainLoss
from lmsplit.train.processes import leave_at_exit

_COMPARED_ROWS = 200
"""Rows, evenly chosen, by which a resumed run knows its data, however many there are. `lmsplit train` compares digests."""


@dataclass
class DomainConfig(SFTConfig):
    """TRL's `SFTConfig` with this project's defaults; every field of it is there."""

    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations to save memory, about 20 %% slower; off."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "Mixed precision; None: where the device has bf16 arithmetic."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Trackers to report to."})
    packing_strategy: str = field(default="bfd_split", metadata={"help": "How documents are packed; bfd drops tokens."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide a loss that is no number; waits for the device at every step."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Go on counting tokens and time where the checkpoint stopped."}
    )
    accelerator_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of accelerate; None: batches go to a GPU without waiting for it."}
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "Processes that the run must have; None: as many as there are."}
    )

    def __post_init__(self) -> None:
        """Settle device and precision, do as TRL does, and count the processes.

        Raises:
            ValueError: a value cannot be used, or the run has another number of processes than `num_processes`.
        """
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None and self.use_cpu:
            self.bf16 = not self.fp16 and cpu_has_bf16()
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # or each batch's way to the device waits for the step before
        super().__post_init__()
        if self.num_processes is not None and self.world_size != self.num_processes:
            raise ValueError(
                f"the run was asked for {self.num_processes} processes and has {self.world_size}: start it with "
                f"torchrun --nproc_per_node {self.num_processes} (accelerate launch --cpu was seen to start one process only)"
            )


class DomainTrainer(SFTTrainer):
    """TRL's `SFTTrainer`; see the module for what differs.

    Args:
        row_order: rows of `train_dataset` in the order to train on, as often as they occur; the whole of it is one epoch. None:
            each epoch is a permutation.
        interference: what the rows whose column `off_domain` is true are trained on; the hinge needs the column
            `reference_losses` (see `references`). The model as it is given is the seed.
        arguments: TRL's own, by position or name.
    """

    def __init__(
        self,
        *arguments: Any,
        row_order: npt.NDArray[np.int64] | None = None,
        interference: Interference | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._row_order = row_order
        self.interference = interference
        self.train_dataset: Any = self.train_dataset if interference else _unmarked(self.train_dataset)
        if self._collates_rows():
            check_attention(self.model)
            if not isinstance(self.data_collator, RowCollator):
                self.data_collator: Any = RowCollator(int(self._tokenizer.pad_token_id), flat=is_flat(self.model))
        self._own_loss = self.args.loss_type == "nll" and not self.aux_loss_enabled and self.label_smoother is None
        self._own_loss = self._own_loss and self.compute_loss_func is None
        if interference is not None and not self._own_loss:
            raise ValueError("interference goes with the plain loss: set it to null, or remove loss_type, smoothing, own losses")
        self._others = None if interference is None else OffDomainLoss(interference, self, row_order)
        if interference is not None:  # it would be a message at every forward pass, and processes differ in how many they make
            self.accelerator.ddp_handler.broadcast_buffers = False
            self.args.restore_callback_states_from_checkpoint = True  # the weight is one of them
        self._lean = self._allows_lean_loss() and add_lean_loss(self.model)
        self.add_callback(Meter(data=self._data()))
        self.peak = peak_flops(self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32)
        """FLOP/s of one device; None where it is not known."""

    @property
    def meter(self) -> Meter:
        """What the run has counted so far."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, Meter))

    @property
    def interference_state(self) -> InterferenceState | None:
        """The weight and the margin so far; None without interference."""
        return None if self._others is None else self._others.state

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **named: Any) -> Any:
        """Train as TRL does.

        Raises:
            ValueError: the checkpoint to resume from was trained on other rows, or by another number of processes.
        """
        if resume_from_checkpoint:
            found = resume_from_checkpoint
            path = get_last_checkpoint(self.args.output_dir) if found is True else str(found)
            if path is not None:
                self._check_data(Path(path))
        elif self._others is not None and self._others.state.noise is None:
            self._others.measure_noise()
        output = super().train(resume_from_checkpoint, *arguments, **named)
        if self.args.world_size > 1:
            leave_at_exit()
            atexit.register(_let_go, weakref.ref(self))
        return output

    def _data(self) -> dict[str, Any]:
        """Say what the run trains on, for its checkpoints."""
        data = {
            "processes": self.args.world_size,
            "rows_per_batch": self.args.per_device_train_batch_size,
            "accumulation": self.args.gradient_accumulation_steps,
        }
        rows = self.train_dataset
        if hasattr(rows, "__len__"):
            places = np.unique(np.linspace(0, len(rows) - 1, _COMPARED_ROWS).astype(np.int64)).tolist()
            some = [str(rows[place]) for place in places]
            data["rows"] = hashlib.sha256(json.dumps([len(rows), some]).encode()).hexdigest()
        if self._others is not None:
            data |= {"interference": self._others.settings.model_dump(), "seed": self._others.seed_sha256}
        if self._row_order is not None:
            data["row_order"] = hashlib.sha256(np.asarray(self._row_order, np.int64).tobytes()).hexdigest()
        return data

    def _check_data(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        found = state.get("stateful_callbacks", {}).get("Meter", {}).get("args", {}).get("data")
        if found is None:
            return  # TRL's own trainer wrote it
        wanted = self._data()
        if changed := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
            shown = ", ".join(f"{name} was {found.get(name)}, is {wanted.get(name)}" for name in changed)
            raise ValueError(f"{checkpoint} cannot be resumed exactly: {shown}")

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **named: Any) -> Any:
        """Prepare text as TRL does; rows that are packed already stay as they are."""
        columns = getattr(dataset, "column_names", None) or []
        if {"input_ids", "seq_lengths"} <= set(columns):
            return dataset
        return super()._prepare_dataset(dataset, *arguments, **named)

    def _set_signature_columns_if_needed(self) -> None:
        """Name the columns that batches are made of."""
        super()._set_signature_columns_if_needed()
        if self.interference is not None:
            self._signature_columns: list[str] = [*dict.fromkeys([*self._signature_columns, "off_domain", "reference_losses"])]

    def _collates_rows(self) -> bool:
        """Whether batches are made of rows that say where documents lie."""
        columns = getattr(self.train_dataset, "column_names", None) or []
        replaceable = (RowCollator, DataCollatorForLanguageModeling)
        return "seq_lengths" in columns and isinstance(self.data_collator, replaceable)

    def _allows_lean_loss(self) -> bool:
        plain = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.torch_compile)
        return self._own_loss and plain

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss in nats per token, and the outputs where they are asked for.

        With `interference`, the mean of the own rows and the weighted penalty of the others: the outputs are the own rows'.
        """
        others = inputs.pop("off_domain", None)
        if self._others is None or not model.training:
            return self._compute_own_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = outputs = None
        if len(inputs["input_ids"]):
            computed = self._compute_own_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = computed if return_outputs else (computed, None)
            scale = num_items_in_batch / self.args.world_size  # what its mean over the step's own tokens was divided by
            self._others.state.add(own_nats=loss.detach() * scale, own_tokens=inputs["labels"][:, 1:].ne(IGNORED).sum())
        if others is not None:
            loss = self._others.add_to(loss, model, others)
            self.meter.num_tokens += others["input_ids"].numel() * self.accelerator.num_processes // self._tp_size
        self._others.follow()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """Train on a batch as transformers does, and look at its gradients where that is asked for."""
        loss: torch.Tensor = super().training_step(*arguments, **named)
        if self._others is not None:
            self._others.after_backward()
        return loss

    def _compute_own_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> Any:
        inputs = confine(inputs, self.model)
        if self._own_loss:
            inputs["use_cache"] = False
            if self._lean and not return_outputs:
                inputs["loss_alone"] = True
            computed = Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        else:
            computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            # Counted from shapes, padding included: reading a tensor would wait for the device at every step, and TRL's path
            # adds up the entries of a mask.
            self.meter.num_tokens += inputs["input_ids"].numel() * self.accelerator.num_processes // self._tp_size
            self._metrics["train"]["num_tokens"] = [self.meter.num_tokens]
        return computed

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of rows; of streams and other sampling strategies, those of TRL."""
        strategy = self.args.train_sampling_strategy
        if self._row_order is None and (not hasattr(self.train_dataset, "__len__") or strategy != "random"):
            theirs: DataLoader[Any] = super().get_train_dataloader()
            return theirs
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batches = RowBatches(len(self.train_dataset), self._train_batch_size, seed, self._row_order)
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        mapped = isinstance(self.data_collator, RowCollator) and isinstance(rows, Dataset) and rows._indices is None
        loader = DataLoader(
            MappedRows(rows) if mapped else rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Return the next batches, and count how long they were waited for."""
        began = time.monotonic()
        try:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        finally:
            self.meter.data_wait_s += time.monotonic() - began

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with the rates since the last line of the training."""
        if self.model.training and "loss" in logs:
            peak = None if self.peak is None else self.peak * self.accelerator.num_processes
            logs |= self.meter.rates(self.model.num_parameters(), peak)
            logs |= {} if self._others is None else self._others.rates()
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Send nothing: training on private documents must not call out by itself."""


def _unmarked(rows: Any) -> Any:
    """Return rows without the column that sets those of other domains apart, which would not be trained on."""
    is_marked = "off_domain" in (getattr(rows, "column_names", None) or [])
    return rows.remove_columns("off_domain") if is_marked else rows


def _let_go(trainer: weakref.ref[DomainTrainer]) -> None:
    """Drop what holds the process group, so that it can be left."""
    if (still := trainer()) is not None:
        still.model_wrapped = still.model
        still.accelerator.free_memory()


def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX-512 BF16 or AMX); without it bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
