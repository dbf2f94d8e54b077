from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.train.arrange import Pieces, arrange, place

LENGTHS = st.lists(st.integers(1, 60), max_size=60)
STRATEGIES = ("wrapped", "bfd_split")


def as_tuples(pieces: Pieces) -> list[tuple[int, ...]]:
    return [*zip(*(column.tolist() for column in pieces), strict=True)]


def arranged(lengths: list[int], max_length: int, strategy: str) -> Pieces:
    return arrange(np.array(lengths, np.int64), max_length, strategy)


def row_lengths(pieces: Pieces) -> list[int]:
    filled = Counter()
    for row, length in zip(pieces.row_P.tolist(), pieces.length_P.tolist(), strict=True):
        filled[row] += length
    assert sorted(filled) == [*range(len(filled))]
    return [filled[row] for row in range(len(filled))]


def best_fit_naively(lengths: list[int], capacity: int) -> list[int]:
    """Best fit by looking at every row for every item."""
    room: list[int] = []
    chosen = []
    for length in lengths:
        fitting = [(left, row) for row, left in enumerate(room) if left >= length]
        row = min(fitting)[1] if fitting else len(room)
        if not fitting:
            room.append(capacity)
        room[row] -= length
        chosen.append(row)
    return chosen


def check(pieces: Pieces, lengths: list[int], max_length: int) -> None:
    followed = Counter()
    rows: dict[int, list[tuple[int, int]]] = {}
    previous = -1
    for document, offset, length, row, start in as_tuples(pieces):
        assert length > 0
        assert offset == followed[document], "pieces of a document follow each other"
        assert document >= previous
        previous = document
        followed[document] += length
        rows.setdefault(row, []).append((start, start + length))
    assert [followed[document] for document in range(len(lengths))] == lengths
    for spans in rows.values():
        edges = [edge for span in sorted(spans) for edge in span]
        assert edges[0] == 0
        assert edges[1:-1:2] == edges[2::2], "pieces stand side by side"
        assert edges[-1] <= max_length


@given(lengths=LENGTHS, max_length=st.integers(1, 40), strategy=st.sampled_from(STRATEGIES))
def test_arrange_gives_every_token_one_place(lengths: list[int], max_length: int, strategy: str) -> None:
    check(arranged(lengths, max_length, strategy), lengths, max_length)


def check_filled(pieces: Pieces, max_length: int) -> None:
    filled = row_lengths(pieces)
    if filled:
        assert sum(filled) * 1000 >= 995 * ((len(filled) - 1) * max_length + filled[-1])


@given(lengths=LENGTHS, max_length=st.integers(1, 40), strategy=st.sampled_from(STRATEGIES))
def test_arrange_fills_the_rows_of_few_documents(lengths: list[int], max_length: int, strategy: str) -> None:
    check_filled(arranged(lengths, max_length, strategy), max_length)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 900)), min_size=1, max_size=4),
    max_length=st.integers(100, 300),
)
def test_arrange_fills_the_rows_of_many_documents(kinds: list[tuple[int, int]], max_length: int) -> None:
    lengths = [length for length, times in kinds for _ in range(times)]
    pieces = arranged(lengths, max_length, "bfd_split")
    check(pieces, lengths, max_length)
    check_filled(pieces, max_length)


def test_arrange_fills_rows_that_no_two_documents_fit_in() -> None:
    lengths = [51] * 1000
    pieces = arranged(lengths, 100, "bfd_split")
    check(pieces, lengths, 100)
    check_filled(pieces, 100)
    cut = [document for document, times in Counter(pieces.document_P.tolist()).items() if times > 1]
    assert len(cut) <= 500, "the documents that kept their rows are whole"


@given(lengths=st.lists(st.integers(1, 20), max_size=40), capacity=st.integers(20, 30))
def test_place_agrees_with_looking_at_every_row(lengths: list[int], capacity: int) -> None:
    longest_first = sorted(lengths, reverse=True)
    assert place(np.array(longest_first, np.int64), capacity).tolist() == best_fit_naively(longest_first, capacity)


def test_bfd_split_arranges_a_hand_worked_case() -> None:
    # 10 = a whole row of 8 + 2. Longest first: 6 opens a row, 5 another, 3 fits the second, 2 the first.
    assert as_tuples(arranged([5, 10, 6, 3], 8, "bfd_split")) == [
        (0, 0, 5, 0, 0),
        (1, 0, 8, 1, 0),
        (1, 8, 2, 2, 6),
        (2, 0, 6, 2, 0),
        (3, 0, 3, 0, 5),
    ]


def test_bfd_split_dissolves_the_emptiest_row_of_a_hand_worked_case() -> None:
    # 6, 6 and 5 open a row of 8 each: 17 of 21 positions, too few. The last one fills the gaps of 2, and 1 is left.
    assert as_tuples(arranged([6, 5, 6], 8, "bfd_split")) == [
        (0, 0, 6, 0, 0),
        (1, 0, 2, 1, 6),
        (1, 2, 2, 0, 6),
        (1, 4, 1, 2, 0),
        (2, 0, 6, 1, 0),
    ]


def test_wrapped_arranges_a_hand_worked_case() -> None:
    assert as_tuples(arranged([5, 10, 1], 8, "wrapped")) == [
        (0, 0, 5, 0, 0),
        (1, 0, 3, 0, 5),
        (1, 3, 7, 1, 0),
        (2, 0, 1, 1, 7),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_arrange_of_no_documents_is_empty(strategy: str) -> None:
    assert as_tuples(arranged([], 8, strategy)) == []


def test_arrange_cuts_no_document_that_fits_when_the_lengths_are_natural() -> None:
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(5, 1.2, 20_000)).astype(np.int64)
    pieces = arrange(lengths, 1024, "bfd_split")
    check_filled(pieces, 1024)
    assert len(pieces.row_P) == np.sum(-(-lengths // 1024)), "each document has as many pieces as it must"
    assert len(pieces.row_P) < len(arrange(lengths, 1024, "wrapped").row_P)


def test_arrange_refuses_what_it_cannot_arrange() -> None:
    with pytest.raises(ValueError, match="there is no strategy 'bfd': expected one of wrapped, bfd_split"):
        arranged([1], 8, "bfd")
    with pytest.raises(ValueError, match="at least 1 token"):
        arranged([1, 0], 8, "wrapped")
