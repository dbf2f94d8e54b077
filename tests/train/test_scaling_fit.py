"""Fits of scaling laws: known constants found again, against an independent minimiser, and their intervals."""

import numpy as np
import pytest
from scipy.optimize import minimize

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import LAWS, Parameters, Points, log_loss, predict
from lmsplit.train.scaling_fit import bootstrap, fit, random_factors, spread
from tests.train.laws import TRUTHS, measured

CHINCHILLA = Parameters(np.log([1.8172]), np.log(482.01), np.log([2085.43]), 0.3478, np.array([0.3658]))
"""The constants of arXiv 2404.10102, table 1."""


def published_grid(noise: float) -> tuple[Points, np.ndarray]:
    """Return losses by Chinchilla's replicated constants at 245 runs over the range of the published grid."""
    generator = np.random.default_rng(0)
    sizes, tokens = (np.exp(generator.uniform(np.log(low), np.log(high), 245)) for low, high in ((7e7, 1.6e10), (5e9, 5e11)))
    points = Points(sizes, tokens, np.zeros(245), np.zeros(245, np.int64))
    return points, predict(LAWS["F0"], CHINCHILLA, points) * np.exp(generator.normal(0, noise, 245))


@pytest.mark.parametrize("name", LAWS)
def test_fit_finds_the_constants_of_losses_without_noise(name: str) -> None:
    runs = measured(name, noise=0.0)
    found = fit(LAWS[name], runs.points, runs.loss_R)
    assert np.abs(found.residual_R).max() < 1e-5
    np.testing.assert_allclose(found.parameters.exponent_Q[:2], TRUTHS[name].exponent_Q[:2], rtol=0.02)
    np.testing.assert_allclose(np.exp(found.parameters.log_floor_K), [1.6, 1.8, 2.0, 2.2], rtol=0.01)
    assert found.parameters.size_exponent == pytest.approx(0.348, rel=0.01)


def test_fit_recovers_chinchillas_constants() -> None:
    values = fit(LAWS["F0"], *published_grid(0.0)).parameters
    for found, published in zip(values, CHINCHILLA, strict=True):
        np.testing.assert_allclose(np.exp(found), np.exp(published), rtol=1e-3)
    noisy = fit(LAWS["F0"], *published_grid(0.003)).parameters
    assert noisy.size_exponent == pytest.approx(0.3478, abs=0.03)
    assert noisy.exponent_Q[0] == pytest.approx(0.3658, abs=0.03)


def test_fit_is_as_low_as_another_minimiser_gets() -> None:
    runs = measured("F1", noise=0.005)
    law = LAWS["F1"]
    found = fit(law, runs.points, runs.loss_R)

    def huber(parameters_P: np.ndarray) -> float:
        residual_R = np.abs(log_loss(law, parameters_P, runs.points)[0] - np.log(runs.loss_R))
        delta = found.huber_delta
        return float(np.where(residual_R < delta, residual_R**2 / 2, delta * (residual_R - delta / 2)).sum())

    other = minimize(huber, TRUTHS["F1"].vector(), method="Powell", options={"maxiter": 200})
    assert other.success
    assert huber(found.parameters.vector()) <= other.fun * (1 + 1e-3)


def test_fit_is_hardly_moved_by_runs_that_went_wrong() -> None:
    runs = measured("F2", noise=0.002)
    broken_R = runs.loss_R.copy()
    broken_R[::40] *= 1.5
    found = fit(LAWS["F2"], runs.points, broken_R)
    good = np.delete(found.residual_R, np.arange(0, 200, 40))
    assert np.abs(good).mean() < 0.004


def test_fit_of_one_size_says_nothing_about_size() -> None:
    runs = measured("F1", noise=0.0)
    same = runs.points.num_parameters_R == 4e6
    points = runs.points.take(same)
    found = fit(LAWS["F1"], points, runs.loss_R[same])
    assert found.parameters.log_size == -np.inf
    np.testing.assert_allclose(found.predict(points), runs.loss_R[same], rtol=1e-4)


def test_fit_refuses_fewer_runs_than_parameters() -> None:
    runs = measured("F1")
    chosen = np.arange(200) < 8
    with pytest.raises(ConfigurationError, match=r"law F1 has 11 parameters, and there are 8 runs to fit it to: add runs"):
        fit(LAWS["F1"], runs.points.take(chosen), runs.loss_R[chosen])


def test_bootstrap_starts_from_the_fit_and_is_repeatable() -> None:
    runs = measured("F2")
    found = fit(LAWS["F2"], runs.points, runs.loss_R)
    one, other = (list(bootstrap(found, runs.points, runs.loss_R, random_factors(runs.points, 20, seed=3))) for _ in range(2))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left.parameters.vector(), right.parameters.vector())
    shares = [each.parameters.exponent_Q[0] for each in one]
    assert min(shares) < found.parameters.exponent_Q[0] < max(shares)


def test_bootstrap_of_runs_that_share_errors_is_wider() -> None:
    """Experts of one seed share its luck: signs drawn for each run would average that out."""
    runs = measured("F1", noise=0.001)
    seeds = np.stack([runs.points.num_parameters_R, runs.points.pretraining_R], axis=1)
    _, group_R = np.unique(seeds, axis=0, return_inverse=True)
    shared = np.random.default_rng(0).normal(0, 0.005, group_R.max() + 1)[group_R.ravel()]
    mixed = np.random.default_rng(0).permutation(shared)
    spreads = []
    for noise_R in (shared, mixed):
        loss_R = runs.loss_R * np.exp(noise_R)
        found = fit(LAWS["F1"], runs.points, loss_R)
        there = runs.points.take(runs.points.num_parameters_R == 1.6e7)
        predicted = [
            each.predict(there).mean() for each in bootstrap(found, runs.points, loss_R, random_factors(runs.points, 40))
        ]
        spreads.append(np.std(predicted))
    assert spreads[0] > 1.3 * spreads[1]


def test_fit_knows_what_the_runs_do_not_tell() -> None:
    runs = measured("F1", noise=0.001)
    same = runs.points.pretraining_R == 2e7
    points, loss_R = runs.points.take(same), runs.loss_R[same]
    assert not fit(LAWS["F1"], points, loss_R).is_pinned_down
    assert fit(LAWS["F1"], runs.points, runs.loss_R).is_pinned_down


def test_spread_is_the_middle_of_the_draws_with_the_value_inside() -> None:
    draws = np.linspace(1, 3, 201)
    assert spread(2.0, draws) == pytest.approx((1.1, 2.9))
    assert spread(5.0, draws) == pytest.approx((1.1, 5.0))
