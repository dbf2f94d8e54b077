"""Fits the lexical encoder on the clustering sample: IDF weights and a truncated SVD of the hashed TF-IDF matrix.

Cost: one sparse (N, B) matrix and a randomised SVD of rank 128; 10,000 documents take about 10 s on one core. One thread, so
that the same sample gives the same projection (multi-threaded BLAS adds in another order).

This does *not* encode: `lmsplit.manifests.lexical` does, from the arrays made here.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.lexical import LexicalEncoder, LexicalFeatures

NUM_BUCKETS: Final = 1 << 16
"""Measured (benchmarks/results/lexical_encoder.md): twice or half as many gave a lower V-measure."""
DIMENSIONS: Final = 128
"""Measured (same table): more dimensions gave no higher V-measure, and cost disk in proportion."""
SINGULAR_POWER: Final = -0.5
"""Directions are divided by the root of their singular value: so a few broad topics do not drown the rest (same table)."""
MAX_CHARACTERS: Final = 10_000
"""Assumption: a topic shows in the first 10,000 characters; bounds the cost of a book."""
MIN_DOCUMENTS: Final = 2
"""A bucket seen in fewer sample documents says nothing of what documents share."""


def fit(texts: Sequence[str], seed: int) -> tuple[LexicalEncoder, dict[str, npt.NDArray[Any]]]:
    """Fit the lexical encoder.

    Args:
        texts: the sample; duplicates count as often as they stand in it.
        seed: of the randomised SVD.

    Returns:
        The encoder, and the arrays that pin it.

    Raises:
        InputError: no two texts share a word, so there is nothing to cluster by.
    """
    from sklearn.utils.extmath import randomized_svd  # here: scikit-learn's import takes 1 s

    features = LexicalFeatures(NUM_BUCKETS, MAX_CHARACTERS)
    buckets_N, counts_N = zip(*map(features.count, texts), strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in buckets_N])])
    buckets, counts = np.concatenate(buckets_N), np.concatenate(counts_N).astype(np.float32)
    documents_B = np.bincount(buckets, minlength=NUM_BUCKETS)
    idf_B = np.log((1 + len(texts)) / (1 + documents_B)) + 1
    idf_B[documents_B < min(MIN_DOCUMENTS, len(texts))] = 0
    weights = (1 + np.log(counts)) * idf_B[buckets]
    matrix_NB = _unit_rows(sparse.csr_matrix((weights, buckets, offsets), shape=(len(texts), NUM_BUCKETS)))
    used = np.flatnonzero((idf_B > 0) & (documents_B > 0))
    if not used.size:
        raise InputError("no two documents of the sample share a word: nothing to cluster by. Is the text column right?")
    with threadpool_limits(1):  # without the empty columns: a small sample fills few of them
        _, singular_D, right_DU = randomized_svd(
            matrix_NB[:, used], min(DIMENSIONS, len(texts), used.size), n_iter=4, random_state=_small(seed)
        )
    kept = singular_D > singular_D[0] * 1e-6
    projection_BD = np.zeros((NUM_BUCKETS, int(kept.sum())))
    projection_BD[used] = (right_DU[kept] * singular_D[kept, None] ** SINGULAR_POWER).T
    arrays: dict[str, npt.NDArray[Any]] = {
        "idf_B": idf_B.astype(np.float32),
        "projection_BD": projection_BD.astype(np.float16),
    }
    return LexicalEncoder(features, arrays["idf_B"], arrays["projection_BD"]), arrays


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    squares = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(squares, np.finfo(np.float64).tiny)) @ matrix)


def _small(seed: int) -> int:
    """scikit-learn takes seeds below 2^32."""
    return seed % 2**32
