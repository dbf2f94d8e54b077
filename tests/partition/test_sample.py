"""The sample: which documents it may hold, and in which order."""

from pathlib import Path

import polars as pl
import pytest

from lmsplit.partition.ids import Settle
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample, pinned_encoder, sample_rows, select_sample
from lmsplit.partition.scan import Scan, sample_is_short
from tests.partition.corpora import configuration, topical, write


def scanned(corpus: Path, output: Path, **keys: object) -> Run:
    plan = make_plan(configuration(corpus, output, **keys))
    run = Run(str(output), plan.run_id)
    run.start(plan.content, plan.here)
    for stage in (Scan(run), Settle(run)):
        stage.do(0)
    return run


def test_sample_is_the_lowest_hashes_by_unit_and_no_more_than_wanted(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(300))
    sample = select_sample(scanned(tmp_path / "in", tmp_path / "out", sample_size=40))
    assert len(sample) == 40
    assert sample["ordinal"].is_sorted()
    wider = select_sample(scanned(tmp_path / "in", tmp_path / "wider", sample_size=80)).sort("sample_hash")
    assert set(wider["doc_id"].to_list()[:40]) == set(sample["doc_id"])


def test_sample_leaves_out_the_documents_that_lost_their_id(tmp_path: Path) -> None:
    documents = topical(40)
    write(tmp_path / "in" / "a.jsonl", [*documents, *(row | {"text": "a copy"} for row in documents)])
    run = scanned(tmp_path / "in", tmp_path / "out", duplicate_ids="quarantine", heldout_fraction=0)
    sample = select_sample(run)
    assert sorted(sample["doc_id"]) == sorted(row["id"] for row in documents)
    assert "a copy" not in set(sample["text"])


def test_sample_is_short_only_while_there_are_more_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(100))
    assert not sample_is_short(scanned(tmp_path / "in", tmp_path / "all", sample_size=1000))
    monkeypatch.setattr("lmsplit.partition.scan.sample_fraction", lambda *_: 0.1)
    assert sample_is_short(scanned(tmp_path / "in", tmp_path / "few", sample_size=50))


def test_chunks_are_the_sample_cut_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.partition.sample.CHUNK_DOCUMENTS", 16)
    write(tmp_path / "in" / "a.jsonl", topical(300))
    run = scanned(tmp_path / "in", tmp_path / "out", sample_size=40)
    Sample(run).do(0)
    chunks = [sample_rows(run, chunk) for chunk in range(3)]
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert pl.concat(chunks).equals(sample_rows(run))
    assert pinned_encoder(run) is None  # lexical is fitted on the sample
