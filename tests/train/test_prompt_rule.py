"""The rule for prompts: against posterior probabilities written out by hand, on disk, and fitted to a real manifest."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import multivariate_normal

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ManifestError
from lmsplit.partition.pipeline import partition
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.prompt_rule import FittedRouting, PromptRule
from lmsplit.train.router import Router, Routing
from lmsplit.train.routing_fit import better_up_to, fit_prompt_rule, fit_routing
from tests.partition.corpora import configuration, topical, write
from tests.train.runs import write_configuration

MEANS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.4]])


def drawn(domains: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points around the means of some domains, and their domains."""
    random = np.random.default_rng(3)
    points = [random.multivariate_normal(MEANS[each], COVARIANCE, count) for each in domains]
    return np.concatenate(points), np.repeat(domains, count)


@pytest.mark.parametrize("domains", [[0, 1, 2], [0, 2], [1, 2]])
def test_scores_are_the_posterior_of_the_model_that_made_the_points(domains: list[int]) -> None:
    points, domain_N = drawn(domains, 20_000)
    rule = fit_prompt_rule(points, domain_N, 3)
    assert rule is not None
    asked = np.array([[0.3, 0.2], [-0.5, -0.4], [0.9, -0.6]])
    found = log_softmax(2 * rule.scores(asked), axis=1)
    logs = [multivariate_normal(MEANS[each], COVARIANCE).logpdf(asked) for each in domains]
    assert found[:, domains] == pytest.approx(log_softmax(np.stack(logs, axis=1), axis=1), abs=0.15)
    others = [each for each in range(3) if each not in domains]
    assert np.all(found[:, others] == -np.inf)


def test_nothing_to_tell_apart() -> None:
    assert fit_prompt_rule(np.eye(3), [1, 1, 1], 2) is None  # one domain
    assert fit_prompt_rule(np.eye(3), [0, 1, 2], 3) is None  # one prompt each


def test_what_is_fitted_comes_back(tmp_path: Path) -> None:
    rule = PromptRule(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -np.inf]), 70)
    assert FittedRouting.read(tmp_path, "m", (2, 3)) is None
    FittedRouting("m", 0.25, rule, 1.5).write(tmp_path)
    found = FittedRouting.read(tmp_path, "m", (2, 3))
    assert found is not None
    assert found.prompt_rule is not None
    assert (found.placement_temperature, found.prompt_temperature) == (0.25, 1.5)
    assert np.array_equal(found.prompt_rule.weights_KD, rule.weights_KD)
    assert np.array_equal(found.prompt_rule.offsets_K, rule.offsets_K)
    assert found.prompt_rule.max_characters == 70
    with pytest.raises(ManifestError, match=r"was fitted to another manifest \(m\): run lmsplit evaluate again"):
        FittedRouting.read(tmp_path, "other", (2, 3))
    with pytest.raises(ManifestError, match="is damaged"):  # another number of domains
        FittedRouting.read(tmp_path, "m", (3, 3))
    FittedRouting("m", 0.25, None, 1.0).write(tmp_path)
    assert FittedRouting.read(tmp_path, "m", (3, 3)) == FittedRouting("m", 0.25, None, 1.0)


def test_values_that_cannot_be_are_noticed(tmp_path: Path) -> None:
    weights, offsets = np.ones((2, 3), np.float32), np.zeros(2)
    for fitted in (
        FittedRouting("m", np.nan, None, 1.0),
        FittedRouting("m", 0.1, None, 0.0),
        FittedRouting("m", 0.1, PromptRule(weights * np.nan, offsets, 9), 1.0),
        FittedRouting("m", 0.1, PromptRule(weights, offsets * np.nan, 9), 1.0),
        FittedRouting("m", 0.1, PromptRule(weights, offsets[:1], 9), 1.0),
    ):
        fitted.write(tmp_path)
        with pytest.raises(ManifestError, match="run lmsplit evaluate again"):
            FittedRouting.read(tmp_path, "m", (2, 3))


def test_damage_is_noticed(tmp_path: Path) -> None:
    rule = PromptRule(np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2), 70)
    FittedRouting("m", 0.25, rule, 1.5).write(tmp_path)
    stored = tmp_path / "routing.npz"
    whole = stored.read_bytes()
    refused = 0
    for damaged in [b"", b"{}", whole[:-30], *(whole[:at] + b"\x5b" + whole[at + 1 :] for at in range(len(whole)))]:
        stored.write_bytes(damaged)
        try:
            found = FittedRouting.read(tmp_path, "m", (2, 3))
        except ManifestError:
            refused += 1
            continue
        assert found is not None
        assert found.prompt_rule is not None
        assert (found.placement_temperature, found.prompt_temperature, found.prompt_rule.max_characters) == (0.25, 1.5, 70)
        assert np.array_equal(found.prompt_rule.weights_KD, rule.weights_KD)
        assert np.array_equal(found.prompt_rule.offsets_K, rule.offsets_K)
    assert refused > len(whole) / 2


@pytest.fixture(scope="module")
def misleading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration over a manifest whose documents begin with words of the next topic."""
    directory = tmp_path_factory.mktemp("misleading")
    rows = topical(900, words=12)
    beginnings = topical(901, words=4, seed=1)[1:]
    for row, beginning in zip(rows, beginnings, strict=True):
        row["text"] = f"{beginning['text']} {row['text']}"
    write(directory / "corpus.jsonl", rows)
    keys = {"near_duplicate_threshold": None, "heldout_fraction": 0.1}
    partition(configuration(directory / "corpus.jsonl", directory / "manifest", **keys))
    return write_configuration(directory, directory / "manifest")


def prompts_of(campaign: Campaign, split: str, length: int) -> tuple[list[str], list[str]]:
    """Return the beginnings of a split's documents, and their domains."""
    rows = [row for batch in campaign.manifest.documents(split=split, columns=["text", "domain"]) for row in batch.to_pylist()]
    return campaign.encoder.beginnings([row["text"] for row in rows], length), [row["domain"] for row in rows]


def test_prompts_unlike_their_documents_are_routed_to_their_domain(misleading: Path) -> None:
    campaign = Campaign.open(load(Training, str(misleading), []))
    placement = Router.open(campaign.output, settings=Routing(by_placement=True))
    length = len(campaign.encoder.encode([topical(1, words=4)[0]["text"]])[0])
    fitted = fit_routing(campaign, placement, [length, 2 * length])
    again = fit_routing(campaign, placement, [length, 2 * length])
    assert fitted.prompt_rule is not None
    assert again.prompt_rule is not None
    assert np.array_equal(fitted.prompt_rule.weights_KD, again.prompt_rule.weights_KD)
    prompts, domains = prompts_of(campaign, "heldout", length)
    by_prompts = placement.fitted_with(fitted)
    right = {
        name: np.mean([route.domain == domain for route, domain in zip(router.route(prompts), domains, strict=True)])
        for name, router in (("placement", placement), ("prompts", by_prompts))
    }
    assert right["placement"] < 0.2  # where their words place them
    assert right["prompts"] > 0.4  # the same words stand inside documents of the next topic, and prompts may begin there
    fitted.write(campaign.output / "evaluation")
    opened = Router.open(campaign.output)
    route = opened.route(prompts[:1])[0]
    assert route == by_prompts.route(prompts[:1])[0]
    assert route.routed_by == "prompts"
    nats = sorted(2 * score for score in route.scores.values())
    assert route.margin == pytest.approx(nats[-1] - nats[-2])
    assert Router.open(campaign.output, settings=Routing(by_placement=True)).route(prompts[:1])[0].routed_by == "placement"
    nothing, short, long = opened.route(["", "dough", " ".join(["dough"] * fitted.prompt_rule.max_characters)])
    assert nothing.domain is None
    assert (short.routed_by, long.routed_by) == ("prompts", "placement")
    assert (short.temperature, long.temperature) == (fitted.prompt_temperature, fitted.placement_temperature)


@pytest.mark.parametrize(
    ("length", "right", "otherwise", "limit"),
    [
        ([], [], [], None),
        ([3, 4], [1, 0], [1, 0], None),
        ([3, 4, 5], [1, 0, 1], [0, 1, 0], 3),
        ([9, 3, 4], [1, 1, 0], [0, 0, 1], 3),
        ([3, 4, 5, 6], [0, 1, 1, 0], [1, 0, 0, 1], 5),
        ([3, 3, 4], [1, 0, 0], [0, 1, 1], None),
    ],
)
def test_the_rule_decides_up_to_where_most_are_right(
    length: list[int], right: list[int], otherwise: list[int], limit: int | None
) -> None:
    assert better_up_to(length, right, otherwise, np.ones(len(length)), range(len(length)), errors=0) == limit


@pytest.mark.parametrize("cuts", [1, 10])
def test_noise_is_no_gain(cuts: int) -> None:
    """Whatever cuts of one original have in common: which way is right is the same for all of them here."""
    random = np.random.default_rng(0)
    length, group, ones = random.integers(10, 1000, 4000), np.arange(4000) // cuts, np.ones(4000)
    taken, without_groups = 0, 0
    for _ in range(200):
        right, otherwise = (random.random((2, 4000 // cuts)) < 0.8).repeat(cuts, axis=1)
        taken += better_up_to(length, right, otherwise, ones, group) is not None
        without_groups += better_up_to(length, right, otherwise, ones, range(4000)) is not None
    assert taken <= 10
    assert cuts == 1 or without_groups > 20  # each taken for itself, their agreement looks like evidence
    right = random.random(4000) < np.where(length < 300, 0.9, 0.7)
    limit = better_up_to(length, right, random.random(4000) < 0.8, ones, range(4000))
    assert limit == pytest.approx(300, abs=60)


def test_domains_count_alike() -> None:
    length, right, otherwise = [5] * 8, [1] * 6 + [0] * 2, [0] * 6 + [1] * 2
    assert better_up_to(length, right, otherwise, [1] * 8, range(8), errors=0) == 5
    assert better_up_to(length, right, otherwise, [1 / 6] * 6 + [0.51] * 2, range(8), errors=0) is None


def test_a_rule_that_has_too_few_prompts_to_learn_from_is_not_taken(path: Path) -> None:
    campaign = Campaign.open(load(Training, str(path), []))
    placement = Router.open(campaign.output, settings=Routing(by_placement=True))
    fitted = fit_routing(campaign, placement, [4, 8])  # the manifest's own routes all of them
    assert fitted.prompt_rule is None
    prompts, domains = prompts_of(campaign, "heldout", 8)
    router = placement.fitted_with(fitted)
    assert [route.domain for route in router.route(prompts)] == domains
    assert {route.routed_by for route in router.route(prompts)} == {"placement"}
