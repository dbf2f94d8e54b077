"""What clusters fastest on a CPU: a plain product in numpy or torch, or faiss?

12,000 encoded documents of the corpora (D = 384), one thread. `numpy`, `torch` and `faiss` are GFLOP/s of finding every
point's nearest centroid (2·N·K·D operations), the best of several rounds taken in turn, `peak` those of a square product.
`ours_s` is `kmeans` as shipped with 4 starts, `faiss_s` faiss's iterations (50) from as many k-means++ starts, as this
project had it before, `sklearn_s` scikit-learn's KMeans with as many starts; `inertia` columns are each one's mean squared
distance over ours. Takes about 5 minutes.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from measure import write_results
from sklearn.cluster import KMeans, kmeans_plusplus
from threadpoolctl import threadpool_limits
from vectors import encoded

from lmsplit.manifests.placement import Floats
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.points import NumpyPoints, TorchPoints

STARTS = 4
ROUNDS = 7


def faiss_search(points_ND: Floats, centroids_KD: Floats) -> Callable[[], object]:
    """Return faiss' way to find the nearest centroids."""
    index = faiss.IndexFlatL2(points_ND.shape[1])
    index.add(centroids_KD)
    return lambda: index.search(points_ND, 1)


def faiss_kmeans(points_ND: Floats, domains: int) -> Floats:
    """Cluster as this project did before: faiss's iterations, k-means++ starts, the best."""
    best: tuple[float, Floats] = (np.inf, points_ND)
    for start in range(STARTS):
        starts, _ = kmeans_plusplus(points_ND, domains, random_state=start)
        one = faiss.Kmeans(points_ND.shape[1], domains, niter=50, min_points_per_centroid=1, max_points_per_centroid=10**9)
        one.train(points_ND, init_centroids=starts)
        best = min(best, (float(one.obj[-1]), np.asarray(one.centroids)), key=lambda pair: pair[0])
    return best[1]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `work` gives, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def measure(points_ND: Floats, domains: int) -> dict[str, Any]:
    """Measure one number of centroids."""
    centroids_KD = kmeans(points_ND, domains, 0, restarts=1).centroids_KD
    square = points_ND[:384].T @ points_ND[:384]
    square = np.tile(square, (5, 5)).astype(np.float32)
    ways: dict[str, tuple[Callable[[], object], float]] = {
        "peak": (lambda: square @ square, 2.0 * len(square) ** 3),
        "numpy": (lambda: NumpyPoints(points_ND).nearest(centroids_KD), 2.0 * len(points_ND) * centroids_KD.size),
        "torch": (lambda: TorchPoints(points_ND, "cpu").nearest(centroids_KD), 2.0 * len(points_ND) * centroids_KD.size),
        "faiss": (faiss_search(points_ND, centroids_KD), 2.0 * len(points_ND) * centroids_KD.size),
    }
    best = dict.fromkeys(ways, np.inf)
    for _ in range(ROUNDS):
        for name, (work, _) in ways.items():
            best[name] = min(best[name], timed(work)[1])
    ours, ours_s = timed(lambda: kmeans(points_ND, domains, 0, restarts=STARTS))
    theirs, faiss_s = timed(lambda: faiss_kmeans(points_ND, domains))
    sklearn, sklearn_s = timed(lambda: KMeans(domains, n_init=STARTS, random_state=0).fit(points_ND))
    points = NumpyPoints(points_ND)
    inertia = 1 + 2 * float(points.nearest(theirs)[1].mean(dtype=np.float64))
    row = {
        "k": domains,
        **{name: operations / best[name] / 1e9 for name, (_, operations) in ways.items()},
        "ours_s": ours_s,
        "faiss_s": faiss_s,
        "sklearn_s": sklearn_s,
        "faiss inertia": inertia / ours.mean_squared_distance,
        "sklearn inertia": sklearn.inertia_ / len(points_ND) / ours.mean_squared_distance,
    }
    sys.stderr.write(f"{row}\n")
    return row


def main() -> None:
    """Measure and write the table."""
    points_ND = np.ascontiguousarray(encoded("minilm").vectors_ND[:12_000])
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = [measure(points_ND, domains) for domains in (12, 16, 24, 48, 256, 1024)]
    write_results("fit_speed", "Finding the nearest centroids, and whole fits", __doc__ or "", rows)


if __name__ == "__main__":
    main()
