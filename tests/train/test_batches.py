"""Batches of rows: which rows they have, against accelerate's own machinery, and what tensors they become."""

from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lmsplit.train.batches import IGNORED, RowBatches, RowCollator

Piece = tuple[list[int], bool]


def epoch_rows(num_rows: int, batch_size: int, seed: int, epoch: int) -> list[int]:
    batches = RowBatches(num_rows, batch_size, seed)
    batches.set_epoch(epoch)
    return list(chain.from_iterable(batches))


@given(num_rows=st.integers(0, 40), batch_size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_permutation_has_each_row_once(num_rows: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = RowBatches(num_rows, batch_size, seed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(chain.from_iterable(found)) == list(range(num_rows))
    assert len(found) == len(batches)
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert all(type(row) is int for batch in found for row in batch)


def test_permutation_is_that_of_seed_and_epoch() -> None:
    assert epoch_rows(30, 4, 1, 2) == np.random.default_rng([1, 2]).permutation(30).tolist()
    assert epoch_rows(30, 4, 1, 2) == epoch_rows(30, 7, 1, 2)
    assert len({str(epoch_rows(30, 4, seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_given_order_is_kept_in_every_epoch() -> None:
    order = np.array([3, 3, 0, 5, 1, 3, 2])
    batches = RowBatches(99, 3, 1, order)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        assert list(batches) == [[3, 3, 0], [5, 1, 3], [2]]
    assert len(batches) == 3


@pytest.mark.parametrize("skipped", [0, 1, 3, 5])
@pytest.mark.parametrize("order", [None, np.arange(18)[::-1]])
def test_skipping_yields_exactly_the_rest(skipped: int, order: np.ndarray | None) -> None:
    batches = RowBatches(18, 4, 7, order)
    batches.set_epoch(3)
    expected = list(batches)[skipped:]
    loader = DataLoader(range(18), batch_sampler=batches, collate_fn=list)
    assert list(skip_first_batches(loader, skipped)) == expected


def test_two_processes_share_the_batches_in_order() -> None:
    batches = RowBatches(32, 4, 7)
    batches.set_epoch(1)
    shards = [list(BatchSamplerShard(batches, 2, index, even_batches=False)) for index in range(2)]
    assert [batch for pair in zip(*shards, strict=True) for batch in pair] == list(batches)


def row(*pieces: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [*chain(*pieces)], "seq_lengths": [len(piece) for piece in pieces]}


def test_batch_of_rows_that_do_not_say_where_documents_lie() -> None:
    batch = RowCollator(0)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "labels": [[5, 6, 7], [8, IGNORED, IGNORED]],
    }
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_batch_by_hand() -> None:
    """Positions begin again with each piece, no first token is predicted, and padding is a document of its own."""
    batch = RowCollator(9)([row([1, 2], [3], [4, 5, 6]), row([7, 8, 7])])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 6], [7, 8, 7, 9, 9, 9]],
        "labels": [[-100, 2, -100, -100, 5, 6], [-100, 8, 7, -100, -100, -100]],
        "position_ids": [[0, 1, 0, 0, 1, 2], [0, 1, 2, 0, 1, 2]],
        "document_ids": [[0, 0, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1]],
    }


def test_labels_of_ones_own_are_kept_within_documents() -> None:
    """The prompt has no label; the begin of a piece never has one."""
    given = row([1, 2, 3], [4, 5]) | {"labels": [-100, -100, 3, 4, 5]}
    assert RowCollator(0)([given])["labels"].tolist() == [[-100, -100, 3, -100, 5]]
    assert RowCollator(0)([{"input_ids": [1, 2], "labels": [-100, 2]}])["labels"].tolist() == [[-100, 2]]
    flat = RowCollator(0, flat=True)([given])
    assert flat["labels"].tolist() == [[-100, -100, 3, -100, 5]]


def test_flat_batch_by_hand() -> None:
    batch = RowCollator(9, flat=True)([row([1, 2], [3]), row([4, 5, 6])])
    tensors = {name: value.tolist() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert tensors["input_ids"] == [[1, 2, 3, 4, 5, 6]]
    assert tensors["labels"] == [[-100, 2, -100, -100, 5, 6]]
    assert tensors["position_ids"] == [[0, 1, 0, 0, 1, 2]]
    assert tensors["cu_seq_lens_q"] == tensors["cu_seq_lens_k"] == [0, 2, 3, 6]
    assert batch["max_length_q"] == batch["max_length_k"] == 3


ROWS = st.lists(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=5), min_size=1, max_size=4), min_size=1, max_size=4)


@given(rows=ROWS)
def test_every_token_but_the_first_of_a_piece_is_predicted_once(rows: list[list[list[int]]]) -> None:
    """The labels that a causal model predicts, whichever form the batch has, are the pieces' without their first token."""
    expected = sorted((piece[at - 1], piece[at]) for pieces in rows for piece in pieces for at in range(1, len(piece)))
    for flat in (False, True):
        batch = RowCollator(0, flat=flat)([row(*pieces) for pieces in rows])
        before, after = batch["input_ids"][:, :-1].flatten(), batch["labels"][:, 1:].flatten()
        predicted = after != IGNORED
        assert sorted(zip(before[predicted].tolist(), after[predicted].tolist(), strict=True)) == expected
