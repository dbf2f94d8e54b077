"""The seed's loss on each token of the rows that an expert is given of other domains: what the hinge compares with.

```
rows, seed ─► one forward pass over the marked rows that are drawn ─► references/<digest>/losses.arrow ─► reference_losses
```

They are measured in the precision, with the attention and on the rows of the training, and kept under a digest of all of that.
What is left of numerical noise (other rows beside a row in its batch) is measured by the trainer before its first step and is
put up with by its margin. Cost: one forward pass over the rows drawn, 1/3 of what training on them costs; 4 bytes for each of
their tokens in memory while it runs.

This does *not* judge an excess: see `interference`.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel

from lmsplit.train.attention import confine, is_flat
from lmsplit.train.batches import RowCollator
from lmsplit.train.directory import whole_directory
from lmsplit.train.interference import token_losses
from lmsplit.train.pack_progress import PackProgress

VERSION: Final = 1
"""Part of the digest: raise it whenever the same arguments give other losses."""
_SCHEMA: Final = pa.schema({"reference_losses": pa.list_(pa.float32())})
_FILE: Final = "losses.arrow"
_BATCH_ROWS: Final = 1 << 16

Rows = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float32]


def add_reference_losses(rows: Dataset, model: PreTrainedModel, *, bf16: bool = False, batch_size: int = 8) -> Dataset:
    """Return rows with the column `reference_losses`, for a trainer whose `interference` is a hinge.

    Args:
        rows: packed ones, with the columns `input_ids`, `seq_lengths` and `off_domain`.
        model: the seed, on its device.
        bf16: whether the training computes in bf16.
        batch_size: rows at a time.
    """
    numbers = np.flatnonzero(np.asarray(rows["off_domain"]))
    losses = dict(_measured(rows, numbers, model, _autocast(model, bf16), batch_size))
    column = [losses[row].tolist() if row in losses else [] for row in range(len(rows))]
    return concatenate_datasets([rows, Dataset.from_dict({"reference_losses": column})], axis=1)


def cached_reference_losses(
    rows: Dataset,
    numbers: Rows,
    model: PreTrainedModel,
    identity: dict[str, Any],
    cache: Path,
    *,
    bf16: bool,
    batch_size: int,
) -> tuple[Dataset, str]:
    """Return rows with the column `reference_losses`, measured here or found in the cache; memory-mapped.

    Args:
        rows: packed ones.
        numbers: the rows to measure, ascending; the others have none.
        model: the seed, on its device.
        identity: what determines the rows and the model: digests of the packs and of the seed's weights.
        cache: directory of all that was measured.
        bf16: whether the training computes in bf16.
        batch_size: rows at a time.

    Returns:
        The rows, and the digest of the losses.

    Raises:
        ConflictError: another process measures the same now.
    """
    content = {
        "version": VERSION,
        "identity": identity,
        "rows": hashlib.sha256(np.asarray(numbers, np.int64).tobytes()).hexdigest(),
        "bf16": bf16,
        "batch_size": batch_size,
        "attention": model.config._attn_implementation,
        "device": model.device.type,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    directory = cache / digest
    if not directory.exists():
        with whole_directory(directory) as partial:
            losses = dict(_measured(rows, numbers, model, _autocast(model, bf16), batch_size))
            _write(partial / _FILE, losses, len(rows))
    column = Dataset.from_file(str(directory / _FILE))
    return concatenate_datasets([rows, column], axis=1), digest


def _autocast(model: PreTrainedModel, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()


@torch.no_grad()
def _measured(
    rows: Dataset, numbers: Rows, model: PreTrainedModel, precision: AbstractContextManager[Any], batch_size: int
) -> Iterator[tuple[int, Losses]]:
    """Yield each row's number and the loss of each of its tokens; 0 for the first ones of pieces."""
    collate = RowCollator(0, flat=is_flat(model))
    columns = [name for name in ("input_ids", "seq_lengths", "labels") if name in rows.column_names]
    was_training = model.training
    model.eval()
    num_tokens = 0
    try:
        with PackProgress("losses of the seed", len(numbers)) as progress, precision:
            for start in range(0, len(numbers), batch_size):
                chosen = numbers[start : start + batch_size].tolist()
                found = [{name: row[name] for name in columns} for row in (rows[number] for number in chosen)]
                lengths = [len(row["input_ids"]) for row in found]
                inputs = {name: value.to(model.device) for name, value in collate(found).items() if hasattr(value, "to")}
                labels = inputs.pop("labels")
                losses = token_losses(model(**confine(inputs, model), use_cache=False).logits, labels).cpu().numpy()
                yield from zip(chosen, _by_row(losses, lengths), strict=True)
                num_tokens += sum(lengths)
                progress.update(start + len(chosen), num_tokens)
    finally:
        model.train(was_training)


def _by_row(losses: npt.NDArray[Any], lengths: list[int]) -> Iterator[Losses]:
    """Cut a batch into its rows; in a flat one they follow each other. The first token of all is never predicted."""
    losses = np.pad(losses.astype(np.float32), ((0, 0), (1, 0)))
    if len(losses) == len(lengths):
        yield from (row[:length] for row, length in zip(losses, lengths, strict=True))
        return
    ends = np.cumsum(lengths)
    yield from (losses[0, end - length : end] for end, length in zip(ends, lengths, strict=True))


def _write(path: Path, losses: dict[int, Losses], num_rows: int) -> None:
    """Write the losses of all rows, those that were not measured empty."""
    with pa.ipc.new_stream(str(path), _SCHEMA) as writer:
        for start in range(0, max(num_rows, 1), _BATCH_ROWS):
            batch = [losses.get(row, np.zeros(0, np.float32)) for row in range(start, min(start + _BATCH_ROWS, num_rows))]
            edges = np.cumsum([0, *map(len, batch)]).astype(np.int32)
            values = np.concatenate([np.zeros(0, np.float32), *batch])
            lists = pa.ListArray.from_arrays(pa.array(edges), pa.array(values))
            writer.write_batch(pa.record_batch([lists], schema=_SCHEMA))
