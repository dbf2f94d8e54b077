"""Ways to answer on losses that are written down here, and the bootstrap against one of single documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.train.answers import Documents, compare, ways_to_answer
from lmsplit.train.routing_accuracy import by_likelihood

TOKENS = np.array([3, 1, 2])
DOMAIN = np.array([0, 1, 1])
EXPERTS = np.array([[1.0, 2.0, 4.0, 3.0, 0.5, 1.0], [2.0, 1.0, 1.0, 1.0, 2.0, 3.0]], np.float32)
SEED = np.full(6, 2.0, np.float32)


def test_the_tokens_after_the_prompt_are_judged() -> None:
    documents = Documents(TOKENS, DOMAIN, 1)
    assert documents.num_judged().tolist() == [2, 0, 1]
    assert documents.is_prompt().tolist() == [True, False, False, True, True, False]
    assert documents.judged_nats(EXPERTS).tolist() == [[6, 0, 1], [2, 0, 3]]
    assert documents.prompt_nats(EXPERTS).tolist() == [[1, 3, 0.5], [2, 1, 2]]


def test_each_way_is_what_it_says() -> None:
    weights_NK = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    ways = ways_to_answer(
        Documents(TOKENS, DOMAIN, 1), EXPERTS, {"seed": SEED}, {"routed": np.array([1, 0, 0])}, {"mixture": weights_NK}
    )
    assert {name: nats_N.tolist() for name, nats_N in ways.items() if name != "mixture"} == {
        "routed": [2, 0, 1],
        "likelihood": [6, 0, 1],  # the prompts cost 1 < 2, 3 > 1, 0.5 < 2
        "own domain": [6, 0, 3],
        "best expert": [2, 0, 1],
        "any expert": [4, 0, 2],
        "another expert": [6, 0, 3],
        "seed": [4, 0, 2],
    }
    tokens = [np.log(0.5 * np.exp(-a) + 0.5 * np.exp(-b)) for a, b in ((2, 1), (4, 1))]
    last = np.log(0.25 * np.exp(-1.0) + 0.75 * np.exp(-3.0))
    assert ways["mixture"] == pytest.approx([-sum(tokens), 0, -last], rel=1e-6)


def test_domains_count_alike_and_documents_without_tokens_do_not() -> None:
    found = compare({"a": np.array([6.0, 0.0, 1.0]), "b": np.array([2.0, 0.0, 3.0])}, np.array([2, 0, 1]), DOMAIN, 2)
    assert found.loss("a") == (6 / 2 + 1 / 1) / 2
    assert found.loss_WJ.tolist() == [[3, 1], [1, 3]]
    assert found.difference("a", "b") == (0.0, 0.0, 0.0)  # one document a domain: every draw is the same
    with pytest.raises(ValueError, match="no document has anything to judge"):
        compare({"a": np.zeros(3)}, np.zeros(3, int), DOMAIN, 2)


def test_a_domain_without_tokens_has_no_loss() -> None:
    found = compare({"a": np.array([6.0, 2.0])}, np.array([2, 0]), np.array([0, 1]), 3)
    assert found.loss("a") == 3.0
    assert np.isnan(found.loss_WJ[0, 1:]).all()


def test_intervals_are_those_of_drawing_documents_one_by_one() -> None:
    generator = np.random.default_rng(1)
    domain_N = np.repeat([0, 1, 2], 40)
    units_N = generator.integers(1, 50, 120)
    ways = {"a": generator.gamma(2, 1, 120) * units_N, "b": generator.gamma(2, 1.2, 120) * units_N}
    found = compare(ways, units_N, domain_N, 3, draws=4000)
    differences = []
    for _ in range(4000):
        losses = {name: [] for name in ways}
        for domain in range(3):
            members = generator.choice(np.flatnonzero(domain_N == domain), 40)
            for name, nats_N in ways.items():
                losses[name].append(nats_N[members].sum() / units_N[members].sum())
        differences.append(np.mean(losses["a"]) - np.mean(losses["b"]))
    _, low, high = found.difference("a", "b")
    assert [low, high] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.05)
    assert low < found.difference("a", "b")[0] < high


def test_groups_are_drawn_whole() -> None:
    generator = np.random.default_rng(2)
    group_N = np.repeat(np.arange(25), 8)
    covered = 0
    for _ in range(100):
        values_N = generator.normal(0, 2, 25)[group_N] + generator.normal(0, 1, 200)
        found = compare({"a": values_N}, np.ones(200), np.zeros(200, int), 1, group_N, draws=300)
        low, high = found.interval("a")
        covered += low <= 0 <= high
    assert covered >= 85  # of single documents it would be about 54


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 8), st.randoms(use_true_random=False))
def test_no_way_with_one_expert_is_better_than_the_best(num_experts: int, num_documents: int, prompt: int, random) -> None:
    generator = np.random.default_rng(random.getrandbits(32))
    tokens_N = generator.integers(0, 6, num_documents)
    nats_KT = generator.gamma(2, 1, (num_experts, tokens_N.sum())).astype(np.float32)
    domain_N, expert_N = generator.integers(0, num_experts, (2, num_documents))
    ways = ways_to_answer(Documents(tokens_N, domain_N, prompt), nats_KT, {}, {"routed": expert_N}, {})
    for nats_N in ways.values():
        assert (nats_N >= ways["best expert"] - 1e-6).all()
    if num_experts > 1:
        assert ((ways["routed"] + (num_experts - 1) * ways["another expert"]) / num_experts) == pytest.approx(ways["any expert"])
    assert ("another expert" in ways) == (num_experts > 1)
    whole = by_likelihood(nats_KT, tokens_N, 100)
    assert (whole == Documents(tokens_N, domain_N, 0).judged_nats(nats_KT).argmin(axis=0)).all()


def test_a_domain_without_held_out_documents_is_left_out_of_the_summary() -> None:
    from lmsplit.train.evaluate import cross_losses
    from lmsplit.train.loss_table import LossTable, Model

    models = tuple(Model(name, None, None) for name in ("seed", "d00000", "d00001", "d00002"))  # type: ignore[arg-type]
    nats_MT = np.array([[2, 2, 2], [1, 2, 3], [3, 3, 1], [4, 4, 4]], np.float32)
    facts = {"tokens_N": np.array([2, 1]), "bytes_N": np.array([4, 2]), "domain_N": np.array([0, 1])}
    table = LossTable(models, 3, nats_MT, **facts, groups=("a", "b"), doc_ids=("a", "b"), texts=("", ""))
    found = cross_losses(table, np.array([0, 0]))
    assert found["cross_loss"]["nats_per_token"] == [[-0.5, 1, None], [1, -1, None], [2, 2, None]]
    assert (found["specialization"], found["interference"]) == (0.75, 1.0)
    assert found["misrouting"][-1] == {"share": 1.0, "above_seed": 1.0}
