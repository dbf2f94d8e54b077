"""The plane of t-SNE, beside scikit-learn's: neighbours stay neighbours as well as they do there."""

import numpy as np
import pytest
from sklearn.manifold import TSNE, trustworthiness

from lmsplit.manifests.projection import project


def groups(num_rows: int, num_groups: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors about some centres, and which centre each belongs to."""
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(num_groups, 40))
    group_N = generator.integers(num_groups, size=num_rows)
    vectors_ND = (centres[group_N] + generator.normal(size=(num_rows, 40))).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), group_N


def test_project_keeps_neighbours_as_scikit_learn_does() -> None:
    """Trustworthiness within 0.01 of theirs."""
    vectors_ND, _ = groups(150)
    ours = trustworthiness(vectors_ND, project(vectors_ND))
    theirs = trustworthiness(vectors_ND, TSNE(random_state=0, init="pca").fit_transform(vectors_ND))
    assert ours > theirs - 0.01


def test_project_parts_groups() -> None:
    """Nearly every row's nearest neighbour in the plane is of its own group."""
    vectors_ND, group_N = groups(150)
    places_N2 = project(vectors_ND)
    squares_NN = ((places_N2[:, None] - places_N2[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares_NN, np.inf)
    assert np.mean(group_N[squares_NN.argmin(axis=1)] == group_N) > 0.97


def test_project_is_reproducible_and_bounded() -> None:
    """The same rows, the same picture; centred, the farthest coordinate 1."""
    vectors_ND, _ = groups(120)
    places_N2 = project(vectors_ND)
    assert np.array_equal(places_N2, project(vectors_ND))
    assert np.abs(places_N2).max() == pytest.approx(1)
    assert np.abs(places_N2.mean(axis=0)).max() < 1e-5


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 5])
def test_project_lays_out_few_rows(num_rows: int) -> None:
    """However few, each row has a finite place."""
    places_N2 = project(np.eye(8, dtype=np.float32)[:num_rows])
    assert places_N2.shape == (num_rows, 2)
    assert np.isfinite(places_N2).all()


def test_project_lays_out_equal_rows() -> None:
    """All on one point in the data, all in the picture."""
    places_N2 = project(np.ones((40, 4), np.float32))
    assert np.isfinite(places_N2).all()


def test_project_lays_out_many_copies_beside_others() -> None:
    """Duplicates, which have no distance to tell them apart, do no harm."""
    vectors_ND, _ = groups(60)
    places_N2 = project(np.concatenate([vectors_ND, np.repeat(vectors_ND[:1], 60, axis=0)]))
    assert np.isfinite(places_N2).all()
