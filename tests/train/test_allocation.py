"""Spending a budget: against closed forms, conditions of optimality, and a search by brute force."""

from dataclasses import replace

import numpy as np
import pytest

from lmsplit.train.allocation import Allocation, Predictor, Supply, allocate, best_size, spend
from lmsplit.train.scaling_domains import OwnFits
from tests.train.laws import TRUTHS, truth

ENDLESS = Supply(np.full(4, np.inf), 1.0)
N = 1.6e7


def best(name: str, tokens: float, supply: Supply = ENDLESS) -> Allocation:
    """Return the best allocation of so many tokens."""
    return allocate(Predictor(truth(name), 4), N, 6 * N * tokens, supply)


def test_allocate_does_not_split_where_all_tokens_count_alike() -> None:
    found = best("F0", 1e9)
    assert found.pretraining == pytest.approx(1e9)
    assert found.pretraining_fraction == 1
    assert not found.specialization_K.any()


@pytest.mark.parametrize("tokens", [2e8, 1e9, 1e10])
def test_allocate_meets_the_condition_of_separate_contributions(tokens: float) -> None:
    found = best("F1", tokens)
    beta, gamma, offset = TRUTHS["F1"].exponent_Q
    b, c = np.exp(TRUTHS["F1"].log_coefficient_T)
    specialization = found.specialization_K[0]
    assert found.pretraining + found.specialization_K.sum() == pytest.approx(tokens)
    left = beta * b * found.pretraining ** (-beta - 1)
    right = gamma * c / 4 * (specialization + np.exp(offset)) ** (-gamma - 1)
    assert left == pytest.approx(right, rel=0.01)


@pytest.mark.parametrize("tokens", [1e6, 1e9, 1e11])
def test_allocate_is_the_closed_form_of_effective_transfer(tokens: float) -> None:
    _, log_tau, delta = TRUTHS["F2"].exponent_Q
    wanted = min(tokens, (4 * np.exp(log_tau) * delta) ** (1 / (1 - delta)))
    assert best("F2", tokens).pretraining == pytest.approx(wanted, rel=0.01)


def test_allocate_shares_what_a_domain_without_supply_cannot_take() -> None:
    supply = Supply(np.array([1e6, 1e9, 1e9, 1e9]), 1.0)
    found = best("F1", 1e9, supply)
    seen = found.pretraining / supply.tokens_K.sum()
    assert found.specialization_K[0] == pytest.approx(1e6 * (1 - seen))
    assert found.pretraining + found.specialization_K.sum() == pytest.approx(1e9)
    assert np.ptp(found.specialization_K[1:]) == pytest.approx(0, abs=1)


def test_allocate_spends_no_more_than_there_is() -> None:
    supply = Supply(np.full(4, 1e7), 2.0)
    found = best("F1", 1e10, supply)
    assert found.pretraining <= 8e7
    assert (found.specialization_K <= supply.most_specialization(np.array([found.pretraining]))[:, 0] + 1e-3).all()


@pytest.mark.parametrize("budget_over_supply", [2, 300, 1e5])
def test_allocate_splits_however_far_the_budget_is_above_the_supply(budget_over_supply: float) -> None:
    supply = Supply(np.full(4, 1e8), 4.0)
    found = best("F4", budget_over_supply * 1.6e9, supply)
    pretraining_G = np.linspace(1e7, 1.59e9, 500)
    specialization_KG = supply.most_specialization(pretraining_G)
    searched = Predictor(truth("F4"), 4).losses(N, pretraining_G, specialization_KG).mean(axis=0).min()
    assert found.loss <= searched + 1e-4
    assert found.specialization_K.min() > 0


def test_spend_by_own_laws_gives_every_domain_the_same_gain() -> None:
    values = TRUTHS["F1"]
    shifts = (-1.0, 0.0, 0.5)
    fits = [
        replace(
            truth("F1"),
            parameters=values._replace(
                log_floor_K=values.log_floor_K[:1], log_coefficient_T=values.log_coefficient_T + np.array([0, shift])
            ),
        )
        for shift in shifts
    ]
    predictor, rest = Predictor(OwnFits(tuple(fits), np.zeros(0)), 3, own_tokens=True), 3e8
    found = spend(predictor, N, 2e8, rest, Supply(np.full(3, np.inf), 1.0))
    assert found.specialization_K.sum() == pytest.approx(rest)
    _, gamma, offset = values.exponent_Q
    c_K = np.exp(values.log_coefficient_T[1] + np.array(shifts))
    gain_K = gamma * c_K * (found.specialization_K + np.exp(offset)) ** (-gamma - 1)
    np.testing.assert_allclose(gain_K, gain_K.mean(), rtol=0.05)
    even = predictor.losses(N, np.array([2e8]), np.full((3, 1), rest / 3)).mean()
    assert found.loss < even


def test_spend_by_own_laws_stops_at_a_supply() -> None:
    fits = [replace(truth("F2"), parameters=TRUTHS["F2"]._replace(log_floor_K=np.zeros(1)))] * 2
    found = spend(
        Predictor(OwnFits(tuple(fits), np.zeros(0)), 2, own_tokens=True), N, 1e6, 1e8, Supply(np.array([2e6, 1e9]), 1.0)
    )
    assert found.specialization_K[0] == pytest.approx(2e6 * (1 - 1e6 / 1.002e9))
    assert found.specialization_K.sum() == pytest.approx(1e8)


def test_best_size_is_the_best_of_all_sizes() -> None:
    predictor, budget = Predictor(truth("F1"), 4), 1e17
    found = best_size(predictor, 1e5, 1e9, budget, ENDLESS)
    searched = [allocate(predictor, size, budget, ENDLESS).loss for size in np.geomspace(1e5, 1e9, 200)]
    assert found.loss <= min(searched) + 1e-9
    assert found.flops == pytest.approx(budget)
