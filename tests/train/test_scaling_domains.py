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
from lmsplit.train.scaling_fit import Fit, fit, huber_threshold
from tests.train.laws import DOMAINS, grid, measured, truth


def differing(noise: float = 0.002) -> Runs:
    """Runs of domains that are learned at different paces."""
    points, loss_R = grid(400), np.empty(400)
    for domain in range(len(DOMAINS)):
        found = truth("F1").parameters
        paces = np.array([1 + 0.4 * domain, 1 + 0.3 * domain, 1.0])
        coefficient_T = found.log_coefficient_T + 0.5 * domain
        own = Parameters(found.log_floor_K[:1], found.log_size, coefficient_T, found.size_exponent, found.exponent_Q * paces)
        chosen_R = points.domain_R == domain
        loss_R[chosen_R] = replace(truth("F1"), parameters=own).predict(of_domain(points, domain))
    loss_R *= np.exp(np.random.default_rng(0).normal(0, noise, 400))
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
    for seed in (1, 2, 3):
        runs = measured("F1", seed=seed)
        assert isinstance(choose(runs.points, runs.loss_R).fit, Fit)


def test_a_domain_with_few_runs_is_named() -> None:
    runs = measured("F1")
    few = ~((runs.points.domain_R == 2) & (np.arange(200) > 30))
    with pytest.raises(ConfigurationError, match="domain c: law F1 has 8 parameters"):
        fit_each(LAWS["F1"], runs.points.take(few), runs.loss_R[few], ("a", "b", "c", "d"))


def test_draws_are_of_the_same_kind() -> None:
    runs = differing()
    for found in (fit_each(LAWS["F1"], runs.points, runs.loss_R), fit(LAWS["F1"], runs.points, runs.loss_R)):
        draws = bootstrap_any(found, runs.points, runs.loss_R, 5)
        assert {type(each) for each in draws} == {type(found)}
        values = [each.predict(runs.points)[0] for each in draws]
        assert len(set(values)) == 5
        assert values == pytest.approx([found.predict(runs.points)[0]] * 5, rel=0.05)


def test_a_plan_with_laws_of_their_own_gives_all_domains_the_same_unless_asked() -> None:
    runs = differing()
    question = Question(1e17, (2e6,), num_draws=20)
    found = recommend(runs, question)
    assert len(set(found.domain_tokens.values())) == 1
    constants = found.to_json()["laws"][found.choice.law]
    assert constants["by_domain"] is True
    assert set(constants["constants"]["alpha"]) == set(DOMAINS)
    own = recommend(runs, replace(question, own_laws=True))
    assert len(set(own.domain_tokens.values())) == len(DOMAINS)
    assert own.best.loss <= found.best.loss
