"""Laws for the loss of a model of N parameters after D pretraining and D' specialization tokens: pure functions.

A law is L = E_k + A/N^α + its terms in D and D', each a coefficient times a shape; a law may let D' release capacity, so that the
term in N falls with it. Every law has an E_k for each domain, the null law included, so that none wins by that alone. Another law
is one more entry of `LAWS`: the names, bounds and starts of its exponents, and the logarithms of its shapes with their gradients.
The loss is computed as a log-sum-exp of its terms, which is how scaling laws are fitted (arXiv 2404.10102). The forms are
assumptions: the law of arXiv 2603.19149 is not known to us.

Nothing here fits (see `scaling_fit`) or spends (see `allocation`). Imports numpy alone.

Shapes: R points, K domains, T terms in tokens, Q exponents of the law, P = K + 1 + T + 1 + Q parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Shapes = Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]
"""(exponents_Q, log D_R, log D'_R, which is -inf for 0) to (T, R) log shapes and (T, Q, R) their gradients."""


Release = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""(exponents_Q, log D'_R) to (R,) the log of what is left of the term in N, 0 without specialization, and (Q, R) its gradient."""


class Points(NamedTuple):
    """Where a loss is measured or predicted."""

    num_parameters_R: Floats
    """N, above 0."""
    pretraining_R: Floats
    """D in tokens, above 0."""
    specialization_R: Floats
    """D' in tokens, at least 0."""
    domain_R: npt.NDArray[np.int64]
    """Number of the domain on whose held-out documents it is."""

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Points":
        """Return some of the points."""
        sizes_R, pretraining_R, specialization_R, domain_R = self
        return Points(sizes_R[chosen], pretraining_R[chosen], specialization_R[chosen], domain_R[chosen])


class Exponent(NamedTuple):
    """One nonlinear parameter of a law."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    """Where fits start; tokens are counted in units of their geometric mean there."""


@dataclass(frozen=True)
class Law:
    """One form of the loss."""

    name: str
    formula: str
    coefficients: tuple[str, ...]
    """Names of the T terms' coefficients."""
    exponents: tuple[Exponent, ...]
    log_shapes: Shapes
    to_tokens: Callable[[Floats, float], Floats]
    """(exponents where tokens are counted in units of u, log u) to those where they are counted one by one."""
    release: Release | None = None
    """What specialization leaves of the term in N; None: all of it."""

    def log_release(self, exponent_Q: Floats, log_specialization_R: Floats) -> tuple[Floats, Floats]:
        """Return `release`, or that all is left."""
        if self.release is None:
            return np.zeros_like(log_specialization_R), np.zeros((len(exponent_Q), len(log_specialization_R)))
        return self.release(exponent_Q, log_specialization_R)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of all parameters but the E_k: log A, the logs of the coefficients, α, the exponents."""
        logs = tuple(f"log {name}" for name in ("A", *self.coefficients))
        return (*logs, SIZE_EXPONENT.name, *(each.name for each in self.exponents))


class Parameters(NamedTuple):
    """Values for a law's parameters, N and tokens counted one by one."""

    log_floor_K: Floats
    """log E_k."""
    log_size: float
    """log A; -inf where all runs had the same N, which then belongs to the E_k."""
    log_coefficient_T: Floats
    size_exponent: float
    """α."""
    exponent_Q: Floats

    def vector(self) -> Floats:
        """Return (P,) all of them, in this order."""
        return np.concatenate([self.log_floor_K, [self.log_size], self.log_coefficient_T, [self.size_exponent], self.exponent_Q])

    @classmethod
    def of(cls, vector_P: Floats, law: Law) -> "Parameters":
        """Return the parameters in a vector."""
        num_terms, num_exponents = len(law.coefficients), len(law.exponents)
        num_domains = len(vector_P) - 2 - num_terms - num_exponents
        parts = np.split(vector_P, np.cumsum([num_domains, 1, num_terms, 1]))
        return cls(parts[0], float(parts[1][0]), parts[2], float(parts[3][0]), parts[4])


SIZE_EXPONENT: Final = Exponent("alpha", 0.02, 2.0, (0.15, 0.4, 0.8))


def log_loss(law: Law, parameters_P: Floats, points: Points) -> tuple[Floats, Floats]:
    """Return the logarithm of the loss, and its gradient.

    Args:
        law: its form.
        parameters_P: see `Parameters`.
        points: where.

    Returns:
        (R,) log L in log nats per token, and (P, R) its derivatives by the parameters.

    >>> even = Parameters(np.zeros(1), 0.0, np.zeros(1), 0.3, np.array([0.3]))
    >>> points = Points(np.ones(1), np.ones(1), np.zeros(1), np.zeros(1, np.int64))
    >>> round(float(np.exp(log_loss(LAWS["F0"], even.vector(), points)[0][0])), 6)
    3.0
    """
    values = Parameters.of(parameters_P, law)
    log_size_R, log_pretraining_R = np.log(points.num_parameters_R), np.log(points.pretraining_R)
    log_specialization_R = _log(points.specialization_R)
    shapes_TR, gradient_TQR = law.log_shapes(values.exponent_Q, log_pretraining_R, log_specialization_R)
    release_R, release_QR = law.log_release(values.exponent_Q, log_specialization_R)
    terms = np.concatenate(
        [
            values.log_floor_K[points.domain_R][None],
            (values.log_size - values.size_exponent * log_size_R + release_R)[None],
            values.log_coefficient_T[:, None] + shapes_TR,
        ]
    )
    highest_R = terms.max(axis=0)
    weights = np.exp(terms - highest_R)
    total_R = weights.sum(axis=0)
    weights /= total_R
    num_domains = len(values.log_floor_K)
    floors_KR = np.where(np.arange(num_domains)[:, None] == points.domain_R, weights[0], 0.0)
    exponents_QR = np.einsum("tr,tqr->qr", weights[2:], gradient_TQR) + weights[1] * release_QR
    gradient_PR = np.concatenate([floors_KR, weights[1:], (-weights[1] * log_size_R)[None], exponents_QR])
    return highest_R + np.log(total_R), gradient_PR


def predict(law: Law, parameters: Parameters, points: Points) -> Floats:
    """Return (R,) the loss, nats per token."""
    return np.exp(log_loss(law, parameters.vector(), points)[0])


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _null(exponent_Q: Floats, pretraining_R: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    tokens_R = np.logaddexp(pretraining_R, specialization_R)
    return (-exponent_Q[0] * tokens_R)[None], -tokens_R[None, None]


def _separate(exponent_Q: Floats, pretraining_R: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    beta, gamma, offset = exponent_Q
    tokens_R = np.logaddexp(specialization_R, offset)
    zero_R = np.zeros_like(tokens_R)
    shapes_TR = np.stack([-beta * pretraining_R, -gamma * tokens_R])
    gradient = [[-pretraining_R, zero_R, zero_R], [zero_R, -tokens_R, -gamma * np.exp(offset - tokens_R)]]
    return shapes_TR, np.array(gradient)


def _transfer(exponent_Q: Floats, pretraining_R: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    beta, log_tau, delta = exponent_Q
    transferred_R = log_tau + delta * pretraining_R
    tokens_R = np.logaddexp(specialization_R, transferred_R)
    share_R = np.exp(transferred_R - tokens_R)
    gradient = [[-tokens_R, -beta * share_R, -beta * share_R * pretraining_R]]
    return (-beta * tokens_R)[None], np.array(gradient)


def _interacting(exponent_Q: Floats, pretraining_R: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    first, second, third, offset = exponent_Q
    tokens_R = np.logaddexp(specialization_R, offset)
    slope_R = third * pretraining_R - second
    gradient = [[-pretraining_R, -tokens_R, pretraining_R * tokens_R, slope_R * np.exp(offset - tokens_R)]]
    return (slope_R * tokens_R - first * pretraining_R)[None], np.array(gradient)


def _with_release(exponent_Q: Floats, pretraining_R: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    shapes_TR, gradient_TQR = _interacting(exponent_Q[:4], pretraining_R, specialization_R)
    return shapes_TR, np.concatenate([gradient_TQR, np.zeros((1, 1, len(pretraining_R)))], axis=1)


def _release(exponent_Q: Floats, specialization_R: Floats) -> tuple[Floats, Floats]:
    offset, delta = exponent_Q[3:]
    grown_R = np.logaddexp(specialization_R, offset) - offset
    zero_R = np.zeros_like(grown_R)
    return -delta * grown_R, np.stack([zero_R, zero_R, zero_R, -delta * np.expm1(-grown_R), -grown_R])


def _unchanged(exponent_Q: Floats, _log_unit: float) -> Floats:
    return exponent_Q


def _separate_in_tokens(exponent_Q: Floats, log_unit: float) -> Floats:
    beta, gamma, offset = exponent_Q
    return np.array([beta, gamma, offset + log_unit])


def _transfer_in_tokens(exponent_Q: Floats, log_unit: float) -> Floats:
    beta, log_tau, delta = exponent_Q
    return np.array([beta, log_tau + (1 - delta) * log_unit, delta])


def _interacting_in_tokens(exponent_Q: Floats, log_unit: float) -> Floats:
    first, second, third, offset = exponent_Q
    return np.array([first + third * log_unit, second + third * log_unit, third, offset + log_unit])


def _with_release_in_tokens(exponent_Q: Floats, log_unit: float) -> Floats:
    return np.append(_interacting_in_tokens(exponent_Q[:4], log_unit), exponent_Q[4])


_OFFSET: Final = Exponent("log d0", -12.0, 3.0, (-6.0, -3.0))
_INTERACTION: Final = (
    Exponent("alpha1", -0.5, 2.0, (0.1, 0.4)),
    Exponent("alpha2", -0.5, 2.0, (0.05, 0.2)),
    Exponent("alpha3", -0.5, 0.5, (-0.02, 0.02)),
    _OFFSET,
)

LAWS: Final[dict[str, Law]] = {
    law.name: law
    for law in (
        Law(
            "F0",
            "E_k + A/N^alpha + B/(D + D')^beta",
            ("B",),
            (Exponent("beta", 0.02, 2.0, (0.15, 0.4, 0.8)),),
            _null,
            _unchanged,
        ),
        Law(
            "F1",
            "E_k + A/N^alpha + B/D^beta + C/(D' + d0)^gamma",
            ("B", "C"),
            (Exponent("beta", 0.02, 2.0, (0.2, 0.6)), Exponent("gamma", 0.02, 2.0, (0.2, 0.6)), _OFFSET),
            _separate,
            _separate_in_tokens,
        ),
        Law(
            "F2",
            "E_k + A/N^alpha + B/(D' + tau D^delta)^beta",
            ("B",),
            (
                Exponent("beta", 0.02, 2.0, (0.2, 0.6)),
                Exponent("log tau", -10.0, 3.0, (-4.0, -1.0)),
                Exponent("delta", 0.05, 1.5, (0.4, 0.8)),
            ),
            _transfer,
            _transfer_in_tokens,
        ),
        Law(
            "F3",
            "E_k + A/N^alpha + C D^(-alpha1) (D' + d0)^(-alpha2 + alpha3 log D)",
            ("C",),
            _INTERACTION,
            _interacting,
            _interacting_in_tokens,
        ),
        Law(
            "F4",
            "E_k + A/N^alpha (1 + D'/d0)^-delta + C D^(-alpha1) (D' + d0)^(-alpha2 + alpha3 log D)",
            ("C",),
            (*_INTERACTION, Exponent("delta", 0.0, 1.5, (0.1,))),
            _with_release,
            _with_release_in_tokens,
            _release,
        ),
    )
}
"""F0, the null, is Chinchilla's law on all tokens alike (arXiv 2203.15556, section 3.3); F1 has separate contributions; F2 counts
pretraining tokens as so many specialization tokens (effective transfer, arXiv 2102.01293); in F3 the two act on each other; in F4
a model that has one domain to hold, and no longer all of them, does with less capacity: specialization takes from the term in N.
Bounds and starts are assumptions, wide of what was published.
"""
