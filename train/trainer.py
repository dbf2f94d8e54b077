"""`DomainTrainer`: TRL's `SFTTrainer`, constructed the same way, at the speed of the bare loop.

What differs from TRL 1.16, and nothing else:
- the loss is transformers' own, where TRL's per-token loss and metrics cost up to a factor of three on small
  models (measured); entropy and token accuracy are therefore not logged. `loss_type="dft"`
  and mixture-of-experts models keep TRL's path;
- `gradient_checkpointing` is off and `report_to` is "none" by default;
- `use_cpu` is set where there is no accelerator, and `bf16` is then on by default only where the CPU has bf16
  arithmetic (TRL asks for it everywhere and stops);
- nothing is reported to anybody: TRL's usage telemetry is off.

Every other option, the preparation of raw text included, is TRL's. This does *not* choose rows or steps (see
`experts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

IGNORED = -100
"""The label that the loss leaves out."""


@dataclass
class DomainConfig(SFTConfig):
    """TRL's `SFTConfig` with this project's defaults; every field of it is there."""

    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations to save memory, about 20 %% slower; off."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "Mixed precision; None: where the device has bf16 arithmetic."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Trackers to report to."})

    def __post_init__(self) -> None:
        """Settle device and precision, then do as TRL does."""
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None and self.use_cpu:
            self.bf16 = not self.fp16 and cpu_has_bf16()
        super().__post_init__()


class DomainTrainer(SFTTrainer):
    """TRL's `SFTTrainer` with transformers' loss; see the module for what differs."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss in nats per token, and the outputs where they are asked for."""
        if self.args.loss_type != "nll" or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        if model.training:
            # Counted from shapes, padding included: reading a tensor would wait for the device at every step.
            self._total_train_tokens += inputs["input_ids"].numel() * self.accelerator.num_processes // self._tp_size
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def _send_telemetry(self) -> None:
        """Send nothing: training on private documents must not call out by itself."""


class RowCollator:
    """Packed rows to a batch: `input_ids` and `labels`, shorter rows padded on the right.

    There is no attention mask on purpose. Under causal attention no token sees the padding to its right, the
    padding has no label, and a mask would cost a check on the device in every step.

    Args:
        padding_id: the token to pad with; any valid one.

    >>> RowCollator(0)([{"input_ids": [5, 6]}, {"input_ids": [7]}])["labels"].tolist()
    [[5, 6], [7, -100]]
    """

    def __init__(self, padding_id: int) -> None:
        self.padding_id = padding_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of these rows."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), longest), self.padding_id, np.int64)
        labels = np.full((len(rows), longest), IGNORED, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row["input_ids"])] = labels[index, : len(row["input_ids"])] = row["input_ids"]
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX-512 BF16 or AMX); without it bf16 is slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
