"""The shape of a tree of centroids: who stands below whom, and which leaf is which domain.

Flat is a tree of depth 1. This knows nothing of vectors (that is `placement`).

Shape legend: M nodes without the root, K leaves, which are the domains.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROOT = -1


@dataclass(frozen=True)
class Tree:
    """A tree, its nodes in breadth-first order: so siblings are neighbours, in the order of their branches.

    Make it with `Tree.of` or `Tree.flat`.

    >>> tree = Tree.of(np.array([-1, -1, 0, 0], np.int32))
    >>> tree.paths, tree.leaf_M.tolist()
    (((0, 0), (0, 1), (1,)), [-1, 2, 0, 1])
    """

    parent_M: npt.NDArray[np.int32]
    """each node's parent, -1 below the root."""
    leaf_M: npt.NDArray[np.int32]
    """the domain on a node, -1 on an inner one. Domains count the leaves in the order of their paths: depth first."""
    leaf_nodes_K: npt.NDArray[np.int64]
    """each domain's node."""
    paths: tuple[tuple[int, ...], ...]
    """each domain's branch numbers from the root."""

    @classmethod
    def of(cls, parent_M: npt.NDArray[np.int32]) -> "Tree":
        """Return the tree of these parents.

        Raises:
            ValueError: these are not the parents of a tree in breadth-first order.
        """
        if parent_M.dtype != np.int32 or parent_M.ndim != 1 or not len(parent_M):
            raise ValueError(f"parents are {parent_M.dtype} of shape {parent_M.shape}: expected int32, one for each node")
        # Ascending, and each before its children: so siblings are neighbours, nothing is a cycle, and the order is breadth first.
        if parent_M[0] != ROOT or np.any(np.diff(parent_M) < 0) or np.any(parent_M >= np.arange(len(parent_M))):
            raise ValueError("parents must ascend from -1, each before its children: nodes stand in breadth-first order")
        path_of = _paths(parent_M)
        leaves = sorted(np.setdiff1d(np.arange(len(parent_M)), parent_M).tolist(), key=path_of.__getitem__)
        leaf_M = np.full(len(parent_M), -1, np.int32)
        leaf_M[leaves] = np.arange(len(leaves))
        return cls(parent_M, leaf_M, np.array(leaves), tuple(path_of[node] for node in leaves))

    @classmethod
    def flat(cls, num_domains: int) -> "Tree":
        """Return the tree of depth 1."""
        return cls.of(np.full(num_domains, ROOT, np.int32))

    @property
    def depth(self) -> int:
        """Length of the longest path; 1 when flat."""
        return max(map(len, self.paths))

    def children(self, node: int) -> range:
        """Return the nodes below a node, or below the root for -1."""
        return range(*np.searchsorted(self.parent_M, [node, node + 1]).tolist())


def _paths(parent_M: npt.NDArray[np.int32]) -> list[tuple[int, ...]]:
    """Return each node's branch numbers from the root."""
    first_child = np.searchsorted(parent_M, parent_M).tolist()
    paths: list[tuple[int, ...]] = []
    for node, parent in enumerate(parent_M.tolist()):
        paths.append((*(paths[parent] if parent != ROOT else ()), node - first_child[node]))
    return paths
