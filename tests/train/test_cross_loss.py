"""S, I, the routed loss and the break-even against sums by hand."""

import numpy as np
import pytest

from lmsplit.train.cross_loss import (
    break_even,
    cross_loss,
    from_records,
    interference,
    misrouting,
    routed_loss,
    specialization,
)

SEED = [4.0, 5.0, 6.0]
PLAIN = cross_loss([[3.0, 5.3, 6.6], [4.2, 4.0, 6.1], [3.9, 5.3, 4.5]], SEED)
HELD = cross_loss([[3.2, 5.0, 6.0], [4.0, 4.2, 6.0], [3.9, 5.0, 4.7]], SEED)


def test_specialization_and_interference_by_hand() -> None:
    assert specialization(PLAIN) == pytest.approx((1.0 + 1.0 + 1.5) / 3)
    assert interference(PLAIN) == pytest.approx((0.3 + 0.6 + 0.2 + 0.1 + 0.0 + 0.3) / 6)  # -0.1 is no interference
    assert interference(HELD) == pytest.approx(0)
    assert (specialization(PLAIN[:1, :1]), interference(PLAIN[:1, :1])) == (1.0, 0.0)


def test_routed_loss_by_hand() -> None:
    losses = PLAIN + SEED
    assert routed_loss(losses, misrouting(PLAIN, 0)) == pytest.approx((3 + 4 + 4.5) / 3)
    half = routed_loss(losses, misrouting(PLAIN, 0.5), [1, 0, 1])
    assert half == pytest.approx((0.5 * 3 + 0.25 * (4.2 + 3.9) + 0.5 * 4.5 + 0.25 * (6.6 + 6.1)) / 2)


def test_misrouting_to_near_domains() -> None:
    near = [[0, 1, 0], [1, 0, 0], [0.25, 0.75, 0]]
    assert misrouting(PLAIN, 0.2, near)[2].tolist() == pytest.approx([0.05, 0.15, 0.8])
    assert misrouting(PLAIN, 0.2).sum(axis=1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("seed", range(20))
def test_at_the_break_even_both_are_alike_and_beyond_it_the_other_wins(seed: int) -> None:
    generator = np.random.default_rng(seed)
    plain = generator.normal(0.3, 0.2, (4, 4)) - 1.5 * np.eye(4)
    other = plain + generator.uniform(0.05, 0.2) * np.eye(4) - generator.uniform(0.05, 0.3) * (1 - np.eye(4))
    where = generator.dirichlet(np.ones(4), 4) * (1 - np.eye(4))
    where /= where.sum(axis=1, keepdims=True)
    epsilon = break_even(plain, other, where)
    assert 0 < epsilon < 1

    def ahead(share: float) -> float:
        routes = misrouting(plain, share, where)
        return routed_loss(plain, routes) - routed_loss(other, routes)

    assert ahead(epsilon) == pytest.approx(0, abs=1e-9)
    assert ahead(epsilon - 0.01) < 0 < ahead(epsilon + 0.01)


def test_break_even_where_there_is_no_exchange() -> None:
    own = np.eye(3)
    assert break_even(PLAIN, PLAIN - 0.1 * own) == 0.0  # better on the own domain: pays at once
    assert break_even(PLAIN, PLAIN + 0.1 * own) == float("inf")  # worse there, and nowhere better
    assert break_even(PLAIN, PLAIN) == 0.0
    assert break_even(PLAIN, PLAIN - 0.1 * own + 0.2 * (1 - own)) == float("inf")  # better on the own domain alone
    assert break_even(np.array([[-0.5]]), np.array([[-0.6]])) == 0.0


def test_misrouting_needs_somewhere_to_go() -> None:
    assert misrouting(np.array([[-0.5]]), 0.0).tolist() == [[1.0]]
    with pytest.raises(ValueError, match="one expert, no text is misrouted"):
        misrouting(np.array([[-0.5]]), 0.5)
    with pytest.raises(ValueError, match="matrix of shares with 0 on its diagonal"):
        misrouting(PLAIN, 0.5, [[0, 2, -1], [1, 0, 0], [1, 0, 0]])


def test_experts_that_are_missing_are_left_out() -> None:
    seed = {"d00000": 4.0, "d00001": 5.0, "d00002": 6.0}
    table, domains = from_records({"d00002": {"d00000": 3.9, "d00001": 5.3, "d00002": 4.5}, "d00000": dict(seed)}, seed)
    assert domains == ["d00000", "d00002"]
    assert table == pytest.approx(np.array([[0, 0], [-0.1, -1.5]]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: cross_loss([1.0, 2.0], [1.0, 2.0]),
        lambda: cross_loss(np.zeros((2, 3)), [1.0, 2.0]),
        lambda: specialization(np.zeros((2, 3))),
        lambda: misrouting(PLAIN, 1.5),
        lambda: misrouting(PLAIN, 0.5, np.eye(3)),
        lambda: misrouting(PLAIN, 0.5, [[0, 0.5, 0], [1, 0, 0], [1, 0, 0]]),
    ],
)
def test_what_cannot_be_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"shape|between 0 and 1|other experts|adds up to 1"):
        call()
