"""Placing one text and scoring the other domains: worked by hand in two dimensions, and against the rule itself."""

from types import SimpleNamespace

import numpy as np
import pytest

from lmsplit.manifests.place_text import cosine, encoded, place, scores
from lmsplit.manifests.placement import PlacementRule

CENTROIDS = np.array([[1, 0], [0, 1], [0.8, 0.6], [0.6, -0.8], [0, 1], [-1, 0]], np.float32)
TREE = np.array([-1, -1, 0, 0, 1, 1], np.int32)


class Manifest:
    """As much of a manifest as placing asks for."""

    def __init__(self, rule: PlacementRule) -> None:
        self._rule = rule

    def rule(self) -> PlacementRule:
        return self._rule

    def label(self, name: str) -> str:
        return f"label of {name}"


def of(rule: PlacementRule, vector: list[float]) -> tuple:
    vector_D = np.array(vector, np.float32)
    placed = place(Manifest(rule), vector_D)
    return placed, scores(Manifest(rule), vector_D, placed)


def test_flat_scores_are_costs_and_what_they_are_behind():
    """By hand: 1 - x·c + price is 0.4 + 0, 0.2 + 0.3 and 1.6 + 0."""
    rule = PlacementRule(np.array([[1, 0], [0, 1], [-1, 0]], np.float32), np.array([0, 0.3, 0]))
    placed, found = of(rule, [0.6, 0.8])
    assert [score.domain for score in found] == ["d00000", "d00001", "d00002"]
    assert [score.cost for score in found] == pytest.approx([0.4, 0.5, 1.6])
    assert [score.distance for score in found] == pytest.approx([0.4, 0.2, 1.6])
    assert [score.margin for score in found] == pytest.approx([0, 0.1, 1.2])
    assert found[1].label == "label of d00001"
    assert (placed.second_domain, placed.margin) == ("d00001", pytest.approx(0.1))


def test_distance_in_scores_is_to_the_direction_of_a_short_centroid():
    found = of(PlacementRule(np.array([[0.5, 0], [0, 1]], np.float32), np.array([0.0, 1.0])), [0.6, 0.8])[1]
    assert [(score.cost, score.distance) for score in found] == [pytest.approx((0.7, 0.4)), pytest.approx((1.2, 0.2))]


def test_scores_of_a_tree_are_the_largest_lead_on_the_way():
    """By hand, x = (0.8, 0.6).

    Costs below the root: 0.2 and 0.4. Below the first: 0 and 1 (leaves 0 and 1); below the second: 0.4 and 1.8 (2 and 3).
    Leaf 1 is behind by 1 among its siblings; leaf 2 by the 0.2 of its parent; leaf 3 by max(0.2, 1.4).
    """
    placed, found = of(PlacementRule(CENTROIDS, np.zeros(6), TREE), [0.8, 0.6])
    assert [score.domain for score in found] == ["d00000", "d00002", "d00001", "d00003"]
    assert [score.margin for score in found] == pytest.approx([0, 0.2, 1, 1.4], abs=1e-6)
    assert [score.cost for score in found] == pytest.approx([0, 0.4, 1, 1.8], abs=1e-6)
    assert (placed.domain, placed.second_domain, placed.margin) == ("d00000", "d00002", pytest.approx(0.2))


def test_scores_name_five_domains_the_rule_its_two_first():
    generator = np.random.default_rng(3)
    centroids = generator.standard_normal((2 + 12, 8)).astype(np.float32)
    centroids /= 1.001 * np.linalg.norm(centroids, axis=1, keepdims=True)
    parents = np.array([-1, -1, *[0] * 6, *[1] * 6], np.int32)
    rule = PlacementRule(centroids, generator.uniform(0, 0.4, 14), parents)
    for vector in generator.standard_normal((200, 8)):
        placed, found = of(rule, (vector / np.linalg.norm(vector)).tolist())
        assert len(found) == 5
        assert [score.domain for score in found[:2]] == [placed.domain, placed.second_domain]
        assert found[0].margin == 0
        assert found[1].margin == pytest.approx(placed.margin, abs=1e-6)
        assert [score.margin for score in found] == sorted(score.margin for score in found)
        assert (found[0].distance, found[1].distance) == pytest.approx((placed.distance, placed.second_distance), abs=1e-6)


def test_scores_keep_the_rules_order_of_a_tie():
    placed, found = of(PlacementRule(np.array([[0, 1]] * 3, np.float32), np.zeros(3)), [0, 1])
    assert [score.domain for score in found] == ["d00000", "d00001", "d00002"]
    assert placed.margin == 0


def test_one_domain_has_no_runner_up():
    placed, found = of(PlacementRule(np.array([[1, 0]], np.float32), np.zeros(1)), [0.6, 0.8])
    assert placed[2:] == (None, None, None)
    assert [score.domain for score in found] == ["d00000"]


def test_encoded_is_none_where_the_encoder_finds_nothing():
    encoder = SimpleNamespace(encode=lambda texts: np.array([[0.6, 0.8] if texts[0] else [0, 0]], np.float32))
    assert encoded(encoder, "text").tolist() == pytest.approx([0.6, 0.8])
    assert encoded(encoder, "") is None


def test_cosine_is_that_of_the_directions():
    assert cosine(np.array([3, 0], np.float32), np.array([1, 1], np.float32)) == pytest.approx(0.5**0.5)
    vector = np.array([0.1, 0.7, 0.3], np.float32)
    assert -1 == cosine(vector, -vector) <= cosine(vector, vector) == pytest.approx(1)
    assert cosine(vector, vector) <= 1
