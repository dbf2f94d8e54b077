"""Fits a scaling law to measured losses, robustly, from many starts, and says how sure the fit is.

```
points, losses ─► exponents on a grid, coefficients by non-negative least squares ─► the best starts ─► Huber loss of log L ─► Fit
                                                                            Fit ─► the same on runs drawn again ─► bootstrap
```

Residuals are of log L, the loss is Huber's. Its threshold is 1.345 times the noise that the residuals show, which keeps 95 % of
the efficiency of least squares (Huber 1981), and at least 1e-3, which the literature takes throughout: at 0.5 % of noise that
would be a median regression, which needs half as many runs again for the same error. Minimised by a trust region with the law's
analytic gradient and bounds: second-order, so that it does not stop where L-BFGS does (arXiv 2404.10102 shows what that costs).

This does *not* choose between laws (see `scaling_choice`). Costs about 50 ms for two hundred runs, and up to 15 for each draw.

Shapes: R runs, K domains, P parameters, T terms in tokens, Q exponents.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import SIZE_EXPONENT, Floats, Law, Parameters, Points, log_loss, predict

_LEAST_DELTA: Final = 1e-3
_FIRST_DELTA: Final = 1e-2
_EFFICIENT: Final = 1.345
_DEVIATION: Final = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""
_NUM_STARTS: Final = 6
"""Starts that are followed, of all on the grid, for so many steps; the best of them to its end (assumptions)."""
_FIRST_STEPS: Final = 20
_MOST_STEPS: Final = 200
_LOG_COEFFICIENT: Final = (-15.0, 8.0)
"""Bounds of log A, B, C, counted in units of the geometric means of the runs: nats that a term has there."""
_AT_BOUND: Final = 1e-3
_FLAT: Final = 1e-5
"""Ratio of singular values of the gradients, each of length 1, below which the runs say nothing of a combination of parameters
(assumption).
"""
_LOW_LOSS: Final = 0.1
"""Quantile of a domain's losses that its E_k is at most: the lowest one may be a run that went wrong (assumption)."""
_LEAST_LEFT: Final = 0.05
"""Share of a group's say that the fit leaves over at least, so that a group that alone says something does not explode."""
_WEBB: Final = np.array([-(1.5**0.5), -1.0, -(0.5**0.5), 0.5**0.5, 1.0, 1.5**0.5])
"""Random signs for few groups (Webb 2023, doi 10.1111/caje.12661): mean 0, variance 1."""


@dataclass(frozen=True)
class Fit:
    """A law with the parameters that fit some runs."""

    law: Law
    parameters: Parameters
    """N and tokens counted one by one."""
    residual_R: Floats
    """log of predicted ÷ measured."""
    huber_delta: float
    at_bounds: tuple[str, ...]
    """Parameters that the runs push against the edge of what is allowed: they do not pin these down."""
    num_free: int
    """Parameters fitted."""
    is_pinned_down: bool = True
    """Whether the runs tell all parameters apart: another N, D or D' may be missing from them."""

    def predict(self, points: Points) -> Floats:
        """Return (R,) the loss, nats per token."""
        return predict(self.law, self.parameters, points)

    def mean_relative_error(self) -> float:
        """Return the mean of |predicted − measured| ÷ measured over the runs."""
        return float(np.abs(np.expm1(self.residual_R)).mean())


def fit(law: Law, points: Points, loss_R: Floats) -> Fit:
    """Fit a law.

    Args:
        law: its form.
        points: of the runs; domains are numbered from 0 without a gap.
        loss_R: (R,) held-out loss, nats per token, above 0.

    Raises:
        ConfigurationError: there are fewer runs than parameters.
    """
    problem = _Problem(law, points, loss_R)
    if len(loss_R) <= problem.num_free:
        raise ConfigurationError(
            f"law {law.name} has {problem.num_free} parameters, and there are {len(loss_R)} runs to fit it to: add runs"
        )
    starts = problem.starts()[:_NUM_STARTS]
    first = [problem.solve(start, _FIRST_DELTA, max_steps=_FIRST_STEPS) for start in starts]
    best = min(first, key=lambda found: float(found.cost))
    delta = huber_threshold(problem.residuals(best.x))
    best = problem.solve(best.x, delta)
    return problem.fit(best.x, delta)


def random_factors(points: Points, num_draws: int, seed: int = 0) -> Floats:
    """Return (num_draws, R) what a bootstrap multiplies the runs' errors with: one number for all runs of one seed model."""
    group_R = _seed_models(points)
    return np.random.default_rng(seed).choice(_WEBB, (num_draws, group_R.max() + 1))[:, group_R]


def bootstrap(found: Fit, points: Points, loss_R: Floats, factors_BR: Floats) -> Iterator[Fit]:
    """Fit the law again to losses whose errors are drawn anew, by groups: a wild cluster bootstrap (doi 10.1162/rest.90.3.414).

    Runs with one N and D share a seed model, and with it a part of their errors: the residuals of such a group are all multiplied
    with one random number of mean 0 and variance 1 (Webb's six). The runs stay, so that no draw lacks a size or a domain.
    Residuals are smaller than errors, since the fit went after them, most of all where a group alone says something: they are
    replaced by what they would be had the fit not seen the group (CR3, arXiv 2301.04527).

    Args:
        found: the fit to all runs, from which each fit starts.
        points: of the runs.
        loss_R: (R,) their losses.
        factors_BR: for B fits, see `random_factors`.
    """
    problem = _Problem(found.law, points, loss_R)
    start = problem.vector(found.parameters)
    error_R = problem.errors(start, _seed_models(points))
    for factor_R in factors_BR:
        drawn_R = problem.log_loss_R + found.residual_R + factor_R * error_R
        yield problem.fit(problem.solve(start, found.huber_delta, drawn_R).x, found.huber_delta)


def _seed_models(points: Points) -> npt.NDArray[np.int64]:
    """Return (R,) a number for each N and D: these runs share a seed model."""
    _, group_R = np.unique(np.stack([points.num_parameters_R, points.pretraining_R], axis=1), axis=0, return_inverse=True)
    return np.asarray(group_R.ravel())


def huber_threshold(residual_R: Floats) -> float:
    """Return the threshold of Huber's loss that suits the noise in these residuals."""
    return max(_LEAST_DELTA, _EFFICIENT * _DEVIATION * float(np.median(np.abs(residual_R))))


def spread(value: float, draws: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """Return the interval around a positive value that a fit predicts, from what its bootstrap predicts.

    Args:
        value: what it predicts.
        draws: what each fit of its bootstrap predicts.
        level: share of the draws inside.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), value), max(float(high), value)


class _Problem:
    """A law and runs, with N and tokens in units of their geometric means, and parameters that have no effect held still."""

    def __init__(self, law: Law, points: Points, loss_R: Floats) -> None:
        self.law = law
        self.log_loss_R = np.log(loss_R)
        self.log_unit_size = float(np.log(points.num_parameters_R).mean())
        self.log_unit_tokens = float(np.log(points.pretraining_R).mean())
        self.points = Points(
            points.num_parameters_R / np.exp(self.log_unit_size),
            points.pretraining_R / np.exp(self.log_unit_tokens),
            points.specialization_R / np.exp(self.log_unit_tokens),
            points.domain_R,
        )
        self.num_domains = int(points.domain_R.max()) + 1
        low_loss_K = [np.quantile(self.log_loss_R[points.domain_R == each], _LOW_LOSS) for each in range(self.num_domains)]
        num_terms = len(law.coefficients)
        exponents = (SIZE_EXPONENT, *law.exponents)
        low, high = _LOG_COEFFICIENT
        self.low_P = np.concatenate(
            [np.full(self.num_domains, -8.0), np.full(1 + num_terms, low), [each.low for each in exponents]]
        )
        self.high_P = np.concatenate([low_loss_K, np.full(1 + num_terms, high), [each.high for each in exponents]])
        self.has_sizes = len(np.unique(points.num_parameters_R)) > 1
        self.free_P = np.ones(len(self.low_P), bool)
        if not self.has_sizes:
            self.free_P[[self.num_domains, self.num_domains + 1 + num_terms]] = False

    @property
    def num_free(self) -> int:
        """Return the number of parameters that the runs decide."""
        return int(self.free_P.sum())

    def starts(self) -> list[Floats]:
        """Return start vectors, the best one first."""
        found = []
        sizes = SIZE_EXPONENT.starts if self.has_sizes else SIZE_EXPONENT.starts[:1]
        for size_exponent, *exponents in itertools.product(sizes, *(each.starts for each in self.law.exponents)):
            found.append(self._start(size_exponent, np.array(exponents)))
        return sorted(found, key=lambda start: float(np.abs(self.residuals(start)).sum()))

    def _start(self, size_exponent: float, exponent_Q: Floats) -> Floats:
        """Return exponents with the coefficients that fit best: they are linear in the loss."""
        points = self.points
        with np.errstate(divide="ignore"):
            specialization_R = np.log(points.specialization_R)
        shapes_TR, _ = self.law.log_shapes(exponent_Q, np.log(points.pretraining_R), specialization_R)
        columns = [points.domain_R == domain for domain in range(self.num_domains)]
        release_R, _ = self.law.log_release(exponent_Q, specialization_R)
        columns += [points.num_parameters_R**-size_exponent * np.exp(release_R) * self.has_sizes, *np.exp(shapes_TR)]
        loss_R = np.exp(self.log_loss_R)
        coefficients, _ = nnls(np.stack(columns, axis=1) / loss_R[:, None], np.ones(len(loss_R)))
        logs = np.log(np.maximum(coefficients, 1e-3))
        start = np.concatenate([logs, [size_exponent], exponent_Q])
        inside_P: Floats = np.clip(start, self.low_P + _AT_BOUND, self.high_P - _AT_BOUND)
        return inside_P

    def solve(self, start_P: Floats, delta: float, log_loss_R: Floats | None = None, max_steps: int = _MOST_STEPS) -> Any:
        """Minimise Huber's loss from a start, of the measured losses or of others; `x` has all parameters."""
        wanted_R = self.log_loss_R if log_loss_R is None else log_loss_R
        full = start_P.copy()

        def evaluate(free: Floats) -> tuple[Floats, Floats]:
            """Return residuals and Jacobian."""
            full[self.free_P] = free
            predicted_R, gradient_PR = log_loss(self.law, self._effective(full), self.points)
            return predicted_R - wanted_R, gradient_PR[self.free_P].T

        cached: dict[bytes, tuple[Floats, Floats]] = {}

        def once(free: Floats) -> tuple[Floats, Floats]:
            """Return what was computed for the same parameters just before."""
            key = free.tobytes()
            if key not in cached:
                cached.clear()
                cached[key] = evaluate(free)
            return cached[key]

        inside = np.clip(start_P, self.low_P + 1e-9, self.high_P - 1e-9)[self.free_P]
        found = least_squares(
            lambda free: once(free)[0],
            inside,
            jac=lambda free: once(free)[1],
            bounds=(self.low_P[self.free_P], self.high_P[self.free_P]),
            loss="huber",
            f_scale=delta,
            max_nfev=max_steps,
        )
        full[self.free_P] = found.x
        found.x = full
        return found

    def errors(self, vector_P: Floats, group_R: npt.NDArray[np.int64]) -> Floats:
        """Return (R,) log of measured ÷ predicted by a fit that had not seen the run's group, to first order."""
        gradient_RP = log_loss(self.law, self._effective(vector_P), self.points)[1][self._inner(vector_P)].T
        basis_RP, singular, _ = np.linalg.svd(gradient_RP / (np.linalg.norm(gradient_RP, axis=0) + 1e-300), full_matrices=False)
        basis_RP = basis_RP[:, singular > _FLAT * singular[0]]
        error_R = -self.residuals(vector_P)
        for group in range(group_R.max() + 1):
            rows = group_R == group
            left, vectors = np.linalg.eigh(np.eye(rows.sum()) - basis_RP[rows] @ basis_RP[rows].T)
            error_R[rows] = vectors @ (1 / np.maximum(left, _LEAST_LEFT) * (vectors.T @ error_R[rows]))
        return error_R

    def residuals(self, vector_P: Floats) -> Floats:
        """Return (R,) log of predicted ÷ measured."""
        return log_loss(self.law, self._effective(vector_P), self.points)[0] - self.log_loss_R

    def _effective(self, vector_P: Floats) -> Floats:
        """Return the parameters with A switched off where N is the same in all runs."""
        if self.has_sizes:
            return vector_P
        switched_P: Floats = vector_P.copy()
        switched_P[self.num_domains] = -np.inf
        return switched_P

    def fit(self, vector_P: Floats, delta: float) -> Fit:
        """Return a fit with its parameters counted in single parameters and tokens."""
        names = (*(f"log E_{domain}" for domain in range(self.num_domains)), *self.law.parameter_names)
        near_P = (vector_P - self.low_P < _AT_BOUND) | (self.high_P - vector_P < _AT_BOUND)
        at_bounds = tuple(name for name, near, free in zip(names, near_P, self.free_P, strict=True) if near and free)
        return Fit(
            self.law,
            self._natural(vector_P),
            self.residuals(vector_P),
            delta,
            at_bounds,
            self.num_free,
            self._is_pinned_down(vector_P),
        )

    def _inner(self, vector_P: Floats) -> npt.NDArray[np.bool_]:
        """Return (P,) which parameters are free and not at their bounds."""
        inner_P: npt.NDArray[np.bool_] = (
            self.free_P & (vector_P - self.low_P >= _AT_BOUND) & (self.high_P - vector_P >= _AT_BOUND)
        )
        return inner_P

    def _is_pinned_down(self, vector_P: Floats) -> bool:
        """Whether the losses react to every combination of the parameters that are not at their bounds."""
        gradient_PR = log_loss(self.law, self._effective(vector_P), self.points)[1][self._inner(vector_P)]
        lengths_P = np.linalg.norm(gradient_PR, axis=1, keepdims=True)
        if not lengths_P.all():
            return False
        singular = np.linalg.svd(gradient_PR / lengths_P, compute_uv=False)
        return bool(singular[-1] > _FLAT * singular[0])

    def _natural(self, vector_P: Floats) -> Parameters:
        values = Parameters.of(self._effective(vector_P), self.law)
        exponent_Q = self.law.to_tokens(values.exponent_Q, self.log_unit_tokens)
        coefficient_T = values.log_coefficient_T + self._shift(values.exponent_Q, exponent_Q)
        log_size = values.log_size + values.size_exponent * self.log_unit_size
        return Parameters(values.log_floor_K, log_size, coefficient_T, values.size_exponent, exponent_Q)

    def vector(self, parameters: Parameters) -> Floats:
        """Return the parameters in this problem's units: what `_natural` undoes."""
        exponent_Q = self.law.to_tokens(parameters.exponent_Q, -self.log_unit_tokens)
        log_size = parameters.log_size - parameters.size_exponent * self.log_unit_size if self.has_sizes else 0.0
        coefficient_T = parameters.log_coefficient_T - self._shift(exponent_Q, parameters.exponent_Q)
        return Parameters(parameters.log_floor_K, log_size, coefficient_T, parameters.size_exponent, exponent_Q).vector()

    def _shift(self, in_units_Q: Floats, natural_Q: Floats) -> Floats:
        """Return (T,) what counting tokens one by one adds to the logs of coefficients: at one unit a term is the same."""
        one, unit = np.zeros(1), np.array([self.log_unit_tokens])
        here_T, there_T = self.law.log_shapes(in_units_Q, one, one)[0][:, 0], self.law.log_shapes(natural_Q, unit, unit)[0][:, 0]
        shift_T: Floats = here_T - there_T
        return shift_T
