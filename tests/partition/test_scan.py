"""The scan: how the sample is proposed, and widened where it came out short."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lmsplit.manifests.commit import Amount, read_commit
from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.schema import QUARANTINE
from lmsplit.manifests.store import LocalStore
from lmsplit.partition.engine import run_stage
from lmsplit.partition.hashing import keyed_hashes
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.scan import Scan, add_amounts, amounts_by_reason, heldout_hashes, sample_fraction, wider_fraction
from tests.partition import outside
from tests.partition.corpora import HERE, configuration, folder, topical, write


def started(corpus: Path, output: Path, **keys: object) -> Run:
    plan = make_plan(configuration(corpus, output, **keys))
    run = Run(str(output), plan.run_id)
    run.start(plan.content, plan.here)
    return run


def test_sample_is_the_documents_whose_keyed_hash_is_below_the_threshold(tmp_path: Path) -> None:
    documents = topical(200)
    write(tmp_path / "in" / "a.jsonl", documents)
    run = started(tmp_path / "in", tmp_path / "out", sample_size=30, seed=5)
    fraction = sample_fraction(run)
    assert fraction == pytest.approx(2 * 30 / 200)
    Scan(run).do(0)
    sample = run.table(run.receipt("scan", 0), "sample").to_pylist()
    hashes = keyed_hashes(5, "sample", [row["id"] for row in documents])
    expected = [row["id"] for row, value in zip(documents, hashes, strict=True) if value < int(fraction * 2**64)]
    assert [row["doc_id"] for row in sample] == expected
    assert all(documents[row["ordinal"]]["id"] == row["doc_id"] for row in sample)
    assert all(documents[row["ordinal"]]["text"] == row["text"] for row in sample)


def test_threshold_is_twice_what_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(1000, words=1))
    assert sample_fraction(started(tmp_path / "in", tmp_path / "out", sample_size=10)) == pytest.approx(0.02)
    assert sample_fraction(started(tmp_path / "in", tmp_path / "all", sample_size=900)) == 1.0


def test_second_threshold_follows_from_what_the_first_scan_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(1000, words=1))
    run = started(tmp_path / "in", tmp_path / "out", sample_size=10)
    run_stage(Scan(run), HERE)
    assert wider_fraction(run) == pytest.approx((3 * 10 + 100) / 1000)


def test_short_sample_is_scanned_again_and_the_second_scan_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(200))
    monkeypatch.setattr("lmsplit.partition.scan.sample_fraction", lambda run: 0.05)
    partition(configuration(tmp_path / "in", tmp_path / "out", sample_size=100))
    run = Run(str(tmp_path / "out"), read_commit(LocalStore(tmp_path / "out"))[1].body.run_id)
    assert [path.name for path in sorted(folder(run, ".").glob("*scan"))] == ["rescan", "scan"]
    assert run.receipt("fit", 0)["documents"] == 100
    outside.check(tmp_path / "out", tmp_path / "in")


def test_second_scan_has_no_task_where_the_first_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(200))
    run = started(tmp_path / "in", tmp_path / "out", sample_size=100)
    with pytest.raises(LmsplitError, match="task 0 of stage scan is not done"):
        _ = Scan(run, "rescan").num_tasks
    run_stage(Scan(run), HERE)
    assert Scan(run, "rescan").num_tasks == 0


def test_heldout_goes_by_group_and_by_text_where_there_is_none() -> None:
    rows = pa.record_batch({"group": ["a", "a", None, None, None], "text": ["x", "y", "x", "x", "a"]})
    hashes = heldout_hashes(0, rows)
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[3]
    assert len(set(hashes.tolist())) == 3  # the group "a" is not the text "a"
    assert hashes[4] == keyed_hashes(0, "heldout", ["ta"])[0]


def test_amounts_are_counted_by_reason_and_added() -> None:
    row = dict.fromkeys(QUARANTINE.names, "") | {"source_row": 0, "byte_offset": 0, "record": b""}
    given = [row | {"reason": reason, "num_bytes": size} for reason, size in (("a", 3), ("b", 5), ("a", 0))]
    counted = amounts_by_reason(pa.RecordBatch.from_pylist(given, QUARANTINE))
    assert counted == {"a": Amount(records=2, bytes=3), "b": Amount(records=1, bytes=5)}
    assert add_amounts(counted, {"a": Amount(records=1, bytes=1), "c": Amount(records=1, bytes=2)}) == {
        "a": Amount(records=3, bytes=4),
        "b": Amount(records=1, bytes=5),
        "c": Amount(records=1, bytes=2),
    }


def test_ids_are_listed_by_rising_hash(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(50))
    run = started(tmp_path / "in", tmp_path / "out")
    Scan(run).do(0)
    table = run.table(run.receipt("scan", 0), "ids")
    assert (np.diff(table["id_hash"].to_numpy()) > 0).all()
    assert sorted(table["ordinal"].to_pylist()) == list(range(50))
