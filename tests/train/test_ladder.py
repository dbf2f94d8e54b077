"""Proposed ladders: what they cost, how sure they are, and that a cheaper one would not do."""

import numpy as np
import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train import ladder as ladders
from lmsplit.train.ladder import Ladder, Target, propose, standard_error
from lmsplit.train.scaling import LAWS, Parameters, Points, predict
from lmsplit.train.scaling_domains import of_domain
from lmsplit.train.scaling_fit import fit

TARGET = Target(1e6, 2e7, 1e6)
SIZES = (1_000_000, 500_000, 250_000, 125_000)


def test_points_are_every_seed_on_every_domain_and_some_experts() -> None:
    ladder = Ladder((100, 200), (1000, 2000, 4000), (100, 200), 5, 2)
    points = ladder.points()
    assert len(points.domain_R) == ladder.num_points == 6 * (5 + 2 * 2)
    assert (points.specialization_R == 0).sum() == 30
    experts = points.take(points.specialization_R > 0)
    assert set(experts.domain_R) == set(range(5))


def test_flops_are_those_of_trunks_and_decays() -> None:
    ladder = Ladder((100,), (1000, 2000), (100, 200), 5, 1)
    seed = 0.8 * 2000 + 0.2 * 1000 + 0.2 * 2000
    expert = 0.8 * 200 + 0.2 * 100 + 0.2 * 200
    assert ladder.flops == pytest.approx(6 * 100 * (seed + 2 * expert))


def test_standard_error_is_the_spread_of_fits() -> None:
    ladder = Ladder(SIZES[1:], (5_000_000, 10_000_000, 20_000_000), (250_000, 500_000, 1_000_000), 3, 3)
    law, points = LAWS["F1"], of_domain(ladder.points(), 1)
    values = Parameters.of(ladders._typical(TARGET)["F1"], law)
    loss_R = predict(law, values, points)
    there = Points(*(np.full(1, value) for value in TARGET), np.zeros(1, np.int64))  # type: ignore[call-arg]
    found = []
    for seed in range(60):
        noise_R = np.exp(np.random.default_rng(seed).normal(0, ladders.NOISE, len(loss_R)))
        found.append(np.log(fit(law, points, loss_R * noise_R).predict(there)).mean())
    only = {"F1": values.vector()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladders, "_typical", lambda *_: only)
        assert standard_error(ladder, TARGET) == pytest.approx(np.std(found), rel=0.4)


def test_a_domain_whose_experts_are_of_one_seed_is_less_sure() -> None:
    turns = Ladder(SIZES[1:], (5_000_000, 10_000_000, 20_000_000), (250_000, 500_000, 1_000_000), 9, 3)
    each = Ladder(SIZES[1:], (5_000_000, 10_000_000, 20_000_000), (250_000, 500_000, 1_000_000), 9, 9)
    of_one = turns.points().domain_R == 0
    split = turns.points().take(of_one & (turns.points().specialization_R > 0))
    assert set(split.pretraining_R) == {5_000_000}  # they take turns, and it is always this seed's
    assert standard_error(turns, TARGET) > 1.5 * standard_error(each, TARGET)


def test_propose_finds_the_cheapest_that_is_sure_enough() -> None:
    found = propose(TARGET, 4, 1e16, 0.01, SIZES)
    assert found.standard_error <= 0.01
    cheaper = [each for each in ladders._candidates(TARGET, 4, SIZES) if each.flops < found.flops]
    assert cheaper
    assert min(standard_error(each, TARGET) for each in cheaper) > 0.01


def test_propose_spends_no_more_than_the_budget() -> None:
    rich = propose(TARGET, 4, 1e16, 1e-4, SIZES)
    poor = propose(TARGET, 4, rich.flops / 3, 1e-4, SIZES)
    assert poor.flops <= rich.flops / 3
    assert poor.standard_error > rich.standard_error


def test_propose_refuses_a_budget_that_pays_for_none() -> None:
    with pytest.raises(ConfigurationError, match=r"the cheapest ladder takes .* FLOPs, the budget is 1e\+06: raise it"):
        propose(TARGET, 4, 1e6, 0.01, SIZES)
