"""Prices under a cap: by hand, complementary slackness, against a linear program, and how far a sample errs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lmsplit.partition.balance import balance, sampling_error, solve_prices
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.points import NumpyPoints


def blobs(seed: int, sizes: tuple[int, ...], dimensions: int = 12, noise: float = 0.4) -> np.ndarray:
    """Unit vectors around so many random centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((len(sizes), dimensions))
    vectors = np.repeat(centres, sizes, axis=0) + noise * generator.standard_normal((sum(sizes), dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def half_costs(points_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    return ((points_ND[:, None].astype(np.float64) - centroids_KD) ** 2).sum(axis=2) / 2 - 0.5


def masses(cluster_N: np.ndarray, share_N: np.ndarray, num_clusters: int) -> np.ndarray:
    return np.bincount(cluster_N, share_N, minlength=num_clusters)


def test_price_is_what_the_last_point_that_must_go_would_save() -> None:
    angles = np.radians([0, 10, 20, 80])
    points_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    centroids_KD = np.array([[1, 0], [0, 1]], np.float32)
    priced = solve_prices(NumpyPoints(points_ND).costs(centroids_KD), np.full(4, 0.25), 0.5, np.zeros(2))
    assert priced.cluster_N.tolist() == [0, 0, 1, 1]  # the one at 20 degrees moves over
    regret = np.cos(angles[2]) - np.sin(angles[2])
    assert regret <= priced.prices_K[0] <= np.cos(angles[1]) - np.sin(angles[1])
    assert priced.prices_K[1] == 0


def test_nothing_is_priced_where_every_cluster_is_below_its_cap() -> None:
    points_ND = blobs(0, (100, 100, 100))
    clusters = kmeans(points_ND, 3, 0)
    found = balance(NumpyPoints(points_ND), clusters.centroids_KD, np.zeros(3), np.full(300, 1 / 300), 0.5)
    assert not found.prices_K.any()
    np.testing.assert_allclose(found.centroids_KD, clusters.centroids_KD, atol=1e-5)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(1.1, 2.5), st.booleans())
def test_cap_holds_and_only_full_clusters_have_a_price(seed: int, num_clusters: int, ratio: float, heavy: bool) -> None:
    generator = np.random.default_rng(seed)
    points_ND = blobs(seed, tuple(generator.integers(50, 1500, size=num_clusters)))
    weight_N = generator.lognormal(0, 1, len(points_ND)) if heavy else np.ones(len(points_ND))
    share_N = weight_N / weight_N.sum()
    cap = ratio / num_clusters
    centroids_KD = kmeans(points_ND, num_clusters, seed, restarts=2).centroids_KD
    priced = solve_prices(NumpyPoints(points_ND).costs(centroids_KD), share_N, cap, np.zeros(num_clusters))
    masses_K = masses(priced.cluster_N, share_N, num_clusters)
    step = share_N.max() / cap + 0.01
    assert masses_K.max() <= cap * (1 + step)
    assert (priced.prices_K >= 0).all()
    assert (masses_K[priced.prices_K > 1e-3] >= cap * (1 - 5 * step)).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cost_is_that_of_the_linear_program(seed: int) -> None:
    points_ND, num_clusters = blobs(seed, (120, 60, 20)), 3
    share_N, cap = np.full(200, 1 / 200), 0.4
    centroids_KD = kmeans(points_ND, num_clusters, seed).centroids_KD
    costs_NK = half_costs(points_ND, centroids_KD)
    capacity = np.tile(np.eye(num_clusters), 200)  # of variables x_nk in the order of points
    whole = np.repeat(np.eye(200), num_clusters, axis=1)
    best = linprog(costs_NK.ravel(), capacity, np.full(num_clusters, cap), whole, share_N)
    priced = solve_prices(NumpyPoints(points_ND).costs(centroids_KD), share_N, cap, np.zeros(num_clusters))
    cost = float(share_N @ costs_NK[np.arange(200), priced.cluster_N])
    assert best.fun - 1e-6 <= cost <= best.fun + 0.002  # a point is whole here, the program may divide it


def test_balanced_domains_are_reached_from_one_that_holds_nearly_all() -> None:
    points_ND = blobs(3, (3000, 150, 150, 150), noise=0.7)
    share_N = np.full(len(points_ND), 1 / len(points_ND))
    clusters = kmeans(points_ND, 4, 0)
    found = balance(NumpyPoints(points_ND), clusters.centroids_KD, np.zeros(4), share_N, 1.2 / 4)
    assert masses(found.cluster_N, share_N, 4).max() <= 0.301
    expected = [points_ND[found.cluster_N == k].mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(found.centroids_KD, expected, atol=0.02)  # centroids are still means


def test_one_point_that_is_heavier_than_the_cap_ends_the_search_with_the_least_excess() -> None:
    points_ND = blobs(0, (30, 30))
    share_N = np.array([0.7, *[0.3 / 59] * 59])
    priced = solve_prices(NumpyPoints(points_ND).costs(kmeans(points_ND, 2, 0).centroids_KD), share_N, 0.55, np.zeros(2))
    assert 0.7 <= masses(priced.cluster_N, share_N, 2).max() < 0.8  # 0.85 without prices


def test_balance_is_the_same_for_any_number_of_threads() -> None:
    points_ND = blobs(5, (3000, 900, 900))
    share_N = np.full(len(points_ND), 1 / len(points_ND))
    start = kmeans(points_ND, 3, 0).centroids_KD
    one, many = (balance(NumpyPoints(points_ND, threads), start, np.zeros(3), share_N, 0.4) for threads in (1, 4))
    assert one.centroids_KD.tobytes() == many.centroids_KD.tobytes()
    assert one.prices_K.tobytes() == many.prices_K.tobytes()


def test_sampling_error_covers_what_the_corpus_shows() -> None:
    """Of samples of 1,000 documents, at most about 1 in 20 has a largest domain that the corpus exceeds by more than 1 + 2s."""
    generator = np.random.default_rng(0)
    weight = generator.lognormal(0, 1, 200_000)
    cluster = generator.integers(8, size=200_000)
    corpus = np.bincount(cluster, weight).max() / weight.sum()
    missed = 0
    for trial in range(100):
        drawn = generator.choice(200_000, 1000, replace=False)
        share_N = weight[drawn] / weight[drawn].sum()
        largest = np.bincount(cluster[drawn], share_N, minlength=8).max()
        missed += corpus > largest * (1 + 2 * sampling_error(share_N, cluster[drawn], 8, 0.005, trial))
    assert missed <= 5


def test_sampling_error_falls_with_the_documents_and_ends_with_all_of_them() -> None:
    cluster = np.random.default_rng(0).integers(5, size=10_000)
    few = sampling_error(np.full(100, 0.01), cluster[:100], 5, 0, 0)
    many = sampling_error(np.full(10_000, 1e-4), cluster, 5, 0, 0)
    assert few > 3 * many > 0
    assert sampling_error(np.full(10_000, 1e-4), cluster, 5, 1.0, 0) == 0
