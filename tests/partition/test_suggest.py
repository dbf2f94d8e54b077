"""How many domains: planted mixtures, rules worked by hand, and the stage from a sample to a recommendation."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.executor import Executor
from lmsplit.manifests.placement import Floats, PlacementRule, normalised
from lmsplit.partition import suggest
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.engine import run_stage
from lmsplit.partition.ids import Settle
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample
from lmsplit.partition.scan import Scan
from lmsplit.partition.suggest import Assessment, Suggest, as_rows, as_table, assess, candidates, parts, recommend, suggestion
from tests.partition.corpora import HERE, configuration, topical, write


def mixture(num_clusters: int, num_points: int, *, noise: float = 0.5, seed: int = 0) -> Floats:
    """Gaussians around random directions, on the sphere."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num_clusters, 16))
    centres *= 4 / np.linalg.norm(centres, axis=1, keepdims=True)
    points = centres[generator.integers(num_clusters, size=num_points)] + noise * generator.normal(size=(num_points, 16))
    return normalised(points.astype(np.float32))


def assessed(by_k: dict[int, tuple[float, float]]) -> list[Assessment]:
    """Assessments of given (stability, explained)."""
    return [Assessment(k, 900, 1 - explained, explained, stability, 0.5, 2.0) for k, (stability, explained) in by_k.items()]


@pytest.mark.parametrize(("planted", "expected"), [(2, {2}), (3, {3}), (5, {4, 6}), (8, {8}), (12, {12})])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_number_is_recommended(planted: int, expected: set[int], seed: int) -> None:
    vectors = mixture(planted, 2700, seed=seed)
    found = [assess(vectors, np.ones(len(vectors)), k, seed) for k in candidates(len(vectors))]
    assert recommend(found).k in expected


def test_every_number_of_separate_clusters_is_stable_at_the_planted_one_only() -> None:
    corners = np.repeat(np.eye(4, dtype=np.float32), 150, axis=0)
    corners = normalised(corners + 0.01 * np.random.default_rng(0).normal(size=corners.shape).astype(np.float32))
    found = assess(corners, np.ones(600), 4, 0)
    assert found.stability == 1
    assert found.heldout_inertia == pytest.approx(3 * 0.01**2, rel=0.1)  # three directions across
    assert (found.smallest, found.largest) == (pytest.approx(1, abs=0.25), pytest.approx(1, abs=0.25))


def test_points_without_clusters_are_less_stable_than_the_planted_number() -> None:
    generator = np.random.default_rng(0)
    shapeless = normalised(generator.normal(size=(900, 16)).astype(np.float32))
    assert assess(shapeless, np.ones(900), 6, 0).stability < 0.4


def test_assessment_is_that_of_its_definition() -> None:
    vectors = mixture(3, 300, noise=1.5)
    weights = np.random.default_rng(1).uniform(1, 9, size=300)
    rows = parts(300, 7)
    rules = [kmeans(vectors[part], 4, 7).rule() for part in rows]
    stabilities, inertias, alone, shares = [], [], [], []
    for one in range(3):
        first, second = (rules[other].place(vectors[rows[one]]).domain for other in range(3) if other != one)
        stabilities.append(adjusted_rand_score(first, second))
        new = np.concatenate([rows[other] for other in range(3) if other != one])
        squares = ((vectors[new][:, None] - rules[one].centroids_KD) ** 2).sum(axis=2)
        inertias.append(squares.min(axis=1).mean())
        alone.append(((vectors[new] - vectors[rows[one]].mean(axis=0)) ** 2).sum(axis=1).mean())
        sizes = [weights[new][squares.argmin(axis=1) == domain].sum() for domain in range(4)]
        shares.append(np.array([min(sizes), max(sizes)]) / np.mean(sizes))
    smallest, largest = np.mean(shares, axis=0)
    explained = np.mean(1 - np.array(inertias) / np.array(alone))
    expected = (4, 300, np.mean(inertias), explained, np.mean(stabilities), smallest, largest)
    np.testing.assert_allclose(assess(vectors, weights, 4, 7), expected, rtol=1e-5)


def test_sizes_are_those_of_the_weights() -> None:
    vectors = np.repeat(np.eye(2, dtype=np.float32), 60, axis=0)
    found = assess(vectors, np.repeat([1.0, 3.0], 60), 2, 0)
    rows = parts(120, 0)
    shares = [np.repeat([1.0, 3.0], 60)[np.setdiff1d(np.arange(120), part)] for part in rows]
    assert found.smallest == pytest.approx(np.mean([2 * share[share == 1].sum() / share.sum() for share in shares]))
    assert found.smallest + found.largest == pytest.approx(2)


def test_domain_that_no_new_document_reaches_has_size_0() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    rule = PlacementRule(np.eye(3, dtype=np.float32), np.zeros(3))
    found = suggest.compare([rule] * 3, [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])], vectors, np.ones(6))
    assert found == Assessment(3, 6, 0.0, 1.0, 1.0, 0.0, 1.5)


@settings(max_examples=50, derandomize=True)
@given(st.integers(3, 5000), st.integers(0, 2**63 - 1))
def test_parts_are_disjoint_and_hold_every_document(num_documents: int, seed: int) -> None:
    found = parts(num_documents, seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(num_documents))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_same_seed_gives_the_same_assessment_and_another_seed_another() -> None:
    vectors = mixture(3, 450, noise=2)
    one, again, other = (assess(vectors, np.ones(450), 6, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@settings(max_examples=100, derandomize=True)
@given(st.integers(0, 10**7))
def test_candidates_leave_every_part_50_documents_a_domain(num_documents: int) -> None:
    found = candidates(num_documents)
    assert all(3 * 50 * k <= num_documents for k in found)
    assert not found or num_documents < 3 * 50 * 1.5 * found[-1]
    assert all(1 < larger / smaller <= 1.5 for smaller, larger in pairwise(found))


@pytest.mark.parametrize(
    ("num_documents", "expected"),
    [(0, ()), (299, ()), (300, (2,)), (449, (2,)), (450, (2, 3)), (3600, (2, 3, 4, 6, 8, 12, 16, 24))],
)
def test_candidates_by_hand(num_documents: int, expected: tuple[int, ...]) -> None:
    assert candidates(num_documents) == expected


@pytest.mark.parametrize(
    ("by_k", "expected"),
    [
        ({2: (1.0, 0.1), 3: (0.98, 0.15), 4: (0.95, 0.2), 6: (0.7, 0.25)}, 4),  # the last before stability falls
        ({2: (1.0, 0.1), 3: (0.6, 0.15), 4: (0.95, 0.2), 6: (0.7, 0.25)}, 4),  # a fall in between does not end the search
        ({2: (0.4, 0.1), 3: (0.5, 0.15), 4: (0.99, 0.2), 6: (0.7, 0.25)}, 4),  # too few is unstable as well
        ({2: (1.0, 0.16), 3: (0.8, 0.3)}, 2),  # 0.16 > 0.8^4 × 0.3 = 0.123
        ({2: (1.0, 0.12), 3: (0.8, 0.3)}, 3),
        ({2: (0.5, 0.2), 3: (1.0, 0.0125)}, 2),  # 0.0125 on both: the fewer
        ({2: (-0.5, 0.1), 3: (0.0, 0.2), 4: (-1.0, 0.3)}, 2),  # no better than chance: the fewest
        ({2: (-0.9, 0.1), 3: (0.1, 0.2)}, 3),  # disagreement squared is no agreement
        ({2: (0.9, -0.1), 3: (0.8, -0.2)}, 2),
        ({2: (0.1, 0.1)}, 2),
    ],
)
def test_most_explained_times_stability_is_recommended(by_k: dict[int, tuple[float, float]], expected: int) -> None:
    assert recommend(assessed(by_k)).k == expected


def test_reasons_give_the_evidence() -> None:
    why = recommend(assessed({2: (1.0, 0.19), 4: (0.95, 0.25), 6: (0.85, 0.26), 8: (0.7, 0.3)})).why
    assert why == (
        "4 domains explain 25% of the variance with a stability of 0.95: no other number has so much of both "
        "(explained × stability^4). Nearly as good: 2 (stability 1.00)."
    )


def test_reasons_say_that_nothing_is_stable() -> None:
    sentence = "But this is not stable (below 0.5): other documents would give other domains, so take it as a guess."
    assert sentence in recommend(assessed({2: (0.49, 0.1), 3: (0.2, 0.15)})).why
    assert sentence not in recommend(assessed({2: (0.5, 0.1), 3: (0.2, 0.15)})).why
    assert "Nearly" not in recommend(assessed({2: (0.0, 0.1), 3: (0.0, 0.15)})).why


def test_reasons_say_that_the_sample_may_be_too_small() -> None:
    sentence = "It is the largest that a sample of 900 documents can judge: a larger sample_size tries more."
    assert sentence in recommend(assessed({2: (0.9, 0.1), 3: (0.95, 0.2)})).why
    assert sentence not in recommend(assessed({2: (0.9, 0.1), 3: (0.5, 0.2)})).why


def test_rows_and_table_mark_the_recommended_number() -> None:
    assessments = assessed({2: (1.0, 0.1), 4: (0.96, 0.25), 8: (0.5, 0.3)})
    recommendation = recommend(assessments)
    rows = as_rows(assessments, recommendation)
    measures = {"heldout_inertia": 0.75, "explained": 0.25, "stability": 0.96, "smallest": 0.5, "largest": 2.0}
    assert rows[1] == {"k": 4, **measures, "recommended": True}
    assert [row["recommended"] for row in rows] == [False, True, False]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(as_table(assessments, recommendation))
    lines = capture.get().splitlines()
    assert lines[2].split() == ["4", "0.7500", "0.250", "0.960", "0.50", "2.00", "recommended"]
    assert sum("recommended" in line for line in lines) == 1


def sampled(tmp_path: Path, documents: int, texts: int | None = None) -> Run:
    """A run of a corpus on three topics, with its sample chosen; with only so many different texts."""
    rows = topical(documents)
    for number, row in enumerate(rows):
        row["text"] = rows[number % (texts or documents)]["text"]
    write(tmp_path / "in" / "a.jsonl", rows)
    plan = make_plan(configuration(tmp_path / "in", tmp_path / "out", heldout_fraction=0))
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    for stage in (Scan(run), Settle(run), Sample(run)):
        for task in range(stage.num_tasks):
            stage.do(task)
    return run


def test_stage_finds_the_three_topics_of_a_corpus(tmp_path: Path) -> None:
    run = sampled(tmp_path, 900)
    assert Suggest(run).num_tasks == 4
    run_stage(Suggest(run), Executor(workers=2))
    assessments, recommendation = suggestion(run)
    assert [assessment.k for assessment in assessments] == [2, 3, 4, 6]
    assert recommendation.k == 3
    assert {assessment.documents for assessment in assessments} == {900}
    assert assessments[1].stability > 0.95
    dataclasses.replace(Suggest(run), name="again").do(1)
    assert run.receipt("again", 1) == run.receipt("suggest", 1)


def test_number_above_the_different_texts_is_left_out(tmp_path: Path) -> None:
    run = sampled(tmp_path, 900, texts=3)
    run_stage(Suggest(run), HERE)
    assert [assessment.k for assessment in suggestion(run)[0]] == [2, 3]


def test_sample_too_small_is_said(tmp_path: Path) -> None:
    run = sampled(tmp_path, 120)
    assert Suggest(run).num_tasks == 0
    with pytest.raises(
        InputError, match="the sample has 120 documents, and --suggest needs 300 with different vectors: give a larger"
    ):
        suggestion(run)
