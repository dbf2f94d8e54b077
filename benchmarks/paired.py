"""Losses of ways to train over several seeds, and their paired differences with intervals.

Domains count alike. For an interval seeds are drawn with replacement, and in each domain groups of documents, which are the cuts
of one original: see `answers.compare`.

Shapes: S seeds, N documents.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.train.answers import INTERVAL, compare

Floats = npt.NDArray[np.float64]


class Judged(NamedTuple):
    """What is judged of the same held-out documents."""

    tokens_N: npt.NDArray[np.int64]
    domain_N: npt.NDArray[np.int64]
    """Numbers from 0."""
    group_N: npt.NDArray[Any]

    def loss(self, nats_N: Floats) -> float:
        """Return the mean over domains, nats per token."""
        return float(compare({"": nats_N}, self.tokens_N, self.domain_N, self._domains, draws=1).loss_W[0])

    def interval(self, nats_SN: Floats) -> tuple[float, float, float]:
        """Return the mean over seeds and domains, and its 95 % interval; of losses, or of differences of two ways' losses."""
        ways = {str(seed): nats_N for seed, nats_N in enumerate(nats_SN)}
        found = compare(ways, self.tokens_N, self.domain_N, self._domains, self.group_N)
        seeds_BS = np.random.default_rng(1).multinomial(len(ways), np.full(len(ways), 1 / len(ways)), size=len(found.draws_BW))
        draws_B = (found.draws_BW * seeds_BS).sum(axis=1) / len(ways)
        low, high = np.quantile(draws_B, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        return float(found.loss_W.mean()), float(low), float(high)

    @property
    def _domains(self) -> int:
        return int(self.domain_N.max()) + 1


def shown(difference: tuple[float, float, float]) -> str:
    """Return a difference with its interval."""
    mean, low, high = difference
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
