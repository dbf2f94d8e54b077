"""Which experts answer a text together, with which weights, and the next-token probabilities that they have together.

    p(k | x) ∝ exp(2 · score_k / T),  of which the largest are kept        p(token | x) = Σ_k p(k | x) · p_k(token | x)

For unit vectors without prices that is c-BTM's exp(−d² / T) (arXiv 2303.14177, section 2.3); with prices its highest is the
placement, where the distance alone might name another domain. Pure functions; this runs no model.

Shapes: N texts, K domains or experts, V tokens.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

Floats = npt.NDArray[np.float64]

TEMPERATURE: Final = 0.1
"""c-BTM's (arXiv 2303.14177, section 4.4)."""
_LOG_TEMPERATURE: Final = (-9.0, 3.0)
"""Where the best temperature is looked for."""


def mixture_weights(scores_NK: npt.ArrayLike, temperature: float, num_experts: int) -> Floats:
    """Return (N, K) the weight of each expert, rows adding up to 1; 0 for all but the best `num_experts`.

    Args:
        scores_NK: how well each text fits each domain: see `router.scores`, `PromptRule.scores`.
        temperature: T, above 0.
        num_experts: how many experts answer, at least 1; of equal ones the first.

    >>> mixture_weights([[0.5, 0.5, 0.1]], 0.1, 2)
    array([[0.5, 0.5, 0. ]])
    """
    logits_NK = 2 * np.asarray(scores_NK, np.float64) / temperature
    ranks_NK = np.argsort(np.argsort(-logits_NK, axis=1, kind="stable"), axis=1, kind="stable")
    kept_NK = np.where(ranks_NK < num_experts, logits_NK, -np.inf)
    weights_NK = np.exp(kept_NK - kept_NK.max(axis=1, keepdims=True))  # scipy's softmax costs a prompt 0.1 ms
    return np.asarray(weights_NK / weights_NK.sum(axis=1, keepdims=True))


def fit_temperature(scores_NK: npt.ArrayLike, domain_N: npt.ArrayLike) -> float:
    """Return the T at which the weights of all experts say best where texts belong: maximum likelihood.

    Args:
        scores_NK: of what is known of each text, such as its prefix.
        domain_N: where the text belongs, such as where the whole document is placed.
    """
    scores, domains = np.asarray(scores_NK, np.float64), np.asarray(domain_N)

    def nats(log_temperature: float) -> float:
        """Return the mean surprise."""
        logits_NK = 2 * scores / np.exp(log_temperature)
        return float((logsumexp(logits_NK, axis=1) - logits_NK[np.arange(len(domains)), domains]).mean())

    return float(np.exp(minimize_scalar(nats, bounds=_LOG_TEMPERATURE, method="bounded").x))


def mix(log_probabilities_KNV: npt.ArrayLike, weights_NK: npt.ArrayLike) -> Floats:
    """Return (N, V) the logarithms of the mixed probabilities.

    Args:
        log_probabilities_KNV: of each expert; V may be the tokens of a vocabulary, or the one token that was seen.
        weights_NK: of each expert, rows adding up to 1.
    """
    log_probabilities = np.asarray(log_probabilities_KNV, np.float64)
    weights_KN1 = np.asarray(weights_NK, np.float64).T[:, :, None]
    return np.asarray(logsumexp(log_probabilities, axis=0, b=np.broadcast_to(weights_KN1, log_probabilities.shape)))
