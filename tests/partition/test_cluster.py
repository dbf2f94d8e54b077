"""K-means: by hand, against scikit-learn, and the same whatever surrounds it."""

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.partition.cluster import kmeans, lloyd, num_restarts
from lmsplit.partition.points import NumpyPoints

Vectors = npt.NDArray[np.float32]


def at(*degrees: float) -> Vectors:
    """Unit vectors of the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def unit(rows: Vectors) -> Vectors:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blobs(seed: int, num_points: int, dimensions: int) -> Vectors:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(4, dimensions))
    noise = generator.normal(size=(num_points, dimensions))
    return unit(centres[generator.integers(4, size=num_points)] + 0.5 * noise).astype(np.float32)


def mean_squared_distance(points_ND: Vectors, centroids_KD: Vectors) -> float:
    return float(((points_ND[:, None] - centroids_KD) ** 2).sum(axis=2).min(axis=1).mean())


def mean(*degrees: float) -> Vectors:
    return at(*degrees).mean(axis=0)


def test_two_pairs_have_their_means_as_centroids() -> None:
    found = kmeans(at(0, 10, 90, 100), 2, seed=0)
    centroids = found.centroids_KD[np.argsort(found.centroids_KD[:, 1])]
    np.testing.assert_allclose(centroids, [mean(0, 10), mean(90, 100)], atol=1e-6)
    assert found.mean_squared_distance == pytest.approx(np.sin(np.radians(5)) ** 2, abs=1e-6)


def test_rule_places_on_the_nearest_mean_where_the_cosine_would_not() -> None:
    tight, loose = at(*[0] * 50), at(60, 80, 100, 120, 140)
    rule = kmeans(np.concatenate([tight, loose]), 2, seed=0).rule()
    between = at(47)
    assert rule.place(between).domain[0] == 0
    assert np.abs(rule.prices_K - np.linalg.norm(rule.centroids_KD, axis=1) ** 2 / 2).max() < 1e-6
    nearest = ((between - rule.centroids_KD) ** 2).sum(axis=1).argmin()
    assert nearest == 0


def test_duplicates_weigh_as_often_as_they_stand_there() -> None:
    found = kmeans(at(*[0] * 9, 60), 1, seed=0)
    expected = (9 * at(0) + at(60)) / 10
    np.testing.assert_allclose(found.centroids_KD, expected, atol=1e-6)


def test_domains_are_numbered_by_falling_size() -> None:
    found = kmeans(at(0, 90, 91, 92, 180, 181), 3, seed=0)
    np.testing.assert_allclose(found.centroids_KD, [mean(90, 91, 92), mean(180, 181), mean(0)], atol=1e-6)


def test_every_document_is_its_own_centroid_when_there_are_as_many_domains() -> None:
    found = kmeans(at(0, 90, 180, 270), 4, seed=0)
    assert found.mean_squared_distance == pytest.approx(0, abs=1e-6)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(30, 120), st.integers(2, 8), st.integers(1, 6))
def test_objective_is_never_worse_than_one_start_of_scikit_learn(seed: int, num_points: int, dimensions: int, k: int) -> None:
    points = blobs(seed, num_points, dimensions)
    found = kmeans(points, k, seed)
    reference = KMeans(k, init="k-means++", n_init=1, random_state=seed).fit(points).cluster_centers_
    reached = mean_squared_distance(points, found.centroids_KD)
    assert found.mean_squared_distance == pytest.approx(reached, abs=1e-5)
    assert reached <= mean_squared_distance(points, reference.astype(np.float32)) + 1e-5
    sizes = np.bincount(found.rule().place(points).domain, minlength=k)
    assert (np.diff(sizes) <= 0).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_result_is_the_same_to_the_bit_for_any_number_of_threads_inside_and_outside(threads: int) -> None:
    points = blobs(1, 6000, 16)
    expected = kmeans(points, 5, seed=9)
    with threadpool_limits(threads):
        found = kmeans(points, 5, seed=9, points_of=partial(NumpyPoints, num_threads=threads))
    assert found.centroids_KD.tobytes() == expected.centroids_KD.tobytes()
    assert found.mean_squared_distance == expected.mean_squared_distance


def test_seed_decides_between_equally_good_clusterings() -> None:
    ring = at(*range(0, 360, 10))
    results = {kmeans(ring, 3, seed).centroids_KD.tobytes() for seed in range(4)}
    assert len(results) > 1


def test_more_domains_than_different_documents_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="domains: 3, but the sample has only 2 different documents: set domains to 2"):
        kmeans(at(0, 0, 90, 90), 3, seed=0)


def test_sample_without_a_vector_is_refused() -> None:
    with pytest.raises(InputError, match="no document of the sample has a vector"):
        kmeans(np.zeros((0, 2), np.float32), 1, seed=0)


@pytest.mark.parametrize(("domains", "restarts"), [(1, 32), (12, 32), (13, 30), (400, 1), (100_000, 1)])
def test_restarts_fall_with_the_number_of_domains(domains: int, restarts: int) -> None:
    assert num_restarts(domains) == restarts


def test_empty_cluster_gets_the_point_that_is_dearest_where_it_is() -> None:
    points = at(0, 1, 2, 90, 91, 180)
    starts = np.concatenate([at(1), at(90), np.array([[0.0, -1.0]], np.float32)])  # nothing is nearest to the last
    found = lloyd(NumpyPoints(points), starts)
    np.testing.assert_allclose(found.centroids_KD, [mean(0, 1, 2), mean(90, 91), mean(180)], atol=1e-6)


def test_starts_are_tried_on_a_subset_and_finished_on_all_points() -> None:
    points = blobs(2, 25_000, 8)
    found = kmeans(points, 4, seed=0, restarts=2)
    nearest = found.rule().place(points).domain
    expected = [points[nearest == k].mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(found.centroids_KD, expected, atol=0.005)
    assert found.mean_squared_distance == pytest.approx(mean_squared_distance(points, found.centroids_KD), abs=1e-5)
