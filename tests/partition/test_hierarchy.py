"""The fitted rule: flat, as a tree, and under a bound on the largest domain."""

from functools import partial

import numpy as np
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.hierarchy import coherence, fit_rule
from lmsplit.partition.points import NumpyPoints
from tests.partition.test_balance import blobs


def nested(seed: int, per_leaf: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around 3 centres with 2 centres around each of those, and the number of their leaf."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((3, 32))
    leaves = np.repeat(centres, 2, axis=0) + 0.4 * generator.standard_normal((6, 32))
    vectors = np.repeat(leaves, per_leaf, axis=0) + 0.1 * generator.standard_normal((6 * per_leaf, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), np.repeat(np.arange(6), per_leaf)


def ones(points_ND: np.ndarray) -> np.ndarray:
    return np.ones(len(points_ND))


def test_flat_rule_is_that_of_k_means() -> None:
    points_ND = blobs(0, (300, 200, 100))
    fitted = fit_rule(points_ND, ones(points_ND), (3,), 7)
    expected = kmeans(points_ND, 3, 7).rule()
    assert fitted.rule.centroids_MD.tobytes() == expected.centroids_MD.tobytes()
    assert fitted.rule.prices_M.tobytes() == expected.prices_M.tobytes()
    assert (fitted.rule.depth, fitted.balance) == (1, None)
    assert fitted.imbalance == pytest.approx(1.5, abs=0.05)


def test_tree_finds_nested_topics_and_numbers_their_leaves_along_the_paths() -> None:
    points_ND, leaf = nested(1)
    fitted = fit_rule(points_ND, ones(points_ND), (3, 2), 0)
    assert fitted.rule.paths == ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
    domain = fitted.rule.place(points_ND).domain
    assert len({(a, b) for a, b in zip(leaf.tolist(), domain.tolist(), strict=True)}) == 6
    branch = {b: {int(a) // 2 for a in leaf[domain // 2 == b]} for b in range(3)}
    assert sorted(map(sorted, branch.values())) == [[0], [1], [2]]


def test_branch_with_few_different_documents_gets_fewer_leaves_or_is_one_itself() -> None:
    many = blobs(0, (60,), noise=0.2)
    other = -many[:1]
    points_ND = np.concatenate([many, np.repeat(other, 40, axis=0)])  # 40 copies of one text
    fitted = fit_rule(points_ND, ones(points_ND), (2, 3), 0)
    assert fitted.rule.paths == ((0, 0), (0, 1), (0, 2), (1,))
    assert (fitted.placed.domain[60:] == 3).all()


def test_more_branches_than_different_documents_is_refused() -> None:
    points_ND = np.repeat(blobs(0, (2,)), 10, axis=0)
    with pytest.raises(ConfigurationError, match="domains: 3, but the sample has only 2 different documents"):
        fit_rule(points_ND, ones(points_ND), (3, 2), 0)


@pytest.mark.parametrize("branching", [(6,), (3, 2)])
@pytest.mark.parametrize("bound", [1.25, 1.6])
def test_bound_holds_on_the_corpus_that_the_sample_was_drawn_from(branching: tuple[int, ...], bound: float) -> None:
    generator = np.random.default_rng(4)
    corpus_ND = blobs(4, (9000, 4000, 2000, 1000, 500, 300), noise=0.6)
    tokens = generator.lognormal(0, 0.7, len(corpus_ND))
    drawn = generator.choice(len(corpus_ND), 5000, replace=False)
    fitted = fit_rule(corpus_ND[drawn], tokens[drawn], branching, 0, max_imbalance=bound, sampled_fraction=0.3)
    assert fitted.balance is not None
    assert fitted.imbalance <= fitted.balance.cap * 1.01
    assert fitted.balance.cap == pytest.approx(bound / (1 + 2 * fitted.balance.sampling_error))
    assert fitted.balance.imbalance_before > bound
    masses = np.bincount(fitted.rule.place(corpus_ND).domain, tokens)
    assert masses.max() / masses.mean() <= 1.05 * bound


def test_bound_that_holds_anyway_changes_nothing() -> None:
    points_ND = blobs(0, (300, 200, 100))
    free = fit_rule(points_ND, ones(points_ND), (3,), 0)
    bounded = fit_rule(points_ND, ones(points_ND), (3,), 0, max_imbalance=3)
    assert bounded.rule.centroids_MD.tobytes() == free.rule.centroids_MD.tobytes()
    assert bounded.balance is None


def test_tokens_are_balanced_not_documents() -> None:
    points_ND = blobs(0, (400, 400))
    tokens = np.repeat([9.0, 1.0], 400)
    fitted = fit_rule(points_ND, tokens, (2,), 0, max_imbalance=1.2, sampled_fraction=1)
    assert np.bincount(fitted.placed.domain, tokens).max() / tokens.sum() <= 0.61
    assert np.bincount(fitted.placed.domain).max() > 450


def test_balance_costs_coherence_and_says_how_much() -> None:
    points_ND = blobs(2, (2000, 300, 300))
    fitted = fit_rule(points_ND, ones(points_ND), (3,), 0, max_imbalance=1.1, sampled_fraction=1)
    assert fitted.balance is not None
    free = fit_rule(points_ND, ones(points_ND), (3,), 0)
    assert fitted.balance.coherence_before == free.coherence > fitted.coherence > 0


def test_coherence_is_the_share_of_the_variance_that_domains_explain() -> None:
    points_ND = blobs(2, (200, 300))
    fitted = fit_rule(points_ND, ones(points_ND), (2,), 0)
    own = fitted.rule.centroids_KD[fitted.placed.domain]
    expected = 1 - ((points_ND - own) ** 2).sum() / ((points_ND - points_ND.mean(axis=0)) ** 2).sum()
    assert fitted.coherence == pytest.approx(expected, abs=1e-5)
    one = fit_rule(points_ND, ones(points_ND), (1,), 0)
    assert coherence(one.rule, one.placed, points_ND) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("bound", [None, 1.2])
def test_fit_is_reproducible_for_any_number_of_threads(bound: float | None) -> None:
    points_ND = blobs(6, (4000, 1000, 1000))
    fit = partial(fit_rule, points_ND, ones(points_ND), (3, 2), 5, max_imbalance=bound)
    one, again, many = fit(), fit(), fit(points_of=partial(NumpyPoints, num_threads=3))
    for other in (again, many):
        assert one.rule.centroids_MD.tobytes() == other.rule.centroids_MD.tobytes()
        assert one.rule.prices_M.tobytes() == other.rule.prices_M.tobytes()
