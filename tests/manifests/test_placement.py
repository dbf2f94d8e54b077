"""The placement rule: a hand-worked case, exact ties, prices, any batch, and its two files."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.placement import PlacementFiles, PlacementRule, is_unit, parse_rule, store_rule

EAST_NORTH_WEST = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)


def unit_rows(generator: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    vectors = generator.standard_normal((rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def costs_by_hand(vector, centroids, prices) -> list[float]:
    """Cost of each centroid by plain Python floats, which are float64."""
    return [
        (1.0 - sum(float(a) * float(b) for a, b in zip(vector, centroid, strict=True))) + float(price)
        for centroid, price in zip(centroids, prices, strict=True)
    ]


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
    num_domains=st.integers(1, 9),
    noise=st.sampled_from([0.0, 1e-7, 1e-4, 1.0]),
    priced=st.booleans(),
)
def test_place_equals_a_float64_brute_force(seed, num_rows, dimensions, num_domains, noise, priced):
    generator = np.random.default_rng(seed)
    # Centroids that nearly or exactly coincide are the hard case: an fp32 product cannot tell them apart.
    centroids = unit_rows(generator, 1, dimensions) + noise * generator.standard_normal((num_domains, dimensions))
    centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    prices = np.round(generator.uniform(0, noise, num_domains), 9) if priced else np.zeros(num_domains)
    vectors = unit_rows(generator, num_rows, dimensions)
    placed = PlacementRule(centroids, prices).place(vectors)
    assert len(placed.domain) == num_rows
    for row in range(num_rows):
        cost = costs_by_hand(vectors[row], centroids, prices)
        ranked = sorted(range(num_domains), key=lambda k: (cost[k], k))
        domain = int(placed.domain[row])
        same = domain == ranked[0]
        near_tie = abs(cost[domain] - cost[ranked[0]]) < 1e-13 and not np.array_equal(centroids[domain], centroids[ranked[0]])
        assert same or near_tie
        if num_domains == 1:
            assert placed.second_domain[row] == -1
            assert np.isnan(placed.second_distance[row])
            assert np.isnan(placed.margin[row])
        elif same:
            assert placed.margin[row] == pytest.approx(cost[ranked[1]] - cost[ranked[0]], abs=1e-6)
            assert placed.second_distance[row] == pytest.approx(
                cost[placed.second_domain[row]] - prices[placed.second_domain[row]], abs=1e-6
            )


def test_place_is_bit_equal_alone_sliced_and_permuted():
    generator = np.random.default_rng(3)
    rule = PlacementRule(unit_rows(generator, 21, 101), generator.uniform(0, 0.01, 21))
    vectors = unit_rows(generator, 5_000, 101)  # more than one block
    whole = rule.place(vectors)
    order = generator.permutation(len(vectors))
    permuted = rule.place(vectors[order])
    sliced = [rule.place(vectors[start : start + 7]) for start in range(0, 700, 7)]
    alone = [rule.place(vectors[row : row + 1]) for row in range(0, 5_000, 50)]
    strided = rule.place(np.asfortranarray(vectors)[::3])
    for column in range(len(whole)):
        assert permuted[column].tobytes() == whole[column][order].tobytes()
        assert b"".join(part[column].tobytes() for part in sliced) == whole[column][:700].tobytes()
        assert b"".join(one[column].tobytes() for one in alone) == whole[column][::50].tobytes()
        assert strided[column].tobytes() == whole[column][::3].tobytes()


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


@pytest.fixture
def stored() -> PlacementFiles:
    rule = PlacementRule(EAST_NORTH_WEST, np.array([0, 0.5, 0.25]))
    return store_rule(rule, {"kind": "lexical", "size": 3}, {"idf_B": np.arange(4, dtype=np.float32)})


def test_rule_survives_being_stored(stored):
    read = parse_rule(stored, "rule")
    assert read.rule.centroids_KD.tobytes() == EAST_NORTH_WEST.tobytes()
    assert read.rule.prices_K.tolist() == [0, 0.5, 0.25]
    assert read.encoder == {"kind": "lexical", "size": 3}
    assert {name: array.tolist() for name, array in read.encoder_arrays.items()} == {"idf_B": [0, 1, 2, 3]}
    assert store_rule(read.rule, read.encoder, read.encoder_arrays) == stored


def test_rule_is_stored_as_the_specification_says(stored):
    description = json.loads(stored.description)
    assert canonical(description) + b"\n" == stored.description
    assert set(description) == {"version", "rule", "tree", "encoder", "student", "arrays_sha256"}
    assert description["tree"] == {"depth": 1, "num_domains": 3, "num_nodes": 3}
    arrays = load(stored.arrays)
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "centroids_MD": "float32",
        "prices_M": "float64",
        "parent_M": "int32",
        "leaf_M": "int32",
        "encoder.idf_B": "float32",
    }
    assert arrays["parent_M"].tolist() == [-1, -1, -1]
    assert arrays["leaf_M"].tolist() == [0, 1, 2]


def forged(stored: PlacementFiles, change_arrays=lambda arrays: None, **changes) -> PlacementFiles:
    """Change a stored rule so that its own digest holds."""
    arrays = load(stored.arrays)
    change_arrays(arrays)
    data = save(arrays)
    description = json.loads(stored.description) | {"arrays_sha256": hashlib.sha256(data).hexdigest()} | changes
    return PlacementFiles(canonical(description) + b"\n", data)


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_parse_refuses_a_flip_in_the_arrays(stored, position):
    data = bytearray(stored.arrays)
    data[position % len(data)] ^= 1 << position % 8
    with pytest.raises(DamagedError, match="its arrays should have sha256"):
        parse_rule(stored._replace(arrays=bytes(data)), "rule")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("leaf_M"),
        lambda arrays: arrays.pop("centroids_MD"),
        lambda arrays: arrays.update(leaf_M=np.array([1, 0, 2], np.int32)),
        lambda arrays: arrays.update(parent_M=np.array([-1, 0, 0], np.int32)),
        lambda arrays: arrays.update(prices_M=np.zeros(2)),
        lambda arrays: arrays.update(prices_M=np.zeros(3, np.float32)),
        lambda arrays: arrays.update(centroids_MD=EAST_NORTH_WEST.astype(np.float64)),
        lambda arrays: arrays.update(centroids_MD=np.float32(3) * EAST_NORTH_WEST),
    ],
)
def test_parse_refuses_arrays_that_are_no_flat_rule(stored, change):
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(forged(stored, change), "rule")


@pytest.mark.parametrize("changes", [{"version": 2}, {"student": {"kind": "logistic"}}, {"tree": {"depth": 2}}])
def test_parse_says_that_a_later_rule_needs_a_later_version(stored, changes):
    with pytest.raises(ManifestError, match="needs a later lmsplit") as caught:
        parse_rule(forged(stored, **changes), "rule")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("description", [b"", b"{}", b"[]", b"null", b"{", b"\xff"])
def test_parse_refuses_another_description(stored, description):
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(stored._replace(description=description), "rule")


def test_parse_refuses_bytes_that_are_no_safetensors(stored):
    data = b"\x80\x04pickle, or anything else"
    description = json.loads(stored.description) | {"arrays_sha256": hashlib.sha256(data).hexdigest()}
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(PlacementFiles(canonical(description), data), "rule")


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
