"""Status: how far a run is, whoever asks and whenever."""

import os
import shutil
from pathlib import Path

import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.store import LocalStore
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.status import stage_rows
from tests.partition.corpora import configuration, folder

STAGES = ["scan", "settle", "sample", "encode", "fit", "heldout", "bands", "place", "gather", "ids"]


def run_of(output: Path) -> Run:
    return Run(str(output), read_commit(LocalStore(output))[1].body.run_id)


def test_published_run_has_every_stage_done(mixed_manifest: Path) -> None:
    rows = stage_rows(run_of(mixed_manifest))
    assert [row["stage"] for row in rows] == [stage for stage in STAGES if stage != "encode"]  # lexical has nothing to do there
    assert all(row["tasks_done"] == row["tasks"] > 0 for row in rows)
    assert all(row["remaining_s"] == 0 for row in rows)
    documents = {row["stage"]: row["documents"] for row in rows}
    assert {documents[stage] for stage in ("scan", "settle", "place", "gather", "ids")} == {120}
    assert 0 < documents["fit"] < 120


def test_planned_run_has_nothing_done_and_unknown_shards(mixed_corpus: Path, tmp_path: Path) -> None:
    plan = make_plan(configuration(mixed_corpus, tmp_path / "out"))
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    rows = {row["stage"]: row for row in stage_rows(run)}
    assert list(rows) == STAGES
    assert {row["tasks_done"] for row in rows.values()} == {0}
    assert rows["encode"]["tasks"] is rows["gather"]["tasks"] is None
    assert {row["remaining_s"] for row in rows.values()} == {None}


@pytest.mark.parametrize(
    ("finished_at", "rate", "remaining"),
    [({0: 100}, None, None), ({1: 110, 0: 100, 2: 120}, 1.0, 20.0), ({0: 50, 3: 70, 1: 70, 4: 80, 2: 90}, 1.0, 0.0)],
)
def test_rate_and_time_left_come_from_the_times_of_the_receipts(
    mixed_manifest: Path, tmp_path: Path, finished_at: dict[int, int], rate: float | None, remaining: float | None
) -> None:
    shutil.copytree(mixed_manifest, tmp_path / "out")
    run = run_of(tmp_path / "out")
    run.plan["units"] = run.plan["units"][:1] * 5
    shutil.rmtree(folder(run, "place"))
    for task, second in finished_at.items():
        run.finish("place", task, {}, {"documents": 10, "quarantined": {}})
        os.utime(folder(run, f"place/{task:05d}.json"), (second, second))
    row = next(row for row in stage_rows(run) if row["stage"] == "place")
    assert (row["tasks_done"], row["documents"]) == (len(finished_at), 10 * len(finished_at))
    assert (row["documents_per_s"], row["remaining_s"]) == (rate, remaining)


def test_half_done_run_says_what_is_left(mixed_manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed_manifest, tmp_path / "out")
    run = run_of(tmp_path / "out")
    place = sorted(folder(run, "place").glob("?????.json"))
    for receipt in place[1:]:
        receipt.unlink()
    rows = {row["stage"]: row for row in stage_rows(run)}
    assert (rows["place"]["tasks_done"], rows["place"]["tasks"]) == (1, len(place))
    assert rows["gather"]["tasks"] is None
    assert rows["scan"]["tasks_done"] == rows["scan"]["tasks"]
