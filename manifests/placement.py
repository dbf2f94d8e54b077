"""The normative placement rule: which domain a vector belongs to, to the last bit.

    domain = argmin_k (1 - x·c_k + price_k),   ties to the lowest k, greedily down a tree

A centroid is the mean of its unit vectors in the fit, so it is at most 1 long, the longer the tighter its domain; with price_k =
|c_k|²/2 the cost is (1 + |x - c_k|²)/2, so that the nearest centroid wins. Unit centroids with prices of 0 compare cosines alone.

A document is placed alike in any batch, on any number of threads: how, and at what cost, is said in `nearest`.

Shape legend: N documents, D dimensions of the vectors, M nodes of the tree, K leaves, which are the domains.

This does *not* encode text (see `encoder`), does not choose centroids (that is `lmsplit.partition.cluster`) and does not store
the rule (that is `rule_files`).
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.nearest import Floats, Indices, Placements, Siblings, Workspace
from lmsplit.manifests.tree import ROOT, Tree

__all__ = [
    "DISTANCE_TOLERANCE",
    "PLACED_BY_CENTROIDS",
    "UNIT_TOLERANCE",
    "Encoder",
    "Floats",
    "PlacementRule",
    "Placements",
    "is_unit",
    "lengths",
    "normalised",
]

PLACED_BY_CENTROIDS = "centroids"
UNIT_TOLERANCE = 1e-3
_FEW = 16
"""Rows below which the exact way to see whether they are unit vectors is the soonest done: a prompt waits for it."""
DISTANCE_TOLERANCE = 1e-4
"""Placing again on another type of CPU may round the vectors differently; on the same one distances are equal."""


class Encoder(Protocol):
    """Turns texts into unit vectors; a pure function of each text alone.

    Attributes:
        tolerance: distances computed again with this encoder, here, may differ by so much from those in the manifest.
    """

    tolerance: float

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return unit rows of shape (N, D), float32; a row of zeros where a text has nothing to encode."""
        ...


@dataclass(frozen=True)
class PlacementRule:
    """A tree of centroids and their prices; a flat one has a domain on each node.

    Args:
        centroids_MD: float32; rows longer than 0, and at most 1 long.
        prices_M: additive costs, float64.
        parent_M: int32, each node's parent, -1 below the root; nodes in breadth-first order (see `tree`). None: all below the
            root.

    Raises:
        ValueError: shapes or types do not fit, a value is not finite, a centroid is zero or longer than 1, or it is no tree.

    >>> rule = PlacementRule(np.eye(2, dtype=np.float32), np.zeros(2))
    >>> placed = rule.place(np.array([[0.6, 0.8]], dtype=np.float32))
    >>> int(placed.domain[0]), round(float(placed.margin[0]), 6)
    (1, 0.2)
    """

    centroids_MD: Floats
    prices_M: npt.NDArray[np.float64]
    parent_M: npt.NDArray[np.int32] | None = None
    tree: Tree = field(init=False, repr=False)
    """its shape."""
    leaf_M: npt.NDArray[np.int32] = field(init=False, repr=False)
    """the domain on each node; -1 on an inner one."""
    leaf_nodes_K: Indices = field(init=False, repr=False)
    """the node of each domain."""
    centroids_KD: Floats = field(init=False, repr=False)
    """the domains' centroids."""
    prices_K: npt.NDArray[np.float64] = field(init=False, repr=False)
    """the domains' prices, each among its siblings."""

    def __post_init__(self) -> None:
        centroids, prices = self.centroids_MD, self.prices_M
        kinds = (str(centroids.dtype), str(prices.dtype))
        if kinds != ("float32", "float64"):
            raise ValueError(f"centroids and prices have types {kinds}: expected float32 and float64")
        if centroids.ndim != 2 or prices.shape != centroids.shape[:1] or not len(prices):
            raise ValueError(f"centroids have shape {centroids.shape}, prices {prices.shape}: expected (M, D) and (M,)")
        norms_M = lengths(centroids)
        if not (np.isfinite(prices).all() and np.all((norms_M > 0) & (norms_M <= 1 + UNIT_TOLERANCE))):
            raise ValueError("centroids must be finite, longer than 0 and at most 1 long, and prices finite")
        tree = Tree.flat(len(prices)) if self.parent_M is None else Tree.of(self.parent_M)
        if len(tree.parent_M) != len(prices):
            raise ValueError(f"there are {len(tree.parent_M)} parents for {len(prices)} centroids")
        leaves_K = tree.leaf_nodes_K
        derived = {"tree": tree, "leaf_M": tree.leaf_M, "leaf_nodes_K": leaves_K, "parent_M": tree.parent_M}
        derived |= {"centroids_KD": centroids[leaves_K], "prices_K": prices[leaves_K]}
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def num_domains(self) -> int:
        """K."""
        return len(self.leaf_nodes_K)

    @property
    def depth(self) -> int:
        """Decisions on the longest way from the root to a leaf; 1 when flat."""
        return self.tree.depth

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Each domain's branch numbers from the root; (k,) when flat."""
        return self.tree.paths

    def place(self, embeddings_ND: Floats) -> Placements:
        """Place vectors by the rule.

        In a tree the margin is that of the nearest decision on the way to the domain: the level with the smallest margin, the
        highest of equal ones. The second domain is where the way leads if that decision alone falls to its runner-up.

        Args:
            embeddings_ND: unit rows, float32, all finite.

        Returns:
            The placements, in the order of the rows; the same for a row whatever stands beside it.

        Raises:
            ValueError: the dimension is wrong, or a row is not a finite unit vector.
        """
        if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] != self.centroids_MD.shape[1]:
            raise ValueError(f"vectors have shape {embeddings_ND.shape}: expected (N, {self.centroids_MD.shape[1]})")
        if bad := int(np.count_nonzero(~is_unit(embeddings_ND))):
            raise ValueError(f"{bad} of {len(embeddings_ND)} vectors are not finite unit vectors: set them aside first")
        return self.place_units(embeddings_ND)

    def place_units(self, embeddings_ND: Floats) -> Placements:
        """Place rows of which `is_unit` is known to be true; else see `place`."""
        space = Workspace()
        way = self._siblings(ROOT).place(embeddings_ND, space)
        if self.depth == 1:
            return way
        self._descend(embeddings_ND, way, space)
        other = deepcopy(way)._replace(domain=way.second_domain, distance=way.second_distance)
        self._descend(embeddings_ND, other, space)
        domain_of = np.append(self.leaf_M.astype(np.int64), -1)  # the last one is for node -1: no runner-up
        return Placements(domain_of[way.domain], way.distance, domain_of[other.domain], other.distance, way.margin)

    @cached_property
    def _families(self) -> dict[int, Siblings]:
        return {}

    def _siblings(self, node: int) -> Siblings:
        """Return the centroids below a node."""
        if node not in self._families:
            children = self.tree.children(node)
            own = slice(children.start, children.stop)
            self._families[node] = Siblings(self.centroids_MD[own], self.prices_M[own])
        return self._families[node]

    def _descend(self, embeddings_ND: Floats, way: Placements, space: Workspace) -> None:
        """Go on from nodes to leaves, greedily. Here a domain is a node, and the second the runner-up of the nearest decision."""
        open_N = np.flatnonzero(self._is_inner[way.domain])
        while len(open_N):
            for node, rows in _grouped(way.domain, open_N):
                own_ND = space.array("own", (len(rows), embeddings_ND.shape[1]), np.float32)
                embeddings_ND.take(rows, axis=0, out=own_ND, mode="clip")
                self._decide(node, rows, self._siblings(node).place(own_ND, space), way)
            open_N = open_N[self._is_inner[way.domain[open_N]]]

    def _decide(self, node: int, rows: Indices, below: Placements, way: Placements) -> None:
        """Move rows from a node to its children."""
        start = self.tree.children(node).start
        way.domain[rows], way.distance[rows] = below.domain + start, below.distance
        closer = np.where(np.isnan(way.margin[rows]), ~np.isnan(below.margin), below.margin < way.margin[rows])
        rows = rows[closer]
        way.second_domain[rows], way.second_distance[rows] = below.second_domain[closer] + start, below.second_distance[closer]
        way.margin[rows] = below.margin[closer]

    @cached_property
    def _is_inner(self) -> npt.NDArray[np.bool_]:
        return np.append(self.leaf_M < 0, False)  # the last one is for node -1: no runner-up


def _grouped(node_N: Indices, rows: Indices) -> Iterator[tuple[int, Indices]]:
    """Yield each node that some of the rows have reached, with those rows."""
    rows = rows[np.argsort(node_N[rows], kind="stable")]
    nodes, starts = np.unique(node_N[rows], return_index=True)
    yield from zip(nodes.tolist(), np.split(rows, starts[1:]), strict=True)


def lengths(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """Return (N,) the Euclidean length of each row, in float64."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64)))


def is_unit(embeddings_ND: Floats) -> npt.NDArray[np.bool_]:
    """Return (N,) whether each row is finite and has length 1 within 0.001; only such rows can be placed."""
    if len(embeddings_ND) < _FEW:
        return np.asarray(np.abs(lengths(embeddings_ND) - 1.0) <= UNIT_TOLERANCE)
    with np.errstate(invalid="ignore", over="ignore"):
        squares_N = np.matmul(embeddings_ND[:, None, :], embeddings_ND[:, :, None])[:, 0, 0]
        # In float32, a length is within D rounding errors of exact; only what is too near the limits is measured in float64.
        rounding = embeddings_ND.shape[1] * float(np.finfo(np.float32).eps)
        is_unit_N = np.asarray(np.abs(np.sqrt(squares_N) - 1.0) <= UNIT_TOLERANCE - rounding)
        open_N = np.flatnonzero(~is_unit_N)
        is_unit_N[open_N] = np.abs(lengths(embeddings_ND[open_N]) - 1.0) <= UNIT_TOLERANCE
    return is_unit_N


def normalised(vectors_ND: Floats) -> Floats:
    """Return the rows scaled to length 1 in float32; rows of zeros stay zeros."""
    norms_N = lengths(vectors_ND)
    norms_N[norms_N == 0] = np.inf
    return np.asarray(vectors_ND * (1.0 / norms_N)[:, None], dtype=np.float32)
