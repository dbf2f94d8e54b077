"""Which rows are trained on, and in which order: one array, fixed before the first step.

Each pass over the rows is a permutation seeded by (seed, pass); passes follow each other without a gap, so
that every step but the last is full and a token budget is met to within one row, however small the domain.
The row at any step can be looked up, which is what resuming and tracing need. Costs 8 bytes for each row
drawn.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class RowOrder(NamedTuple):
    """The rows drawn for a token budget."""

    rows: npt.NDArray[np.int64]
    """Row numbers, in training order."""
    num_tokens: int
    """Tokens in them: at least the budget, and less than one row more."""
    num_epochs: float
    """Rows drawn ÷ rows there are."""


def draw_rows(lengths_R: npt.NDArray[np.int64], num_tokens: int, seed: int) -> RowOrder:
    """Draw rows until they hold at least `num_tokens` tokens.

    Args:
        lengths_R: tokens in each of R rows, at least one row, all above 0.
        num_tokens: the budget, above 0.
        seed: of the permutations.

    >>> draw_rows(np.array([4, 4, 2]), 7, seed=0).num_tokens >= 7
    True
    """
    assert num_tokens > 0
    assert min(lengths_R, default=0) > 0
    passes: list[npt.NDArray[np.int64]] = []
    drawn = 0
    while drawn < num_tokens:
        permutation = np.random.default_rng([seed, len(passes)]).permutation(len(lengths_R))
        reached = drawn + np.cumsum(lengths_R[permutation])
        stop = int(np.searchsorted(reached, num_tokens)) + 1
        passes.append(permutation[:stop])
        drawn = int(reached[min(stop, len(reached)) - 1])
    rows = np.concatenate(passes)
    return RowOrder(rows, drawn, len(rows) / len(lengths_R))
