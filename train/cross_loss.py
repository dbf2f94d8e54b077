"""Every expert on every domain: what specialization is worth, what it costs elsewhere, and when that matters.

    M[k, j] = L_j(θ_k) − L_j(θ₀)      expert k's loss on domain j, less the seed's
    S = −mean_k M[k, k]               specialization
    I = mean_{k≠j} max(0, M[k, j])    interference

A router that always names the right expert sees S alone; one that errs sees other entries too. Pure arithmetic on losses in any
one unit (nats per token, bits per byte); this does *not* measure them. See `text_losses` and the runs' records.

Shapes: K experts, one for each domain; J domains; N documents.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
_TOLERANCE: Final = 1e-9


def cross_loss(losses_KJ: npt.ArrayLike, seed_J: npt.ArrayLike) -> Matrix:
    """Return M: each expert's loss on each domain, less the seed's.

    Args:
        losses_KJ: each expert's loss on each domain.
        seed_J: the seed's.

    Raises:
        ValueError: the shapes do not fit.
    """
    losses, seed = np.asarray(losses_KJ, np.float64), np.asarray(seed_J, np.float64)
    if losses.ndim != 2 or seed.shape != losses.shape[1:]:
        raise ValueError(f"losses have shape {losses.shape} and the seed's {seed.shape}: expected (K, J) and (J,)")
    return losses - seed


def from_records(losses: Mapping[str, Mapping[str, float]], seed: Mapping[str, float]) -> tuple[Matrix, list[str]]:
    """Return M of the experts that there are, over their own domains.

    Args:
        losses: by expert's domain, its loss by domain.
        seed: the seed's loss by domain.

    Returns:
        (K, K) M, and the domains.

    >>> from_records({"d00000": {"d00000": 1.0}}, {"d00000": 3.0, "d00001": 4.0})
    (array([[-2.]]), ['d00000'])
    """
    domains = sorted(losses)
    table = [[losses[expert][domain] for domain in domains] for expert in domains]
    return cross_loss(np.reshape(table, (len(domains), len(domains))), [seed[domain] for domain in domains]), domains


def by_domain(nats_KN: npt.ArrayLike, units_N: npt.ArrayLike, domain_N: npt.ArrayLike, num_domains: int) -> Matrix:
    """Return (K, J) the loss of each model on each domain, from its loss on each of N documents.

    Args:
        nats_KN: each model's nats on each document.
        units_N: what the loss is counted in: tokens or bytes of each document.
        domain_N: number of each document's domain.
        num_domains: J; one with nothing in it has NaN.

    >>> by_domain([[1.0, 2.0, 3.0]], [1, 1, 2], [0, 0, 1], 2)
    array([[1.5, 1.5]])
    """
    is_in_NJ = np.asarray(domain_N)[:, None] == np.arange(num_domains)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.asarray(nats_KN, np.float64) @ is_in_NJ) / (np.asarray(units_N) @ is_in_NJ))


def specialization(m_KK: Matrix) -> float:
    """Return S: how much lower than the seed's each expert's loss on its own domain is, on average.

    >>> specialization(np.array([[-0.5, 0.25], [0.125, -0.25]]))
    0.375
    """
    return float(-np.diag(_square(m_KK)).mean())


def interference(m_KK: Matrix) -> float:
    """Return I: how much higher than the seed's the experts' losses on other domains are, on average; where lower, 0.

    >>> interference(np.array([[-0.5, 0.25], [-0.125, -0.25]]))
    0.125
    """
    others = ~np.eye(len(_square(m_KK)), dtype=bool)
    return float(np.maximum(0.0, m_KK[others]).mean()) if others.any() else 0.0


def misrouting(m_KK: Matrix, epsilon: float, where_JK: npt.ArrayLike | None = None) -> Matrix:
    """Return (J, K) the share of each domain's texts that goes to each expert when ε of them are misrouted.

    Args:
        m_KK: the matrix, for its size.
        epsilon: share of the texts that goes to another expert, 0 to 1.
        where_JK: where misrouted texts of each domain go, rows adding up to 1 with 0 on the diagonal; None: to all alike.
    """
    size = len(_square(m_KK))
    if size == 1 and epsilon:
        raise ValueError("where there is one expert, no text is misrouted")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"a share of misrouted texts is between 0 and 1, not {epsilon}")
    elsewhere = (1 - np.eye(size)) / max(1, size - 1) if where_JK is None else np.asarray(where_JK, np.float64)
    is_elsewhere = elsewhere.shape == (size, size) and np.abs(np.diag(elsewhere)).max() <= _TOLERANCE
    if not is_elsewhere or elsewhere.min() < 0:
        raise ValueError("misrouted texts go to other experts: expected a (J, K) matrix of shares with 0 on its diagonal")
    if size > 1 and np.abs(elsewhere.sum(axis=1) - 1).max() > _TOLERANCE:
        raise ValueError("each row of where misrouted texts go adds up to 1")
    return np.asarray((1 - epsilon) * np.eye(size) + epsilon * elsewhere)


def routed_loss(losses_KJ: npt.ArrayLike, routes_JK: npt.ArrayLike, shares_J: npt.ArrayLike | None = None) -> float:
    """Return the mean loss of texts that are routed to experts.

    Args:
        losses_KJ: each expert's loss on each domain, or M.
        routes_JK: share of each domain's texts that goes to each expert.
        shares_J: of the texts; None: all domains alike.

    >>> routed_loss([[1.0, 3.0], [3.0, 1.0]], misrouting(np.zeros((2, 2)), 0.25))
    1.5
    """
    losses, routes = np.asarray(losses_KJ, np.float64), np.asarray(routes_JK, np.float64)
    weights = np.ones(losses.shape[1]) if shares_J is None else np.asarray(shares_J, np.float64)
    return float(np.average((routes * losses.T).sum(axis=1), weights=weights))


def break_even(plain_KK: Matrix, other_KK: Matrix, where_JK: npt.ArrayLike | None = None) -> float:
    """Return ε*: the share of misrouted texts from which on `other` has the lower routed loss.

    With Δ_own what `other` gives up on the own domains and Δ_off what it saves on the others, ε* = Δ_own / (Δ_own + Δ_off).

    Args:
        plain_KK: M of experts without a penalty.
        other_KK: M of experts with one, on the same texts.
        where_JK: see `misrouting`.

    Returns:
        0 where `other` gives up nothing on the own domains and loses nothing on the others; infinity where it saves nothing
        on these, or loses there.

    >>> break_even(np.array([[-1.0, 0.5], [0.5, -1.0]]), np.array([[-0.9, 0.2], [0.2, -0.9]]))
    0.25
    """
    right = misrouting(plain_KK, 0.0, where_JK)
    given_up, saved = routed_loss(other_KK, right) - routed_loss(plain_KK, right), 0.0
    if len(plain_KK) > 1:
        wrong = misrouting(plain_KK, 1.0, where_JK)
        saved = routed_loss(plain_KK, wrong) - routed_loss(other_KK, wrong)
    if given_up <= 0 and saved >= -_TOLERANCE:
        return 0.0
    return round(given_up / (given_up + saved), 12) if saved > 0 else float("inf")


def _square(matrix: Matrix) -> Matrix:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"M has shape {matrix.shape}: expected a row and a column for each domain")
    return matrix
