"""The normative placement rule: which domain a vector belongs to, to the last bit.

    domain = argmin_k (1 - x·c_k + price_k),   ties to the lowest k

A centroid is the mean of its unit vectors in the fit, so it is at most 1 long, the longer the tighter its domain; with price_k =
|c_k|²/2 the cost is (1 + |x - c_k|²)/2, so that the nearest centroid wins. Unit centroids with prices of 0 compare cosines alone.

A fast fp32 matrix product may round differently with another batch size, thread count or library. So here the matrix product
only *nominates*: every centroid whose fp32 cost is within a proven rounding bound of the runner-up's is costed again in
float64, row by row, and that decides. A document is therefore placed alike in any batch. Cost: one (N, D)·(D, K) product in
fp32 plus about two float64 products of length D per document.

Shape legend: N documents, D dimensions of the vectors, K domains, M nodes of the tree.

This does *not* encode text (see `encoder`) and does not choose centroids (that is `lmsplit.partition.cluster`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import DamagedError, ManifestError

Floats = npt.NDArray[np.float32]

PLACED_BY_CENTROIDS = "centroids"
UNIT_TOLERANCE = 1e-3
DISTANCE_TOLERANCE = 1e-4
"""Placing again on another type of CPU may round the vectors differently; on the same one distances are equal."""
_BLOCK_ROWS = 4096


class Encoder(Protocol):
    """Turns texts into unit vectors; a pure function of each text alone.

    Attributes:
        tolerance: distances computed again with this encoder, here, may differ by so much from those in the manifest.
    """

    tolerance: float

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return unit rows of shape (N, D), float32; a row of zeros where a text has nothing to encode."""
        ...


class Placements(NamedTuple):
    """Where N vectors belong, and how clearly."""

    domain: npt.NDArray[np.int64]
    """(N,) index of the domain."""
    distance: Floats
    """(N,) 1 - cosine to its centroid."""
    second_domain: npt.NDArray[np.int64]
    """(N,) the runner-up; -1 where there is only one domain."""
    second_distance: Floats
    """(N,) 1 - cosine to the runner-up's centroid; NaN where there is none."""
    margin: Floats
    """(N,) the runner-up's cost minus the domain's, at least 0; NaN where there is no runner-up."""


@dataclass(frozen=True)
class PlacementRule:
    """K centroids and their prices.

    Args:
        centroids_KD: float32; rows longer than 0, and at most 1 long.
        prices_K: additive costs, float64.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a centroid is zero or longer than 1.

    >>> rule = PlacementRule(np.eye(2, dtype=np.float32), np.zeros(2))
    >>> placed = rule.place(np.array([[0.6, 0.8]], dtype=np.float32))
    >>> int(placed.domain[0]), round(float(placed.margin[0]), 6)
    (1, 0.2)
    """

    centroids_KD: Floats
    prices_K: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        centroids, prices = self.centroids_KD, self.prices_K
        if centroids.ndim != 2 or prices.shape != centroids.shape[:1] or not len(prices):
            raise ValueError(f"centroids have shape {centroids.shape}, prices {prices.shape}: expected (K, D) and (K,)")
        norms_K = lengths(centroids)
        if not (np.isfinite(prices).all() and np.all((norms_K > 0) & (norms_K <= 1 + UNIT_TOLERANCE))):
            raise ValueError("centroids must be finite, longer than 0 and at most 1 long, and prices finite")

    @cached_property
    def _lengths(self) -> npt.NDArray[np.float64]:
        lengths_K = lengths(self.centroids_KD)
        # A unit vector in float32 is not exactly 1 long; its cosine is the product as it is.
        return np.where(np.abs(lengths_K - 1) <= 1e-6, 1.0, lengths_K)

    @property
    def num_domains(self) -> int:
        """K."""
        return len(self.prices_K)

    def place(self, embeddings_ND: Floats) -> Placements:
        """Place vectors by the rule.

        Args:
            embeddings_ND: unit rows, float32, all finite.

        Returns:
            The placements, in the order of the rows; the same for a row whatever stands beside it.

        Raises:
            ValueError: the dimension is wrong, or a row is not a finite unit vector.
        """
        if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] != self.centroids_KD.shape[1]:
            raise ValueError(f"vectors have shape {embeddings_ND.shape}: expected (N, {self.centroids_KD.shape[1]})")
        if bad := int(np.count_nonzero(~is_unit(embeddings_ND))):
            raise ValueError(f"{bad} of {len(embeddings_ND)} vectors are not finite unit vectors: set them aside first")
        blocks = [
            self._place_block(embeddings_ND[start : start + _BLOCK_ROWS])
            for start in range(0, max(len(embeddings_ND), 1), _BLOCK_ROWS)
        ]
        return Placements(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))

    def _place_block(self, block_ND: Floats) -> Placements:
        num_rows, num_domains = len(block_ND), self.num_domains
        fast_NK = (self.prices_K + 1.0) - block_ND @ self.centroids_KD.T
        # |fp32 dot - exact dot| <= gamma_D * |x||c| (Higham, 3.1) with |c| <= 1; doubled, because two such errors meet.
        slack = 4 * self.centroids_KD.shape[1] * float(np.finfo(np.float32).eps)
        ranked = min(2, num_domains) - 1
        limit_N = np.partition(fast_NK, ranked, axis=1)[:, ranked] + slack
        row, domain = np.nonzero(fast_NK <= limit_N[:, None])
        dot = np.einsum("nd,nd->n", block_ND[row].astype(np.float64), self.centroids_KD[domain].astype(np.float64))
        cost = 1.0 - dot + self.prices_K[domain]
        cosine = dot / self._lengths[domain]
        order = np.lexsort((domain, cost, row))
        first = np.searchsorted(row[order], np.arange(num_rows))
        best = order[first]
        distance = (1.0 - cosine[best]).astype(np.float32)
        if num_domains == 1:
            nothing = np.full(num_rows, np.nan, np.float32)
            return Placements(domain[best], distance, np.full(num_rows, -1), nothing, nothing)
        second = order[first + 1]
        return Placements(
            domain[best],
            distance,
            domain[second],
            (1.0 - cosine[second]).astype(np.float32),
            (cost[second] - cost[best]).astype(np.float32),
        )


def lengths(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """Return (N,) the Euclidean length of each row, in float64."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64)))


def is_unit(embeddings_ND: Floats) -> npt.NDArray[np.bool_]:
    """Return (N,) whether each row is finite and has length 1 within 0.001; only such rows can be placed."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.abs(lengths(embeddings_ND) - 1.0) <= UNIT_TOLERANCE)


def normalised(vectors_ND: Floats) -> Floats:
    """Return the rows scaled to length 1 in float32; rows of zeros stay zeros."""
    norms_N = lengths(vectors_ND)
    scale_N = np.divide(1.0, norms_N, out=np.zeros_like(norms_N), where=norms_N > 0)
    return np.asarray(vectors_ND * scale_N[:, None], dtype=np.float32)


class PlacementFiles(NamedTuple):
    """The bytes of the two files that store a rule."""

    description: bytes
    """placement/<sha>.json: what the arrays mean, and their digest."""
    arrays: bytes
    """placement/<sha>.safetensors."""


def describe_flat_tree(num_domains: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the stored form of a tree of depth 1: its description, and the arrays `parent_M` and `leaf_M`.

    `parent_M` holds each node's parent (-1: the root), `leaf_M` the domain on a node (-1: an inner node). Nodes stand in
    breadth-first order; here node k is domain k.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "parent_M": np.full(num_domains, -1, np.int32),
        "leaf_M": np.arange(num_domains, dtype=np.int32),
    }
    return {"depth": 1, "num_domains": num_domains, "num_nodes": num_domains}, arrays


def store_rule(rule: PlacementRule, encoder: dict[str, Any], encoder_arrays: dict[str, npt.NDArray[Any]]) -> PlacementFiles:
    """Return the two files that store a rule together with the encoder it was fitted for.

    Args:
        rule: the centroids and prices.
        encoder: what pins the encoder: at least `kind`; JSON values only.
        encoder_arrays: the encoder's own arrays, stored under `encoder.<name>`.
    """
    tree, tree_arrays = describe_flat_tree(rule.num_domains)
    arrays = {"centroids_MD": rule.centroids_KD, "prices_M": rule.prices_K, **tree_arrays}
    arrays |= {f"encoder.{name}": array for name, array in encoder_arrays.items()}
    data = save_tensors({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    description = {
        "version": 1,
        "rule": "argmin_k (1 - x.c_k + price_k), ties to the lowest k, greedily down the tree",
        "tree": tree,
        "encoder": encoder,
        "student": None,
        "arrays_sha256": hashlib.sha256(data).hexdigest(),
    }
    return PlacementFiles(canonical(description) + b"\n", data)


class StoredRule(NamedTuple):
    """A rule read back from its two files."""

    rule: PlacementRule
    encoder: dict[str, Any]
    encoder_arrays: dict[str, npt.NDArray[Any]]


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
        if description["version"] != 1 or description["tree"]["depth"] != 1 or description["student"] is not None:
            raise ManifestError(f"{where}: this rule (version, tree or student) needs a later lmsplit")
        arrays = load_tensors(files.arrays)
        rule = PlacementRule(arrays["centroids_MD"], arrays["prices_M"])
        _check_flat_tree(rule, description["tree"], arrays)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedError(where, f"{where} is damaged ({error}): restore it from a copy") from error
    prefix = "encoder."
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return StoredRule(rule, description["encoder"], own)


def _check_flat_tree(rule: PlacementRule, tree: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
    kinds = (str(arrays["centroids_MD"].dtype), str(arrays["prices_M"].dtype))
    if kinds != ("float32", "float64"):
        raise ValueError(f"centroids and prices have types {kinds}: expected float32 and float64")
    expected_tree, expected = describe_flat_tree(rule.num_domains)
    if tree != expected_tree or any(not np.array_equal(arrays[name], array) for name, array in expected.items()):
        raise ValueError(f"its tree {tree} is not the flat one of {rule.num_domains} domains")
