"""How a placement rule is stored, and read back: a description in JSON, and arrays in safetensors; pickle is never used.

The rule itself is in `placement`; manifests/README.md specifies both.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.placement import PlacementRule

_ENCODER = "encoder."
"""Begins the names of the encoder's own arrays."""


class PlacementFiles(NamedTuple):
    """The bytes of the two files that store a rule."""

    description: bytes
    """placement/<sha>.json: what the arrays mean, and their digest."""
    arrays: bytes
    """placement/<sha>.safetensors."""


class StoredRule(NamedTuple):
    """A rule read back from its two files."""

    rule: PlacementRule
    encoder: dict[str, Any]
    encoder_arrays: dict[str, npt.NDArray[Any]]


def store_rule(rule: PlacementRule, encoder: dict[str, Any], encoder_arrays: dict[str, npt.NDArray[Any]]) -> PlacementFiles:
    """Return the two files that store a rule together with the encoder it was fitted for.

    Args:
        rule: the tree of centroids and prices.
        encoder: what pins the encoder: at least `kind`; JSON values only.
        encoder_arrays: the encoder's own arrays, stored under `encoder.<name>`.
    """
    arrays = rule_arrays(rule) | {_ENCODER + name: array for name, array in encoder_arrays.items()}
    data = save_tensors({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    description = {
        "version": 1,
        "rule": "argmin_k (1 - x.c_k + price_k), ties to the lowest k, greedily down the tree",
        "tree": _describe_tree(rule),
        "encoder": encoder,
        "student": None,
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
    }
    return PlacementFiles(canonical(description) + b"\n", data)


def rule_arrays(rule: PlacementRule) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that store a rule, by name."""
    return {
        "centroids_MD": rule.centroids_MD,
        "prices_M": rule.prices_M,
        "parent_M": rule.tree.parent_M,
        "leaf_M": rule.leaf_M,
    }


def _describe_tree(rule: PlacementRule) -> dict[str, int]:
    return {"depth": rule.depth, "num_domains": rule.num_domains, "num_nodes": len(rule.prices_M)}


def parse_rule(files: PlacementFiles, where: str) -> StoredRule:
    """Read a rule back; the inverse of `store_rule`.

    Args:
        files: the bytes of the two files.
        where: the description's path, for errors.

    Raises:
        DamagedError: the files do not belong together, or are damaged.
        ManifestError: they describe a rule of a later version.
    """
    try:
        description = json.loads(files.description)
        found = hashlib.sha256(files.arrays).hexdigest()
        if found != description["arrays_sha256"]:
            raise DamagedError(where, f"{where}: its arrays should have sha256 {description['arrays_sha256']}, found {found}")
        if description["version"] != 1 or description["student"] is not None:
            raise ManifestError(f"{where}: this rule (version or student) needs a later lmsplit")
        arrays = load_tensors(files.arrays)
        rule = PlacementRule(arrays["centroids_MD"], arrays["prices_M"], arrays["parent_M"])
        _check_tree(rule, description["tree"], arrays["leaf_M"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedError(where, f"{where} is damaged ({error}): restore it from a copy") from error
    own = {name.removeprefix(_ENCODER): array for name, array in arrays.items() if name.startswith(_ENCODER)}
    return StoredRule(rule, description["encoder"], own)


def _check_tree(rule: PlacementRule, tree: dict[str, Any], leaf_M: npt.NDArray[Any]) -> None:
    if tree != _describe_tree(rule):
        raise ValueError(f"its tree should be {tree}, its arrays hold {_describe_tree(rule)}")
    if leaf_M.dtype != np.int32 or not np.array_equal(leaf_M, rule.leaf_M):
        raise ValueError("leaf_M does not count the leaves depth first")
