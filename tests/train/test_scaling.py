"""Scaling laws: their values, and their gradients against finite differences."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.train.scaling import LAWS, SIZE_EXPONENT, Parameters, Points, log_loss, predict
from tests.train.laws import TRUTHS, grid


def points(size: float, pretraining: float, specialization: float, domain: int = 0) -> Points:
    """Return one point."""
    return Points(np.array([size]), np.array([pretraining]), np.array([specialization]), np.array([domain]))


def by_hand(name: str, n: float, d: float, s: float, k: int) -> float:
    """Return the law of FACTS, written out."""
    values = TRUTHS[name]
    q = values.exponent_Q
    b = np.exp(values.log_coefficient_T)
    size = math.exp(values.log_floor_K[k]) + math.exp(values.log_size) / n**values.size_exponent
    if name == "F0":
        return float(size + b[0] / (d + s) ** q[0])
    if name == "F1":
        return float(size + b[0] / d ** q[0] + b[1] / (s + math.exp(q[2])) ** q[1])
    if name == "F2":
        return float(size + b[0] / (s + math.exp(q[1]) * d ** q[2]) ** q[0])
    if name == "F4":
        size -= math.exp(values.log_size) / n**values.size_exponent * (1 - (1 + s / math.exp(q[3])) ** -q[4])
    return float(size + b[0] * d ** -q[0] * (s + math.exp(q[3])) ** (-q[1] + q[2] * math.log(d)))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("where", [(1e6, 5e6, 0.0, 0), (3e7, 2e8, 4e6, 2)])
def test_predict_is_the_formula(name: str, where: tuple[float, float, float, int]) -> None:
    assert predict(LAWS[name], TRUTHS[name], points(*where))[0] == pytest.approx(by_hand(name, *where), rel=1e-12)


@pytest.mark.parametrize("name", LAWS)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_gradient_is_that_of_finite_differences(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    law = LAWS[name]
    exponents = [generator.uniform(each.low, each.high) for each in (SIZE_EXPONENT, *law.exponents)]
    sizes = generator.uniform(-2, 2, 3 + 1 + len(law.coefficients))
    parameters_P = np.concatenate([sizes, exponents])
    places = Points(
        np.exp(generator.uniform(-2, 2, 7)),
        np.exp(generator.uniform(-2, 2, 7)),
        np.append(0.0, np.exp(generator.uniform(-4, 2, 6))),
        generator.integers(0, 3, 7),
    )
    value_R, gradient_PR = log_loss(law, parameters_P, places)
    assert np.isfinite(value_R).all()
    step = 1e-6
    for index in range(len(parameters_P)):
        moved = np.zeros_like(parameters_P)
        moved[index] = step
        up, down = log_loss(law, parameters_P + moved, places)[0], log_loss(law, parameters_P - moved, places)[0]
        np.testing.assert_allclose(gradient_PR[index], (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LAWS)
def test_exponents_in_tokens_give_the_same_loss_in_any_unit(name: str) -> None:
    law, values, where = LAWS[name], TRUTHS[name], grid(50)
    unit = 1e7
    scaled = where._replace(pretraining_R=where.pretraining_R / unit, specialization_R=where.specialization_R / unit)
    exponent_Q = law.to_tokens(values.exponent_Q, -math.log(unit))
    np.testing.assert_allclose(law.to_tokens(exponent_Q, math.log(unit)), values.exponent_Q)
    one = np.zeros(1)
    there = np.full(1, math.log(unit))
    moved_T = law.log_shapes(values.exponent_Q, there, there)[0][:, 0] - law.log_shapes(exponent_Q, one, one)[0][:, 0]
    again = values._replace(exponent_Q=exponent_Q, log_coefficient_T=values.log_coefficient_T + moved_T)
    np.testing.assert_allclose(predict(law, again, scaled), predict(law, values, where))


@pytest.mark.parametrize("name", LAWS)
def test_parameters_keep_their_places_in_a_vector(name: str) -> None:
    values = TRUTHS[name]
    again = Parameters.of(values.vector(), LAWS[name])
    for one, other in zip(values, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(LAWS[name].parameter_names) == len(values.vector()) - len(values.log_floor_K)
