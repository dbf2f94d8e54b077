"""Weights of experts that answer together, and the probabilities they have together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmsplit.train.mixing import fit_temperature, mix, mixture_weights


@given(arrays(np.float64, (5, 4), elements=st.floats(-1, 1)), st.floats(0.01, 10), st.integers(1, 6))
def test_weights_add_up_and_favour_the_highest_score(scores: np.ndarray, temperature: float, count: int) -> None:
    weights = mixture_weights(scores, temperature, count)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert ((weights > 0).sum(axis=1) <= count).all()
    best = weights[np.arange(5), scores.argmax(axis=1)]
    np.testing.assert_allclose(best, weights.max(axis=1))


def test_weights_are_those_of_squared_distances() -> None:
    vector, centroids = np.array([1.0, 0.0]), np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    squared = ((vector - centroids) ** 2).sum(axis=1)
    expected = np.exp(-squared / 0.3) / np.exp(-squared / 0.3).sum()
    np.testing.assert_allclose(mixture_weights([centroids @ vector], 0.3, 3)[0], expected)


def test_one_expert_has_all_the_weight_and_the_first_of_equals_wins() -> None:
    np.testing.assert_array_equal(mixture_weights([[0.2, 0.7, 0.7]], 0.1, 1), [[0.0, 1.0, 0.0]])


def test_fit_temperature_finds_the_one_that_drew_the_domains() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0, 1, (20_000, 6))
    weights = mixture_weights(scores, 0.4, 6)
    domains = (weights.cumsum(axis=1) > generator.uniform(size=(20_000, 1))).argmax(axis=1)
    assert fit_temperature(scores, domains) == pytest.approx(0.4, rel=0.05)


def test_mix_is_the_weighted_mean_of_probabilities() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2))
    weights = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    mixed = np.exp(mix(np.log(probabilities), weights))
    np.testing.assert_allclose(mixed, np.einsum("nk,knv->nv", weights, probabilities))
    np.testing.assert_allclose(mixed.sum(axis=1), 1)
