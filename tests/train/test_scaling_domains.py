"""Laws for each domain by itself: what they predict, and when they are chosen."""

from dataclasses import replace

import numpy as np
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.plan import Question, recommend
from lmsplit.train.runs import Runs
from lmsplit.train.scaling import LAWS, Parameters
from lmsplit.train.scaling_choice import choose
from lmsplit.train.scaling_domains import OwnFits, bootstrap_any, fit_each, of_domain
from lmsplit.train.scaling_fit import Fit, bootstrap, fit, huber_threshold, random_factors
from tests.train.laws import DOMAINS, grid, measured, truth


def differing(noise: float = 0.002, num_runs: int = 400) -> Runs:
    """Runs of domains that are learned at different paces."""
    points, loss_R = grid(num_runs), np.empty(num_runs)
    for domain in range(len(DOMAINS)):
        found = truth("F1").parameters
        paces = np.array([1 + 0.4 * domain, 1 + 0.3 * domain, 1.0])
        coefficient_T = found.log_coefficient_T + 0.5 * domain
        own = Parameters(found.log_floor_K[:1], found.log_size, coefficient_T, found.size_exponent, found.exponent_Q * paces)
        chosen_R = points.domain_R == domain
        loss_R[chosen_R] = replace(truth("F1"), parameters=own).predict(of_domain(points, domain))
    loss_R *= np.exp(np.random.default_rng(0).normal(0, noise, num_runs))
    return Runs(points, loss_R, DOMAINS)


def test_each_domain_is_fitted_by_its_own_runs() -> None:
    runs = differing()
    found = fit_each(LAWS["F1"], runs.points, runs.loss_R)
    for domain, each in enumerate(found.fits):
        chosen_R = runs.points.domain_R == domain
        alone = fit(LAWS["F1"], of_domain(runs.points, domain), runs.loss_R[chosen_R])
        assert each.parameters.vector() == pytest.approx(alone.parameters.vector())
        assert found.predict(runs.points)[chosen_R] == pytest.approx(alone.predict(of_domain(runs.points, domain)))
    assert found.residual_R == pytest.approx(np.log(found.predict(runs.points) / runs.loss_R))
    assert found.num_free == sum(each.num_free for each in found.fits)
    assert found.huber_delta == huber_threshold(found.residual_R)
    assert found.mean_relative_error() < 0.003


def test_domains_that_differ_have_laws_of_their_own() -> None:
    runs = differing()
    found = choose(runs.points, runs.loss_R)
    assert isinstance(found.fit, OwnFits)
    shared = choose(runs.points, runs.loss_R, by_domain=False)
    assert isinstance(shared.fit, Fit)
    assert found.judgements[found.law].mre < 0.5 * shared.judgements[shared.law].mre


def test_domains_that_differ_in_their_floor_alone_share_one() -> None:
    runs = measured("F1", seed=1)
    assert isinstance(choose(runs.points, runs.loss_R).fit, Fit)


def test_a_domain_with_few_runs_is_named() -> None:
    runs = measured("F1")
    few = ~((runs.points.domain_R == 2) & (np.arange(200) > 30))
    with pytest.raises(ConfigurationError, match="domain c: law F1 has 8 parameters"):
        fit_each(LAWS["F1"], runs.points.take(few), runs.loss_R[few], ("a", "b", "c", "d"))


def test_draws_are_of_the_same_kind() -> None:
    runs = differing()
    for found in (fit_each(LAWS["F1"], runs.points, runs.loss_R), fit(LAWS["F1"], runs.points, runs.loss_R)):
        draws = list(bootstrap_any(found, runs.points, runs.loss_R, 5))
        assert {type(each) for each in draws} == {type(found)}
        values = [each.predict(runs.points)[0] for each in draws]
        assert len(set(values)) == 5
        assert values == pytest.approx([found.predict(runs.points)[0]] * 5, rel=0.05)


def test_a_seeds_luck_is_drawn_for_all_domains_together() -> None:
    """Drawn for each domain alone, errors that they share would average out in the mean over domains."""
    runs = measured("F1", noise=0.001)
    found = fit_each(LAWS["F1"], runs.points, runs.loss_R)
    factors_BR = random_factors(runs.points, 3)
    seeds = np.stack([runs.points.num_parameters_R, runs.points.pretraining_R], axis=1)
    for seed in np.unique(seeds, axis=0):
        of_seed_R = (seeds == seed).all(axis=1)
        assert len(set(runs.points.domain_R[of_seed_R])) > 1
        assert all(len(set(factors)) == 1 for factors in factors_BR[:, of_seed_R].tolist())
    drawn = list(bootstrap_any(found, runs.points, runs.loss_R, 3))
    for domain, each in enumerate(found.fits):
        chosen_R = runs.points.domain_R == domain
        alone = bootstrap(each, of_domain(runs.points, domain), runs.loss_R[chosen_R], factors_BR[:, chosen_R])
        for one, both in zip(alone, drawn, strict=True):
            np.testing.assert_array_equal(one.parameters.vector(), both.fits[domain].parameters.vector())


def some_of_domain(runs: Runs, domain: int, keep: int) -> Runs:
    """Return runs with only the first so many of a domain."""
    of_domain_R = runs.points.domain_R == domain
    chosen_R = ~of_domain_R | (np.cumsum(of_domain_R) <= keep)
    return replace(runs, points=runs.points.take(chosen_R), loss_R=runs.loss_R[chosen_R])


def test_a_thin_domain_does_not_leave_the_null_law_without_rivals() -> None:
    """With 17 runs of a domain only F0, which never splits, could be fitted to each, and beat the others fitted to all."""
    runs = differing(num_runs=500)
    thin = some_of_domain(runs, 0, 17)
    found = choose(thin.points, thin.loss_R)
    assert isinstance(found.fit, Fit)
    assert found.law != "F0"
    assert not found.has_own
    noisy = some_of_domain(differing(noise=0.05, num_runs=500), 0, 17)
    warnings = recommend(noisy, Question(1e17, (2e6,), num_draws=20)).warnings
    assert any("poor fit" in each and "some of each domain, for laws of their own" in each for each in warnings), warnings


def test_a_domain_of_one_size_has_no_law_of_its_own() -> None:
    runs = differing(num_runs=500)
    chosen_R = (runs.points.domain_R != 0) | (runs.points.num_parameters_R == 4e6)
    assert isinstance(choose(runs.points, runs.loss_R).fit, OwnFits)
    assert isinstance(choose(runs.points.take(chosen_R), runs.loss_R[chosen_R]).fit, Fit)


def test_warnings_name_the_domain_whose_runs_end_early() -> None:
    runs = differing(num_runs=500)
    early_R = (runs.points.domain_R != 3) | (runs.points.pretraining_R <= 2e7)
    short = replace(runs, points=runs.points.take(early_R), loss_R=runs.loss_R[early_R])
    question = Question(6 * 2e6 * 3e8, (2e6,), law="F1", own_laws=True, num_draws=20)
    found = recommend(short, question)
    assert found.best.pretraining > 2.2e7
    expected = (
        f"extrapolates: D = {found.best.pretraining:.3g} is {found.best.pretraining / 2e7:.3g} times the largest run's of d00003"
    )
    assert expected in found.warnings


def test_a_domain_without_experts_is_named() -> None:
    runs = differing(num_runs=500)
    chosen_R = (runs.points.domain_R != 1) | (runs.points.specialization_R == 0)
    lacking = replace(runs, points=runs.points.take(chosen_R), loss_R=runs.loss_R[chosen_R])
    warnings = recommend(lacking, Question(1e17, (2e6,), law="F1", num_draws=20)).warnings
    assert any(each.startswith("no run of d00001 has specialization tokens") for each in warnings)
    with pytest.raises(ConfigurationError, match="the runs of d00001 do not pin F1 down: they have 5 of N, 5 of D, 1 of D'"):
        recommend(lacking, Question(1e17, (2e6,), law="F1", own_laws=True, num_draws=20))


def test_a_plan_with_laws_of_their_own_gives_all_domains_the_same_unless_asked() -> None:
    runs = differing()
    question = Question(1e17, (2e6,), law="F1", num_draws=20)
    found = recommend(runs, question)
    assert len(set(found.domain_tokens.values())) == 1
    constants = found.to_json()["laws"][found.choice.law]
    assert constants["by_domain"] is True
    assert set(constants["constants"]["alpha"]) == set(DOMAINS)
    own = recommend(runs, replace(question, own_laws=True))
    assert len(set(own.domain_tokens.values())) == len(DOMAINS)
    assert own.best.loss <= found.best.loss
