"""Which domain of one partition is which of another, and how far the two agree: from the documents that they share.

Domains are numbered anew in every fit, so a name says nothing across two of them. What says it is the documents: the alignment is
the one-to-one matching of domains under which most documents stay (Kuhn 1955, the Hungarian method, as scipy has it).

Shape legend: A domains of the first partition, B of the second; `shared_AB` counts the documents in each pair.

This does *not* read documents: see `diff`. Cost: O(min(A, B)² · max(A, B)) for the matching; one dense matrix of float64.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""How many documents."""
Indices = npt.NDArray[np.int64]
"""Which domain; NOT_ALIGNED for none."""

NOT_ALIGNED = -1


def align(shared_AB: Counts, *, same_rule: bool = False) -> Indices:
    """Align the domains of two partitions one to one so that the pairs share as many documents as possible.

    Args:
        shared_AB: documents in domain a of the first and domain b of the second.
        same_rule: both were placed by one rule, so that equal numbers name one domain: this decides between equally good
            alignments, and for domains that share no document.

    Returns:
        (A,) the domain of the second for each of the first; NOT_ALIGNED where there is none that shares a document.

    >>> align(np.array([[0, 7], [9, 1], [0, 2]])).tolist()
    [1, 0, -1]
    """
    from scipy.optimize import linear_sum_assignment  # here, for its import takes longer than most commands

    score_AB = shared_AB.astype(np.float64)
    if same_rule:
        # One document outweighs every name; both are integers that float64 holds exactly.
        score_AB = score_AB * (len(shared_AB) + 1) + np.eye(*shared_AB.shape)
    aligned_A = np.full(len(shared_AB), NOT_ALIGNED, np.int64)
    rows, columns = linear_sum_assignment(score_AB, maximize=True)
    holds = score_AB[rows, columns] > 0
    aligned_A[rows[holds]] = columns[holds]
    return aligned_A


def inverse(aligned_A: Indices, num_domains: int) -> Indices:
    """Return (B,) the domain of the first for each of the second, of an alignment.

    >>> inverse(np.array([1, -1, 0]), 3).tolist()
    [2, 0, -1]
    """
    aligned_B = np.full(num_domains, NOT_ALIGNED, np.int64)
    own = np.flatnonzero(aligned_A != NOT_ALIGNED)
    aligned_B[aligned_A[own]] = own
    return aligned_B


def adjusted_rand(shared_AB: Counts) -> float | None:
    """Return the adjusted Rand index of two partitions (Hubert and Arabie 1985), from exact counts of pairs.

    Args:
        shared_AB: documents in domain a of the first and domain b of the second.

    Returns:
        1 where the partitions are the same, about 0 where they agree by chance only; None without a document.

    >>> adjusted_rand(np.array([[2, 0], [1, 1]]))
    0.0
    """
    total = int(shared_AB.sum())
    if not total:
        return None
    # Ordered pairs of documents, in Python's integers: their products outgrow int64 at some ten thousand documents.
    together = _squares(shared_AB) - total
    first, second = _squares(shared_AB.sum(axis=1)) - total, _squares(shared_AB.sum(axis=0)) - total
    only_first, only_second = first - together, second - together
    neither = total * (total - 1) - first - only_second
    if not only_first and not only_second:
        return 1.0
    agreement = 2 * (together * neither - only_first * only_second)
    return agreement / (first * (only_first + neither) + second * (only_second + neither))


def _squares(counts: Counts) -> int:
    return sum(count * count for count in counts[counts > 0].tolist())
