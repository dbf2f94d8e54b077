"""The two products that clustering is made of: every point's nearest centroid, and the sum of every cluster's points.

On a CPU a plain matrix product and an argmin, block by block; on a GPU the same in torch. Measured beside faiss and torch:
benchmarks/results/fit_speed.md. Blocks are cut from the points alone and their results put together in order, each block on one
thread, so on a CPU neither threads nor cores change a bit of the result, as long as the caller holds BLAS to one thread
(`threadpoolctl`; asking for that costs milliseconds, so it is not asked for here, block by block).

Cost: N·K·D multiply-adds for `nearest`, N·D additions for `sums`. Memory: a block of costs a thread; `Costs` holds all N·K.

Shape legend: N points, D dimensions, K clusters.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from lmsplit.manifests.placement import Floats, lengths

Indices = npt.NDArray[np.int64]
_BLOCK: Final = 1024
"""Rows of a product: their costs stay in the cache (assumption)."""
_MANY_BLOCKS: Final = 4
"""Fewer are not worth waking threads for (assumption)."""


class Cheapest(NamedTuple):
    """Where N points are cheapest at given prices."""

    cluster_N: Indices
    """ties to the lowest on a CPU."""
    cost_N: Floats
    """(|x - c|² - 1)/2 and the price, in fp32."""


class Costs(Protocol):
    """What it costs to have each of N points in each of K clusters, as long as no prices are added."""

    def cheapest(self, prices_K: npt.NDArray[np.float64]) -> Cheapest:
        """Return each point's cheapest cluster with these prices on top."""
        ...

    def regrets(self, prices_K: npt.NDArray[np.float64], found: Cheapest) -> Floats:
        """Return (N,) what the second cheapest cluster costs more than the one found; infinite where there is one cluster."""
        ...


class Points(Protocol):
    """N unit vectors that are clustered."""

    def nearest(self, centroids_KD: Floats) -> tuple[Indices, Floats]:
        """Return (N,) each point's nearest centroid, ties to the lowest, and its cost (|x - c|² - 1)/2, in fp32."""
        ...

    def sums(self, cluster_N: Indices, num_clusters: int) -> Floats:
        """Return (K, D) the sum of each cluster's points, in fp32."""
        ...

    def costs(self, centroids_KD: Floats) -> Costs:
        """Return the costs of all clusters, to be asked again and again with other prices."""
        ...


class NumpyPoints:
    """Points on a CPU.

    Args:
        points_ND: unit rows.
        num_threads: blocks worked on at a time.
    """

    def __init__(self, points_ND: Floats, num_threads: int = 1) -> None:
        self._points = np.ascontiguousarray(points_ND, np.float32)
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def nearest(self, centroids_KD: Floats) -> tuple[Indices, Floats]:
        """Return each point's nearest centroid and cost; see `Points`."""
        halves_K = _half_squares(centroids_KD)

        def block(rows: slice) -> tuple[Indices, Floats]:
            """Return the nearest centroids of some points."""
            costs_NK = self._product(rows, centroids_KD, halves_K)
            nearest = costs_NK.argmin(axis=1)
            return nearest, costs_NK[np.arange(len(nearest)), nearest]

        clusters, costs = zip(*self.each_block(block), strict=True)
        return np.concatenate(clusters), np.concatenate(costs)

    def sums(self, cluster_N: Indices, num_clusters: int) -> Floats:
        """Return the sum of each cluster's points; see `Points`."""
        num_points = len(self._points)
        members = (np.ones(num_points, np.float32), cluster_N, np.arange(num_points + 1))
        summed: Floats = sparse.csr_matrix(members, shape=(num_points, num_clusters)).T @ self._points
        return summed

    def costs(self, centroids_KD: Floats) -> Costs:
        """Return the costs of all clusters; see `Points`."""
        halves_K = _half_squares(centroids_KD)
        blocks = self.each_block(lambda rows: self._product(rows, centroids_KD, halves_K))
        return _NumpyCosts(np.concatenate(list(blocks)), self)

    def _product(self, rows: slice, centroids_KD: Floats, halves_K: Floats) -> Floats:
        # OpenBLAS may raise the flag of an invalid value for lanes that it loads and does not use (seen once: k = 1, D = 5).
        with np.errstate(invalid="ignore"):
            product_NK: Floats = self._points[rows] @ centroids_KD.T
        return np.subtract(halves_K, product_NK, out=product_NK)

    def each_block(self, work: Callable[[slice], Any]) -> Iterator[Any]:
        """Yield what `work` gives for each block of points, in order; every block is worked on by one thread alone."""
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(self._points), _BLOCK)]
        return map(work, blocks) if len(blocks) < _MANY_BLOCKS or self._pool is None else self._pool.map(work, blocks)


class _NumpyCosts:
    def __init__(self, costs_NK: Floats, points: NumpyPoints) -> None:
        self._costs = costs_NK
        self._points = points

    def cheapest(self, prices_K: npt.NDArray[np.float64]) -> Cheapest:
        """Return each point's cheapest cluster; see `Costs`."""
        prices = prices_K.astype(np.float32)

        def block(rows: slice) -> Cheapest:
            """Return the cheapest clusters of some points."""
            costs_NK = self._costs[rows] + prices
            cluster = costs_NK.argmin(axis=1)
            return Cheapest(cluster, costs_NK[np.arange(len(cluster)), cluster])

        return Cheapest(*map(np.concatenate, zip(*self._points.each_block(block), strict=True)))

    def regrets(self, prices_K: npt.NDArray[np.float64], found: Cheapest) -> Floats:
        """Return what the second cheapest cluster costs more; see `Costs`."""
        prices = prices_K.astype(np.float32)

        def block(rows: slice) -> Floats:
            """Return the regrets of some points."""
            costs_NK = self._costs[rows] + prices
            costs_NK[np.arange(len(costs_NK)), found.cluster_N[rows]] = np.inf
            return np.asarray(costs_NK.min(axis=1) - found.cost_N[rows])

        return np.concatenate(list(self._points.each_block(block)))


class TorchPoints:
    """Points on a GPU. Not reproducible from run to run: its sums add in any order.

    Args:
        points_ND: unit rows.
        device: as torch names it.
    """

    def __init__(self, points_ND: Floats, device: str = "cuda") -> None:
        import torch

        self._torch: Any = torch
        self._points = torch.from_numpy(np.ascontiguousarray(points_ND, np.float32)).to(device)

    def nearest(self, centroids_KD: Floats) -> tuple[Indices, Floats]:
        """Return each point's nearest centroid and cost; see `Points`."""
        centroids = self._moved(centroids_KD)
        parts = self._torch.split(self._points, _GPU_BLOCK)
        cheapest = [self._product(part, centroids).min(dim=1) for part in parts]
        clusters = self._torch.cat([found.indices for found in cheapest])
        costs = self._torch.cat([found.values for found in cheapest])
        return clusters.cpu().numpy(), costs.cpu().numpy()

    def sums(self, cluster_N: Indices, num_clusters: int) -> Floats:
        """Return the sum of each cluster's points; see `Points`."""
        summed = self._points.new_zeros((num_clusters, self._points.shape[1]))
        summed.index_add_(0, self._moved(cluster_N), self._points)
        return np.asarray(summed.cpu().numpy())

    def costs(self, centroids_KD: Floats) -> Costs:
        """Return the costs of all clusters; see `Points`."""
        return _TorchCosts(self._product(self._points, self._moved(centroids_KD)), self._moved)

    def _product(self, points: Any, centroids: Any) -> Any:
        return (centroids * centroids).sum(dim=1) / 2 - points @ centroids.T

    def _moved(self, array: npt.NDArray[Any]) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._points.device)


_GPU_BLOCK: Final = 1 << 16
"""Assumption, not measured: costs of 65,536 points at K = 4096 take 1 GB."""


class _TorchCosts:
    def __init__(self, costs: Any, moved: Callable[[npt.NDArray[Any]], Any]) -> None:
        self._costs = costs
        self._moved = moved

    def cheapest(self, prices_K: npt.NDArray[np.float64]) -> Cheapest:
        """Return each point's cheapest cluster; see `Costs`."""
        least = (self._costs + self._moved(prices_K.astype(np.float32))).min(dim=1)
        return Cheapest(least.indices.cpu().numpy(), least.values.cpu().numpy())

    def regrets(self, prices_K: npt.NDArray[np.float64], found: Cheapest) -> Floats:
        """Return what the second cheapest cluster costs more; see `Costs`."""
        others = self._costs + self._moved(prices_K.astype(np.float32))
        others.scatter_(1, self._moved(found.cluster_N)[:, None], np.inf)
        return np.asarray(others.min(dim=1).values.cpu().numpy() - found.cost_N)


def _half_squares(centroids_KD: Floats) -> Floats:
    halves_K: Floats = (lengths(centroids_KD) ** 2 / 2).astype(np.float32)
    return halves_K
