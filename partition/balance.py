"""Bounds the largest domain by prices: k-means under a cap on the tokens of a cluster.

A price is what each document pays to be placed on a domain, on top of its distance. The clusters of least total distance under
caps are those where prices are at least 0 and only a full domain has one (complementary slackness of the transport problem).
`solve_prices` finds such prices for given centroids; `balance` alternates with moving the centroids to the means of what they
got, as k-means does.

A cap that holds on a sample is missed on the corpus by the sample's own error, so `sampling_error` says by how much; the cap is
lowered by that (see `hierarchy`).

Cost: one (N, K) matrix of costs a round, at most 10 rounds, and a search in it for the cheapest some 30 times a round.
Memory: that matrix, 4·N·K bytes.

Shape legend: N points, D dimensions, K clusters, B bootstrap replicates.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from lmsplit.manifests.placement import Floats
from lmsplit.partition.cluster import means
from lmsplit.partition.points import Costs, Indices, Points

MAX_ROUNDS: Final = 10
MAX_STEPS: Final = 25
MAX_RAISES: Final = 20
_OVER: Final = 0.002
"""Masses may be above their cap by this share of it: the margin is far wider (assumption)."""
_SETTLED: Final = 2e-3
"""Rounds end once at most this share of the points changes its cluster (assumption)."""
_TINY: Final = 1e-7
"""A rise that a cost in fp32 cannot lose."""
_REPLICATES: Final = 200
_QUANTILE: Final = 0.975


class Priced(NamedTuple):
    """Prices for given centroids, and where they put the points."""

    prices_K: npt.NDArray[np.float64]
    cluster_N: Indices
    excess: float
    """how far the fullest cluster is above its cap, as a share of the cap; below 0 where none is full."""


class Balanced(NamedTuple):
    """Clusters under a cap."""

    centroids_KD: Floats
    prices_K: npt.NDArray[np.float64]
    cluster_N: Indices


def balance(
    points: Points,
    centroids_KD: Floats,
    prices_K: npt.NDArray[np.float64],
    share_N: npt.NDArray[np.float64],
    cap: float,
    rounds: int = MAX_ROUNDS,
) -> Balanced:
    """Move centroids and find prices until no cluster holds more than the cap, and hardly any point changes its cluster.

    Args:
        points: N points.
        centroids_KD: where to start: the clusters without a cap, or under another one.
        prices_K: where to start; 0 without a cap.
        share_N: each point's share of all tokens; sums to 1.
        cap: largest share of a cluster, above 1/K.
        rounds: moves of the centroids, at most.
    """
    priced = solve_prices(points.costs(centroids_KD), share_N, cap, prices_K)
    for _ in range(rounds):
        before_N = priced.cluster_N
        centroids_KD = means(points, before_N, np.zeros(len(share_N), np.float32), len(centroids_KD))
        priced = solve_prices(points.costs(centroids_KD), share_N, cap, priced.prices_K)
        if np.count_nonzero(priced.cluster_N != before_N) <= _SETTLED * len(share_N):
            break
    return Balanced(centroids_KD, priced.prices_K, priced.cluster_N)


def solve_prices(costs: Costs, share_N: npt.NDArray[np.float64], cap: float, prices_K: npt.NDArray[np.float64]) -> Priced:
    """Find prices under which no cluster is above its cap, and only full ones have a price.

    They maximise the dual of the transport problem, which is concave; its gradient is what each cluster has above its cap. With
    many points it is all but smooth, so a quasi-Newton method finds its top (as Mérigot 2011, "A multiscale approach to optimal
    transport", does for given masses). What is left above a cap then goes as in an auction: the cluster raises its price.

    Args:
        costs: of the points in each cluster.
        share_N: each point's share of all tokens; sums to 1.
        cap: largest share of a cluster.
        prices_K: where to start.

    Returns:
        Of what was found, the clusters of least cost that keep the cap; if none does, those with the least excess.
    """
    seen: list[tuple[tuple[float, float], Priced]] = []

    def descend(tried_K: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Return the negative dual and its gradient."""
        cluster_N, cost_N = costs.cheapest(tried_K)
        masses_K = np.bincount(cluster_N, share_N, minlength=len(tried_K))
        return float(cap * tried_K.sum() - share_N @ cost_N), np.asarray(cap - masses_K, np.float64)

    options = {"maxfun": MAX_STEPS, "gtol": _OVER * cap, "ftol": 0.0}
    bounds = [(0, None)] * len(prices_K)
    prices_K = minimize(descend, prices_K, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    for _ in range(MAX_RAISES):
        found = costs.cheapest(prices_K)
        cluster_N, cost_N = found
        excess_K = np.bincount(cluster_N, share_N, minlength=len(prices_K)) / cap - 1
        priced = Priced(prices_K, cluster_N, float(excess_K.max()))
        seen.append(((max(priced.excess, _OVER), float(share_N @ (cost_N - prices_K[cluster_N]))), priced))
        above = np.flatnonzero(excess_K > _OVER)
        if not above.size:
            break
        regret_N = costs.regrets(prices_K, found)
        prices_K = prices_K.copy()
        for cluster in above:
            members = np.flatnonzero(cluster_N == cluster)
            prices_K[cluster] += _raise(regret_N[members], share_N[members], excess_K[cluster] * cap)
    return min(seen, key=lambda pair: pair[0])[1]


def _raise(regret_M: Floats, share_M: npt.NDArray[np.float64], too_much: float) -> float:
    """Return by how much a price must rise for so much of a cluster to go: each point goes once the rise exceeds its regret."""
    order = np.argsort(regret_M, kind="stable")
    last = min(int(np.searchsorted(np.cumsum(share_M[order]), too_much)), len(order) - 1)
    return float(np.nextafter(regret_M[order[last]], np.float32(np.inf))) + _TINY


def sampling_error(
    share_N: npt.NDArray[np.float64], cluster_N: Indices, num_clusters: int, sampled_fraction: float, seed: int
) -> float:
    """Return s: the largest cluster of the corpus may be larger than the sample's by a factor of 1 + 2s.

    Bootstrapped: documents are drawn again with replacement, 200 times (Poisson weights); 1 + 2s is the 97.5 % quantile of the
    largest cluster's share over what it is in the sample, narrowed for the share of the corpus that the sample is.

    Args:
        share_N: each sample document's share of the sample's tokens.
        cluster_N: its cluster.
        num_clusters: K.
        sampled_fraction: sample documents over documents of the corpus, 0 to 1.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng([seed, num_clusters])
    largest_B = np.empty(_REPLICATES)
    for replicate in range(_REPLICATES):
        drawn_N = share_N * generator.poisson(1.0, len(share_N))
        largest_B[replicate] = np.bincount(cluster_N, drawn_N, minlength=num_clusters).max() / drawn_N.sum()
    largest = np.bincount(cluster_N, share_N, minlength=num_clusters).max()
    excess = max(0.0, float(np.quantile(largest_B, _QUANTILE) / largest) - 1)
    return excess / 2 * math.sqrt(max(0.0, 1 - sampled_fraction))
