"""The other domains' part of a trainer's steps: their penalty, its weight and margin, and what is logged of them.

```
batch["off_domain"] ─► forward ─► interference.penalty ─× weight ÷ tokens of a mean step─► added to the step's loss
                          └─ before the first step: noise against the seed's losses ─► margin
```

The rows of other domains go through the model in a pass of their own, so that the others stay on the trainer's fast path; the
work is the same. With several processes the sums are those of all of them. This does *not* know how batches come about.

Shapes: R rows, S rows drawn.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from lmsplit.train.attention import confine
from lmsplit.train.batches import IGNORED
from lmsplit.train.config import Interference
from lmsplit.train.gradient_cosine import GradientCosine
from lmsplit.train.interference import InterferenceState, penalty, token_losses
from lmsplit.train.models import copy_model
from lmsplit.train.off_domain import marked

_NOISE_ROWS: Final = 16
"""Rows by which the noise is measured (assumption: several thousand tokens)."""
_LARGEST_NOISE: Final = {torch.float32: 0.1, torch.bfloat16: 1.0, torch.float16: 1.0}
"""Nats; what is more is another model's loss, not noise (measured: under 1e-4 in float32, 0.006 to 0.05 in bf16)."""


class OffDomainLoss:
    """The part of one trainer's steps.

    Args:
        settings: what the other rows are trained on.
        trainer: whose model is the seed now, and whose rows say which ones are of other domains.
        order: the rows in training order; None: each once.

    Raises:
        ValueError: the rows lack a column, or the model cannot be trained so.
    """

    def __init__(self, settings: Interference, trainer: Trainer, order: npt.NDArray[np.int64] | None) -> None:
        self.settings = settings
        self._rows: Dataset = trainer.train_dataset
        _check(settings, trainer)
        args = trainer.args
        rows_per_step = trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._tokens_per_step = tokens_per_step(self._rows, order, rows_per_step)
        drawn = np.arange(len(self._rows)) if order is None else order
        self._first_rows = drawn[marked(self._rows)[drawn]][:_NOISE_ROWS].tolist()
        self._seed: PreTrainedModel | None = None
        if settings.kind == "kl":
            seed = copy_model(trainer.model, trainer.model.config._attn_implementation).eval().requires_grad_(False)
            self._seed = seed.to(args.device)  # where the model itself may get to later only
        self.seed_sha256 = None if self._seed is None else _sha256(self._seed)
        """Of the weights that a resumed run has to be given again; None where nothing of the seed but its losses is needed."""
        self._trainer = trainer
        trainer.add_callback(InterferenceState(settings.start_weight, settings.margin))
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        # Elsewhere gradients are in parts, scaled, or not to be had before the backward pass.
        whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or args.fp16 or reentrant)
        self._cosine = GradientCosine(trained, self._mean) if whole else None

    @property
    def state(self) -> InterferenceState:
        """The weight and the margin; a resumed trainer has another object."""
        return next(each for each in self._trainer.callback_handler.callbacks if isinstance(each, InterferenceState))

    @torch.no_grad()
    def measure_noise(self) -> None:
        """Compare the seed's cached losses with those that the trainer computes, and raise the margin to the difference.

        Raises:
            ValueError: they differ by more than noise.
        """
        if self.settings.kind != "hinge":
            return
        trainer, noise = self._trainer, 0.0
        size = max(1, trainer.args.per_device_train_batch_size // 2)  # another one than the cache's
        was_training = trainer.model.training
        trainer.model.eval()  # the cache is without dropout, too
        for start in range(0, len(self._first_rows), size):
            batch = trainer.data_collator([self._rows[row] for row in self._first_rows[start : start + size]])["off_domain"]
            batch = trainer._prepare_inputs(batch)
            with self._precision():
                losses = token_losses(self._logits(trainer.model, batch), batch["labels"])
            noise = max(noise, float((losses - batch["reference_losses"][:, 1:]).abs().max()))
        trainer.model.train(was_training)
        if noise > (largest := _LARGEST_NOISE[self._dtype]):
            raise ValueError(
                f"reference_losses are up to {noise:.3g} nats per token from the losses of the model as it is given, which is "
                f"more than noise ({largest}): measure them with this very model"
            )
        self.state.raise_margin(noise)

    def add_to(self, loss: torch.Tensor | None, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss with the penalty of a batch.

        Args:
            loss: of the own rows of the same batch; None where there are none.
            model: as the trainer has wrapped it.
            batch: of the rows of other domains, on the device.
        """
        state = self.state
        logits = self._logits(model, batch)
        seed_logits = None
        if self._seed is not None:
            with torch.no_grad(), self._precision():
                seed_logits = self._logits(self._seed, batch)
        found = penalty(self.settings, state.margin, logits, batch, seed_logits)
        # DistributedDataParallel averages the gradients of the processes, and this is a part of a sum over all of them.
        scale = self._trainer.args.world_size / max(self._tokens_per_step, 1e-9)
        weighted: torch.Tensor = state.weight.to(logits.device, torch.float32) * found.total * scale
        if self._cosine is not None and self._cosine.wanted:
            plain = found.total if self.settings.kind == "replay" else token_losses(logits, batch["labels"]).sum()
            self._cosine.note(plain, weighted)
        compared = {} if found.excess is None else {"off_excess": found.excess}
        state.add(off_nats=found.nats, off_tokens=found.num_tokens, **compared)
        return weighted if loss is None else loss + weighted

    def follow(self) -> None:
        """Let the weight follow the excess of a step; every process calls it after each batch."""
        if self.settings.dual is not None:
            excess, num_tokens = self._sum(self.state.newest()).unbind()
            self.state.follow(self.settings.dual, excess, num_tokens)

    def after_backward(self) -> None:
        """Take the cosine of a step's gradients, where a log line still lacks it."""
        if self._cosine is not None and self._trainer.accelerator.sync_gradients:
            self._cosine.after_backward()

    def rates(self) -> dict[str, float]:
        """Return what the next log line says of the other domains."""
        return self.state.rates(self._sum) | ({} if self._cosine is None else self._cosine.take())

    @property
    def _dtype(self) -> torch.dtype:
        args = self._trainer.args
        return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32

    def _precision(self) -> AbstractContextManager[Any]:
        """Compute as the wrapped model does, which is not wrapped yet, or never."""
        return torch.autocast(self._trainer.args.device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _logits(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name not in {"labels", "reference_losses"}}
        logits: torch.Tensor = model(**confine(inputs, self._trainer.model), use_cache=False).logits
        return logits

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self._trainer.accelerator.reduce(values.to(self._trainer.args.device), "sum")
        return total

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self._trainer.accelerator.reduce(values, "mean")
        return mean


def _sha256(model: PreTrainedModel) -> str:
    """Return a digest of a model's weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check(settings: Interference, trainer: Trainer) -> None:
    columns = set(getattr(trainer.train_dataset, "column_names", None) or [])
    wanted = {"input_ids", "seq_lengths", "off_domain"} | ({"reference_losses"} if settings.kind == "hinge" else set())
    if missing := sorted(wanted - columns):
        raise ValueError(f"interference of kind {settings.kind} needs packed rows with the column {missing[0]!r}")
    if not trainer.model_accepts_loss_kwargs:
        raise ValueError(
            f"{type(trainer.model).__name__} does not take num_items_in_batch, which interference needs: set it to null"
        )


def tokens_per_step(rows: Dataset, order: npt.NDArray[np.int64] | None, rows_per_step: int) -> float:
    """Return how many tokens of other domains a step predicts on average.

    Args:
        rows: with the columns `off_domain` and `seq_lengths`.
        order: (S,) the rows in training order; None: each once.
        rows_per_step: over all processes and accumulation.
    """
    order_S: npt.NDArray[np.int64] = np.arange(len(rows)) if order is None else order
    return float((_targets(rows) * marked(rows))[order_S].sum() * rows_per_step / max(1, len(order_S)))


def _targets(rows: Dataset) -> npt.NDArray[np.int64]:
    """Return (R,) the tokens that are predicted in each row: not the first of a piece, nor one whose label says so."""
    lengths_R = _lengths(rows, "input_ids")
    if "labels" not in rows.column_names:
        return lengths_R - _lengths(rows, "seq_lengths")
    labels, pieces = (
        np.concatenate([chunk.values.to_numpy() for chunk in rows.data.column(name).chunks]) for name in ("labels", "seq_lengths")
    )
    counted = labels != IGNORED
    counted[np.cumsum(pieces) - pieces] = False
    ends_R = np.cumsum(lengths_R)
    reached = np.concatenate([[0], np.cumsum(counted)])
    return np.asarray(reached[ends_R] - reached[ends_R - lengths_R], np.int64)


def _lengths(rows: Dataset, column: str) -> npt.NDArray[np.int64]:
    chunks: Sequence[pa.Array] = rows.data.column(column).chunks
    return np.concatenate([pc.list_value_length(chunk).to_numpy() for chunk in chunks]).astype(np.int64)
