"""Alignment beside every permutation, and the adjusted Rand index beside scikit-learn's."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from lmsplit.manifests.alignment import NOT_ALIGNED, adjusted_rand, align, inverse


def matrices(largest: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Small tables of counts with many zeros and ties."""
    sizes = st.integers(1, largest)
    cells = st.sampled_from([0, 0, 0, 1, 1, 2, 7])
    rows = st.tuples(sizes, sizes).flatmap(
        lambda s: st.lists(st.lists(cells, min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
    )
    return rows.map(lambda values: np.array(values, np.int64))


def most_that_stay(shared_AB: np.ndarray) -> int:
    """Try every one-to-one assignment."""
    wide = shared_AB if shared_AB.shape[0] <= shared_AB.shape[1] else shared_AB.T
    own = range(len(wide))
    return max(
        sum(int(wide[a, b]) for a, b in zip(own, to, strict=True))
        for to in itertools.permutations(range(wide.shape[1]), len(wide))
    )


@given(matrices())
def test_align_keeps_as_many_documents_as_any_assignment(shared_AB):
    """One to one, and no pair without a document."""
    aligned_A = align(shared_AB)
    pairs = [(a, b) for a, b in enumerate(aligned_A.tolist()) if b != NOT_ALIGNED]
    assert len({b for _, b in pairs}) == len(pairs)
    assert all(shared_AB[pair] > 0 for pair in pairs)
    assert sum(int(shared_AB[pair]) for pair in pairs) == most_that_stay(shared_AB)


@given(
    st.integers(1, 4).flatmap(
        lambda size: st.lists(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=size, max_size=size), min_size=size, max_size=size)
    )
)
def test_align_with_one_rule_keeps_names_only_where_no_document_is_lost(values):
    """As many documents as any assignment, and of those assignments one with the most names kept."""
    shared_AB = np.array(values, np.int64)
    aligned_A = align(shared_AB, same_rule=True).tolist()
    own = range(len(shared_AB))
    kept = [
        (sum(int(shared_AB[a, b]) for a, b in zip(own, to, strict=True)), sum(a == b for a, b in zip(own, to, strict=True)))
        for to in itertools.permutations(own)
    ]
    pairs = [(a, b) for a, b in enumerate(aligned_A) if b != NOT_ALIGNED]
    assert all(shared_AB[pair] > 0 or pair[0] == pair[1] for pair in pairs)
    assert (sum(int(shared_AB[pair]) for pair in pairs), sum(a == b for a, b in pairs)) == max(kept)


def test_align_names_an_empty_domain_only_with_one_rule():
    """The third domain has no document in either."""
    shared_AB = np.array([[0, 4, 0], [4, 0, 0], [0, 0, 0]])
    assert align(shared_AB).tolist() == [1, 0, NOT_ALIGNED]
    assert align(shared_AB, same_rule=True).tolist() == [1, 0, 2]


def test_align_lets_a_domain_go_when_the_other_has_fewer():
    """Three domains, two counterparts."""
    assert align(np.array([[5, 0], [6, 1], [0, 9]])).tolist() == [NOT_ALIGNED, 0, 1]


@given(matrices(5))
def test_inverse_leads_back(shared_AB):
    """From each domain of the second to the one that is aligned with it."""
    aligned_A = align(shared_AB)
    aligned_B = inverse(aligned_A, shared_AB.shape[1])
    assert {(a, b) for a, b in enumerate(aligned_A.tolist()) if b >= 0} == {
        (a, b) for b, a in enumerate(aligned_B.tolist()) if a >= 0
    }


@given(matrices(5))
def test_adjusted_rand_is_that_of_scikit_learn(shared_AB):
    """From the labels that the table counts."""
    a, b = (np.repeat(index.ravel(), shared_AB.ravel()) for index in np.indices(shared_AB.shape))
    if len(a):
        assert adjusted_rand(shared_AB) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    else:
        assert adjusted_rand(shared_AB) is None


@pytest.mark.parametrize(
    ("shared_AB", "expected"),
    [([[0]], None), ([[1]], 1.0), ([[9]], 1.0), ([[0, 3], [5, 0]], 1.0), ([[2, 2], [2, 2]], -1 / 6), ([[3, 3]], 0.0)],
)
def test_adjusted_rand_at_the_edges(shared_AB, expected):
    """No document, one domain, the same domains, domains that have nothing to do with each other."""
    found = adjusted_rand(np.array(shared_AB, np.int64))
    assert found == (expected if expected is None else pytest.approx(expected))


def test_adjusted_rand_does_not_overflow():
    """A billion documents: a tenth of each half moves to the other."""
    part = 250_000_000
    small = adjusted_rand(np.array([[9 * 1_000_000, 1_000_000], [1_000_000, 9 * 1_000_000]]))
    large = adjusted_rand(np.array([[9 * part, part], [part, 9 * part]]))
    assert large == pytest.approx(0.64, abs=1e-6)
    assert large == pytest.approx(small, abs=1e-6)
