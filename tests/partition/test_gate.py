"""The quality gate: what is measured on a planted sample, and each finding at its limit."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from lmsplit.partition.gate import Domain, imbalance, judge, measure
from lmsplit.partition.hierarchy import fit_rule
from tests.partition.test_balance import blobs

SOUND: dict[str, Any] = {
    "coherence": 0.4,
    "stability": 0.9,
    "top_source": ["a", "b", None],
    "top_source_fraction": [0.5, 0.5, 0.0],
    "most_common_source_fraction": 0.3,
    "coinciding_fraction": [0.01, 0.01, 0.01],
}
EVEN = [Domain(100, 1000), Domain(100, 1100), Domain(100, 900)]


def measured(points_ND: np.ndarray, sources: list[str | None], num_domains: int) -> dict[str, Any]:
    weights = np.ones(len(points_ND))
    fitted = fit_rule(points_ND, weights, (num_domains,), 0)
    return measure(fitted, points_ND, weights, pl.Series(sources, dtype=pl.String), (num_domains,), 0)


def codes(domains: list[Domain] = EVEN, asked: int = 3, bound: float | None = None, **changes: Any) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in judge(SOUND | changes, domains, asked, bound)]


def test_sample_is_measured_domain_by_domain() -> None:
    points_ND = blobs(0, (300, 200, 100), noise=0.1)
    found = measured(points_ND, ["x"] * 300 + ["y"] * 150 + [None] * 50 + ["x"] * 60 + ["y"] * 40, 3)
    assert found["top_source"] == ["x", "y", "x"]
    assert found["top_source_fraction"] == pytest.approx([1.0, 0.75, 0.6])
    assert found["most_common_source_fraction"] == pytest.approx(360 / 600)
    assert found["coinciding_fraction"] == pytest.approx([1 / 300, 1 / 200, 1 / 100])
    assert found["stability"] > 0.99
    assert found["coherence"] > 0.9
    assert (found["sample_documents"], found["balance"]) == (600, None)


def test_points_that_coincide_are_counted_in_their_domain() -> None:
    points_ND = blobs(0, (100, 60), noise=0.1)
    points_ND[:30] = points_ND[0]
    assert measured(points_ND, [None] * 160, 2)["coinciding_fraction"] == pytest.approx([0.3, 1 / 60])


def test_domains_that_are_not_there_are_unstable() -> None:
    vectors = np.random.default_rng(0).standard_normal((2000, 128))
    noise_ND = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = measured(noise_ND, [None] * 2000, 8)
    assert found["stability"] < 0.2
    assert found["coherence"] < 0.05
    assert {code for code, _ in codes(stability=found["stability"], coherence=found["coherence"])} == {"stability", "coherence"}


def test_stability_is_not_measured_where_halves_are_too_small() -> None:
    assert measured(blobs(0, (30, 30)), [None] * 60, 3)["stability"] is None
    assert codes(stability=None) == []


def test_sound_domains_have_no_findings() -> None:
    assert codes() == []


@pytest.mark.parametrize(("largest", "bound", "found"), [(3900, None, False), (10_100, None, True), (1500, 1.5, False)])
def test_catch_all_is_found(largest: int, bound: float | None, found: bool) -> None:
    domains = [Domain(10, 1000)] * 2 + [Domain(10, largest)] + [Domain(10, 1000)] * 6
    changes = {key: (SOUND[key] * 3) for key in ("top_source", "top_source_fraction", "coinciding_fraction")}
    assert codes(domains, 9, bound, **changes) == ([("imbalance", "d00002")] if found else [])


def test_corpus_may_exceed_the_bound_by_five_percent() -> None:
    within, beyond = [Domain(1, 157), Domain(1, 43)], [Domain(1, 158), Domain(1, 42)]
    assert (imbalance(within), imbalance(beyond)) == (1.57, 1.58)
    assert codes(within, 2, 1.5) == []
    assert codes(beyond, 2, 1.5) == [("imbalance", "d00000")]


def test_crumb_is_found() -> None:
    assert codes([Domain(100, 1000), Domain(100, 1000), Domain(4, 35)]) == []
    assert codes([Domain(100, 1000), Domain(100, 1000), Domain(4, 30)]) == [("near_empty", "d00002")]


def test_single_source_is_found_only_where_the_corpus_has_several() -> None:
    assert codes(top_source_fraction=[0.96, 0.5, 0.94]) == [("single_source", "d00000")]
    assert codes(top_source_fraction=[0.96, 1.0, 1.0], most_common_source_fraction=0.6) == []
    assert codes(top_source_fraction=[0.0, 0.0, 0.0], most_common_source_fraction=0.0) == []


def test_collapsed_domain_is_found() -> None:
    assert codes(coinciding_fraction=[0.19, 0.21, 0.0]) == [("collapsed", "d00001")]


def test_missing_leaves_are_found() -> None:
    assert codes(asked=4) == [("fewer_domains", "fit")]


def test_findings_say_what_was_expected_and_what_to_do() -> None:
    finding = judge(SOUND | {"stability": 0.3}, EVEN, 3, None)[0]
    assert finding.expected == "adjusted Rand index between halves of the sample of at least 0.5"
    assert finding.found == "0.30"
    assert "--suggest" in finding.remedy
