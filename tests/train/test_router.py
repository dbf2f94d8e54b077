"""The scores of a route: the highest is the placement, also down a tree."""

import numpy as np
import pytest

from lmsplit.manifests.placement import PlacementRule
from lmsplit.train.router import scores


def unit_rows(seed: int, rows: int, dimensions: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_flat_score_is_one_minus_the_cost() -> None:
    rule = PlacementRule(np.eye(2, dtype=np.float32), np.array([0.0, 0.1]))
    np.testing.assert_allclose(scores(rule, np.array([[0.6, 0.8]], np.float32)), [[0.6, 0.7]], atol=1e-6)


def test_score_down_a_tree_by_hand() -> None:
    """Two branches at 1 and 0.2; the leaves of the first at 0.5 and 0.3, those of the second, higher, cannot make up for it."""
    east, north = np.array([1, 0]), np.array([0, 1])
    centroids = np.stack([east, 0.2 * east + 0.1 * north, 0.5 * east, 0.3 * east, 0.9 * east, 0.8 * east]).astype(np.float32)
    rule = PlacementRule(centroids, np.zeros(6), np.array([-1, -1, 0, 0, 1, 1], np.int32))
    np.testing.assert_allclose(scores(rule, east.astype(np.float32)[None]), [[0.5, 0.3, -0.3, -0.4]], atol=1e-6)


@pytest.mark.parametrize("parents", [[-1] * 7, [-1, -1, 0, 0, 0, 1, 1], [-1, -1, -1, 1, 1, 3, 3]])
def test_highest_score_is_the_placement(parents: list[int]) -> None:
    generator = np.random.default_rng(0)
    rule = PlacementRule(0.8 * unit_rows(1, 7), generator.uniform(0, 0.3, 7), np.array(parents, np.int32))
    vectors = unit_rows(2, 300)
    assert scores(rule, vectors).argmax(axis=1).tolist() == rule.place(vectors).domain.tolist()
