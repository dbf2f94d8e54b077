"""K-means on the sample's unit vectors: k-means++ starts, faiss iterations, the best of several.

The centroids are means, not scaled to length 1, and a document belongs to the nearest. Measured beside spherical k-means, which
compares cosines alone: benchmarks/results/clustering.md.

Cost: restarts × 50 × N·k·D multiply-adds; 10,000 vectors of 128 dimensions at k = 12 take about 5 s on one core.
Single-threaded: faiss with 1 and 2 threads gives different centroids from the same seed (measured, faiss 1.15.1).

Shape legend: N vectors, D dimensions, K domains.
"""

from typing import Final, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.placement import Floats, PlacementRule, lengths

ITERATIONS: Final = 50
MAX_RESTARTS: Final = 32


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


def kmeans(embeddings_ND: Floats, num_domains: int, seed: int) -> Clusters:
    """Cluster unit vectors.

    Args:
        embeddings_ND: unit rows, float32; a duplicate counts as often as it stands there.
        num_domains: K.
        seed: of all starts.

    Returns:
        The best clusters found.

    Raises:
        ConfigurationError: fewer than K distinct vectors.
        InputError: there are none.
    """
    if not len(embeddings_ND):
        raise InputError("no document of the sample has a vector: nothing to cluster by. Is the encoder right for these texts?")
    distinct = len(np.unique(embeddings_ND, axis=0))
    if distinct < num_domains:
        raise ConfigurationError(
            f"domains: {num_domains}, but the sample has only {distinct} different documents: set domains to {distinct} or less"
        )
    points = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    best = Clusters(points[:0], np.inf)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(1):
            for start in range(num_restarts(num_domains)):
                found = _one_start(points, num_domains, np.random.SeedSequence([seed, start]).generate_state(1)[0])
                best = min(best, found, key=lambda clusters: clusters.mean_squared_distance)
            return _by_size(best, points)
    finally:
        faiss.omp_set_num_threads(threads)


def _one_start(points_ND: Floats, num_domains: int, seed: np.uint32) -> Clusters:
    starts, _ = kmeans_plusplus(points_ND, num_domains, random_state=int(seed))
    iterations = faiss.Kmeans(
        points_ND.shape[1],
        num_domains,
        niter=ITERATIONS,
        seed=int(seed) % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points_ND),
    )
    iterations.train(points_ND, init_centroids=starts)
    centroids = np.asarray(iterations.centroids, dtype=np.float32)
    return Clusters(centroids, float(1 + 2 * _half_squares(centroids, points_ND).min(axis=1).mean(dtype=np.float64)))


def _half_squares(centroids_KD: Floats, points_ND: Floats) -> Floats:
    """Return (N, K) (|x - c|² - 1)/2, what is left of the distance of unit vectors x when it is compared."""
    halves_K: Floats = (lengths(centroids_KD) ** 2 / 2).astype(np.float32)
    return halves_K - points_ND @ centroids_KD.T


def _by_size(clusters: Clusters, points_ND: Floats) -> Clusters:
    """Number the domains by falling size, so that d00000 is the largest of the sample."""
    nearest: npt.NDArray[np.int64] = _half_squares(clusters.centroids_KD, points_ND).argmin(axis=1)
    sizes = np.bincount(nearest, minlength=len(clusters.centroids_KD))
    order = np.argsort(-sizes, kind="stable")
    return Clusters(np.ascontiguousarray(clusters.centroids_KD[order]), clusters.mean_squared_distance)
