"""The fit of the lexical encoder: against a dense SVD, reproducible, and honest when there is nothing to fit."""

import numpy as np
import pytest

from lmsplit.manifests.encoder import build
from lmsplit.manifests.errors import InputError
from lmsplit.manifests.lexical import describe_lexical
from lmsplit.partition.lexical import DIMENSIONS, NUM_BUCKETS, fit
from tests.partition.corpora import topical

TEXTS = [row["text"] for row in topical(40)]


def test_vectors_agree_with_a_dense_svd_of_the_tf_idf_matrix() -> None:
    encoder, arrays = fit(TEXTS, seed=0)
    counts_NB = np.zeros((len(TEXTS), NUM_BUCKETS))
    for text, counts_B in zip(TEXTS, counts_NB, strict=True):
        buckets, counts = encoder.features.count(text)
        counts_B[buckets] = counts
    documents_B = (counts_NB > 0).sum(axis=0)
    idf_B = np.where(documents_B >= 2, np.log((1 + len(TEXTS)) / (1 + documents_B)) + 1, 0)
    weights_NB = np.where(counts_NB > 0, 1 + np.log(np.maximum(counts_NB, 1)), 0) * idf_B
    unit_NB = weights_NB / np.linalg.norm(weights_NB, axis=1, keepdims=True)
    left_ND, singular_D, _ = np.linalg.svd(unit_NB, full_matrices=False)
    expected_ND = left_ND[:, singular_D > 1e-6] * singular_D[singular_D > 1e-6] ** 0.5
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    found_ND = encoder.encode(TEXTS)
    np.testing.assert_allclose(found_ND @ found_ND.T, expected_ND @ expected_ND.T, atol=5e-3)  # the projection is float16
    np.testing.assert_allclose(arrays["idf_B"][documents_B > 0], idf_B[documents_B > 0], rtol=1e-6)


def test_fit_is_the_same_to_the_bit_and_follows_the_seed() -> None:
    many = [row["text"] for row in topical(3 * DIMENSIONS)]
    (_, first), (_, again), (_, other) = fit(many, seed=1), fit(many, seed=1), fit(many, seed=2**40)
    assert {name: array.tobytes() for name, array in first.items()} == {name: array.tobytes() for name, array in again.items()}
    assert first["projection_BD"].tobytes() != other["projection_BD"].tobytes()
    assert first["projection_BD"].shape == (NUM_BUCKETS, DIMENSIONS)


def test_encoder_built_from_the_arrays_gives_the_same_vectors() -> None:
    encoder, arrays = fit(TEXTS, seed=0)
    description = describe_lexical(encoder.features, arrays["projection_BD"].shape[1])
    assert build(description, arrays).encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_one_document_is_enough() -> None:
    encoder, _ = fit(["river water"], seed=0)
    np.testing.assert_allclose(np.abs(encoder.encode(["river water"])), [[1.0]], atol=1e-6)


@pytest.mark.parametrize("texts", [["river water", "bread oven"], ["the of", "and in"]])
def test_sample_without_a_shared_word_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no two documents of the sample share a word: nothing to cluster by"):
        fit(texts, seed=0)
