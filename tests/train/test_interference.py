"""The penalties against loops over tokens in plain Python, and where they have a gradient."""

import math

import numpy as np
import pytest
import torch

from lmsplit.train.batches import RowCollator
from lmsplit.train.config import Dual, Interference
from lmsplit.train.interference import InterferenceState, penalty
from lmsplit.train.off_domain import shares_of_others

WORDS = 11
ROWS = [
    {"input_ids": [1, 2, 3, 4, 5, 6], "seq_lengths": [2, 4], "off_domain": True},
    {"input_ids": [7, 8, 9], "seq_lengths": [3], "off_domain": True},
]
PREDICTED = [[(0, 1)], [(0, 3), (0, 4), (0, 5)], [(1, 1), (1, 2)]]
"""By piece, the row and the position of each token that is predicted."""


def batch(generator: np.random.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = [row | {"reference_losses": generator.uniform(1, 4, len(row["input_ids"])).astype(np.float32)} for row in ROWS]
    found = RowCollator(0)(rows)["off_domain"]
    logits = torch.tensor(generator.normal(0, 2, (2, 6, WORDS)), dtype=torch.float32, requires_grad=True)
    return logits, found


def by_hand(logits: torch.Tensor, rows: dict[str, torch.Tensor]) -> list[list[float]]:
    """Return the excess of each token, by piece."""
    found = []
    for piece in PREDICTED:
        each = []
        for row, position in piece:
            values = logits[row, position - 1].tolist()
            target = values[ROWS[row]["input_ids"][position]]
            loss = math.log(sum(math.exp(value) for value in values)) - target
            each.append(loss - float(rows["reference_losses"][row, position]))
        found.append(each)
    return found


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_hinges_by_hand(seed: int, margin: float) -> None:
    logits, rows = batch(np.random.default_rng(seed))
    excess = by_hand(logits, rows)
    by_token = sum(max(0.0, each - margin) for piece in excess for each in piece)
    by_document = sum(len(piece) * max(0.0, sum(piece) / len(piece) - margin) for piece in excess)
    found = penalty(Interference(kind="hinge"), margin, logits, rows)
    assert found.total.item() == pytest.approx(by_token, rel=1e-5)
    assert found.num_tokens.item() == 6
    assert penalty(Interference(kind="hinge", level="document"), margin, logits, rows).total.item() == pytest.approx(
        by_document, rel=1e-5
    )
    assert by_document <= by_token + 1e-9  # the mean of a piece hides what its tokens make up for


def test_no_gradient_where_the_expert_is_no_worse() -> None:
    logits, rows = batch(np.random.default_rng(0))
    rows["reference_losses"] = torch.full_like(rows["reference_losses"], 100.0)
    for level in ("token", "document"):
        total = penalty(Interference(kind="hinge", level=level), 0.0, logits, rows).total
        (gradient,) = torch.autograd.grad(total, logits)
        assert total.item() == 0
        assert not gradient.any()


def test_gradient_is_the_losses_where_the_expert_is_worse() -> None:
    logits, rows = batch(np.random.default_rng(0))
    rows["reference_losses"] = torch.full_like(rows["reference_losses"], -100.0)
    plain = torch.autograd.grad(penalty(Interference(kind="replay"), 0.0, logits, rows).total, logits)[0]
    for level in ("token", "document"):
        found = torch.autograd.grad(penalty(Interference(kind="hinge", level=level), 0.0, logits, rows).total, logits)[0]
        torch.testing.assert_close(found, plain)


def test_divergence_by_hand() -> None:
    generator = np.random.default_rng(3)
    logits, rows = batch(generator)
    seed = torch.tensor(generator.normal(0, 2, (2, 6, WORDS)), dtype=torch.float32)
    expected = 0.0
    for piece in PREDICTED:
        for row, position in piece:
            p, q = (torch.softmax(each[row, position - 1].double(), 0) for each in (seed, logits.detach()))
            expected += float((p * (p / q).log()).sum())
    assert penalty(Interference(kind="kl"), 0.0, logits, rows, seed).total.item() == pytest.approx(expected, rel=1e-5)
    same = penalty(Interference(kind="kl"), 0.0, logits, rows, logits.detach())
    assert same.total.item() == pytest.approx(0, abs=1e-5)


def test_weight_follows_the_excess_and_stays_where_there_are_no_others() -> None:
    state = InterferenceState(1.0, 0.0)
    dual = Dual(target=0.1, rate=0.5)
    state.follow(dual, torch.tensor(3.0), torch.tensor(10))
    assert state.weight.item() == pytest.approx(1 + 0.5 * (0.3 - 0.1))
    state.follow(dual, torch.tensor(0.0), torch.tensor(0))
    assert state.weight.item() == pytest.approx(1.1)
    for _ in range(30):
        state.follow(dual, torch.tensor(0.0), torch.tensor(10))
    assert state.weight.item() == 0


def test_state_of_a_checkpoint_is_exact() -> None:
    state = InterferenceState(0.1, 0.0)
    state.raise_margin(1 / 3)
    state.follow(Dual(target=0.1, rate=0.3), torch.tensor(1.0), torch.tensor(7))
    again = InterferenceState.from_state(state.state())
    assert (again.weight, again.margin, again.noise) == (state.weight, state.margin, state.noise)


def test_rates_are_means_over_the_tokens_since_the_last_line() -> None:
    """By hand: two batches of other rows and two of own ones; the second line has own rows alone."""
    state = InterferenceState(0.5, 0.0)
    state.add(own_nats=torch.tensor(20.0), own_tokens=torch.tensor(5))
    state.add(off_nats=torch.tensor(9.0), off_excess=torch.tensor(1.5), off_tokens=torch.tensor(3))
    assert state.newest().tolist() == [1.5, 3]
    assert state.newest().tolist() == [0, 0]
    state.add(off_nats=torch.tensor(1.0), off_excess=torch.tensor(0.0), off_tokens=torch.tensor(2))
    state.add(own_nats=torch.tensor(10.0), own_tokens=torch.tensor(5))
    first = {"interference_weight": 0.5, "own_loss": 3.0, "off_domain_loss": 2.0, "off_domain_excess": pytest.approx(0.3)}
    assert state.rates(lambda sums: sums) == first
    state.add(own_nats=torch.tensor(4.0), own_tokens=torch.tensor(2))
    assert state.rates(lambda sums: 2 * sums) == {"interference_weight": 0.5, "own_loss": 2.0}  # of two processes


def test_margin_is_at_least_the_noise() -> None:
    for margin, noise, expected in ((0.0, 0.01, 0.01), (0.2, 0.01, 0.2)):
        state = InterferenceState(1.0, margin)
        state.raise_margin(noise)
        assert (state.margin, state.noise) == (expected, noise)


def test_near_domains_have_larger_shares() -> None:
    centroids = np.array([[1, 0], [0.8, 0.6], [-1, 0]], np.float32)
    own = np.array([1, 0], np.float32)
    shares = shares_of_others([10, 10, 10], centroids, own, 0.5)
    weights = [math.exp(-0.0 / 0.5), math.exp(-0.4 / 0.5), math.exp(-4.0 / 0.5)]
    assert shares == pytest.approx(np.array(weights) / sum(weights), rel=1e-5)
    assert shares_of_others([30, 10, 0], centroids, own, None).tolist() == [0.75, 0.25, 0]
    assert shares_of_others([1, 0, 1], centroids, own, 1e-4).tolist() == pytest.approx([1, 0, 0])  # no underflow to 0 / 0
    assert shares_of_others([0, 10, 10], centroids, own, 1e-4).tolist() == pytest.approx([0, 1, 0])
    assert shares_of_others([0, 0, 0], centroids, own, 0.5).tolist() == [0, 0, 0]
    assert shares_of_others([], centroids[:0], own, 0.5).tolist() == []


def test_collator_keeps_own_and_other_rows_apart() -> None:
    own = {"input_ids": [4, 4, 4, 4], "seq_lengths": [4], "off_domain": False, "reference_losses": []}
    mixed = RowCollator(0)([ROWS[1] | {"reference_losses": [0.0, 1.0, 2.0]}, own])
    assert mixed["labels"].tolist() == [[-100, 4, 4, 4]]
    assert "reference_losses" not in mixed
    assert mixed["off_domain"]["labels"].tolist() == [[-100, 8, 9]]
    assert mixed["off_domain"]["reference_losses"].tolist() == [[0.0, 1.0, 2.0]]
    assert "off_domain" not in RowCollator(0)([own])
    assert RowCollator(0)(ROWS)["input_ids"].shape[0] == 0
