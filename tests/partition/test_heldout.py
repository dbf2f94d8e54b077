"""Held-out documents and what nearly repeats them: whole runs, checked against Python sets."""

import functools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import deep
from lmsplit.manifests.errors import InputError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import heldout, units
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import configuration, rows, topical, tree, write

THRESHOLD = 0.8


@functools.cache
def shingles(text: str) -> set[tuple[str, ...]]:
    """The set of word 5-grams of a text, without anything of the project."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}


def similarity(first: str, second: str) -> float:
    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other)


def changed(text: str, num_words: int, seed: int) -> str:
    """Replace so many words, all in one place, so that few 5-grams change."""
    words = text.split()
    start = random.Random(seed).randrange(len(words) - num_words)
    return " ".join([*words[:start], *(f"changed{seed}" for _ in range(num_words)), *words[start + num_words :]])


@pytest.fixture(scope="module")
def with_near_duplicates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """300 documents of 120 words, each with three more or less changed copies in groups of their own."""
    directory = tmp_path_factory.mktemp("near")
    originals = topical(300, words=120)
    copies = [
        row | {"id": f"{row['id']}-{copy}", "group": f"{row['group']}-{copy}", "text": changed(row["text"], 1 + 8 * copy, number)}
        for copy in range(3)
        for number, row in enumerate(originals)
    ]
    write(directory / "in" / "a.jsonl", originals)
    write(directory / "in" / "b.parquet", copies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MIN_UNIT_BYTES", 60_000)
        partition(configuration(directory / "in", directory / "out", heldout_fraction=0.1))
    return directory / "in", directory / "out"


def excluded_by_hand(published: list[dict[str, Any]]) -> dict[str, float]:
    held = [row["text"] for row in published if row["split"] == "heldout"]
    others = [row for row in published if row["split"] != "heldout"]
    best = {row["doc_id"]: max(similarity(row["text"], text) for text in held) for row in others}
    return {doc_id: value for doc_id, value in best.items() if value >= THRESHOLD}


def test_excluded_are_the_near_duplicates_of_held_out_documents_and_no_others(with_near_duplicates: tuple[Path, Path]) -> None:
    published = rows(with_near_duplicates[1])
    expected = excluded_by_hand(published)
    found = {row["doc_id"] for row in published if row["split"] == "excluded"}
    assert len(expected) > 50
    assert found == set(expected)


def test_exclusions_say_which_held_out_document_and_how_similar(with_near_duplicates: tuple[Path, Path]) -> None:
    output = with_near_duplicates[1]
    published = {row["doc_id"]: row for row in rows(output)}
    said = [row for path in output.glob("exclusions/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["doc_id"] for row in said} == {doc_id for doc_id, row in published.items() if row["split"] == "excluded"}
    for row in said:
        near = published[row["heldout_doc_id"]]
        assert near["split"] == "heldout"
        assert row["similarity"] == pytest.approx(similarity(published[row["doc_id"]]["text"], near["text"]), abs=1e-6)


def test_no_group_is_on_both_sides(with_near_duplicates: tuple[Path, Path]) -> None:
    sides: dict[str, set[bool]] = {}
    for row in rows(with_near_duplicates[1]):
        sides.setdefault(row["group"], set()).add(row["split"] == "heldout")
    assert {True} in sides.values()
    assert all(len(side) == 1 for side in sides.values())


def test_manifest_with_exclusions_is_sound(with_near_duplicates: tuple[Path, Path]) -> None:
    assert verify_manifest(with_near_duplicates[1], deep=True) == []
    splits = Manifest.open(with_near_duplicates[1]).body.splits
    assert splits["excluded"] > 0
    assert sum(splits.values()) == 1200


def test_two_workers_exclude_the_same_to_the_byte(
    with_near_duplicates: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 60_000)
    partition(configuration(with_near_duplicates[0], tmp_path / "out", heldout_fraction=0.1, executor={"workers": 2}))
    assert tree(tmp_path / "out") == tree(with_near_duplicates[1])


def test_no_search_leaves_near_duplicates_in_training(with_near_duplicates: tuple[Path, Path], tmp_path: Path) -> None:
    commit = partition(
        configuration(with_near_duplicates[0], tmp_path / "out", heldout_fraction=0.1, near_duplicate_threshold=None)
    )
    assert commit.body.splits["excluded"] == 0
    assert not list((tmp_path / "out").glob("exclusions/*"))
    assert not list((tmp_path / "out" / "_work").glob("*/heldout"))


def test_higher_threshold_excludes_fewer(with_near_duplicates: tuple[Path, Path], tmp_path: Path) -> None:
    corpus, output = with_near_duplicates
    strict = partition(configuration(corpus, tmp_path / "out", heldout_fraction=0.1, near_duplicate_threshold=0.93))
    assert 0 < strict.body.splits["excluded"] < Manifest.open(output).body.splits["excluded"]


def test_duplicate_of_an_id_is_not_in_the_index(tmp_path: Path) -> None:
    documents = topical(200, words=60)
    again = [row | {"text": f"other {row['text'][::-1]}", "group": f"again {row['group']}"} for row in documents]
    write(tmp_path / "in" / "a.jsonl", [*documents, *again])
    commit = partition(configuration(tmp_path / "in", tmp_path / "out", duplicate_ids="quarantine", heldout_fraction=0.1))
    pieces = list((tmp_path / "out" / "_work").glob("*/heldout/*.parquet"))
    ids = [doc_id for path in pieces for doc_id in pq.read_table(path)["doc_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == commit.body.splits["heldout"]


def test_more_held_out_documents_than_the_index_takes_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "MAX_HELDOUT_DOCUMENTS", 2)  # the fit expects fewer: as if groups were huge
    write(tmp_path / "in" / "a.jsonl", topical(200))
    with pytest.raises(InputError, match="documents are held out, the search for near-duplicates takes 2: some groups"):
        partition(configuration(tmp_path / "in", tmp_path / "out", heldout_fraction=0.1))
    assert not (tmp_path / "out" / "commits").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda said, train: dict(list(said.items())[1:]), "a row that says why it is excluded"),
        (lambda said, train: said | {train: next(iter(said.values()))}, "split excluded"),
        (lambda said, train: dict.fromkeys(said, train), "split heldout, as others are excluded for it"),
    ],
)
def test_deep_verify_finds_reasons_that_are_not_the_documents(
    with_near_duplicates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, str], str], dict[str, str]],
    expected: str,
) -> None:
    manifest = Manifest.open(with_near_duplicates[1])
    train = next(row["doc_id"] for row in rows(with_near_duplicates[1]) if row["split"] == "train")
    said = deep._exclusions(manifest)
    assert said
    monkeypatch.setattr(deep, "_exclusions", lambda _: change(said, train))
    found = deep.verify_contents(manifest, 0, None, lambda entry: None, lambda: iter(()))
    assert [(finding.code, finding.expected) for finding in found] == [("exclusions", expected)]
