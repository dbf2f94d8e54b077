"""Which rows are trained on, and in which order: fixed before the first step, over one or many packs.

```
lengths, shares, budget ─► rows to draw from each pack ─► whole steps ─► passes of each pack ─interleaved─► RowOrder
```

Each pass over a pack is a permutation seeded by (seed, pack, pass); passes follow each other without a gap. The
j-th of the n rows drawn from a pack gets the key (j + u) / n, with u from [0, 1) seeded by (seed, pack), and the
rows of all packs are sorted by key: in any stretch of keys each pack has its share to within one row, and no pass of
a pack starts before the one ahead of it has ended. The row at any step can be looked up, which is what resuming and
tracing need.

This reads no file and does *not* know which documents lie in a row: see `lineage`. Costs 12 bytes for each row
drawn, about 30 while sorting, and one Python step per pass over a pack, none per row.

Shapes: P packs, R rows of one pack, S rows drawn.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import LmsplitError

Lengths = npt.NDArray[np.int64]

_DIGITS = 6
"""Decimals that are kept of a fraction × a number of tokens before it is cut to whole tokens: 2.3 × 10 is 23, where
floating point has a little less. Assumption: what stands beyond them is rounding.
"""


class RowOrder(NamedTuple):
    """The rows drawn for a token budget, in training order."""

    pack_S: npt.NDArray[np.int32]
    """Which pack each row is from."""
    row_S: npt.NDArray[np.int64]
    """Which row of its pack it is."""
    num_tokens: int
    """Tokens in the rows."""
    tokens_P: npt.NDArray[np.int64]
    """Tokens drawn from each pack, repetitions counted."""
    repetitions_P: npt.NDArray[np.float64]
    """Rows drawn ÷ rows there are, by pack; 0 for a pack without rows."""
    not_reached_P: npt.NDArray[np.int64]
    """Tokens of the rows that were never drawn, by pack."""
    num_steps: int
    """Steps; each takes S ÷ `num_steps` rows."""


def draw_rows(
    lengths: Sequence[Lengths],
    shares: Sequence[float],
    num_tokens: int,
    rows_per_step: int,
    seed: int,
    max_repetitions: float | None = None,
) -> RowOrder:
    """Draw rows from packs in given shares until a token budget is met, in whole steps.

    A pack's budget is its share of `num_tokens`, the shares of packs without rows handed on to the others. Each is met to within
    one row, and so are all of them together: what one has too much, the next ones have less, however many they are. The last
    step is filled from the pack with the largest budget that has rows left to give; where no pack has, the step is dropped.

    Args:
        lengths: (R,) tokens in each row, above 0, by pack.
        shares: of the tokens, by pack, at least 0; only their ratios matter.
        num_tokens: the budget, above 0.
        rows_per_step: rows that one optimizer step takes over all processes and accumulation, above 0.
        seed: of the permutations, 0 to 2^32 - 1.
        max_repetitions: a pack gives at most so many times its own tokens, which may leave `num_tokens` unmet; above 0.

    Raises:
        LmsplitError: there are not enough rows for one step.

    >>> order = draw_rows([np.array([4, 4]), np.array([2, 2, 2, 2])], [0.5, 0.5], num_tokens=16, rows_per_step=3, seed=0)
    >>> order.num_steps, order.tokens_P.tolist(), order.repetitions_P.tolist()
    (2, [8, 8], [1.0, 1.0])
    """
    assert num_tokens > 0
    assert rows_per_step > 0
    assert len(lengths) == len(shares)
    assert min(shares, default=0) >= 0
    assert all(min(lengths_R, default=1) > 0 for lengths_R in map(np.asarray, lengths))
    packs = [_Pack(seed, number, np.asarray(lengths_R, np.int64)) for number, lengths_R in enumerate(lengths)]
    budgets = _budgets(packs, shares, num_tokens)
    limits = [_limit(pack, max_repetitions) if budget else 0 for pack, budget in zip(packs, budgets, strict=True)]
    wanted = _wanted(packs, budgets)
    draws = [count if limit is None else min(count, limit) for count, limit in zip(wanted, limits, strict=True)]
    _fill_last_step(draws, limits, budgets, rows_per_step)
    num_steps = sum(draws) // rows_per_step
    if not num_steps:
        num_rows = sum(pack.num_rows for pack in packs)
        raise LmsplitError(
            f"there are {num_rows} rows, of which at most {sum(draws)} may be drawn, but one step takes {rows_per_step}: "
            "lower the batch size, raise max_repetitions, or choose domains with more training documents"
        )
    pack_S, row_S = _interleave(packs, draws, num_steps * rows_per_step)
    kept = np.bincount(pack_S, minlength=len(packs)).tolist()
    tokens_P = np.array([pack.tokens_of(count) for pack, count in zip(packs, kept, strict=True)], np.int64)
    return RowOrder(
        pack_S=pack_S,
        row_S=row_S,
        num_tokens=int(tokens_P.sum()),
        tokens_P=tokens_P,
        repetitions_P=np.array([count / max(1, pack.num_rows) for pack, count in zip(packs, kept, strict=True)]),
        not_reached_P=np.array([pack.tokens_beyond(count) for pack, count in zip(packs, kept, strict=True)], np.int64),
        num_steps=num_steps,
    )


class _Pack:
    """One pack's endless sequence of rows: permutation after permutation."""

    def __init__(self, seed: int, number: int, lengths_R: Lengths) -> None:
        self._seed = seed
        self._number = number
        self._lengths_R = lengths_R
        self.num_rows = len(lengths_R)
        self.num_tokens = int(lengths_R.sum())

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """Return the first `count` rows of the sequence."""
        rows = np.empty(count, np.int64)
        for number, start in enumerate(range(0, count, max(1, self.num_rows))):
            rows[start : start + self.num_rows] = self._permutation(number)[: count - start]
        return rows

    def keys(self, count: int) -> npt.NDArray[np.float64]:
        """Return where each of the first `count` rows comes in the run, from 0 to 1, ascending."""
        offset = self._generator().random()
        return (np.arange(count) + offset) / max(1, count)

    def rows_to_reach(self, num_tokens: int) -> int:
        """Return the fewest rows from the sequence's beginning that hold at least so many tokens."""
        passes, rest = divmod(num_tokens, self.num_tokens)
        last = int(np.searchsorted(self._reached(passes), rest)) + 1 if rest else 0
        return passes * self.num_rows + last

    def rows_within(self, num_tokens: int) -> int:
        """Return the most rows from the sequence's beginning that hold at most so many tokens."""
        passes, rest = divmod(num_tokens, self.num_tokens)
        return passes * self.num_rows + int(np.searchsorted(self._reached(passes), rest, side="right"))

    def tokens_of(self, count: int) -> int:
        """Return the tokens in the first `count` rows of the sequence."""
        passes, rest = divmod(count, max(1, self.num_rows))
        return passes * self.num_tokens + (int(self._reached(passes)[rest - 1]) if rest else 0)

    def tokens_beyond(self, count: int) -> int:
        """Return the tokens of the rows that are not among the first `count` of the sequence."""
        return self.num_tokens - self.tokens_of(min(count, self.num_rows))

    def _reached(self, number: int) -> npt.NDArray[np.int64]:
        """Return the tokens from the beginning of a pass to the end of each of its rows."""
        return np.cumsum(self._lengths_R[self._permutation(number)])

    def _permutation(self, number: int) -> npt.NDArray[np.int64]:
        return self._generator(number).permutation(self.num_rows)

    def _generator(self, *key: int) -> np.random.Generator:
        # Spawn keys, since numpy pads a seed's words with zeros: [seed, pack] would be the stream of [seed, pack, 0].
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(self._number, *key)))


def _budgets(packs: Sequence[_Pack], shares: Sequence[float], num_tokens: int) -> list[int]:
    weights = [share if pack.num_rows else 0.0 for pack, share in zip(packs, shares, strict=True)]
    total = math.fsum(weights) or 1.0
    return [math.ceil(round(num_tokens * (weight / total), _DIGITS)) for weight in weights]


def _wanted(packs: Sequence[_Pack], budgets: Sequence[int]) -> list[int]:
    """Return how many rows to draw from each pack, so that the first ones together reach their budgets with no row to spare."""
    counts, beyond = [], 0
    for pack, budget in zip(packs, budgets, strict=True):
        counts.append(pack.rows_to_reach(budget - beyond) if budget > beyond else 0)
        beyond += pack.tokens_of(counts[-1]) - budget
    return counts


def _limit(pack: _Pack, max_repetitions: float | None) -> int | None:
    """Return the most rows that may be drawn, or None without a bound."""
    if max_repetitions is None:
        return None
    assert max_repetitions > 0
    return pack.rows_within(math.floor(round(max_repetitions * pack.num_tokens, _DIGITS)))


def _fill_last_step(draws: list[int], limits: Sequence[int | None], budgets: Sequence[int], rows_per_step: int) -> None:
    """Add to `draws` what makes the last step whole, or nothing where the packs cannot give it."""
    missing = -sum(draws) % rows_per_step
    rooms = [missing if limit is None else limit - drawn for drawn, limit in zip(draws, limits, strict=True)]
    if sum(rooms) < missing:
        return
    for pack in sorted(range(len(draws)), key=lambda pack: -budgets[pack]):
        added = min(missing, rooms[pack])
        draws[pack] += added
        missing -= added


def _interleave(packs: Sequence[_Pack], draws: Sequence[int], count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the first `count` of all drawn rows in the order of their keys; of equal keys, the lower pack's first."""
    keys = np.concatenate([pack.keys(drawn) for pack, drawn in zip(packs, draws, strict=True)])
    order = np.argsort(keys, kind="stable")[:count]  # rows of one pack keep their order even where keys round to the same
    del keys
    pack_S = np.repeat(np.arange(len(packs), dtype=np.int32), draws)[order]
    row_S = np.concatenate([pack.rows(drawn) for pack, drawn in zip(packs, draws, strict=True)])[order]
    return pack_S, row_S
