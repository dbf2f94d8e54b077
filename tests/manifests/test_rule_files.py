"""A stored rule: its two files as specified, read back, and damaged."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.placement import PlacementRule
from lmsplit.manifests.rule_files import PlacementFiles, parse_rule, store_rule

EAST_NORTH_WEST = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)


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
        lambda arrays: arrays.pop("parent_M"),
        lambda arrays: arrays.update(leaf_M=np.array([1, 0, 2], np.int32)),
        lambda arrays: arrays.update(leaf_M=np.array([0, 1, 2])),
        lambda arrays: arrays.update(leaf_M=np.array([[0, 1, 2]], np.int32)),
        lambda arrays: arrays.update(parent_M=np.array([-1, 0, 0], np.int32)),
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, -1])),
        lambda arrays: arrays.update(prices_M=np.zeros(2)),
        lambda arrays: arrays.update(prices_M=np.zeros(3, np.float32)),
        lambda arrays: arrays.update(centroids_MD=EAST_NORTH_WEST.astype(np.float64)),
        lambda arrays: arrays.update(centroids_MD=np.float32(3) * EAST_NORTH_WEST),
    ],
)
def test_parse_refuses_arrays_that_are_no_rule(stored, change):
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(forged(stored, change), "rule")


@pytest.mark.parametrize("changes", [{"version": 2}, {"student": {"kind": "logistic"}}])
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


@pytest.fixture
def stored_tree() -> PlacementFiles:
    rule = PlacementRule(np.tile(EAST_NORTH_WEST, (2, 1)), np.arange(6.0), np.array([-1, -1, 0, 0, 1, 3], np.int32))
    return store_rule(rule, {"kind": "lexical"}, {})


def test_tree_survives_being_stored(stored_tree):
    description, arrays = json.loads(stored_tree.description), load(stored_tree.arrays)
    assert description["tree"] == {"depth": 3, "num_domains": 3, "num_nodes": 6}
    assert (arrays["parent_M"].dtype, arrays["parent_M"].tolist()) == (np.int32, [-1, -1, 0, 0, 1, 3])
    assert (arrays["leaf_M"].dtype, arrays["leaf_M"].tolist()) == (np.int32, [-1, -1, 0, -1, 2, 1])
    read = parse_rule(stored_tree, "rule")
    assert read.rule.paths == ((0, 0), (0, 1, 0), (1, 0))
    assert read.rule.prices_K.tolist() == [2, 5, 4]
    assert store_rule(read.rule, read.encoder, read.encoder_arrays) == stored_tree


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(parent_M=np.array([-1, 0, -1, 0, 1, 3], np.int32)),  # not breadth first
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, 0, 0, 5, 4], np.int32)),  # a cycle
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, 0, 0, 4, 4], np.int32)),  # its own parent
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, 0, 0, 1, 9], np.int32)),  # no such parent
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, 0, 0, 0, 3], np.int32)),  # another tree than leaf_M's
        lambda arrays: arrays.update(parent_M=np.array([-1, -1, 0, 0, 1], np.int32)),
        lambda arrays: arrays.update(parent_M=arrays["parent_M"].astype(np.int64)),
        lambda arrays: arrays.update(leaf_M=np.array([-1, -1, 0, -1, 1, 2], np.int32)),  # breadth first
        lambda arrays: arrays.update(leaf_M=np.array([-1, -1, 0, -1, 2], np.int32)),
    ],
)
def test_parse_refuses_arrays_that_are_no_tree(stored_tree, change):
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(forged(stored_tree, change), "rule")


@pytest.mark.parametrize("tree", [{}, None, {"depth": 1, "num_domains": 3, "num_nodes": 6}, {"depth": 3, "num_domains": 3}])
def test_parse_refuses_a_description_of_another_tree(stored_tree, tree):
    with pytest.raises(DamagedError, match="rule is damaged"):
        parse_rule(forged(stored_tree, tree=tree), "rule")
