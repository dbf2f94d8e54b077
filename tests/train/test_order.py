import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.train.order import draw_rows


def test_rows_are_drawn_until_the_budget_is_met() -> None:
    order = draw_rows(np.array([4, 4, 4]), 9, seed=0)
    assert sorted(order.rows.tolist()) == [0, 1, 2]
    assert (order.num_tokens, order.num_epochs) == (12, 1.0)


def test_rows_are_repeated_when_the_budget_is_larger_than_the_domain() -> None:
    order = draw_rows(np.array([4, 2]), 13, seed=0)
    assert order.num_tokens in {14, 16}
    assert sorted(order.rows[:2].tolist()) == sorted(order.rows[2:4].tolist()) == [0, 1]
    assert order.num_epochs == len(order.rows) / 2 > 2


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    budget=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_meet_every_budget_within_one_row(lengths: list[int], budget: int, seed: int) -> None:
    lengths_R = np.array(lengths)
    order = draw_rows(lengths_R, budget, seed)
    drawn = lengths_R[order.rows]
    assert order.num_tokens == drawn.sum() >= budget > drawn[:-1].sum()
    for start in range(0, len(order.rows) - len(lengths) + 1, len(lengths)):
        assert sorted(order.rows[start : start + len(lengths)].tolist()) == list(range(len(lengths)))


@given(budget=st.integers(1, 100), longer=st.integers(1, 100))
def test_rows_of_a_smaller_budget_begin_a_larger_one(budget: int, longer: int) -> None:
    lengths_R = np.array([3, 5, 2, 8])
    short, long = draw_rows(lengths_R, budget, 1), draw_rows(lengths_R, budget + longer, 1)
    assert long.rows[: len(short.rows)].tolist() == short.rows.tolist()


def test_rows_depend_on_the_seed() -> None:
    lengths_R = np.full(50, 2)
    assert draw_rows(lengths_R, 100, 0).rows.tolist() != draw_rows(lengths_R, 100, 1).rows.tolist()
