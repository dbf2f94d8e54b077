"""What became of each document from one manifest to another, and the one cause of it.

```
joined row ─► status: unchanged, moved, changed, added or removed ─► moved or changed: the first cause below that applies
```

| cause | when |
| --- | --- |
| `text_changed` | the text's digest differs |
| `encoder_changed` | the two rules pin encoders whose descriptions or arrays differ |
| `low_margin` | a margin is at most twice 0.0001, or of the same rule the encoder's recorded tolerance: rounding may decide |
| `price_moved` | the prices decide: with B's centroids and A's prices, the document would have stayed |
| `centroids_moved` | the centroids suffice |
| `unexplained` | none of these: the same rule, text and encoder, and a large margin. There should be none |

A price here is the part of a stored price that balances: the stored one less half the centroid's squared length, and less the
smallest among the siblings, for only differences among siblings decide. So centroids that move do not count as prices that do.
In a tree, a leaf's price is the sum of those on the way to it, and its centroid has moved where any on the way has.

Where all centroids are bit for bit those of A, or all prices are those of A, all moves have one cause. Where both differ, the
document's row in B says: if A's domain is its runner-up there, its margin is what B's choice is ahead by, and A's prices instead
of B's change that by a known amount. It is `centroids_moved` where the choice stays ahead, and also where the row cannot say: the
runner-up is another domain, one of the two domains has no counterpart, or they are not siblings in both trees.

This does *not* encode or place anything again (that is `verify --deep`), so a cause is what the stored rows and rules imply.
Cost: one pass over a frame in memory.

Shape legend: A domains of the first manifest, B of the second, M nodes of a rule, K its leaves, D dimensions.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.manifests.alignment import NOT_ALIGNED, Indices, inverse
from lmsplit.manifests.placement import DISTANCE_TOLERANCE, PlacementRule, lengths
from lmsplit.manifests.rule_files import StoredRule
from lmsplit.manifests.tree import ROOT

STATUSES: Final = ("unchanged", "moved", "changed", "added", "removed")
"""They partition the documents of both manifests."""
CAUSES: Final = ("text_changed", "encoder_changed", "low_margin", "price_moved", "centroids_moved", "unexplained")
"""Of a document that moved or changed, in the order in which they are tried."""

PRICE_TOLERANCE: Final = 1e-6
"""Prices that differ by less are the same: far below what rounding of a distance can decide (assumption)."""

Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RuleChange:
    """How the placement rules of two manifests differ.

    Attributes:
        encoder_changed: the encoders' descriptions or arrays differ.
        centroids_moved: aligned domains whose centroid, or one above it in the tree, is not bit for bit the same.
        mean_centroid_distance: mean of 1 - cosine between the centroids of aligned domains; None where the encoders differ or no
            domains are aligned.
        prices_moved: aligned domains whose price differs, without the part that only follows the centroid.
    """

    encoder_changed: bool
    centroids_moved: int
    mean_centroid_distance: float | None
    prices_moved: int


@dataclass(frozen=True)
class _Leaves:
    """What places a document on each domain."""

    keys_K: list[bytes]
    """the centroids on the way to it."""
    prices_K: Floats64
    """the sum of the balancing prices on the way to it."""
    family_K: Indices
    """the node above it."""


def _leaves(rule: PlacementRule) -> _Leaves:
    parent_M = rule.tree.parent_M
    keys: list[bytes] = []
    prices_M = rule.prices_M - lengths(rule.centroids_MD) ** 2 / 2
    for parent in np.unique(parent_M).tolist():  # ascending: a node's price is whole before its children's
        children = rule.tree.children(parent)
        own = slice(children.start, children.stop)
        prices_M[own] -= prices_M[own].min()
        prices_M[own] += prices_M[parent] if parent != ROOT else 0.0
    for centroid_D, parent in zip(rule.centroids_MD, parent_M.tolist(), strict=True):
        keys.append((keys[parent] if parent != ROOT else b"") + centroid_D.tobytes())
    leaves_K = rule.leaf_nodes_K
    return _Leaves([keys[node] for node in leaves_K.tolist()], prices_M[leaves_K], parent_M[leaves_K].astype(np.int64))


class Causes:
    """Says of every document what became of it and why.

    Args:
        a: the first manifest's rule.
        b: the second's.
        aligned_A: the domain of the second for each of the first: see `alignment.align`.
    """

    def __init__(self, a: StoredRule, b: StoredRule, aligned_A: Indices) -> None:
        self._aligned_A = aligned_A
        self._aligned_B = inverse(aligned_A, b.rule.num_domains)
        self._leaves_a, self._leaves_b = _leaves(a.rule), _leaves(b.rule)
        encoder_changed = not _same_encoder(a, b)
        own = np.flatnonzero(aligned_A != NOT_ALIGNED)
        theirs = aligned_A[own]
        pairs = list(zip(own.tolist(), theirs.tolist(), strict=True))
        moved = [self._leaves_a.keys_K[i] != self._leaves_b.keys_K[j] for i, j in pairs]
        repriced = ~np.isclose(self._leaves_a.prices_K[own], self._leaves_b.prices_K[theirs], rtol=0, atol=PRICE_TOLERANCE)
        self._one_cause = "encoder_changed" if encoder_changed else self._cause_of_all(bool(repriced.any()))
        # Between the same rules only rounding is left to explain a move, by all that the encoder's may come to.
        same_rule = self._one_cause == "unexplained"
        self._least_margin = 2 * (max(_tolerance(a), _tolerance(b)) if same_rule else DISTANCE_TOLERANCE)
        distance = (
            _mean_distance(a.rule.centroids_KD[own], b.rule.centroids_KD[theirs]) if pairs and not encoder_changed else None
        )
        self.rule = RuleChange(encoder_changed, sum(moved), distance, int(repriced.sum()))
        """How the rules differ."""

    def _cause_of_all(self, repriced: bool) -> str | None:
        """Return the cause of every move with the same encoder, text and a large margin; None: the document decides."""
        a, b = self._leaves_a, self._leaves_b
        order_a, order_b = (sorted(range(len(each.keys_K)), key=each.keys_K.__getitem__) for each in (a, b))
        if [a.keys_K[index] for index in order_a] == [b.keys_K[index] for index in order_b]:
            # The centroids say which domain is which, also where no document does.
            same = np.allclose(a.prices_K[order_a], b.prices_K[order_b], rtol=0, atol=PRICE_TOLERANCE)
            return "unexplained" if same else "price_moved"
        return None if repriced else "centroids_moved"

    def classify(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add what became of each document.

        Args:
            rows: `domain_a`, `domain_b`, `second_domain_b` (numbers; null where there is none), `margin_a`, `margin_b` and
                `text_sha256_a`, `text_sha256_b`; both domains are null in no row.

        Returns:
            The rows with `aligned` (the domain of B for that of A), `status` (one of STATUSES) and `cause` (one of CAUSES; null
            unless moved or changed).
        """
        a, b = pl.col("domain_a"), pl.col("domain_b")
        aligned = pl.Series(self._aligned_A, dtype=pl.Int32)
        aligned = aligned.set(aligned == NOT_ALIGNED, None)
        rows = rows.with_columns(pl.lit(aligned).gather(a).alias("aligned"))
        other_text = pl.col("text_sha256_a") != pl.col("text_sha256_b")
        status = (
            pl.when(a.is_null())
            .then(pl.lit("added"))
            .when(b.is_null())
            .then(pl.lit("removed"))
            .when(b.ne_missing(pl.col("aligned")))
            .then(pl.lit("moved"))
            .when(other_text)
            .then(pl.lit("changed"))
            .otherwise(pl.lit("unchanged"))
        )
        rows = rows.with_columns(status.cast(pl.Enum(STATUSES)).alias("status"))
        near = pl.min_horizontal("margin_a", "margin_b").cast(pl.Float64) <= self._least_margin
        of_rule = self._of_rule() if self._one_cause is None else pl.lit(self._one_cause)
        cause = (
            pl.when(~pl.col("status").is_in(["moved", "changed"]))
            .then(None)
            .when(other_text)
            .then(pl.lit("text_changed"))
            .when(near & (self._one_cause != "encoder_changed"))
            .then(pl.lit("low_margin"))
            .otherwise(of_rule)
        )
        return rows.with_columns(cause.cast(pl.Enum(CAUSES)).alias("cause"))

    def _of_rule(self) -> pl.Expr:
        """Return the cause where both centroids and prices differ: `price_moved` where A's prices would have kept a document."""
        gain_B = np.full(len(self._aligned_B), np.nan)  # of each domain, what A's prices would add to its cost in B
        family_B = np.full(len(self._aligned_B), np.iinfo(np.int64).min)  # the node above its counterpart in A
        own = np.flatnonzero(self._aligned_B != NOT_ALIGNED)
        gain_B[own] = self._leaves_a.prices_K[self._aligned_B[own]] - self._leaves_b.prices_K[own]
        family_B[own] = self._leaves_a.family_K[self._aligned_B[own]]
        stays, moves = pl.col("aligned"), pl.col("domain_b")

        def same(values_B: Indices) -> pl.Expr:
            """Whether a value is that of both domains concerned."""
            return pl.lit(pl.Series(values_B)).gather(stays) == pl.lit(pl.Series(values_B)).gather(moves)

        gain = pl.lit(pl.Series(gain_B))
        ahead = pl.col("margin_b").cast(pl.Float64) + gain.gather(stays) - gain.gather(moves)
        known = (pl.col("second_domain_b") == stays) & same(family_B) & same(self._leaves_b.family_K)
        by_price = known & (ahead <= 0)
        return pl.when(by_price.fill_null(False)).then(pl.lit("price_moved")).otherwise(pl.lit("centroids_moved"))


def _tolerance(stored: StoredRule) -> float:
    return float(stored.encoder.get("tolerance", DISTANCE_TOLERANCE))


def _same_encoder(a: StoredRule, b: StoredRule) -> bool:
    return a.encoder == b.encoder and _bits(a.encoder_arrays) == _bits(b.encoder_arrays)


def _bits(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def _mean_distance(a_ND: npt.NDArray[np.float32], b_ND: npt.NDArray[np.float32]) -> float:
    products_N = np.einsum("nd,nd->n", a_ND, b_ND, dtype=np.float64)
    # Centroids that are the same are 0 apart, not what is left of the roots' rounding.
    distances_N = np.where((a_ND == b_ND).all(axis=1), 0.0, 1.0 - products_N / (lengths(a_ND) * lengths(b_ND)))
    return float(np.maximum(distances_N, 0.0).mean())
