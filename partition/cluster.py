"""K-means on the sample's unit vectors: k-means++ starts, Lloyd's iterations, the best of several, then on all points.

The centroids are means, not scaled to length 1, and a document belongs to the nearest. Measured beside spherical k-means, which
compares cosines alone: benchmarks/results/clustering.md.

Cost: restarts × about 30 × R·k·D multiply-adds, R being the points that starts are tried on, and 20 × N·k·D for all points;
12,000 vectors of 384 dimensions at k = 12 take 0.1 s a start on one core (benchmarks/results/fit_speed.md). The result is the
same for any number of threads (see `points`).

Shape legend: N vectors, D dimensions, K domains.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.placement import Floats, PlacementRule, lengths
from lmsplit.partition.points import Indices, NumpyPoints, Points

MAX_ITERATIONS: Final = 100
MAX_RESTARTS: Final = 32
_SETTLED: Final = 1e-4
"""Iterations end once at most this share of the points changes its cluster (assumption)."""
_TRIED_POINTS: Final = 10_000
_TRIED_PER_CLUSTER: Final = 64
"""Starts are compared on at most so many points, or so many a cluster (assumption: what tells a good start shows there)."""
_SEEDED_POINTS: Final = 4096
_SEEDED_PER_CLUSTER: Final = 16
"""k-means++ draws from at most so many points, or so many a cluster: its cost grows with K² (assumption)."""


class Clusters(NamedTuple):
    """The result of a fit."""

    centroids_KD: Floats
    """means of their vectors, by falling number of them."""
    mean_squared_distance: float
    """objective: mean of |x - c|² over the sample vectors x and their nearest centroids c, in fp32."""

    def rule(self) -> PlacementRule:
        """Return the rule that places a vector on its nearest centroid."""
        return PlacementRule(self.centroids_KD, lengths(self.centroids_KD) ** 2 / 2)


def num_restarts(num_domains: int) -> int:
    """Return how many starts to try: many are cheap where k is small, and matter most there.

    >>> num_restarts(12), num_restarts(1000)
    (32, 1)
    """
    return max(1, min(MAX_RESTARTS, 400 // num_domains))


def kmeans(
    embeddings_ND: Floats,
    num_domains: int,
    seed: int,
    *,
    restarts: int | None = None,
    points_of: Callable[[Floats], Points] = NumpyPoints,
) -> Clusters:
    """Cluster unit vectors.

    Args:
        embeddings_ND: unit rows, float32; a duplicate counts as often as it stands there.
        num_domains: K.
        seed: of all starts.
        restarts: how many starts to try; `num_restarts` when None.
        points_of: puts vectors where the products are done: a CPU or a GPU.

    Returns:
        The best clusters found.

    Raises:
        ConfigurationError: fewer than K distinct vectors.
        InputError: there are none.
    """
    with threadpool_limits(1):
        return _kmeans(embeddings_ND, num_domains, seed, restarts or num_restarts(num_domains), points_of)


def _kmeans(embeddings_ND: Floats, num_domains: int, seed: int, restarts: int, points_of: Callable[[Floats], Points]) -> Clusters:
    check_distinct(embeddings_ND, num_domains)
    points_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    tried_ND = subset(points_ND, max(_TRIED_POINTS, _TRIED_PER_CLUSTER * num_domains), seed)
    tried = points_of(tried_ND)
    best = Clusters(points_ND[:0], np.inf)
    for start in range(restarts):
        state = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        found = lloyd(tried, _starts(tried_ND, num_domains, state))
        best = min(best, found, key=lambda clusters: clusters.mean_squared_distance)
    points = tried
    if len(tried_ND) < len(points_ND):
        points = points_of(points_ND)
        best = lloyd(points, best.centroids_KD)
    return by_size(best, points)


def check_distinct(embeddings_ND: Floats, num_domains: int) -> None:
    """Check that there is enough to cluster.

    Raises:
        ConfigurationError: fewer than K distinct vectors.
        InputError: there are none.
    """
    if not len(embeddings_ND):
        raise InputError("no document of the sample has a vector: nothing to cluster by. Is the encoder right for these texts?")
    distinct = num_distinct(embeddings_ND)
    if distinct < num_domains:
        raise ConfigurationError(
            f"domains: {num_domains}, but the sample has only {distinct} different documents: set domains to {distinct} or less"
        )


def num_distinct(embeddings_ND: Floats) -> int:
    """Return how many different rows there are."""
    return int(point_numbers(embeddings_ND).max(initial=-1)) + 1


def point_numbers(embeddings_ND: Floats) -> Indices:
    """Return (N,) a number for each row from 0, the same for equal rows."""
    rows = np.ascontiguousarray(embeddings_ND)
    whole_N = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    return np.asarray(np.unique(whole_N, return_inverse=True)[1].ravel(), np.int64)


def subset(points_ND: Floats, size: int, seed: int) -> Floats:
    """Return at most `size` of the points, drawn at random, in their order."""
    if len(points_ND) <= size:
        return points_ND
    drawn = np.random.default_rng([seed, size]).choice(len(points_ND), size, replace=False)
    return points_ND[np.sort(drawn)]


def _starts(points_ND: Floats, num_domains: int, state: int) -> Floats:
    from sklearn.cluster import kmeans_plusplus  # here: scikit-learn's import takes 1 s, and most commands need none of it

    drawn_ND = subset(points_ND, max(_SEEDED_POINTS, _SEEDED_PER_CLUSTER * num_domains), state)
    starts_KD: Floats = kmeans_plusplus(drawn_ND, num_domains, random_state=state)[0]
    return starts_KD


def lloyd(points: Points, centroids_KD: Floats) -> Clusters:
    """Move centroids to the means of the points nearest to them, until hardly any point changes its cluster.

    Args:
        points: the points.
        centroids_KD: where to start.
    """
    previous_N: Indices | None = None
    for _ in range(MAX_ITERATIONS):
        cluster_N, cost_N = points.nearest(centroids_KD)
        if previous_N is not None and np.count_nonzero(cluster_N != previous_N) <= _SETTLED * len(cluster_N):
            break
        centroids_KD = means(points, cluster_N, cost_N, len(centroids_KD))
        previous_N = cluster_N
    return Clusters(centroids_KD, float(1 + 2 * cost_N.mean(dtype=np.float64)))


def means(points: Points, cluster_N: Indices, cost_N: Floats, num_clusters: int) -> Floats:
    """Return (K, D) the mean of each cluster; an empty one gets one of the points that are dearest where they are."""
    empty = np.flatnonzero(np.bincount(cluster_N, minlength=num_clusters) == 0)
    if empty.size:
        cluster_N = cluster_N.copy()
        cluster_N[np.argsort(-cost_N, kind="stable")[: empty.size]] = empty
    sizes_K = np.bincount(cluster_N, minlength=num_clusters)
    return np.asarray(points.sums(cluster_N, num_clusters) / np.maximum(sizes_K, 1)[:, None], np.float32)


def by_size(clusters: Clusters, points: Points) -> Clusters:
    """Number the domains by falling size, so that d00000 is the largest of the sample."""
    cluster_N, _ = points.nearest(clusters.centroids_KD)
    sizes_K: npt.NDArray[np.int64] = np.bincount(cluster_N, minlength=len(clusters.centroids_KD))
    order = np.argsort(-sizes_K, kind="stable")
    return Clusters(np.ascontiguousarray(clusters.centroids_KD[order]), clusters.mean_squared_distance)
