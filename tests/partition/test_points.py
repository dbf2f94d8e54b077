"""The products of clustering: by hand, against plain numpy, alike for any number of threads, and on a GPU."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lmsplit.partition.points import NumpyPoints, Points, TorchPoints


def unit_rows(seed: int, num_rows: int, dimensions: int = 24) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def on_the_cpu(points_ND: np.ndarray) -> Points:
    return TorchPoints(points_ND, "cpu")


@pytest.fixture(params=[NumpyPoints, on_the_cpu], ids=["numpy", "torch"])
def points_of(request):
    return request.param


def test_nearest_sums_and_costs_match_a_hand_worked_case(points_of) -> None:
    points = points_of(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    centroids = np.array([[0.8, 0], [0, 0.5]], np.float32)  # half their squares: 0.32 and 0.125
    cluster, cost = points.nearest(centroids)
    assert cluster.tolist() == [0, 1, 1]
    np.testing.assert_allclose(cost, [0.32 - 0.8, 0.125 - 0.4, 0.125 - 0.5], atol=1e-6)
    np.testing.assert_allclose(points.sums(cluster, 3), [[1, 0], [0.6, 1.8], [0, 0]], atol=1e-6)
    prices = np.array([0.0, 0.2])
    found = points.costs(centroids).cheapest(prices)
    assert found.cluster_N.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.cost_N, [-0.48, -0.16, -0.175], atol=1e-6)
    regrets = points.costs(centroids).regrets(prices, found)
    np.testing.assert_allclose(regrets, [0.325 + 0.48, -0.075 + 0.16, 0.32 + 0.175], atol=1e-6)


@pytest.mark.parametrize("num_clusters", [1, 2, 7, 300])
def test_products_are_those_of_plain_numpy_in_float64(points_of, num_clusters: int) -> None:
    points_ND, centroids_KD = unit_rows(0, 3000), 0.7 * unit_rows(1, num_clusters)
    points = points_of(points_ND)
    expected_NK = ((points_ND[:, None].astype(np.float64) - centroids_KD) ** 2).sum(axis=2) / 2 - 0.5
    cluster, cost = points.nearest(centroids_KD)
    np.testing.assert_allclose(cost, expected_NK.min(axis=1), atol=1e-5)
    np.testing.assert_allclose(expected_NK[np.arange(3000), cluster], expected_NK.min(axis=1), atol=1e-5)
    sums = points.sums(cluster, num_clusters)
    expected = [points_ND[cluster == k].sum(axis=0, dtype=np.float64) for k in range(num_clusters)]
    np.testing.assert_allclose(sums, expected, atol=1e-3)


@pytest.mark.parametrize("num_clusters", [1, 2, 7])
def test_regret_is_what_the_second_costs_more(points_of, num_clusters: int) -> None:
    points_ND, centroids_KD = unit_rows(0, 2500), 0.7 * unit_rows(1, num_clusters)
    prices = np.linspace(0, 0.2, num_clusters)
    asked = points_of(points_ND).costs(centroids_KD)
    found = asked.cheapest(prices)
    costs = ((points_ND[:, None].astype(np.float64) - centroids_KD) ** 2).sum(axis=2) / 2 - 0.5 + prices
    ranked = np.sort(costs, axis=1)
    np.testing.assert_allclose(found.cost_N, ranked[:, 0], atol=1e-5)
    np.testing.assert_allclose(costs[np.arange(2500), found.cluster_N], ranked[:, 0], atol=1e-5)
    regret = ranked[:, 1] - ranked[:, 0] if num_clusters > 1 else np.full(2500, np.inf)
    np.testing.assert_allclose(asked.regrets(prices, found), regret, atol=1e-5)


def test_tie_goes_to_the_lowest_cluster() -> None:
    points = NumpyPoints(unit_rows(0, 1500))
    twins = np.repeat(0.5 * unit_rows(1, 1), 4, axis=0)
    assert not points.nearest(twins)[0].any()
    found = points.costs(twins).cheapest(np.zeros(4))
    assert not found.cluster_N.any()
    assert not points.costs(twins).regrets(np.zeros(4), found).any()


@pytest.mark.parametrize("num_threads", [2, 5])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int) -> None:
    points_ND, centroids_KD = unit_rows(0, 9000), 0.7 * unit_rows(1, 40)
    one, many = NumpyPoints(points_ND), NumpyPoints(points_ND, num_threads)
    with threadpool_limits(1):
        for left, right in zip(one.nearest(centroids_KD), many.nearest(centroids_KD), strict=True):
            assert left.tobytes() == right.tobytes()
        cheapest = [points.costs(centroids_KD).cheapest(np.linspace(0, 0.1, 40)) for points in (one, many)]
    for left, right in zip(*cheapest, strict=True):
        assert left.tobytes() == right.tobytes()


@pytest.mark.gpu
def test_gpu_computes_what_the_cpu_does() -> None:
    points_ND, centroids_KD = unit_rows(0, 200_000), 0.7 * unit_rows(1, 40)
    cpu, gpu = NumpyPoints(points_ND), TorchPoints(points_ND)
    np.testing.assert_allclose(gpu.nearest(centroids_KD)[1], cpu.nearest(centroids_KD)[1], atol=1e-5)
    assert np.mean(gpu.nearest(centroids_KD)[0] == cpu.nearest(centroids_KD)[0]) > 0.9999
