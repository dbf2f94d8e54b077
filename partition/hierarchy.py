"""Fits the placement rule: k-means at the root, again inside each branch, and prices where the largest domain is bounded.

```
vectors ─► kmeans ─► branches ─► kmeans in each ─► …                 the tree without prices
         └► imbalance above the bound? balance roughly ─► sampling error ─► balance under the lowered cap
```

The bound on a leaf, max_imbalance / K, is shared out over the levels: a node of level l of L holds at most r^(l/L) of the mean of
its level. So a branch that is full can still be split without pricing its leaves to exact equality.

Cost: see `cluster` and `balance`. Balancing the root starts from its clusters without prices; branches are divided anew, with a
quarter of the restarts, since they hold other documents then.

Shape legend: N vectors, D dimensions, K children of a node, M nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from lmsplit.manifests.placement import Floats, PlacementRule, Placements, lengths
from lmsplit.partition.balance import MAX_ROUNDS, balance, sampling_error
from lmsplit.partition.cluster import check_distinct, kmeans, num_distinct, num_restarts
from lmsplit.partition.points import Indices, NumpyPoints, Points

_LEAST_CAP: Final = 1.01
"""A cluster may always hold this much of the mean: exact equality is dear and never needed (assumption)."""

_ROUGH_ROUNDS: Final = 3
"""Rounds of the first balancing, from which only the sampling error is taken, and the start of the second (assumption)."""

PointsOf = Callable[[Floats], Points]


@dataclass(frozen=True)
class Split:
    """How a node is divided: K children, each of which may be divided in turn."""

    centroids_KD: Floats
    prices_K: npt.NDArray[np.float64]
    """what balances; half the centroid's squared length comes on top in the rule."""
    children: tuple["Split | None", ...]


class Balance(NamedTuple):
    """What bounding the largest domain took, and what it cost."""

    max_imbalance: float
    """asked for."""
    sampling_error: float
    """s: see `balance.sampling_error`."""
    cap: float
    """what the sample was balanced to: max_imbalance / (1 + 2s)."""
    imbalance_before: float
    coherence_before: float


class Fitted(NamedTuple):
    """A rule fitted on a sample, and how it divides it."""

    rule: PlacementRule
    placed: Placements
    imbalance: float
    """tokens of the largest domain over the mean."""
    coherence: float
    """share of the vectors' variance that the domains explain, 0 to 1."""
    balance: Balance | None
    """None where nothing had to be balanced."""


def fit_rule(
    embeddings_ND: Floats,
    tokens_N: npt.NDArray[np.float64],
    branching: Sequence[int],
    seed: int,
    *,
    max_imbalance: float | None = None,
    sampled_fraction: float = 1.0,
    restarts: int | None = None,
    points_of: PointsOf = NumpyPoints,
) -> Fitted:
    """Fit a placement rule.

    Args:
        embeddings_ND: unit rows of the sample, float32.
        tokens_N: length of each document, in tokens or bytes.
        branching: children of a node, level by level; one number is a flat rule. A branch with fewer different documents gets
            fewer children.
        seed: of every random choice.
        max_imbalance: bound on the tokens of the largest domain over the mean of all, on the corpus.
        sampled_fraction: sample documents over documents of the corpus.
        restarts: of each k-means; see `cluster.num_restarts`.
        points_of: puts vectors where the products are done.

    Raises:
        ConfigurationError: fewer different vectors than children of the root.
        InputError: there are none.
    """
    check_distinct(embeddings_ND, branching[0])
    share_N = tokens_N / tokens_N.sum()
    grow = partial(_grow, seed=seed, restarts=restarts, points_of=points_of)
    split = grow(embeddings_ND, branching=tuple(branching))
    assert split is not None, "check_distinct allows at least one child"
    free = _fitted(split, embeddings_ND, share_N, None)
    if max_imbalance is None or free.imbalance <= max_imbalance / (1 + 2 * _error(free, share_N, sampled_fraction, seed)):
        return free
    fresh = partial(_grow, seed=seed, restarts=max(1, (restarts or num_restarts(branching[0])) // 4), points_of=points_of)
    sample = _Sample(embeddings_ND, share_N, points_of)
    with threadpool_limits(1):
        split = sample.balanced(split, _caps(branching, max_imbalance, free.rule.num_domains), tuple(branching), fresh)
        error = _error(_fitted(split, embeddings_ND, share_N, None), share_N, sampled_fraction, seed)
        cap = max(max_imbalance / (1 + 2 * error), _LEAST_CAP)
        split = sample.balanced(split, _caps(branching, cap, free.rule.num_domains), tuple(branching))
    paid = Balance(max_imbalance, error, cap, free.imbalance, free.coherence)
    return _fitted(split, embeddings_ND, share_N, paid)


def _grow(
    embeddings_ND: Floats, *, branching: tuple[int, ...], seed: int, restarts: int | None, points_of: PointsOf
) -> Split | None:
    """Divide vectors without prices; None where there is nothing left to divide."""
    num_children = min(branching[0], num_distinct(embeddings_ND)) if branching else 0
    if not branching or num_children < min(2, branching[0]):
        return None
    clusters = kmeans(embeddings_ND, num_children, seed, restarts=restarts, points_of=points_of)
    child_N = clusters.rule().place(embeddings_ND).domain
    below = partial(_grow, branching=branching[1:], seed=seed, restarts=restarts, points_of=points_of)
    children = tuple(below(embeddings_ND[child_N == child]) for child in range(num_children))
    return Split(clusters.centroids_KD, np.zeros(num_children), children)


def _caps(branching: Sequence[int], imbalance: float, num_domains: int) -> tuple[float, ...]:
    """Return the largest share of all tokens that a node may hold, level by level."""
    levels = len(branching)
    nodes = [prod(branching[: level + 1]) for level in range(levels - 1)] + [num_domains]
    return tuple(float(imbalance ** ((level + 1) / levels) / nodes[level]) for level in range(levels))


class _Sample(NamedTuple):
    """What is balanced."""

    embeddings_ND: Floats
    share_N: npt.NDArray[np.float64]
    points_of: PointsOf

    def balanced(
        self,
        split: Split,
        caps: tuple[float, ...],
        branching: tuple[int, ...],
        fresh: Callable[..., Split | None] | None = None,
        own: Indices | None = None,
    ) -> Split:
        """Balance a split of the points `own`, all where None, and those below it.

        Args:
            split: where to start.
            caps: largest share of all tokens, level by level from this one.
            branching: children of a node, likewise.
            fresh: divides what a child has got anew, roughly, and the result is balanced; where None, it starts from the child's
                own split.
            own: rows.
        """
        own = np.arange(len(self.share_N)) if own is None else own
        share, num_children = self.share_N[own].sum(), len(split.centroids_KD)
        cap = max(caps[0] / share, _LEAST_CAP / num_children)
        rounds = MAX_ROUNDS if fresh is None else _ROUGH_ROUNDS
        points = self.points_of(self.embeddings_ND[own])
        found = balance(points, split.centroids_KD, split.prices_K, self.share_N[own] / share, cap, rounds)
        children: list[Split | None] = []
        for k, child in enumerate(split.children):
            rows = own[found.cluster_N == k]
            below = child if fresh is None else fresh(self.embeddings_ND[rows], branching=branching[1:])
            children.append(None if below is None else self.balanced(below, caps[1:], branching[1:], fresh, rows))
        return Split(found.centroids_KD, found.prices_K, tuple(children))


def _fitted(split: Split, embeddings_ND: Floats, share_N: npt.NDArray[np.float64], paid: Balance | None) -> Fitted:
    rule = _rule(split)
    placed = rule.place(embeddings_ND)
    shares_K = np.bincount(placed.domain, share_N, minlength=rule.num_domains)
    return Fitted(rule, placed, float(shares_K.max() * rule.num_domains), coherence(rule, placed, embeddings_ND), paid)


def _rule(split: Split) -> PlacementRule:
    """Return the tree as the rule has it: nodes in breadth-first order."""
    centroids: list[Floats] = []
    prices: list[float] = []
    parents: list[int] = []
    level: list[tuple[int, Split]] = [(-1, split)]
    while level:
        below = []
        for parent, node in level:
            for child in range(len(node.centroids_KD)):
                if (divided := node.children[child]) is not None:
                    below.append((len(parents), divided))
                parents.append(parent)
                centroids.append(node.centroids_KD[child])
                prices.append(node.prices_K[child])
        level = below
    centroids_MD = np.stack(centroids)
    parent_M = np.array(parents, np.int32) if max(parents) >= 0 else None
    return PlacementRule(centroids_MD, lengths(centroids_MD) ** 2 / 2 + np.array(prices), parent_M)


def coherence(rule: PlacementRule, placed: Placements, embeddings_ND: Floats) -> float:
    """Return the share of the vectors' variance that their domains explain: 1 - mean |x - c|² / mean |x - mean of all|²."""
    lengths_K = lengths(rule.centroids_KD)
    dots_N = (1 - placed.distance.astype(np.float64)) * lengths_K[placed.domain]
    within = float(np.mean(1 - 2 * dots_N + lengths_K[placed.domain] ** 2))
    total = 1 - float((embeddings_ND.mean(axis=0, dtype=np.float64) ** 2).sum())
    return 1 - within / total if total > 0 else 1.0


def _error(fitted: Fitted, share_N: npt.NDArray[np.float64], sampled_fraction: float, seed: int) -> float:
    return sampling_error(share_N, fitted.placed.domain, fitted.rule.num_domains, sampled_fraction, seed)
