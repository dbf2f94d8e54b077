"""Ids that look like an unknown one: typos are found, and the cost is bounded."""

import pyarrow as pa
import pytest

from lmsplit.manifests import similar_ids as module
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.similar_ids import similar_ids


@pytest.mark.parametrize("typo", ["bok-02", "book_02", "ook-02", "book-002", "BOOK-02", "book-02 ", "boko-02"])
def test_similar_ids_find_a_typo(golden_path, typo):
    assert "book-02" in similar_ids(Manifest.open(golden_path), typo)


def test_similar_ids_begin_with_the_most_similar(golden_path):
    found = similar_ids(Manifest.open(golden_path), "notes.jsonl:77")
    assert found[0] == "notes.jsonl:7"
    assert len(found) == len(set(found)) == 5


@pytest.mark.parametrize("doc_id", ["", "zzzzzzzz", "\udc80", "é" * 9])
def test_similar_ids_may_be_none(golden_path, doc_id):
    assert similar_ids(Manifest.open(golden_path), doc_id) == ()


def test_similar_ids_take_a_very_long_id(golden_path):
    assert similar_ids(Manifest.open(golden_path), "book-02" + "x" * 1_000_000) == ()


def test_similar_ids_compare_the_beginning_of_a_long_id(golden_path, monkeypatch):
    assert similar_ids(Manifest.open(golden_path), "book-02" + "x" * 20) == ()
    monkeypatch.setattr(module, "_MAX_CHARACTERS", 7)
    assert similar_ids(Manifest.open(golden_path), "book-02" + "x" * 20)[0] == "book-02"


def test_similar_ids_find_each_document_of_a_published_manifest(manifest_path):
    manifest = Manifest.open(manifest_path)
    ids = [doc_id for batch in manifest.documents(columns=["doc_id"]) for doc_id in batch.column("doc_id").to_pylist()]
    for doc_id in ids[::97]:
        assert similar_ids(manifest, f"{doc_id[:-2]}{doc_id[-1]}")[0] in ids
        assert doc_id in similar_ids(manifest, f"{doc_id}~")


def test_similar_ids_keep_the_best_of_many_batches(golden_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", 2)
    monkeypatch.setattr(module, "_MAX_COMPARED", 3)
    found = similar_ids(Manifest.open(golden_path), "notes.jsonl:55")
    assert found[0] == "notes.jsonl:5"
    assert len(found) <= 3


def test_similar_ids_read_no_more_of_the_index_than_allowed(golden_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", 4)
    monkeypatch.setattr(module, "_MAX_READ", 7)
    read = list(module._ids(Manifest.open(golden_path)))
    assert [len(batch) for batch in read] == [4, 3]


def test_shared_counts_eighths_of_beginning_and_end():
    ids = pa.array(["abcdefgh", "ABCDxxxx", "xxxxefgh", "abcxxfgh", "xxxxxxxx"])
    assert module._shared(ids, "abcdefgh").tolist() == [16, 4, 4, 6, 0]


def test_similar_ids_name_a_missing_index(copy_path, forger):
    (copy_path / forger.path("ids/")).unlink()
    with pytest.raises(DamagedError, match=r"cannot be read .*: run lmsplit verify --deep"):
        similar_ids(Manifest.open(copy_path), "book-022")
