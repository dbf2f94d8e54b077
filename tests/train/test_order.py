"""The rows drawn for a budget: against a case worked by hand, properties, and a reference that steps row by row."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests.errors import LmsplitError
from lmsplit.train.order import RowOrder, draw_rows

PACKS = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 5)), min_size=1, max_size=5).filter(
    lambda packs: any(lengths and share for lengths, share in packs)
)
REPETITIONS = st.one_of(st.none(), st.sampled_from([0.5, 1, 1.5, 2, 2.3, 7]))
SEEDS = st.integers(0, 2**32 - 1)


def arrays(lengths: list[list[int]]) -> list[np.ndarray]:
    return [np.array(each, np.int64) for each in lengths]


def drawn_from(order: RowOrder, pack: int) -> list[int]:
    return order.row_S[order.pack_S == pack].tolist()


def permutation(seed: int, pack: int, number: int, num_rows: int) -> list[int]:
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pack, number)))
    return generator.permutation(num_rows).tolist()


def sequence(seed: int, pack: int, num_rows: int, count: int) -> list[int]:
    rows: list[int] = []
    while len(rows) < count:
        rows += permutation(seed, pack, len(rows) // num_rows, num_rows)
    return rows[:count]


def reference(lengths, shares, num_tokens, rows_per_step, seed, max_repetitions):
    """Draw row by row with Python's lists; returns pairs of pack and row, or None where no step can be filled."""
    usable = [share if rows else 0 for rows, share in zip(lengths, shares, strict=True)]
    budgets = [math.ceil(num_tokens * share / sum(usable) - 1e-7) if sum(usable) else 0 for share in usable]
    caps = [math.inf if max_repetitions is None else max_repetitions * sum(rows) + 1e-7 for rows in lengths]

    def can_give(pack: int, count: int) -> bool:
        """Whether a pack may give one row more than `count`."""
        rows = sequence(seed, pack, len(lengths[pack]), count + 1) if usable[pack] else []
        return bool(rows) and sum(lengths[pack][row] for row in rows) <= caps[pack]

    draws = []
    beyond = 0
    for pack, budget in enumerate(budgets):
        count = wanted = tokens = 0
        while usable[pack] and tokens < budget - beyond:
            wanted += 1
            tokens = sum(lengths[pack][row] for row in sequence(seed, pack, len(lengths[pack]), wanted))
        beyond += tokens - budget
        while count < wanted and can_give(pack, count):
            count += 1
        draws.append(count)
    filled = list(draws)
    while sum(filled) % rows_per_step:
        givers = [pack for pack in range(len(lengths)) if can_give(pack, filled[pack])]
        if not givers:
            filled = draws
            break
        filled[max(givers, key=lambda pack: (budgets[pack], -pack))] += 1
    keyed = []
    for pack, count in enumerate(filled):
        offset = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pack,))).random()
        rows = sequence(seed, pack, len(lengths[pack]), count) if count else []
        keyed += [((place + offset) / count, pack, place, row) for place, row in enumerate(rows)]
    pairs = [(pack, row) for _, pack, _, row in sorted(keyed)]
    return pairs[: len(pairs) // rows_per_step * rows_per_step]


def test_rows_by_hand() -> None:
    """16 tokens, half and half: both rows of the first pack, all four of the second; the largest budget fills the step."""
    order = draw_rows(arrays([[4, 4], [2, 2, 2, 2], []]), [3, 3, 9], num_tokens=16, rows_per_step=4, seed=5)
    assert order.num_steps == 2
    assert sorted(drawn_from(order, 0)[:2]) == [0, 1]
    assert len(drawn_from(order, 0)) == 4  # both budgets are 8, so the first pack goes on, into its second pass
    assert sorted(drawn_from(order, 1)) == [0, 1, 2, 3]
    assert (order.num_tokens, order.tokens_P.tolist()) == (24, [16, 8, 0])
    assert order.repetitions_P.tolist() == [2, 1, 0]
    assert order.not_reached_P.tolist() == [0, 0, 0]
    assert (order.pack_S.dtype, order.row_S.dtype) == (np.int32, np.int64)


def test_interleaving_by_hand() -> None:
    """Of two packs with as many rows each, neither is ever two ahead."""
    order = draw_rows(arrays([[1] * 50, [1] * 50]), [1, 1], num_tokens=100, rows_per_step=1, seed=0)
    assert sorted(map(tuple, order.pack_S.reshape(50, 2).tolist())) in ([(0, 1)] * 50, [(1, 0)] * 50)


def test_cap_of_one_draws_no_row_twice() -> None:
    order = draw_rows(arrays([[3, 5, 2, 8, 1]]), [1], num_tokens=1000, rows_per_step=2, seed=0, max_repetitions=1)
    assert (order.num_steps, len(set(order.row_S.tolist()))) == (2, 4)
    assert order.num_tokens + order.not_reached_P[0] == 19


def test_cap_of_a_fraction_is_exact() -> None:
    order = draw_rows(arrays([[1] * 10]), [1], num_tokens=1000, rows_per_step=1, seed=0, max_repetitions=2.3)
    assert order.num_tokens == 23


def test_budget_of_a_fraction_is_exact() -> None:
    order = draw_rows(arrays([[1] * 100] * 3), [0.1, 0.2, 0.7], num_tokens=30, rows_per_step=1, seed=0)
    assert order.tokens_P.tolist() == [3, 6, 21]


def test_small_budgets_add_up_however_many_they_are() -> None:
    """Three hundredths of the tokens from 300 packs, 10 tokens of each, in rows of 256."""
    lengths = arrays([[256] * 500] + [[256] * 20] * 300)
    order = draw_rows(lengths, [0.97] + [0.03 / 300] * 300, num_tokens=100_000, rows_per_step=1, seed=0)
    assert order.num_tokens - 100_000 < 256
    assert abs(order.tokens_P[1:].sum() - 3000) < 256
    places = np.flatnonzero(order.tokens_P[1:])
    assert np.diff(places).max() - np.diff(places).min() <= 1  # all over them


@pytest.mark.parametrize(
    ("lengths", "shares", "repetitions", "found"),
    [
        ([[], []], [1, 1], None, "0 rows, of which at most 0"),
        ([[2, 2], [3]], [0, 0], None, "3 rows, of which at most 0"),
        ([[2, 2], [3]], [1, 1], 1, "3 rows, of which at most 3"),
        ([[4]], [1], 0.5, "1 rows, of which at most 0"),
    ],
)
def test_nothing_to_draw_is_refused(lengths, shares, repetitions, found: str) -> None:
    with pytest.raises(LmsplitError, match=f"there are {found} may be drawn, but one step takes 4: lower the batch size"):
        draw_rows(arrays(lengths), shares, 100, 4, 0, repetitions)


@given(packs=PACKS, num_tokens=st.integers(1, 200), rows_per_step=st.integers(1, 9), seed=SEEDS, repetitions=REPETITIONS)
def test_order_is_the_reference(packs, num_tokens: int, rows_per_step: int, seed: int, repetitions: float | None) -> None:
    lengths, shares = [list(each) for each in zip(*packs, strict=True)]
    expected = reference(lengths, shares, num_tokens, rows_per_step, seed, repetitions)
    if not expected:
        with pytest.raises(LmsplitError):
            draw_rows(arrays(lengths), shares, num_tokens, rows_per_step, seed, repetitions)
        return
    order = draw_rows(arrays(lengths), shares, num_tokens, rows_per_step, seed, repetitions)
    assert list(zip(order.pack_S.tolist(), order.row_S.tolist(), strict=True)) == expected
    assert order.num_steps == len(expected) / rows_per_step
    for pack, each in enumerate(lengths):
        rows = [row for number, row in expected if number == pack]
        assert order.tokens_P[pack] == sum(each[row] for row in rows)
        assert order.repetitions_P[pack] == (len(rows) / len(each) if each else 0)
        assert order.not_reached_P[pack] == sum(length for row, length in enumerate(each) if row not in rows)
    assert order.num_tokens == order.tokens_P.sum()


def test_last_step_that_no_pack_can_fill_is_dropped() -> None:
    """11 rows are wanted and 12 allowed, a step takes 8: the first pack must not give its last row to a step it cannot fill."""
    lengths, shares = [[1] * 10, [1] * 2], [9, 2]
    for seed in range(40):
        order = draw_rows(arrays(lengths), shares, 11, 8, seed, 1)
        expected = reference(lengths, shares, 11, 8, seed, 1)
        assert list(zip(order.pack_S.tolist(), order.row_S.tolist(), strict=True)) == expected
        assert (order.num_steps, order.not_reached_P.sum()) == (1, 4)


@given(packs=PACKS, num_tokens=st.integers(1, 2000), rows_per_step=st.integers(1, 9), seed=SEEDS)
def test_order_meets_the_budget_in_whole_passes_and_even_shares(packs, num_tokens: int, rows_per_step: int, seed: int) -> None:
    lengths, shares = [list(each) for each in zip(*packs, strict=True)]
    order = draw_rows(arrays(lengths), shares, num_tokens, rows_per_step, seed)
    assert num_tokens <= order.num_tokens < num_tokens + 10 * (len(packs) + rows_per_step)
    num_rows = len(order.row_S)
    for pack, each in enumerate(lengths):
        rows = drawn_from(order, pack)
        for start in range(0, len(rows), max(1, len(each))):
            assert len(set(rows[start : start + len(each)])) == min(len(each), len(rows) - start)
        reached = np.cumsum(order.pack_S == pack)
        even = len(rows) * np.arange(1, num_rows + 1) / num_rows
        assert np.abs(reached - even).max() <= 1 + len(packs) * len(rows) / num_rows + 1e-9


@given(packs=PACKS, num_tokens=st.integers(1, 2000), seed=SEEDS, repetitions=st.sampled_from([0.5, 1, 1.5, 2, 2.3, 7]))
def test_cap_bounds_every_pack(packs, num_tokens: int, seed: int, repetitions: float) -> None:
    lengths, shares = [list(each) for each in zip(*packs, strict=True)]
    try:
        order = draw_rows(arrays(lengths), shares, num_tokens, 1, seed, repetitions)
    except LmsplitError:
        assert repetitions < 1
        return
    for pack, each in enumerate(lengths):
        assert order.tokens_P[pack] <= repetitions * sum(each) + 1e-9


@given(budget=st.integers(1, 100), longer=st.integers(1, 100))
def test_rows_of_a_smaller_budget_begin_a_larger_one_of_one_pack(budget: int, longer: int) -> None:
    lengths = arrays([[3, 5, 2, 8]])
    short, long = draw_rows(lengths, [1], budget, 2, 1), draw_rows(lengths, [1], budget + longer, 2, 1)
    assert long.row_S[: len(short.row_S)].tolist() == short.row_S.tolist()


def test_rows_depend_on_the_seed_and_on_the_pack() -> None:
    lengths = arrays([[2] * 50, [2] * 50])
    first, second = (draw_rows(lengths, [1, 1], 200, 1, seed) for seed in (0, 1))
    assert drawn_from(first, 0) != drawn_from(second, 0)
    assert drawn_from(first, 0) != drawn_from(first, 1)
