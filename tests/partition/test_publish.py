"""Publishing: nothing is published unless everything is there and every record is accounted for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.manifests.store import LocalStore
from lmsplit.partition.bad_records import check_bad_fraction
from lmsplit.partition.publish import publish
from lmsplit.partition.run import Run
from tests.partition.corpora import folder


@pytest.fixture
def run(mixed_manifest: Path, tmp_path: Path) -> Run:
    """A copy of a finished run, not published."""
    shutil.copytree(mixed_manifest, tmp_path / "out")
    run_id = read_commit(LocalStore(tmp_path / "out"))[1].body.run_id
    shutil.rmtree(tmp_path / "out" / "commits")
    return Run(str(tmp_path / "out"), run_id)


def change(path: Path, *keys: str, by: Any) -> None:
    """Add to a number in a receipt."""
    receipt = json.loads(path.read_text())
    inner = receipt
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] += by
    path.write_text(json.dumps(receipt))


def test_finished_run_is_published_with_the_same_body(run: Run, mixed_manifest: Path) -> None:
    assert publish(run).body == read_commit(LocalStore(mixed_manifest))[1].body
    assert publish(run) == read_commit(run.store)[1]


@pytest.mark.parametrize("stage", ["scan", "place", "gather", "ids"])
def test_missing_receipt_is_named_and_nothing_is_published(run: Run, stage: str) -> None:
    folder(run, f"{stage}/00000.json").unlink()
    with pytest.raises(LmsplitError, match=f"task 0 of stage {stage} is not done: run the same partition command again"):
        publish(run)
    assert not run.store.path("commits").exists()


@pytest.mark.parametrize(("stage", "side"), [("scan", "read"), ("place", "published")])
@pytest.mark.parametrize("unit", ["records", "bytes"])
def test_lost_record_or_byte_stops_the_publication(run: Run, stage: str, side: str, unit: str) -> None:
    change(folder(run, f"{stage}/00001.json"), side, unit, by=1)
    with pytest.raises(LmsplitError, match=r"records or bytes were lost: read .*, accounted for .*Please report this"):
        publish(run)
    assert not run.store.path("commits").exists()


@pytest.mark.parametrize(("bad", "stops"), [(0, False), (1, True)])
def test_bad_fraction_is_a_limit_and_not_a_rate_to_reach(run: Run, bad: int, stops: bool) -> None:
    receipt = json.loads(folder(run, "scan/00000.json").read_text())
    receipt["quarantined"] = {"empty_text": {"records": bad, "bytes": 0}} if bad else {}
    folder(run, "scan/00000.json").write_text(json.dumps(receipt))
    if stops:
        with pytest.raises(InputError, match=r"1 of 120 records are bad \(empty_text 1\), more than max_bad_fraction: 0.001"):
            check_bad_fraction(run, ["scan", "place"])
    else:
        check_bad_fraction(run, ["scan", "place"])


@pytest.mark.parametrize(("max_named", "named"), [(3, "d00000, d00001, d00002"), (2, "d00000, d00001 and 1 more")])
def test_domains_without_heldout_documents_are_named_as_far_as_one_can_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, max_named: int, named: str
) -> None:
    monkeypatch.setattr("lmsplit.partition.publish.MAX_NAMED", max_named)
    for path in folder(run, "gather").glob("*.json"):
        path.write_text(path.read_text().replace('"split":"heldout"', '"split":"train"'))
    publish(run)
    assert f"no document of {named} is held out" in caplog.text


def test_row_of_a_domain_sums_its_own_files(run: Run) -> None:
    publish(run)
    (path,) = run.store.path("domains").glob("*.parquet")
    for row in pq.read_table(path).to_pylist():
        files = pa.concat_tables(pq.read_table(file) for file in run.store.path(f"data/{row['domain']}").glob("*.parquet"))
        own = files.select(["split", "num_bytes", "distance"]).to_pylist()
        assert (row["num_documents"], row["num_bytes"]) == (len(own), sum(document["num_bytes"] for document in own))
        assert row["mean_distance"] == pytest.approx(sum(document["distance"] for document in own) / len(own))
        for split in ("train", "heldout", "excluded"):
            assert row[f"num_{split}"] == sum(document["split"] == split for document in own)
