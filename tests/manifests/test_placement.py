"""The placement rule: hand-worked cases, exact ties, prices, trees, and any batch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.placement import PlacementRule, Placements, is_unit

EAST_NORTH_WEST = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)


def unit_rows(generator: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    vectors = generator.standard_normal((rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def place_by_hand(vector, centroids, prices, parents) -> tuple:
    """Place one vector by plain Python floats, which are float64: what `Placements` holds, rounded as it is."""

    def dot(a, b):
        return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    def children(node):
        return [child for child, parent in enumerate(parents) if parent == node]

    def leaves(node):
        return [leaf for child in children(node) for leaf in leaves(child)] if children(node) else [node]

    def cost(node):
        return (1.0 - dot(vector, centroids[node])) + float(prices[node])

    def distance(node):
        length = math.sqrt(dot(centroids[node], centroids[node]))
        return np.float32(1.0 - dot(vector, centroids[node]) / (1.0 if abs(length - 1) <= 1e-6 else length))

    def descend(node):
        while below := children(node):
            node = min(below, key=lambda child: (cost(child), child))
        return node

    node, rival, nearest = -1, None, np.inf
    while below := sorted(children(node), key=lambda child: (cost(child), child)):
        node = below[0]
        with np.errstate(over="ignore"):
            margin = np.float32(cost(below[1]) - cost(below[0])) if len(below) > 1 else np.inf
        if len(below) > 1 and (rival is None or margin < nearest):
            rival, nearest = below[1], margin
    domains = leaves(-1)
    if rival is None:
        return domains.index(node), distance(node), -1, np.float32(np.nan), np.float32(np.nan)
    second = descend(rival)
    return domains.index(node), distance(node), domains.index(second), distance(second), nearest


def assert_places_as_by_hand(rule: PlacementRule, vectors) -> None:
    placed = rule.place(vectors)
    expected = [place_by_hand(vector, rule.centroids_MD, rule.prices_M, rule.parent_M.tolist()) for vector in vectors]
    for column, kind in enumerate((np.int64, np.float32, np.int64, np.float32, np.float32)):
        assert placed[column].dtype == kind
        np.testing.assert_array_equal(placed[column], np.array([row[column] for row in expected], kind))


def assert_places_alike_in_any_batch(rule: PlacementRule, vectors) -> None:
    """Permuted, sliced, alone and in another memory layout."""
    whole, every = rule.place(vectors), len(vectors)
    order = np.random.default_rng(7).permutation(every)
    sliced = [rule.place(vectors[start : start + 7]) for start in range(0, every // 10, 7)]
    alone = [rule.place(vectors[row : row + 1]) for row in range(0, every, 50)]
    for column, values in enumerate(whole):
        assert rule.place(vectors[order])[column].tobytes() == values[order].tobytes()
        joined = np.concatenate([part[column] for part in sliced])
        assert joined.tobytes() == values[: len(joined)].tobytes()
        assert b"".join(one[column].tobytes() for one in alone) == values[::50].tobytes()
        assert rule.place(np.asfortranarray(vectors)[::3])[column].tobytes() == values[::3].tobytes()


def near_centroids(generator: np.random.Generator, number: int, dimensions: int, noise: float) -> np.ndarray:
    """Centroids that nearly or exactly coincide are the hard case: an fp32 product cannot tell them apart."""
    centroids = unit_rows(generator, 1, dimensions) + noise * generator.standard_normal((number, dimensions))
    scaled = centroids / np.linalg.norm(centroids, axis=1, keepdims=True) * generator.choice([1.0, 0.7], (number, 1))
    return scaled.astype(np.float32)


def test_place_matches_a_hand_worked_case():
    rule = PlacementRule(EAST_NORTH_WEST, np.zeros(3))
    placed = rule.place(np.array([[0.6, 0.8], [-0.8, 0.6], [1, 0]], np.float32))
    assert placed.domain.tolist() == [1, 2, 0]
    assert placed.second_domain.tolist() == [0, 1, 1]
    np.testing.assert_allclose(placed.distance, [0.2, 0.2, 0.0], atol=1e-7)
    np.testing.assert_allclose(placed.second_distance, [0.4, 0.4, 1.0], atol=1e-7)
    np.testing.assert_allclose(placed.margin, [0.2, 0.2, 1.0], atol=1e-7)


def test_price_moves_a_vector_and_counts_in_the_margin_but_not_in_the_distance():
    rule = PlacementRule(EAST_NORTH_WEST, np.array([0.0, 0.25, 0.0]))
    placed = rule.place(np.array([[0.6, 0.8]], np.float32))
    assert placed.domain.tolist() == [0]
    assert placed.second_domain.tolist() == [1]
    np.testing.assert_allclose(placed.distance, [0.4], atol=1e-7)
    np.testing.assert_allclose(placed.second_distance, [0.2], atol=1e-7)
    np.testing.assert_allclose(placed.margin, [0.05], atol=1e-7)


def test_tie_goes_to_the_lowest_domain_exactly():
    generator = np.random.default_rng(1)
    centroid = unit_rows(generator, 1, 37)
    rule = PlacementRule(np.repeat(centroid, 9, axis=0), np.zeros(9))
    placed = rule.place(unit_rows(generator, 500, 37))
    assert set(placed.domain.tolist()) == {0}
    assert set(placed.second_domain.tolist()) == {1}
    assert not placed.margin.any()


def test_tie_of_prices_against_cosines_goes_to_the_lowest_domain():
    rule = PlacementRule(np.array([[0, 1], [1, 0]], np.float32), np.array([0.0, 1.0]))
    assert rule.place(np.array([[1, 0]], np.float32)).domain.tolist() == [0]
    swapped = PlacementRule(np.array([[1, 0], [0, 1]], np.float32), np.array([1.0, 0.0]))
    assert swapped.place(np.array([[1, 0]], np.float32)).domain.tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 12),
    dimensions=st.integers(1, 70),
    num_domains=st.integers(1, 9) | st.integers(63, 90),  # either way of finding the nearest
    noise=st.sampled_from([0.0, 1e-7, 1e-4, 1.0]),
    price=st.sampled_from([0.0, 1.0, 1e7, 1e200]),
)
def test_place_equals_exact_sums(seed, num_rows, dimensions, num_domains, noise, price):
    generator = np.random.default_rng(seed)
    prices = price * np.round(generator.uniform(0, min(noise, 0.5), num_domains), 9)
    rule = PlacementRule(near_centroids(generator, num_domains, dimensions, noise), prices)
    vectors = np.concatenate([unit_rows(generator, num_rows, dimensions), rule.centroids_KD])
    assert_places_as_by_hand(rule, vectors[is_unit(vectors)])


@pytest.mark.parametrize("num_domains", [21, 99])
def test_place_is_bit_equal_alone_sliced_and_permuted(num_domains):
    generator = np.random.default_rng(3)
    rule = PlacementRule(unit_rows(generator, num_domains, 101), generator.uniform(0, 0.01, num_domains))
    assert_places_alike_in_any_batch(rule, unit_rows(generator, 2_000, 101))  # more than one block


def test_place_takes_no_rows():
    placed = PlacementRule(EAST_NORTH_WEST, np.zeros(3)).place(np.zeros((0, 2), np.float32))
    assert [len(column) for column in placed] == [0] * 5


@pytest.mark.parametrize("bad", [[np.nan, 0], [np.inf, 0], [0, 0], [0.5, 0.5], [1e30, 0], [0, -1.01]])
def test_place_refuses_rows_that_are_not_unit(bad):
    rule = PlacementRule(EAST_NORTH_WEST, np.zeros(3))
    vectors = np.array([[1, 0], bad, [0, 1]], np.float32)
    assert is_unit(vectors).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="1 of 3 vectors are not finite unit vectors: set them aside first"):
        rule.place(vectors)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1), (1, 2, 2)])
def test_place_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"vectors have shape .*: expected \(N, 2\)"):
        PlacementRule(EAST_NORTH_WEST, np.zeros(3)).place(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("centroids", "prices", "message"),
    [
        (EAST_NORTH_WEST, np.zeros(2), "expected"),
        (EAST_NORTH_WEST[0], np.zeros(2), "expected"),
        (np.zeros((0, 2), np.float32), np.zeros(0), "expected"),
        (2 * EAST_NORTH_WEST, np.zeros(3), "at most 1 long"),
        (0 * EAST_NORTH_WEST, np.zeros(3), "longer than 0"),
        (EAST_NORTH_WEST * np.float32("nan"), np.zeros(3), "must be finite"),
        (EAST_NORTH_WEST, np.array([0, np.inf, 0]), "prices finite"),
        (EAST_NORTH_WEST, np.array([0, np.nan, 0]), "prices finite"),
    ],
)
def test_rule_refuses_centroids_and_prices_that_cannot_place(centroids, prices, message):
    with pytest.raises(ValueError, match=message):
        PlacementRule(centroids, prices)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 30))
def test_means_with_half_their_squares_as_prices_place_on_the_nearest(seed, num_domains, dimensions):
    generator = np.random.default_rng(seed)
    centroids = unit_rows(generator, num_domains, dimensions) * generator.uniform(0.1, 1, (num_domains, 1)).astype(np.float32)
    wide = centroids.astype(np.float64)
    vectors = unit_rows(generator, 50, dimensions)
    placed = PlacementRule(centroids, np.einsum("kd,kd->k", wide, wide) / 2).place(vectors)
    squares_NK = ((vectors[:, None].astype(np.float64) - wide) ** 2).sum(axis=2)
    nearest = squares_NK.min(axis=1)
    np.testing.assert_allclose(squares_NK[np.arange(50), placed.domain], nearest, atol=1e-6)  # x is a unit vector within rounding
    cosines = np.einsum("nd,nd->n", vectors, wide[placed.domain]) / np.linalg.norm(wide[placed.domain], axis=1)
    np.testing.assert_allclose(placed.distance, 1 - cosines, atol=1e-6)
    if num_domains > 1:
        seconds = np.sort(squares_NK, axis=1)[:, 1]
        np.testing.assert_allclose(placed.margin, (seconds - nearest) / 2, atol=1e-6)


UNEVEN = np.array([-1, -1, -1, 0, 0, 2, 3, 3], np.int32)
"""Two leaves below 0.0, and one each at 0.1, 1 and 2.0, which is an only child."""


def test_place_matches_a_hand_worked_tree():
    centroids = np.array([[0, 1], [0, -1], [1, 0], [0.6, 0.8], [-0.6, 0.8], [1, 0], [0.8, 0.6], [0, 1]], np.float32)
    rule = PlacementRule(centroids, np.array([0, 0, 0, 0, 0, 0, 0.25, 0]), UNEVEN)
    assert (rule.num_domains, rule.depth, rule.leaf_M.tolist()) == (5, 3, [-1, 3, -1, -1, 2, 4, 0, 1])
    assert rule.paths == ((0, 0, 0), (0, 0, 1), (0, 1), (1,), (2, 0))
    assert rule.leaf_nodes_K.tolist() == [6, 7, 4, 1, 5]
    assert rule.prices_K.tolist() == [0.25, 0, 0, 0, 0]
    assert rule.centroids_KD.tolist() == centroids[[6, 7, 4, 1, 5]].tolist()
    placed = rule.place(np.array([[0.6, 0.8], [0, -1], [1, 0], [-0.28, 0.96], [0, 1]], np.float32))
    # Costs of (0.6, 0.8): root 0.2 1.8 0.4; below 0: 0.0 0.72; below 0.0: 0.04 + 0.25 and 0.2: the last decision is the nearest.
    # (-0.28, 0.96): 0.04 ... 1.28; 0.4 0.064. (0, 1): 0 2 1; 0.2 0.2, a tie, falls to 0.0; there 0.4 + 0.25 and 0.
    assert placed.domain.tolist() == [1, 3, 4, 2, 1]
    # (0, -1) at the root: 2 0 1; its runner-up is 2, whose only child is domain 4. (1, 0): 1 1 0, the tie is for the lower.
    assert placed.second_domain.tolist() == [0, 4, 0, 1, 2]
    np.testing.assert_allclose(placed.distance, [0.2, 0, 0, 0.064, 0], atol=1e-6)
    np.testing.assert_allclose(placed.second_distance, [0.04, 1, 0.2, 0.04, 0.2], atol=1e-6)
    np.testing.assert_allclose(placed.margin, [0.09, 1, 1, 0.336, 0], atol=1e-6)


@st.composite
def parents_of_trees(draw) -> np.ndarray:
    parents: list[int] = []
    for node, children in enumerate([draw(st.integers(1, 4)), *draw(st.lists(st.integers(0, 3), max_size=12))]):
        if node <= len(parents):
            parents += [node - 1] * children
    return np.array(parents, np.int32)


@settings(max_examples=150, deadline=None)
@given(
    parents=parents_of_trees(),
    seed=st.integers(0, 2**32 - 1),
    dimensions=st.integers(1, 20),
    noise=st.sampled_from([0.0, 1e-7, 1e-4, 1.0]),
)
def test_place_in_a_tree_equals_exact_sums(parents, seed, dimensions, noise):
    generator = np.random.default_rng(seed)
    prices = np.round(generator.uniform(0, noise, len(parents)), 9) * generator.integers(0, 2)
    rule = PlacementRule(near_centroids(generator, len(parents), dimensions, noise), prices, parents)
    assert_places_as_by_hand(rule, unit_rows(generator, 12, dimensions))


def test_place_in_a_tree_is_bit_equal_alone_sliced_and_permuted():
    generator = np.random.default_rng(4)
    parents = np.repeat(np.array([-1, 0, 1, 5, 40, 73], np.int32), [70, 3, 1, 80, 2, 2])
    rule = PlacementRule(unit_rows(generator, len(parents), 101), generator.uniform(0, 0.01, len(parents)), parents)
    assert_places_alike_in_any_batch(rule, unit_rows(generator, 1_500, 101))


@pytest.mark.parametrize("noise", [1e-7, 1e-3, 1.0])
@pytest.mark.parametrize("children", [[21], [99], [70, 80, 5], [3, 80, 2, 4]])
def test_place_does_not_depend_on_the_last_bits_of_a_product(children, noise, monkeypatch):
    """With products off by nearly as much as any order of summation allows, everything comes out the same."""
    generator = np.random.default_rng(6)
    parents = np.repeat(np.arange(-1, len(children) - 1, dtype=np.int32), children)
    prices = generator.uniform(0, noise, len(parents))
    rule = PlacementRule(near_centroids(generator, len(parents), 101, noise), prices, parents)
    vectors = unit_rows(generator, 300, 101)
    expected = rule.place(vectors)
    multiply = np.matmul

    def multiply_worse(a, b, out=None):
        product = multiply(a, b)
        product += (generator.uniform(-100, 100, product.shape) * np.finfo(product.dtype).eps / 2).astype(product.dtype)
        return product if out is None else np.copyto(out, product)

    monkeypatch.setattr(np, "matmul", multiply_worse)
    for column, values in zip(expected, rule.place(vectors), strict=True):
        assert column.tobytes() == values.tobytes()


def test_flat_rule_is_a_tree_of_depth_1():
    generator = np.random.default_rng(5)
    centroids, prices = unit_rows(generator, 9, 20), generator.uniform(0, 0.1, 9)
    flat, tree = PlacementRule(centroids, prices), PlacementRule(centroids, prices, np.full(9, -1, np.int32))
    for rule in (flat, tree):
        assert (rule.depth, rule.num_domains, rule.paths) == (1, 9, tuple((k,) for k in range(9)))
        assert rule.leaf_M.tolist() == rule.leaf_nodes_K.tolist() == list(range(9))
        assert rule.centroids_KD.tobytes() == centroids.tobytes()
        assert rule.prices_K.tobytes() == prices.tobytes()
    vectors = unit_rows(generator, 50, 20)
    assert [column.tobytes() for column in flat.place(vectors)] == [column.tobytes() for column in tree.place(vectors)]


def test_tie_in_a_tree_goes_to_the_lowest_branch_and_of_equal_margins_the_highest_level_counts():
    rule = PlacementRule(np.tile(EAST_NORTH_WEST[:1], (6, 1)), np.zeros(6), np.array([-1, -1, 0, 0, 1, 1], np.int32))
    placed = rule.place(np.array([[1, 0]], np.float32))
    assert (placed.domain.tolist(), placed.second_domain.tolist(), placed.margin.tolist()) == ([0], [2], [0])


def test_chain_of_only_children_has_no_runner_up():
    rule = PlacementRule(EAST_NORTH_WEST, np.zeros(3), np.array([-1, 0, 1], np.int32))
    placed = rule.place(np.array([[1, 0]], np.float32))
    assert (rule.num_domains, rule.depth, rule.paths) == (1, 3, ((0, 0, 0),))
    assert (placed.domain.tolist(), placed.distance.tolist(), placed.second_domain.tolist()) == ([0], [2], [-1])
    assert np.isnan(placed.second_distance).all()
    assert np.isnan(placed.margin).all()


def test_tree_places_no_rows():
    placed = PlacementRule(EAST_NORTH_WEST, np.zeros(3), np.array([-1, 0, 0], np.int32)).place(np.zeros((0, 2), np.float32))
    assert isinstance(placed, Placements)
    assert [len(column) for column in placed] == [0] * 5


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (np.array([-1, -1], np.int32), "2 parents for 3 centroids"),
        (np.array([-1, -1, 0]), "parents are int64"),
        (np.zeros((3, 1), np.int32), "of shape"),
        (np.array([-1, 0, -1], np.int32), "must ascend"),
        (np.array([0, 0, 1], np.int32), "must ascend from -1"),
        (np.array([-1, 1, 1], np.int32), "each before its children"),
        (np.array([-1, 2, 2], np.int32), "each before its children"),
        (np.array([-1, -1, 3], np.int32), "each before its children"),
        (np.array([-2, -1, 0], np.int32), "must ascend from -1"),
    ],
)
def test_rule_refuses_parents_that_are_no_tree(parents, message):
    with pytest.raises(ValueError, match=message):
        PlacementRule(EAST_NORTH_WEST, np.zeros(3), parents)


@pytest.mark.parametrize("kinds", [(np.float64, np.float64), (np.float32, np.float32)])
def test_rule_refuses_other_types(kinds):
    with pytest.raises(ValueError, match="expected float32 and float64"):
        PlacementRule(EAST_NORTH_WEST.astype(kinds[0]), np.zeros(3, kinds[1]))
