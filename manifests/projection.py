"""Lays vectors out in the plane, near ones near each other: exact t-SNE (van der Maaten and Hinton 2008), for some thousand.

It is our own because what has it (scikit-learn, openTSNE, umap-learn) is no light dependency, and an auditor's install is light.
Distances between far groups mean nothing in such a picture; neighbourhoods do.

Cost: O(N²) time and memory for each of 500 steps; about 10 s for 1,500 rows on two cores. The same rows give the same picture on
one machine.

Shape legend: N rows, D dimensions.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.placement import Floats

Doubles = npt.NDArray[np.float64]

_PERPLEXITY: Final = 30.0
_STEPS: Final = 500
_EARLY_STEPS: Final = 120
_EXAGGERATION: Final = 12.0  # of the attraction in the early steps: the authors' 4 to 12
_BISECTIONS: Final = 50
_TINY: Final = 1e-12


def project(vectors_ND: Floats) -> Floats:
    """Return (N, 2) places in the plane, centred, the farthest coordinate 1.

    Args:
        vectors_ND: finite rows, at most some thousand of them.

    >>> project(np.eye(3, dtype=np.float32)).shape
    (3, 2)
    """
    num_rows = len(vectors_ND)
    if num_rows < 3 or not np.ptp(vectors_ND, axis=0).any():
        places_N2 = np.zeros((num_rows, 2))
        places_N2[:, 0] = np.arange(num_rows)
    else:
        places_N2 = _descend(_affinities(vectors_ND), _principal_plane(vectors_ND))
    places_N2 -= places_N2.mean(axis=0, keepdims=True) if num_rows else 0.0
    return np.asarray(places_N2 / max(float(np.abs(places_N2).max(initial=0.0)), _TINY), np.float32)


def _squares(rows_ND: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, N) squared distances."""
    lengths_N = np.einsum("nd,nd->n", rows_ND, rows_ND)
    squares_NN = rows_ND @ rows_ND.T
    squares_NN *= -2.0
    squares_NN += lengths_N[:, None]
    squares_NN += lengths_N[None, :]
    np.maximum(squares_NN, 0.0, out=squares_NN)
    np.fill_diagonal(squares_NN, 0.0)
    return squares_NN


def _affinities(vectors_ND: Floats) -> Floats:
    """Return (N, N) symmetric shares that sum to 1: how near two rows are, each row having as many neighbours as any other."""
    squares_NN = _squares(vectors_ND.astype(np.float64))
    np.fill_diagonal(squares_NN, np.inf)
    squares_NN -= squares_NN.min(axis=1, keepdims=True)
    wanted = np.log(min(_PERPLEXITY, (len(vectors_ND) - 1) / 3))
    low_N, high_N = np.full(len(squares_NN), 1e-10), np.full(len(squares_NN), 1e10)  # of the precision
    finite_NN = np.where(np.isinf(squares_NN), 0.0, squares_NN)
    for _ in range(_BISECTIONS):
        precision_N = np.sqrt(low_N * high_N)
        shares_NN = np.exp(-squares_NN * precision_N[:, None])
        sums_N = shares_NN.sum(axis=1)
        entropy_N = np.log(sums_N) + precision_N * np.einsum("nm,nm->n", finite_NN, shares_NN) / sums_N
        too_wide_N = entropy_N > wanted
        low_N, high_N = np.where(too_wide_N, precision_N, low_N), np.where(too_wide_N, high_N, precision_N)
    shares_NN /= sums_N[:, None]
    return np.asarray((shares_NN + shares_NN.T) / (2 * len(shares_NN)), np.float32)


def _principal_plane(vectors_ND: Floats) -> Doubles:
    """Return (N, 2) where to start from, so that the whole of the picture is not left to chance."""
    centred_ND = vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64)
    values_D, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    axes_D2 = axes_DD[:, np.argsort(values_D)[::-1][:2]]
    largest_2 = np.abs(axes_D2).argmax(axis=0)
    axes_D2 = axes_D2 * np.sign(axes_D2[largest_2, np.arange(axes_D2.shape[1])])  # an eigenvector's sign is free
    places_N2 = np.zeros((len(vectors_ND), 2))
    places_N2[:, : axes_D2.shape[1]] = centred_ND @ axes_D2
    ties_N2 = np.random.default_rng(0).normal(size=places_N2.shape)  # equal rows could never part
    return places_N2 * 1e-4 / max(float(places_N2[:, 0].std()), _TINY) + ties_N2 * 1e-6


def _descend(affinities_NN: Floats, places_N2: Doubles) -> Doubles:
    """Move the places down the gradient of the divergence between affinities and nearness in the plane."""
    velocity_N2, gains_N2 = np.zeros_like(places_N2), np.ones_like(places_N2)
    rate = max(len(places_N2) / _EXAGGERATION / 4, 50.0)  # Belkina and others 2019, as scikit-learn has it
    for step in range(_STEPS):
        early = step < _EARLY_STEPS
        gradient_N2 = _gradient(affinities_NN, places_N2, _EXAGGERATION if early else 1.0)
        against_N2 = np.sign(gradient_N2) != np.sign(velocity_N2)
        gains_N2 = np.maximum(np.where(against_N2, gains_N2 + 0.2, gains_N2 * 0.8), 0.01)
        velocity_N2 = (0.5 if early else 0.8) * velocity_N2 - rate * gains_N2 * gradient_N2
        places_N2 = places_N2 + velocity_N2
    return places_N2


def _gradient(affinities_NN: Floats, places_N2: Doubles, exaggeration: float) -> Doubles:
    nearness_NN = _squares(places_N2.astype(np.float32))
    nearness_NN += 1.0
    np.reciprocal(nearness_NN, out=nearness_NN)
    np.fill_diagonal(nearness_NN, 0.0)
    total = float(nearness_NN.sum(dtype=np.float64))
    pull_NN = affinities_NN * np.float32(exaggeration)
    pull_NN -= nearness_NN * np.float32(1.0 / max(total, _TINY))
    pull_NN *= nearness_NN
    return np.asarray(4.0 * (pull_NN.sum(axis=1)[:, None] * places_N2 - pull_NN @ places_N2.astype(np.float32)), np.float64)
