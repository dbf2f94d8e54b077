"""The fit: how much is held out, and what the sample may hold."""

from pathlib import Path

import numpy as np
import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.store import Store
from lmsplit.partition.config import Partition
from lmsplit.partition.fit import heldout_fraction, sample_is_short, select_sample
from lmsplit.partition.ids import Settle
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.scan import Scan
from tests.partition.corpora import configuration, topical, write


def asked(fraction: float) -> Partition:
    return Partition.model_validate({"input": "a", "output": "b", "domains": 2, "heldout_fraction": fraction})


@pytest.mark.parametrize(
    ("fraction", "num_documents", "shares", "expected"),
    [
        (0.01, 10**6, (50, 50), 0.01),  # 1 % of half a million is plenty
        (0.01, 10_000, (50, 50), 0.04),  # 200 of 5,000
        (0.01, 10_000, (80, 20), 0.1),  # 200 of the smaller 2,000
        (0.01, 100, (50, 50), 0.1),  # a tenth at most
        (0.01, 10_000, (100, 0), 0.1),  # an empty domain asks for all it can get
        (0.05, 10_000, (50, 50), 0.05),
        (0, 100, (50, 50), 0),
    ],
)
def test_heldout_fraction_expects_200_documents_of_the_smallest_domain(
    fraction: float, num_documents: int, shares: tuple[int, int], expected: float
) -> None:
    assert heldout_fraction(asked(fraction), num_documents, np.repeat([0, 1], shares)) == pytest.approx(expected)


def scanned(corpus: Path, output: Path, **keys: object) -> Run:
    plan = make_plan(configuration(corpus, output, **keys))
    run = Run(str(output), plan.run_id)
    run.start(plan.content, plan.here)
    for stage in (Scan(run), Settle(run, "scan")):
        stage.do(0)
    return run


def test_sample_is_the_lowest_hashes_in_order_and_no_more_than_wanted(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(300))
    run = scanned(tmp_path / "in", tmp_path / "out", sample_size=40)
    sample = select_sample(run, "scan")
    assert len(sample) == 40
    hashes = sample["sample_hash"].to_list()
    assert hashes == sorted(hashes)
    wider = select_sample(scanned(tmp_path / "in", tmp_path / "wider", sample_size=80), "scan")
    assert wider["doc_id"].to_list()[:40] == sample["doc_id"].to_list()


def test_sample_leaves_out_the_documents_that_lost_their_id(tmp_path: Path) -> None:
    documents = topical(40)
    write(tmp_path / "in" / "a.jsonl", [*documents, *(row | {"text": "a copy"} for row in documents)])
    run = scanned(tmp_path / "in", tmp_path / "out", duplicate_ids="quarantine", heldout_fraction=0)
    sample = select_sample(run, "scan")
    assert sorted(sample["doc_id"]) == sorted(row["id"] for row in documents)
    assert "a copy" not in set(sample["text"])


def test_sample_is_short_only_while_there_are_more_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(100))
    assert not sample_is_short(scanned(tmp_path / "in", tmp_path / "all", sample_size=1000), "scan")
    monkeypatch.setattr("lmsplit.partition.scan.sample_fraction", lambda *_: 0.1)
    assert sample_is_short(scanned(tmp_path / "in", tmp_path / "few", sample_size=50), "scan")


def test_nothing_is_held_out_when_so_configured(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(60))
    commit = partition(configuration(tmp_path / "in", tmp_path / "out", heldout_fraction=0))
    assert commit.body.splits == {"train": 60, "heldout": 0, "excluded": 0}
    assert (commit.body.heldout_fraction, read_commit(Store(tmp_path / "out"))[1].body.heldout_fraction) == (0, 0)
