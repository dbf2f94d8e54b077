"""Spherical k-means on the sample: k-means++ starts, faiss iterations, the best of several.

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

from lmsplit.manifests.encoder import normalised
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.placement import Floats

ITERATIONS: Final = 50
MAX_RESTARTS: Final = 32


class Clusters(NamedTuple):
    """The result of a fit."""

    centroids_KD: Floats
    """unit rows, by falling number of sample vectors."""
    mean_cosine: float
    """objective: mean cosine of the sample vectors to their nearest centroid, in fp32."""


def num_restarts(num_domains: int) -> int:
    """Return how many starts to try: many are cheap where k is small, and matter most there.

    >>> num_restarts(12), num_restarts(1000)
    (32, 1)
    """
    return max(1, min(MAX_RESTARTS, 400 // num_domains))


def spherical_kmeans(embeddings_ND: Floats, num_domains: int, seed: int) -> Clusters:
    """Cluster unit vectors by cosine.

    Args:
        embeddings_ND: unit rows, float32; a duplicate counts as often as it stands there.
        num_domains: K.
        seed: of all starts.

    Returns:
        The best clusters found.

    Raises:
        ConfigurationError: fewer than K distinct vectors.
    """
    distinct = len(np.unique(embeddings_ND, axis=0))
    if distinct < num_domains:
        raise ConfigurationError(
            f"domains: {num_domains}, but the sample has only {distinct} different documents: set domains to {distinct} or less"
        )
    points = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    best = Clusters(points[:0], -np.inf)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(1):
            for start in range(num_restarts(num_domains)):
                found = _one_start(points, num_domains, np.random.SeedSequence([seed, start]).generate_state(1)[0])
                best = max(best, found, key=lambda clusters: clusters.mean_cosine)
            return _by_size(best, points)
    finally:
        faiss.omp_set_num_threads(threads)


def _one_start(points_ND: Floats, num_domains: int, seed: np.uint32) -> Clusters:
    starts, _ = kmeans_plusplus(points_ND, num_domains, random_state=int(seed))
    kmeans = faiss.Kmeans(
        points_ND.shape[1],
        num_domains,
        niter=ITERATIONS,
        spherical=True,
        seed=int(seed) % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points_ND),
    )
    kmeans.train(points_ND, init_centroids=starts)
    centroids = normalised(np.asarray(kmeans.centroids, dtype=np.float32))
    return Clusters(centroids, float((points_ND @ centroids.T).max(axis=1).mean(dtype=np.float64)))


def _by_size(clusters: Clusters, points_ND: Floats) -> Clusters:
    """Number the domains by falling size, so that d00000 is the largest of the sample."""
    nearest: npt.NDArray[np.int64] = (points_ND @ clusters.centroids_KD.T).argmax(axis=1)
    sizes = np.bincount(nearest, minlength=len(clusters.centroids_KD))
    order = np.argsort(-sizes, kind="stable")
    return Clusters(np.ascontiguousarray(clusters.centroids_KD[order]), clusters.mean_cosine)
